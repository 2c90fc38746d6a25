//! The lab itself: what is lost is lost, and nothing else. Otherwise the tests would prove nothing.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::lab::{Consul, Host, Lab, Process};

const LISTEN: &str = "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('0.0.0.0', 7))
print('listening', flush=True)
while True:
    text, peer = s.recvfrom(100)
    print(text.decode(), flush=True)
    s.sendto(text, peer)
";

const SEND: &str = "
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(0.3)
try:
    s.sendto(sys.argv[2].encode(), (sys.argv[1], 7))
    print(s.recv(100).decode())
except OSError:
    print('lost')
";

struct Listener {
    process: Process,
    out: BufReader<std::process::ChildStdout>,
}

impl Listener {
    fn start(host: &Host) -> Self {
        let mut command = host.command("python3");
        let command = command.args(["-c", LISTEN]).stdout(Stdio::piped());
        let mut process = Process::start(command);
        let out = BufReader::new(process.child.stdout.take().unwrap());
        let mut listener = Self { process, out };
        assert_eq!(listener.heard(), "listening");
        listener
    }

    fn heard(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

/// True if an answer came back.
fn answered(from: &Host, to: &Host, text: &str) -> bool {
    let addr = to.addr.to_string();
    let output = from.command("python3").args(["-c", SEND, &addr, text]).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim_end() == text
}

#[test]
fn packets_are_lost_where_they_are_to_be_lost_and_nowhere_else() {
    let lab = Lab::new(3);
    let mut listeners: Vec<_> = (0..3).map(|host| Listener::start(lab.host(host))).collect();
    let answered = |from: usize, to: usize, text| answered(lab.host(from), lab.host(to), text);
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        assert!(answered(from, to, "whole"), "{from} to {to}");
        assert_eq!(listeners[to].heard(), "whole");
    }

    lab.cut(&[0], &[1]);
    assert!(!answered(0, 1, "question lost"));
    assert!(!answered(1, 0, "answer lost"));
    assert_eq!(listeners[0].heard(), "answer lost", "the other direction is open");
    assert!(answered(0, 2, "other way"));
    assert_eq!(listeners[2].heard(), "other way");
    lab.heal();
    assert!(answered(0, 1, "healed"));
    assert_eq!(listeners[1].heard(), "healed", "what was lost does not come later");

    lab.isolate(2);
    assert!(!answered(0, 2, "gone") && !answered(2, 1, "gone") && answered(1, 0, "there"));
    lab.heal();
    lab.unplug(2);
    assert!(!answered(0, 2, "gone") && !answered(2, 1, "gone") && answered(1, 0, "there"));
    lab.heal();
    assert!(answered(0, 2, "back") && answered(2, 1, "back"));
    assert_eq!(listeners[2].heard(), "back");
}

#[test]
fn nothing_is_left_of_a_lab() {
    let lab = Lab::new(1);
    let pid = Listener::start(lab.host(0)).process.pid();
    let alive = |pid: u32| std::path::Path::new(&format!("/proc/{pid}")).exists();
    assert!(!alive(pid), "killed when dropped");
    // As at the end of a test that is killed: nothing is dropped.
    let left = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let lab = Lab::new(1);
            let listener = Listener::start(lab.host(0));
            let mut pids = lab.pids();
            pids.push(listener.process.pid());
            std::mem::forget((lab, listener));
            pids
        });
        thread.join().unwrap()
    });
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let ended = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    };
    while !left.iter().all(|&pid| ended(pid)) {
        assert!(std::time::Instant::now() < deadline, "processes outlive their lab");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn consul_keeps_what_it_knows_over_a_kill_and_loses_it_when_told_so() {
    let (lab, dir) = (Lab::new(2), tempfile::tempdir().unwrap());
    let mut consul = Consul::start(lab.host(1), dir.path());
    let url = format!("-http-addr=http://{}:8500", lab.host(1).addr);
    assert!(consul.ask(lab.host(0), &["kv", "put", &url, "some/key", "value"]).0);
    let read = |consul: &Consul| consul.ask(lab.host(0), &["kv", "get", &url, "some/key"]);
    consul.kill();
    assert!(!read(&consul).0);
    consul.start_again(lab.host(1));
    assert_eq!(read(&consul), (true, "value\n".to_owned()));
    consul.lose();
    consul.start_again(lab.host(1));
    assert!(!read(&consul).0);
}
