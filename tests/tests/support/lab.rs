//! A network in namespaces: hosts, each with a network and mounts of its own, and a router between
//! them that loses packets on demand.
//!
//! Nothing of it outlives the test, however that ends: the namespaces have no names and go with the
//! processes in them, and each process asks the kernel to be killed with the thread that started
//! it. Hence labs need no addresses of their own and run side by side; and a lab's processes are
//! started from the thread that lives as long as the lab.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Sees that children die with the thread that started them. Takes a command as arguments.
const WITH_PARENT: [&str; 3] = ["setpriv", "--pdeathsig", "KILL"];

/// The router and its hosts.
#[derive(Debug)]
pub struct Lab {
    router: Holder,
    hosts: Vec<Host>,
    /// Whose packets to whom are lost.
    lost: RefCell<BTreeSet<(usize, usize)>>,
}

/// One of the hosts.
#[derive(Debug)]
pub struct Host {
    holder: Holder,
    /// Where the others reach it.
    pub addr: Ipv4Addr,
}

/// A process that does nothing in namespaces of its own.
#[derive(Debug)]
struct Holder(Process);

impl Lab {
    /// Connects that many hosts.
    pub fn new(hosts: usize) -> Self {
        let router = Holder::new();
        router.run("sh", "echo 1 > /proc/sys/net/ipv4/ip_forward");
        let hosts: Vec<Host> = (0..hosts).map(|host| Host::new(host, &router)).collect();
        Self { router, hosts, lost: RefCell::default() }
    }

    /// The host with this number, from 0.
    pub fn host(&self, host: usize) -> &Host {
        &self.hosts[host]
    }

    /// The processes that keep the namespaces.
    pub fn pids(&self) -> Vec<u32> {
        let holders = self.hosts.iter().map(|host| &host.holder).chain([&self.router]);
        holders.map(|holder| holder.0.pid()).collect()
    }

    /// From now on the router loses what these hosts send to those, silently. The way back stays
    /// open.
    pub fn cut(&self, from: &[usize], to: &[usize]) {
        let pairs = from.iter().flat_map(|&one| to.iter().map(move |&other| (one, other)));
        let mut lost = self.lost.borrow_mut();
        let new = pairs.filter(|&(one, other)| one != other && lost.insert((one, other)));
        let rules: String = new.map(|pair| format!("rule add {}\n", self.rule(pair))).collect();
        self.router.ip(&rules);
    }

    fn rule(&self, (from, to): (usize, usize)) -> String {
        let [from, to] = [from, to].map(|host| self.hosts[host].addr);
        format!("pref 1 from {from} to {to} blackhole")
    }

    /// Loses what goes between the two sides, in both directions.
    pub fn part(&self, one: &[usize], other: &[usize]) {
        self.cut(one, other);
        self.cut(other, one);
    }

    /// Parts a host from all others.
    pub fn isolate(&self, host: usize) {
        let others: Vec<usize> = (0..self.hosts.len()).filter(|&other| other != host).collect();
        self.part(&[host], &others);
    }

    /// Pulls a host's cable, which that host notices.
    pub fn unplug(&self, host: usize) {
        self.router.ip(&format!("link set host{host} down\n"));
    }

    /// Nothing is lost any more, and all cables are in.
    pub fn heal(&self) {
        let lost = self.lost.take();
        let found = lost.into_iter().map(|pair| format!("rule del {}\n", self.rule(pair)));
        self.router.ip(&found.collect::<String>());
        let up = (0..self.hosts.len()).map(|host| format!("link set host{host} up\n"));
        self.router.ip(&up.collect::<String>());
    }
}

impl Host {
    fn new(number: usize, router: &Holder) -> Self {
        let holder = Holder::new();
        let link = format!("host{number}");
        let pid = holder.0.pid();
        router.ip(&format!(
            "link add {link} type veth peer name eth0 netns {pid}\n\
             addr add 10.77.{number}.1/24 dev {link}\nlink set {link} up\n"
        ));
        holder.ip(&format!(
            "link set lo up\naddr add 10.77.{number}.2/24 dev eth0\nlink set eth0 up\n\
             route add default via 10.77.{number}.1\n"
        ));
        Self { holder, addr: Ipv4Addr::new(10, 77, number as u8, 2) }
    }

    /// A program on this host. It is killed with the thread that starts it.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        self.holder.command(program)
    }
}

impl Holder {
    fn new() -> Self {
        let mut command = Command::new(WITH_PARENT[0]);
        command.args(&WITH_PARENT[1..]).args(["unshare", "--net", "--mount"]);
        command.args(["sh", "-c", "echo; exec sleep infinity"]);
        let mut process = Process::start(command.stdin(Stdio::null()).stdout(Stdio::piped()));
        let mut line = String::new();
        let out = process.child.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        assert_eq!(line, "\n", "no network namespaces: these tests need root and `unshare --net`");
        Self(process)
    }

    fn command(&self, program: impl AsRef<Path>) -> Command {
        let [net, mount] = ["net", "mnt"].map(|kind| format!("/proc/{}/ns/{kind}", self.0.pid()));
        let mut command = Command::new(WITH_PARENT[0]);
        command.args(&WITH_PARENT[1..]).arg("nsenter");
        command.args([format!("--net={net}"), format!("--mount={mount}")]);
        command.arg("--").arg(program.as_ref());
        command
    }

    /// Runs a line of a shell.
    fn run(&self, shell: &str, line: &str) {
        assert!(self.command(shell).args(["-c", line]).status().unwrap().success(), "{line}");
    }

    /// Runs commands of `ip`, one a line.
    fn ip(&self, commands: &str) {
        let mut command = self.command("ip");
        let mut child = command.args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{commands}");
    }
}

/// A child; killed when dropped.
#[derive(Debug)]
pub struct Process {
    /// The child itself.
    pub child: Child,
}

impl Process {
    /// Starts it.
    pub fn start(command: &mut Command) -> Self {
        Self { child: command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")) }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its name, such as `STOP`.
    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Kills it like a power switch.
    pub fn kill(&mut self) {
        // Fails if it has ended by itself.
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "process {} does not end", self.pid());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Consul, on a host of the lab.
#[derive(Debug)]
pub struct Consul {
    binary: PathBuf,
    data: PathBuf,
    addr: Ipv4Addr,
    process: Option<Process>,
}

impl Consul {
    /// Starts a server that keeps its data below `dir`, and waits until it serves.
    pub fn start(host: &Host, dir: &Path) -> Self {
        let (binary, data) = (binary(), dir.join("consul"));
        let mut consul = Self { binary, data, addr: host.addr, process: None };
        consul.start_again(host);
        consul
    }

    /// Starts it after a kill.
    pub fn start_again(&mut self, host: &Host) {
        let log = self.data.with_extension("log");
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        let mut command = host.command(&self.binary);
        command.args(["agent", "-server", "-bootstrap-expect=1", "-node=consul"]);
        command.arg(format!("-bind={}", self.addr)).arg("-client=0.0.0.0");
        command.arg("-data-dir").arg(&self.data).arg("-disable-host-node-id");
        // Raft as quick as it gets, and no more than what is needed.
        command.args(["-hcl", "performance { raft_multiplier = 1 }"]);
        command.args([
            "-hcl",
            "ports { dns = -1 serf_wan = -1 }",
            "-hcl",
            "disable_update_check = true",
        ]);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.process = Some(Process::start(&mut command));
        self.wait(host);
    }

    fn wait(&mut self, host: &Host) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.ask(host, &["kv", "put", "lab/ready", "1"]).0 {
            let ended = self.process().child.try_wait().unwrap();
            let late = Instant::now() > deadline;
            assert!(ended.is_none() && !late, "Consul does not serve ({ended:?}): {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs its command line on its host; true if that succeeded, and what it printed.
    pub fn ask(&self, host: &Host, args: &[&str]) -> (bool, String) {
        let output = host.command(&self.binary).args(args).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The running agent.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("it runs")
    }

    /// Kills it; what it knows stays on the disk.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Kills it, and removes all that it knows.
    pub fn lose(&mut self) {
        self.kill();
        std::fs::remove_dir_all(&self.data).unwrap();
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.data.with_extension("log")).unwrap_or_default()
    }
}

/// Where Consul is; gets it if need be.
fn binary() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("scripts/consul");
    let output = Command::new(&script).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{} failed", script.display());
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
}
