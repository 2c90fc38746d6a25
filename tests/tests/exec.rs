//! Risk: the programs beside a node start too early, outlive it, or lose their signals and exit
//! codes; a LiteFS user's configuration means something else here.

#[path = "support/daemon.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod daemon;
#[path = "support/pair.rs"]
mod pair;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use daemon::{Daemon, done, eventually};
use litefs_vfs::rusqlite::Connection;
use pair::Place;

const BINARY: &str = env!("CARGO_BIN_EXE_litefs-daemon");

impl Place {
    /// What a program wrote into a file of this directory; empty while there is none.
    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Runs a node with a script beside it to its end. The script runs in this directory.
    fn mount(&self, config: &Path, script: &str) -> Output {
        self.command(config, script).output().unwrap()
    }

    fn command(&self, config: &Path, script: &str) -> Command {
        let mut command = Command::new(BINARY);
        command.args(["mount", "-config", config.to_str().unwrap()]);
        if !script.is_empty() {
            command.args(["--", "sh", "-c", script]);
        }
        command.current_dir(self.dir.path()).env("LITEFS", BINARY).stdin(Stdio::null());
        command
    }
}

/// A node that a test ends; killed if the test fails.
struct Running(Option<Child>);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(Some(command.stderr(Stdio::piped()).spawn().unwrap()))
    }

    fn signal(&self, name: &str) {
        let pid = self.0.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Waits for the end: the exit code and the log.
    fn end(mut self) -> (Option<i32>, String) {
        let output = self.0.take().unwrap().wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// True if that process is there, if only as a zombie.
fn is_there(pid: &str) -> bool {
    Path::new("/proc").join(pid.trim()).exists()
}

#[test]
fn the_nodes_exit_code_is_its_programs() {
    let place = Place::new();
    let config = place.config(0, "");
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 128 + 9)] {
        let output = place.mount(&config, script);
        assert_eq!(output.status.code(), Some(code), "{script}: {}", error_of(&output));
    }
    let missing = place.config(0, "exec: /no/such/program -x\n");
    let output = place.mount(&missing, "");
    assert_eq!(output.status.code(), Some(1));
    assert!(error_of(&output).contains("ERROR: cannot start /no/such/program: "));
}

/// A program elsewhere asks the node where its data is.
#[test]
fn a_data_directory_that_is_named_from_here_is_found_from_elsewhere() {
    let place = Place::new();
    let config = place.config(0, "");
    let text = fs::read_to_string(&config).unwrap();
    let absolute = place.path("data0").display().to_string();
    fs::write(&config, text.replace(&absolute, "data0")).unwrap();
    let script = format!("cd / && $LITEFS ltx list --diverged --url {} >&2", place.url(0));
    let output = place.mount(&config, &script);
    assert_eq!(output.status.code(), Some(0), "{}", error_of(&output));
    assert!(place.path("data0/node.json").exists());
}

/// A reader that has seen enough, as `head`, is no error.
#[test]
fn what_is_printed_for_nobody_is_no_failure() {
    for args in ["config example", "completions bash", "completions zsh", "help", "version"] {
        let script = format!("{{ sleep 0.2; \"$0\" {args}; echo $? >&2; }} | true");
        let output = Command::new("sh").args(["-c", &script, BINARY]).output().unwrap();
        assert_eq!(error_of(&output), "0\n", "{args}");
    }
}

/// The program still finds its node when it is told to end, and is gone when the node is.
#[test]
fn a_signal_ends_the_program_first_and_then_the_node() {
    let place = Place::new();
    let config = place.config(0, "");
    for signal in ["TERM", "INT"] {
        let script = format!(
            "trap '$LITEFS status -url {} >status; exit 3' {signal}; echo $$ >pid; \
             while :; do sleep 0.05; done",
            place.url(0)
        );
        let node = Running::start(&mut place.command(&config, &script));
        eventually("the program runs", || place.read("pid").ends_with('\n'));
        node.signal(signal);
        let (code, log) = node.end();
        assert_eq!(code, Some(3), "{log}");
        assert!(place.read("status").contains("role      primary"), "{}", place.read("status"));
        assert!(!is_there(&place.read("pid")));
        for name in ["pid", "status"] {
            fs::remove_file(place.path(name)).unwrap();
        }
    }
}

/// A stop that was asked for is no failure, for systemd.
#[test]
fn a_program_that_the_signal_ends_counts_as_success() {
    let place = Place::new();
    let script = "echo $$ >pid; exec sleep 1000";
    let node = Running::start(&mut place.command(&place.config(0, ""), script));
    eventually("the program runs", || place.read("pid").ends_with('\n'));
    node.signal("TERM");
    let (code, log) = node.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(!is_there(&place.read("pid")));
}

#[test]
fn a_list_runs_in_order_and_what_is_for_candidates_does_not_run_elsewhere() {
    let place = Place::new();
    let list = "exec:\n  - cmd: sh -c 'sleep 0.2; echo candidate >>ran'\n    \
                if-candidate: true\n  - cmd: sh -c 'sleep 0.1; echo \"for all\" >>ran'\n  \
                - cmd: sh -c 'echo last >>ran; exit 4'\n";
    let output = place.mount(&place.config(0, list), "");
    assert_eq!(output.status.code(), Some(4), "{}", error_of(&output));
    assert_eq!(place.read("ran"), "candidate\nfor all\nlast\n");

    fs::remove_file(place.path("ran")).unwrap();
    let output = place.mount(&place.config(1, &format!("skip-sync: true\n{list}")), "");
    assert_eq!(output.status.code(), Some(4), "{}", error_of(&output));
    assert_eq!(place.read("ran"), "for all\nlast\n");
}

#[test]
fn a_command_that_fails_ends_the_node_unless_exit_on_error_is_off() {
    let place = Place::new();
    let list = "exec:\n  - cmd: sh -c 'exit 5'\n  - cmd: touch started\n";
    let output = place.mount(&place.config(0, list), "");
    assert_eq!(output.status.code(), Some(1));
    assert!(error_of(&output).contains("ended with 5"), "{}", error_of(&output));

    let config = place.config(0, &format!("exit-on-error: false\n{list}"));
    let mut node = Daemon::spawn(&config);
    let log = config.with_extension("log");
    node.wait(|| fs::read_to_string(&log).unwrap().contains("staying all the same"));
    assert!(daemon::info(&place.url(0)).unwrap().is_primary, "it serves");
    assert_eq!(node.terminate().code(), Some(1));
    assert!(!place.path("started").exists());
}

#[test]
fn a_program_waits_for_the_primarys_data_unless_skip_sync_is_on() {
    let place = Place::new();
    let script = format!(
        "$LITEFS export -url {} -name app.db copy.db && mv copy.db found.db; touch started; \
         exec sleep 1000",
        place.url(1)
    );
    let skipping = place.config(1, "skip-sync: true\n");
    let output = place.mount(&skipping, "touch skipped");
    assert_eq!(output.status.code(), Some(0), "{}", error_of(&output));
    assert!(place.path("skipped").exists());

    let replica = Running::start(&mut place.command(&place.config(1, ""), &script));
    eventually("the replica answers", || daemon::info(&place.url(1)).is_some());
    assert!(!place.path("started").exists());
    // The primary has data before anybody can connect to it.
    let source = place.path("source.db");
    let rows = "CREATE TABLE t(x); INSERT INTO t VALUES (1), (2)";
    Connection::open(&source).unwrap().execute_batch(rows).unwrap();
    let data = place.path("data0");
    drop(litefs_store::Store::open(&data).unwrap());
    let (data, source) = (data.to_str().unwrap(), source.to_str().unwrap());
    done(&["import", "--data-dir", data, "--name", "app.db", source]);
    let _primary = Daemon::spawn(&place.config(0, ""));
    eventually("the program starts", || place.path("started").exists());
    let found = Connection::open(place.path("found.db")).unwrap();
    let sum: i64 = found.query_row("SELECT sum(x) FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(sum, 3, "the program started before the data was there");
    replica.signal("TERM");
    assert_eq!(replica.end().0, Some(0));
}

/// As in a container: whoever is process 1 inherits the others' children.
#[test]
fn as_process_1_it_leaves_no_zombies() {
    let place = Place::new();
    let script = "sh -c 'sleep 0.1 & echo $! >orphan'; \
                  while kill -0 $(cat orphan) 2>/dev/null; do sleep 0.05; done; exit 6";
    let config = place.config(0, "");
    let mut command = Command::new("timeout");
    command.args(["60", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.args([BINARY, "mount", "--config"]);
    command.arg(&config).args(["--", "sh", "-c", script]).current_dir(place.dir.path());
    // The script ends when the orphan is no more: kill finds zombies, too.
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(6), "{}", error_of(&output));
}

/// The same without a program of its own.
#[test]
fn as_process_1_without_programs_it_leaves_no_zombies() {
    let place = Place::new();
    let config = place.config(0, "");
    let script = "until [ -e up ]; do sleep 0.05; done & orphan=$!; \
                  { while kill -0 $orphan 2>/dev/null; do sleep 0.05; done; kill -TERM 1; } & \
                  exec $LITEFS mount --config $CONFIG";
    let mut command = Command::new("timeout");
    command.args(["60", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.args(["sh", "-c", script]).env("LITEFS", BINARY).env("CONFIG", &config);
    let node = Running::start(command.current_dir(place.dir.path()).stdin(Stdio::null()));
    eventually("the node serves", || daemon::info(&place.url(0)).is_some());
    fs::write(place.path("up"), "").unwrap();
    let (code, log) = node.end();
    assert_eq!(code, Some(0), "the orphan was not reaped: {log}");
}

#[test]
fn run_passes_on_the_exit_code_and_the_signals() {
    let place = Place::new();
    let output = daemon::litefs(&["run", "--", "sh", "-c", "exit 9"]);
    assert_eq!(output.status.code(), Some(9), "{}", error_of(&output));
    let mut command = Command::new(BINARY);
    let script = "trap 'exit 3' TERM; echo $$ >pid; while :; do sleep 0.05; done";
    command.args(["run", "--", "sh", "-c", script]).current_dir(place.dir.path());
    let program = Running::start(&mut command);
    eventually("the program runs", || place.read("pid").ends_with('\n'));
    program.signal("TERM");
    assert_eq!(program.end().0, Some(3));
    assert!(!is_there(&place.read("pid")));
}

/// Every key of LiteFS's documentation of its configuration file, with a static lease.
#[test]
fn a_configuration_with_every_key_of_litefs_starts_and_means_the_same() {
    let place = Place::new();
    fs::create_dir(place.path("mnt")).unwrap();
    let text = format!(
        r#"
exit-on-error: false
skip-sync: false
strict-verify: false
exec:
  - cmd: "sh -c 'echo migrating >>ran'"
    if-candidate: true
  - cmd: "sh -c 'cp mnt/.lag lag; $LITEFS status -json -url http://localhost:${{PORT}} >info'"
data:
  dir: "${{DIR}}/data"
  compress: true
  retention: "10m"
  retention-monitor-interval: "1m"
fuse:
  dir: "${{DIR}}/mnt"
  allow-other: ${{UNSET == "yes"}}
  debug: false
http:
  addr: "127.0.0.1:$PORT"
  snapshot-timeout: 10s
proxy:
  addr: ""
  target: ""
  db: ""
  max-lag: "10s"
  debug: false
  passthrough: ["*.ico"]
  always-forward: ["/login"]
  primary-redirect-timeout: "5s"
  read-timeout: "0s"
  read-header-timeout: "10s"
  write-timeout: "0s"
  idle-timeout: "30s"
lease:
  type: "static"
  advertise-url: "http://127.0.0.1:$PORT"
  hostname: "primary-1"
  candidate: ${{PORT == "{port}"}}
  promote: false
  demote-delay: "10s"
  reconnect-delay: "1s"
  databases: []
  consul:
    url: "http://localhost:8500"
    key: "litefs/app"
    ttl: "10s"
    lock-delay: "1s"
backup:
  type: ""
  path: ""
  url: ""
  cluster: ""
  auth-token: ""
log:
  format: "json"
  timestamp: true
  debug: false
tracing:
  enabled: true
  path: "${{DIR}}/trace.log"
  max-size: 64
  max-count: 8
  compress: true
"#,
        port = place.ports[0]
    );
    fs::write(place.path("litefs.yml"), text).unwrap();
    // No --config: it lies in the current directory, where LiteFS looks first.
    let mut command = Command::new(BINARY);
    command.arg("mount").current_dir(place.dir.path()).env("LITEFS", BINARY);
    command.env("DIR", place.dir.path()).env("PORT", place.ports[0].to_string());
    let output = command.stdin(Stdio::null()).output().unwrap();
    let log = error_of(&output);
    assert_eq!(output.status.code(), Some(0), "{log}");
    assert_eq!(place.read("ran"), "migrating\n");
    assert_eq!(place.read("lag"), "+000000000\n");
    let info: serde_json::Value = serde_json::from_str(&place.read("info")).unwrap();
    assert_eq!(info["isPrimary"], true);
    assert_eq!(info["primary"]["hostname"], "primary-1");
    assert_eq!(info["path"], place.path("data").to_str().unwrap());
    for line in log.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|_| panic!("{line}"));
    }
    assert!(place.read("trace.log").contains("this node is the primary"));
    let left = fs::read_dir(place.path("mnt")).unwrap().count();
    assert_eq!(left, 0, "it is unmounted");
}
