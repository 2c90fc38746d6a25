//! Risk: an example that a user copies does not work. Runs each as a user would.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, UdpSocket};
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

const CLUSTER: &str = env!("CARGO_BIN_EXE_cluster");
const WEB: &str = env!("CARGO_BIN_EXE_web");

/// Ends the process when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(
    program: &str,
    dir: &Path,
    args: &[&str],
) -> (Running, impl Iterator<Item = String> + use<>) {
    let mut child =
        Command::new(program).args(args).current_dir(dir).stdout(Stdio::piped()).spawn().unwrap();
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
    let (_replica, mut read) = start(CLUSTER, dir.path(), &["replica", &addr]);
    let (primary, mut committed) = start(CLUSTER, dir.path(), &["primary", &addr]);
    assert!(committed.next().is_some_and(|line| line.starts_with("committed ")));
    let before = next_row(&mut read);
    drop(primary); // kill -9
    let (_primary, _committed) = start(CLUSTER, dir.path(), &["primary", &addr]);
    while next_row(&mut read) <= before + 1 {}
}

/// Sends a request to `/visits` at the address that the program prints.
fn visits(line: &str, method: &str, cookie: &str) -> String {
    let url = line.strip_prefix("serving http://").and_then(|url| url.strip_suffix("/visits"));
    let mut stream = TcpStream::connect(url.expect(line)).unwrap();
    write!(
        stream,
        "{method} /visits HTTP/1.1\r\nHost: x\r\nConnection: close\r\nCookie: {cookie}\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_web_application_gives_each_client_its_own_writes_on_every_node() {
    let dir = tempfile::tempdir().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = socket.local_addr().unwrap().to_string();
    drop(socket);
    let (_primary, mut primary) = start(WEB, dir.path(), &["primary", &addr]);
    let primary = primary.next().unwrap();
    let (_replica, mut replica) = start(WEB, dir.path(), &["replica", &addr]);
    let replica = replica.next().unwrap();
    let refused = visits(&replica, "POST", "");
    assert!(refused.starts_with("HTTP/1.1 409 "), "{refused}");
    assert!(refused.contains(&format!("litefs-primary: http://{addr}")), "{refused}");
    for round in 1..=20 {
        let written = visits(&primary, "POST", "");
        assert!(written.ends_with(&format!("visit {round}\n")), "{written}");
        let cookie = written.lines().find_map(|line| line.strip_prefix("set-cookie: "));
        let cookie = cookie.and_then(|cookie| cookie.split(';').next()).expect(&written);
        let read = visits(&replica, "GET", cookie);
        assert!(read.ends_with(&format!("\r\n\r\n{round} visits\n")), "{read}");
    }
}
