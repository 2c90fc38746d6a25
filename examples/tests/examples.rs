//! Risk: an example that a user copies does not work. Runs each as a user would.

use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command, Stdio};

fn run(program: &str, dir: &Path) -> String {
    let output = Command::new(program).arg("data").current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_smallest_app_keeps_its_rows_from_run_to_run() {
    let dir = tempfile::tempdir().unwrap();
    for visit in 1..=2 {
        let printed = run(env!("CARGO_BIN_EXE_app"), dir.path());
        assert!(printed.starts_with(&format!("visit {visit}; ")), "{printed}");
    }
}

#[test]
fn a_pool_of_connections_loses_no_row() {
    let dir = tempfile::tempdir().unwrap();
    let printed = run(env!("CARGO_BIN_EXE_pool"), dir.path());
    assert_eq!(printed, "1000 rows from 4 threads\n");
}

/// Ends the process when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(dir: &Path, args: &[&str]) -> (Running, impl Iterator<Item = String> + use<>) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_cluster"))
        .args(args)
        .current_dir(dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    (Running(child), out.lines().map(Result::unwrap))
}

/// The number of the next row that the replica reads.
fn next_row(lines: &mut impl Iterator<Item = String>) -> u64 {
    let number = |line: String| line.strip_prefix("read row ")?.split(' ').next()?.parse().ok();
    lines.find_map(number).expect("the replica goes on")
}

#[test]
fn a_replica_in_another_process_reads_what_the_primary_commits_also_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    // Free now; the primary takes it, twice.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = socket.local_addr().unwrap().to_string();
    drop(socket);
    let (_replica, mut read) = start(dir.path(), &["replica", &addr]);
    let (primary, mut committed) = start(dir.path(), &["primary", &addr]);
    assert!(committed.next().is_some_and(|line| line.starts_with("committed ")));
    let before = next_row(&mut read);
    drop(primary); // kill -9
    let (_primary, _committed) = start(dir.path(), &["primary", &addr]);
    while next_row(&mut read) <= before + 1 {}
}
