//! Risk: a flag or a verb that LiteFS has is taken, and does something else.

#[path = "support/daemon.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod daemon;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use daemon::{done, eventually, free_ports, info, litefs};

const BINARY: &str = env!("CARGO_BIN_EXE_litefs-daemon");

/// A node, ended and unmounted with the test.
struct Node {
    dir: PathBuf,
    url: String,
    child: Option<Child>,
}

impl Node {
    /// Writes the configuration.
    fn new(dir: &Path, port: u16, more: &str) -> Self {
        let text = format!(
            "data:\n  dir: {0}/data\nfuse:\n  dir: {0}/mount\nhttp:\n  addr: 127.0.0.1:{port}\n{more}",
            dir.display()
        );
        fs::write(dir.join("litefs.yml"), text).unwrap();
        Self { dir: dir.to_owned(), url: format!("http://127.0.0.1:{port}"), child: None }
    }

    /// Runs it in its directory, where its configuration is found, until it answers.
    fn run(&mut self, args: &[&str]) {
        let log = File::create(self.dir.join("log")).unwrap();
        let mut mount = Command::new(BINARY);
        mount.arg("mount").args(args).current_dir(&self.dir).stdin(Stdio::null()).stderr(log);
        self.child = Some(mount.spawn().unwrap());
        eventually("it is mounted", || self.dir.join("mount/.lag").exists());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap()
    }

    /// Ends it; true if that went well.
    fn end(&mut self) -> bool {
        let mut child = self.child.take().unwrap();
        Command::new("kill").arg(child.id().to_string()).status().unwrap();
        child.wait().unwrap().success()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        let mut umount = Command::new("umount");
        umount.arg("-l").arg(self.dir.join("mount"));
        let _ = umount.stderr(Stdio::null()).status();
    }
}

fn is_mounted(node: &Node) -> bool {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    mounts.contains(&format!(" {}/mount ", node.dir.display()))
}

#[test]
fn the_flags_of_mount_do_what_they_say() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::new(dir.path(), free_ports()[0], "");
    node.run(&[]);
    assert!(!node.log().contains("litefs_node::"), "{}", node.log());
    assert!(node.end() && !is_mounted(&node));
    node.run(&["-debug"]);
    // Lines then name the part that they come from.
    assert!(node.end() && node.log().contains("litefs_node::"), "{}", node.log());
    for flag in ["-fuse.debug", "-tracing"] {
        node.run(&[flag]);
        eventually("requests are logged", || {
            fs::read(node.dir.join("mount/.lag")).unwrap();
            node.log().contains("fuse: ")
        });
        assert!(node.end());
    }
    node.run(&["-skip-unmount"]);
    assert!(node.end() && is_mounted(&node), "it was to stay");
    node.run(&["-no-expand-env"]);
    assert!(node.end() && !is_mounted(&node));
}

#[test]
fn variables_are_expanded_unless_that_is_switched_off() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("litefs.yml");
    fs::write(&path, "data:\n  dir: ${NOWHERE}\nlog:\n  debug: ${NOWHERE == \"\"}\n").unwrap();
    let check = |args: &[&str]| litefs(&[&["config", "check"], args].concat());
    let path = path.to_str().unwrap();
    assert!(check(&[path]).status.success());
    let output = check(&["-no-expand-env", path]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(error.contains("litefs.yml:4: neither true nor false"), "{error}");
}

#[test]
fn logs_are_text_or_json_with_or_without_the_time() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_ports()[0];
    for (format, timestamp) in [("text", false), ("text", true), ("json", false)] {
        let more = format!("log:\n  format: {format}\n  timestamp: {timestamp}\n");
        let mut node = Node::new(dir.path(), port, &more);
        node.run(&[]);
        assert!(node.end());
        for line in node.log().lines() {
            let has_time = line.starts_with("20");
            assert_eq!(has_time, timestamp, "{line}");
            let json = serde_json::from_str::<serde_json::Value>(line);
            assert_eq!(json.is_ok(), format == "json", "{line}");
        }
        assert!(node.log().contains("this node is the primary"), "{}", node.log());
    }
}

#[test]
fn run_starts_its_program_where_it_may_write() {
    let dir = tempfile::tempdir().unwrap();
    let [port, replica_port] = free_ports();
    let mut primary = Node::new(dir.path(), port, "");
    primary.run(&[]);
    let replica_dir = tempfile::tempdir().unwrap();
    let lease =
        format!("lease:\n  type: static\n  candidate: false\n  advertise-url: {}\n", primary.url);
    let mut replica = Node::new(replica_dir.path(), replica_port, &lease);
    replica.run(&[]);
    eventually("it follows", || info(&replica.url).is_some_and(|info| info.role == "replica"));
    let echo = |node: &Node, flags: &[&str]| {
        let end = ["-url", &node.url, "--", "echo", "it runs"];
        litefs(&[&["run"], flags, &end].concat())
    };
    let printed = |node: &Node, flags: &[&str]| {
        let output = echo(node, flags);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(printed(&primary, &["-promote", "-v"]), "it runs\n");
    assert_eq!(printed(&primary, &["-if-candidate", "-promote"]), "it runs\n");
    let skipped = "node is not a candidate, skipping execution\n";
    assert_eq!(printed(&replica, &["-if-candidate"]), skipped);
    assert_eq!(printed(&replica, &["-if-candidate", "-promote"]), skipped);
    let refused = echo(&replica, &["-promote"]);
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && refused.stdout.is_empty(), "{refused:?}");
    assert!(error.contains("not a candidate"), "{error}");
}

#[test]
fn status_is_shown_over_and_over_until_it_is_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::new(dir.path(), free_ports()[0], "");
    node.run(&[]);
    let mut watch = Command::new(BINARY);
    watch.args(["status", "-watch", "-url", &node.url]).stdout(Stdio::piped());
    let mut watch = watch.spawn().unwrap();
    let lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let roles = lines.map(Result::unwrap).filter(|line| line == "role      primary");
    assert_eq!(roles.take(2).count(), 2);
    Command::new("kill").args(["-INT", &watch.id().to_string()]).status().unwrap();
    watch.wait().unwrap();
}

#[test]
fn there_is_a_manual_page_for_each_verb_and_a_version() {
    let dir = tempfile::tempdir().unwrap();
    done(&["man", dir.path().to_str().unwrap()]);
    for verb in ["mount", "run", "import", "export", "status", "promote", "config-check"] {
        let page = fs::read_to_string(dir.path().join(format!("litefs-node-{verb}.1"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{verb}: {page}");
    }
    assert!(done(&["version"]).starts_with("litefs-node "));
}
