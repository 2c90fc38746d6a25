//! `run`: starts a program beside a node, once the node may write.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use http_body_util::Empty;
use hyper::body::Bytes;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{Mode, OFlags};

use super::CliError;
use super::client::{Client, read_text};
use super::node_args::NodeArgs;
use super::supervise::{self, Signals};
use crate::http::Info;

/// The byte of `<db>-lock` that LiteFS's clients lock to write on a replica.
const HALT_BYTE: libc::off_t = 72;

/// How long a promotion may take after the node has agreed to it.
const PROMOTION_TIMEOUT: Duration = Duration::from_secs(30);
const PROMOTION_POLL: Duration = Duration::from_millis(100);

#[derive(Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Make the node the primary first
    #[arg(long, conflicts_with = "with_halt_lock_on")]
    promote: bool,
    /// Do nothing, and succeed, on a node that cannot be primary
    #[arg(long)]
    if_candidate: bool,
    /// Hold the right to write to this database, on the mount, while the program runs
    #[arg(long, value_name = "DATABASE")]
    with_halt_lock_on: Option<PathBuf>,
    /// Say what is being done
    #[arg(short, long)]
    verbose: bool,
    /// The program and its arguments, after --
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Returns the program's exit code.
pub(super) fn run(args: &RunArgs) -> Result<u8, CliError> {
    let say = |text: &str| {
        if args.verbose {
            eprintln!("{text}");
        }
    };
    if args.if_candidate && !info(&args.node.client()?)?.candidate {
        say!("node is not a candidate, skipping execution");
        return Ok(0);
    }
    if args.promote {
        say("promoting this node");
        promote(&args.node.client()?)?;
    }
    let Some(database) = &args.with_halt_lock_on else { return start(&args.command) };
    say(&format!("taking the halt lock of {}", database.display()));
    let lock = HaltLock::take(database)?;
    let code = start(&args.command)?;
    say("releasing the halt lock");
    lock.release()?;
    Ok(code)
}

fn start(command: &[OsString]) -> Result<u8, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let mut signals = Signals::catch()?;
        supervise::run(command, &mut signals).await
    });
    Ok(ended?.code)
}

fn info(client: &Client) -> Result<Info, CliError> {
    client.block_on(async {
        let response = client.send("GET", "/info", None, Empty::<Bytes>::new()).await?;
        let text = read_text(response).await?;
        serde_json::from_str(&text)
            .map_err(|e| CliError::new(format!("this is no litefs node: {e}")))
    })
}

/// Asks for the promotion, and waits until the node is the primary.
fn promote(client: &Client) -> Result<(), CliError> {
    client.block_on(async {
        let response = client.send("POST", "/promote", None, Empty::<Bytes>::new()).await?;
        read_text(response).await
    })?;
    let deadline = Instant::now() + PROMOTION_TIMEOUT;
    while !info(client)?.is_primary {
        if Instant::now() > deadline {
            return Err(CliError::new(format!(
                "the node agreed, but was not the primary within {} s; see its log",
                PROMOTION_TIMEOUT.as_secs()
            )));
        }
        std::thread::sleep(PROMOTION_POLL);
    }
    Ok(())
}

/// The right to write to a database from here, taken from the primary.
struct HaltLock {
    file: OwnedFd,
    path: PathBuf,
}

impl HaltLock {
    /// Waits until it is granted. The program that is started then inherits the open file, and with
    /// it the lock, so that the lock outlives this process if that is killed.
    fn take(database: &Path) -> Result<Self, CliError> {
        let mut path = database.as_os_str().to_owned();
        path.push("-lock");
        let path = PathBuf::from(path);
        // Without CLOEXEC: for the program.
        let file = rustix::fs::open(&path, OFlags::RDWR, Mode::empty())
            .map_err(|e| CliError::new(format!("cannot open {}: {e}", path.display())))?;
        let lock = Self { file, path };
        lock.set(libc::F_WRLCK, "take")?;
        Ok(lock)
    }

    fn release(self) -> Result<(), CliError> {
        self.set(libc::F_UNLCK, "release")
    }

    fn set(&self, kind: libc::c_int, what: &str) -> Result<(), CliError> {
        let lock = libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: HALT_BYTE,
            l_len: 1,
            l_pid: 0,
        };
        let granted = loop {
            match fcntl(&self.file, FcntlArg::F_OFD_SETLKW(&lock)) {
                Err(Errno::EINTR) => (),
                other => break other,
            }
        };
        let path = self.path.display();
        match granted {
            Ok(_) => Ok(()),
            Err(e) => Err(CliError::new(format!("cannot {what} the halt lock of {path}: {e}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// A node that gives these answers, one to each connection; returns its URL, and what it was
    /// asked.
    fn node(answers: Vec<String>) -> (String, thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serve = move || {
            let answer = |answer: String| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let request = lines.next().unwrap().unwrap();
                while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
                stream.write_all(answer.as_bytes()).unwrap();
                request
            };
            answers.into_iter().map(answer).collect()
        };
        (url, thread::spawn(serve))
    }

    fn answer(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    /// LiteFS's fields of /info, and those that a node of ours always has.
    fn info_answer(is_primary: bool, candidate: bool) -> String {
        let body = format!(
            "{{\"isPrimary\":{is_primary},\"candidate\":{candidate},\"path\":\"/d\",\
             \"primary\":{{\"hostname\":\"\"}},\"nodeID\":\"A\",\"role\":\"replica\",\
             \"version\":\"1\",\"replicas\":[],\"databases\":{{}}}}"
        );
        answer("200 OK", &body)
    }

    fn args(url: &str, command: &[&str]) -> RunArgs {
        RunArgs {
            node: NodeArgs::at(url),
            promote: false,
            if_candidate: false,
            with_halt_lock_on: None,
            verbose: false,
            command: command.iter().map(OsString::from).collect(),
        }
    }

    #[test]
    fn a_promotion_is_waited_for() {
        let (replica, primary) = (info_answer(false, true), info_answer(true, true));
        let (url, asked) = node(vec![answer("200 OK", ""), replica.clone(), replica, primary]);
        promote(&NodeArgs::at(&url).client().unwrap()).unwrap();
        let wanted = ["POST /promote", "GET /info", "GET /info", "GET /info"];
        let asked = asked.join().unwrap();
        assert_eq!(asked, wanted.map(|request| format!("{request} HTTP/1.1")));
    }

    #[test]
    fn a_refused_promotion_starts_nothing() {
        let (url, _) = node(vec![answer("409 Conflict", "node is not a candidate\n")]);
        let mut args = args(&url, &["/no/such/program"]);
        args.promote = true;
        let error = run(&args).unwrap_err();
        assert!(error.0.contains("node is not a candidate"), "{}", error.0);
    }

    #[test]
    fn nothing_is_started_on_a_node_that_is_no_candidate() {
        let (url, asked) = node(vec![info_answer(false, false)]);
        let mut args = args(&url, &["/no/such/program"]);
        args.if_candidate = true;
        assert_eq!(run(&args).unwrap(), 0);
        assert_eq!(asked.join().unwrap(), ["GET /info HTTP/1.1"]);
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = run(&args("http://127.0.0.1:1", &["/no/such/program"])).unwrap_err();
        assert!(error.0.contains("cannot start /no/such/program"), "{}", error.0);
        assert_eq!(error.1, 1);
    }
}
