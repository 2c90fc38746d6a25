//! Clients of the databases: other processes, as a user starts them.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::OnceLock;

/// How long clients wait for locks, in milliseconds: generous, the machine may be busy.
pub const BUSY_TIMEOUT: u32 = 30_000;

/// Runs statements in a sqlite3 shell that ends at the first error.
pub fn sqlite3(path: &Path, sql: &str) -> Output {
    let mut child = Command::new("sqlite3")
        .args(["-batch", "-bail"])
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the sqlite3 shell is installed");
    let script = format!(".timeout {BUSY_TIMEOUT}\n{sql}\n;\n");
    // It does not read on after an error.
    let _ = child.stdin.take().unwrap().write_all(script.as_bytes());
    child.wait_with_output().unwrap()
}

/// Runs statements that must succeed; returns what they print.
pub fn sql(path: &Path, sql: &str) -> String {
    let output = sqlite3(path, sql);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.is_empty(), "{}: {sql}: {error}", path.display());
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// Runs statements that must fail; returns the error.
pub fn sql_error(path: &Path, sql: &str) -> String {
    let output = sqlite3(path, sql);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "{}: {sql}: no error, but {text}", path.display());
    String::from_utf8(output.stderr).unwrap()
}

/// A program in Python with its arguments.
pub fn python(script: &str, args: &[&str]) -> Command {
    static INTERPRETER: OnceLock<String> = OnceLock::new();
    // `python3` may be a slow wrapper.
    let interpreter = INTERPRETER.get_or_init(|| {
        let args = ["-c", "import sys; print(sys.executable)"];
        let output = Command::new("python3").args(args).output().expect("python3 is installed");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    });
    let mut command = Command::new(interpreter);
    command.args(["-c", script]).args(args).stdin(Stdio::null());
    command
}

/// Runs a program that must succeed; returns what it prints.
pub fn printed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {error}", output.status);
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// A sqlite3 shell that stays open; killed when dropped.
pub struct Session {
    child: Child,
    input: ChildStdin,
    out: BufReader<ChildStdout>,
}

impl Session {
    /// Opens a database.
    pub fn open(path: &Path) -> Self {
        let mut child = Command::new("sh")
            .args(["-c", "exec sqlite3 -batch \"$0\" 2>&1"])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut session = Self { child, input, out };
        session.say(&format!(".timeout {BUSY_TIMEOUT}"));
        session
    }

    /// Runs a line of statements; returns what they print, errors too.
    pub fn say(&mut self, line: &str) -> String {
        self.start(line);
        self.answer()
    }

    /// Begins to run a line of statements.
    pub fn start(&mut self, line: &str) {
        assert!(!line.contains('\n'), "one line at a time: {line}");
        let end = if line.starts_with('.') || line.ends_with(';') { "" } else { ";" };
        self.input.write_all(format!("{line}{end}\n.print <end>\n").as_bytes()).unwrap();
    }

    /// Waits for what the line that was begun prints.
    pub fn answer(&mut self) -> String {
        let mut text = String::new();
        loop {
            let mut line = String::new();
            let read = self.out.read_line(&mut line).unwrap();
            assert!(read > 0, "the shell died ({:?}) after: {text}", self.child.wait());
            if line == "<end>\n" {
                return text.trim_end().to_owned();
            }
            text.push_str(&line);
        }
    }

    /// Kills it like a power switch.
    pub fn kill(self) {}
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A session on the database and one on its control, which must answer alike.
pub struct Twin {
    pub real: Session,
    pub control: Session,
}

impl Twin {
    /// Runs a line of statements on both.
    pub fn say(&mut self, line: &str) -> String {
        let (real, control) = (self.real.say(line), self.control.say(line));
        assert_eq!(real, control, "another answer than plain SQLite's to {line}");
        real
    }
}
