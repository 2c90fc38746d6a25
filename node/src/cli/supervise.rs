//! Programs that this process starts: they get the signals that it gets, and it gets their exit
//! codes.

use std::ffi::OsString;
use std::process::Command;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process, waitpid};
use tokio::signal::unix::{self, SignalKind};

use super::CliError;

/// As process 1, of a container for example, this process also inherits the children of others, and
/// must take note of their ends.
fn is_init() -> bool {
    getpid().is_init()
}

/// The signals that end this process, and the one that tells of a child's end. While it exists,
/// none of them has its usual effect.
pub(super) struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    child: unix::Signal,
}

impl Signals {
    /// Must be called within a runtime.
    pub(super) fn catch() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: unix::signal(SignalKind::interrupt())?,
            terminate: unix::signal(SignalKind::terminate())?,
            child: unix::signal(SignalKind::child())?,
        })
    }

    /// Waits for SIGINT or SIGTERM, while no program runs.
    pub(super) async fn stop(&mut self) -> Signal {
        loop {
            if is_init() {
                // Until there is none, or none that has ended.
                while let Ok(Some(_)) = waitpid(None, WaitOptions::NOHANG) {}
            }
            if let Some(signal) = self.stop_or_child().await {
                return signal;
            }
        }
    }

    async fn stop_or_child(&mut self) -> Option<Signal> {
        tokio::select! {
            _ = self.interrupt.recv() => Some(Signal::INT),
            _ = self.terminate.recv() => Some(Signal::TERM),
            _ = self.child.recv() => None,
        }
    }
}

/// A signal's name, for messages.
pub(super) fn name_of(signal: Signal) -> &'static str {
    if signal == Signal::INT { "SIGINT" } else { "SIGTERM" }
}

/// How a program came to its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ended {
    /// Its exit code; 128 and the signal's number if a signal ended it; 0 if that was the signal
    /// which this process got and passed on.
    pub(super) code: u8,
    /// This process was told to stop meanwhile.
    pub(super) stopped: bool,
}

/// Runs a program to its end. Signals that this process gets are passed on to it.
///
/// # Errors
/// It cannot be started.
pub(super) async fn run(words: &[OsString], signals: &mut Signals) -> Result<Ended, CliError> {
    let Some((program, args)) = words.split_first() else {
        return Err(CliError::new("there is no program to start"));
    };
    let child = Command::new(program)
        .args(args)
        .spawn()
        .map_err(CliError::during(format!("cannot start {}", program.to_string_lossy())))?;
    let pid = Pid::from_child(&child);
    let mut passed_on = None;
    loop {
        if let Some(status) = reap(pid) {
            return Ok(Ended { code: exit_code(status, passed_on), stopped: passed_on.is_some() });
        }
        let Some(signal) = signals.stop_or_child().await else { continue };
        tracing::info!("{}: passed on to process {pid}", name_of(signal));
        passed_on = Some(signal);
        // It has not been waited for, so that its number is still its own. It may have ended.
        let _ = kill_process(pid, signal);
    }
}

/// How the child ended, if it has. Nobody else in this process waits for children meanwhile.
fn reap(child: Pid) -> Option<WaitStatus> {
    let target = if is_init() { None } else { Some(child) };
    // An error: there is no child any more, which only is so after the one looked for was found.
    while let Ok(Some((pid, status))) = waitpid(target, WaitOptions::NOHANG) {
        if pid == child {
            return Some(status);
        }
    }
    None
}

fn exit_code(status: WaitStatus, passed_on: Option<Signal>) -> u8 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, Some(signal)) if passed_on.is_some_and(|sent| sent.as_raw() == signal) => 0,
        (None, signal) => u8::try_from(128 + signal.unwrap_or_default()).unwrap_or(u8::MAX),
    }
}
