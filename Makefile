# The one door to everything that is run here. `make` lists what there is.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help test demo bench lint extension fuzz release install

# The golden LTX vectors, where they lie beside this repository. They are not part of it: without
# them, the codec is tested against its own fixtures and properties only.
VECTORS := $(abspath ../shared/ltx/vectors)
ifneq ($(wildcard $(VECTORS)/manifest.json),)
export LTX_VECTORS ?= $(VECTORS)
endif

FUZZ_SECONDS ?= 60
NIGHTLY ?= nightly

help: ## Show this list
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

test: ## Install what the tests need, and run all of them
	@scripts/setup cargo-nextest
	cargo test --workspace --doc --locked --quiet
	@if [[ -z "$${LTX_VECTORS:-}" ]]; then echo "NOTE: LTX_VECTORS is not set: the codec is not tested against golden vectors"; fi
	cargo nextest run --workspace --locked

demo: ## A primary and a replica at work
	cargo run --release --locked -p litefs-node -- demo

bench: ## Side by side with plain SQLite, one table
	cargo run --release --locked -p litefs-benches

lint: ## Formatting, clippy, documentation, licenses
	@scripts/setup cargo-deny
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo clippy -p litefs-vfs --lib --no-default-features --features extension --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
	@# Not `advisories`: their database is fetched from a place that CI may not reach.
	cargo deny --locked check bans licenses sources

extension: ## Build the VFS as a loadable extension of SQLite
	cargo rustc --release --locked -p litefs-vfs --lib --no-default-features --features extension --crate-type cdylib
	@echo "built $${CARGO_TARGET_DIR:-target}/release/liblitefs_vfs.so"

# Linked with musl, the program needs nothing of the system that it runs on.
MUSL := $(shell uname -m)-unknown-linux-musl
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
PROGRAM ?= $(firstword $(wildcard $(TARGET_DIR)/$(MUSL)/dist/litefs-node) $(TARGET_DIR)/dist/litefs-node)

release: ## Build the program for other hosts: static if musl-gcc is there
	@if command -v musl-gcc >/dev/null && rustup target add $(MUSL) 2>/dev/null; then \
		cargo build --profile dist --locked -p litefs-node --target $(MUSL); \
		echo "built $(TARGET_DIR)/$(MUSL)/dist/litefs-node (static)"; \
	else \
		cargo build --profile dist --locked -p litefs-node; \
		echo "built $(TARGET_DIR)/dist/litefs-node (needs this system's C library or a newer one)"; \
	fi

PREFIX ?= /usr/local
DEST = $(DESTDIR)$(PREFIX)

install: ## Install what `make release` built, below PREFIX (/usr/local) and DESTDIR
	@[[ -x "$(PROGRAM)" ]] || { echo "there is no $(PROGRAM): make release"; exit 1; }
	install -D -m 755 "$(PROGRAM)" "$(DEST)/bin/litefs-node"
	install -d "$(DEST)/share/man/man1" "$(DEST)/share/doc/litefs-node" "$(DEST)/lib/systemd/system"
	install -d "$(DEST)/share/bash-completion/completions" "$(DEST)/share/zsh/site-functions" "$(DEST)/share/fish/vendor_completions.d"
	"$(PROGRAM)" man "$(DEST)/share/man/man1"
	"$(PROGRAM)" completions bash >"$(DEST)/share/bash-completion/completions/litefs-node"
	"$(PROGRAM)" completions zsh >"$(DEST)/share/zsh/site-functions/_litefs-node"
	"$(PROGRAM)" completions fish >"$(DEST)/share/fish/vendor_completions.d/litefs-node.fish"
	"$(PROGRAM)" config example >"$(DEST)/share/doc/litefs-node/litefs.yml"
	sed 's|@BINDIR@|$(PREFIX)/bin|' packaging/litefs-node.service >"$(DEST)/lib/systemd/system/litefs-node.service"
	install -m 644 packaging/without-mount.conf "$(DEST)/share/doc/litefs-node/"

fuzz: ## Run each fuzz target for FUZZ_SECONDS (60)
	@scripts/setup cargo-fuzz
	scripts/fuzz $(NIGHTLY) $(FUZZ_SECONDS)
