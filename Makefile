# The one door to everything that is run here. `make` lists what there is.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help test demo bench lint extension fuzz

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

fuzz: ## Run each fuzz target for FUZZ_SECONDS (60)
	@scripts/setup cargo-fuzz
	scripts/fuzz $(NIGHTLY) $(FUZZ_SECONDS)
