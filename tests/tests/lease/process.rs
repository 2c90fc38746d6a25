//! A primary that is another process: killed, told to end, asked on the command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::consul::{Consul, loopback_ip};
use super::daemon::{Daemon, done, eventually, free_ports, info, litefs};
use super::nodes::{KEY, TestNode};

/// A daemon's configuration.
struct Setup {
    url: String,
    config: PathBuf,
}

impl Setup {
    fn new(consul: &Consul, dir: &Path) -> Self {
        let ip = loopback_ip();
        let url = format!("http://{ip}:20202");
        let text = format!(
            "data:\n  dir: {}\nhttp:\n  addr: {ip}:20202\nlease:\n  type: consul\n  \
             hostname: {ip}\n  consul:\n    url: {}\n    key: {KEY}\n",
            dir.join("data").display(),
            consul.url(),
        );
        let config = dir.join("litefs.yml");
        fs::write(&config, text).unwrap();
        Self { url, config }
    }

    /// A primary with a database that has one row in `t`.
    fn primary(&self, dir: &Path) -> Daemon {
        let mut daemon = Daemon::spawn(&self.config);
        daemon.wait(|| info(&self.url).is_some_and(|info| info.is_primary));
        let file = dir.join("seed.db");
        let seed = litefs_vfs::rusqlite::Connection::open(&file).unwrap();
        seed.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (0)").unwrap();
        done(&["import", "--url", &self.url, "--name", "db", file.to_str().unwrap()]);
        daemon
    }
}

/// A replica in this process that has everything of it.
fn replica(consul: &Consul) -> TestNode {
    let node = TestNode::start(consul);
    eventually("the replica has everything", || node.count() == 1 && node.lag().is_some());
    node
}

/// Until this node has accepted a write.
fn time_to_write(node: &TestNode, began: Instant) -> Duration {
    eventually("the other node takes writes", || node.execute("INSERT INTO t VALUES (1)").is_ok());
    assert_eq!(node.count(), 2);
    began.elapsed()
}

#[test]
fn another_node_takes_over_from_a_primary_that_is_killed() {
    let (consul, dir) = (Consul::start(), tempfile::tempdir().unwrap());
    let setup = Setup::new(&consul, dir.path());
    let daemon = setup.primary(dir.path());
    let node = replica(&consul);
    let epoch = node.store().epoch();
    let began = Instant::now();
    daemon.kill();
    let took = time_to_write(&node, began);
    println!("killed; the next write was accepted after {took:?}");
    assert!(node.store().epoch() > epoch);
    // Consul alone would take 10 to 21 s. Usual is half of this.
    assert!(took < Duration::from_secs(9), "{took:?}");
    // The one that was killed comes back, as a replica.
    let mut again = Daemon::spawn(&setup.config);
    let follows = || info(&setup.url).is_some_and(|info| info.primary.hostname == node.name());
    again.wait(follows);
    assert!(!info(&setup.url).unwrap().is_primary);
}

#[test]
fn a_primary_that_was_stopped_for_long_wakes_up_as_a_replica() {
    let (consul, dir) = (Consul::start(), tempfile::tempdir().unwrap());
    let setup = Setup::new(&consul, dir.path());
    let daemon = setup.primary(dir.path());
    let node = replica(&consul);
    let signal = |signal: &str| {
        let pid = daemon.pid().to_string();
        let kill = std::process::Command::new("kill").args([signal, &pid]).status();
        assert!(kill.unwrap().success());
    };
    let began = Instant::now();
    signal("-STOP");
    time_to_write(&node, began);
    signal("-CONT");
    eventually("it follows the new primary", || {
        info(&setup.url).is_some_and(|info| info.primary.hostname == node.name())
    });
    assert!(node.is_primary());
    let newest = node.position("db").unwrap().to_string();
    eventually("it has what was committed meanwhile", || {
        info(&setup.url).is_some_and(|info| info.databases["db"].position == newest)
    });
}

#[test]
fn a_primary_that_is_terminated_hands_over_first() {
    let (consul, dir) = (Consul::start(), tempfile::tempdir().unwrap());
    let setup = Setup::new(&consul, dir.path());
    let daemon = setup.primary(dir.path());
    let node = replica(&consul);
    let began = Instant::now();
    assert!(daemon.terminate().success());
    let took = time_to_write(&node, began);
    println!("terminated; the next write was accepted after {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn promote_on_the_command_line_moves_the_role_or_says_why_not() {
    let (consul, dir) = (Consul::start(), tempfile::tempdir().unwrap());
    let setup = Setup::new(&consul, dir.path());
    let _daemon = setup.primary(dir.path());
    let node = replica(&consul);
    let here = format!("http://{}", node.addr());
    done(&["promote", "--url", &here]);
    assert!(node.is_primary());
    done(&["promote", "-url", &here]);
    eventually("the daemon follows", || {
        info(&setup.url).is_some_and(|info| info.primary.hostname == node.name())
    });
    let status = done(&["status", "--url", &setup.url]);
    assert!(status.contains("lease     consul, replica, epoch"), "{status}");

    let nobody = format!("http://127.0.0.1:{}", free_ports()[0]);
    let output = litefs(&["promote", "--url", &nobody]);
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("no node answers"), "{text}");
}

/// `lease.promote` takes the role over, and `POST /handoff` gives it to the node that is named.
#[test]
fn a_node_that_is_to_be_promoted_takes_the_role_and_hands_it_to_who_is_named() {
    let (consul, dir) = (Consul::start(), tempfile::tempdir().unwrap());
    let node = TestNode::start(&consul);
    eventually("the first node is primary", || node.is_primary());
    node.execute("CREATE TABLE t (x); INSERT INTO t VALUES (0)").unwrap();
    let setup = Setup::new(&consul, dir.path());
    let text = fs::read_to_string(&setup.config).unwrap();
    let text = text.replace("  type: consul\n", "  type: consul\n  promote: true\n");
    fs::write(&setup.config, text).unwrap();
    let mut daemon = Daemon::spawn(&setup.config);
    daemon.wait(|| info(&setup.url).is_some_and(|info| info.is_primary));
    eventually("the other one follows", || !node.is_primary() && node.lag().is_some());
    let position = node.position("db").unwrap().to_string();
    assert_eq!(info(&setup.url).unwrap().databases["db"].position, position);

    let hand_off = |id: String| {
        let url = format!("{}/handoff?nodeID={id}", setup.url);
        let mut curl = std::process::Command::new("curl");
        curl.args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST", &url]);
        String::from_utf8(curl.output().unwrap().stdout).unwrap()
    };
    assert_eq!(hand_off("00000000000000AB".to_owned()), "500", "nobody has that id");
    assert!(info(&setup.url).unwrap().is_primary);
    assert_eq!(hand_off(format!("{:016X}", node.store().node_id())), "200");
    eventually("it has taken the role", || node.is_primary());
    node.execute("INSERT INTO t VALUES (1)").unwrap();
}
