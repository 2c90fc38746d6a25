//! The directory to mount at: what is there, and making it ready.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::MountError;

/// The table of all mounts that this process sees.
const TABLE: &str = "/proc/self/mountinfo";
/// A file system whose daemon does not answer for so long is alive, but stuck.
const PATIENCE: Duration = Duration::from_secs(5);
/// Stale mounts on top of each other that are cleaned up.
const STALE_MAX: usize = 16;

/// A mounted file system.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mounted {
    /// The minor number of its device; for FUSE, the number of the connection.
    pub minor: u32,
    pub kind: String,
    pub device: String,
}

/// Creates the directory if it is missing, and removes what a killed daemon left. Returns it
/// without symbolic links.
pub(crate) fn prepare(dir: &Path) -> Result<PathBuf, MountError> {
    let failed = |op| move |source| MountError::Directory { op, dir: dir.to_path_buf(), source };
    let dir = locate(dir).map_err(failed("reach"))?;
    for _ in 0..STALE_MAX {
        let at_work = mounted_at(&dir).filter(|mounted| mounted.kind.starts_with("fuse"));
        match (probe(&dir), at_work) {
            (Err(error), _) if error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error()) => {
                unmount(&dir, UnmountFlags::DETACH)
                    .map_err(|error| failed("unmount the stale mount at")(error.into()))?;
                tracing::warn!(
                    "unmounted the stale mount at {}: its process was killed",
                    dir.display()
                );
            }
            (_, Some(mounted)) => {
                let Mounted { kind, device, .. } = mounted;
                return Err(MountError::Mounted { dir, kind, device });
            }
            (Ok(()), None) => break,
            (Err(error), None) => return Err(failed("look at")(error)),
        }
    }
    check_empty(&dir)?;
    Ok(dir)
}

/// What is mounted at exactly this directory, if anything; the topmost.
pub(crate) fn mounted_at(dir: &Path) -> Option<Mounted> {
    find_in(&fs::read_to_string(TABLE).ok()?, dir)
}

/// The directory without symbolic links; created if it is missing.
fn locate(dir: &Path) -> io::Result<PathBuf> {
    let dir = std::path::absolute(dir)?;
    match fs::symlink_metadata(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(&dir)?,
        _ => {}
    }
    match (dir.canonicalize(), dir.parent(), dir.file_name()) {
        (Ok(dir), ..) => Ok(dir),
        // A stale mount does not answer.
        (Err(_), Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
        (Err(error), ..) => Err(error),
    }
}

/// Asks the file system at `dir` whether it is there.
fn probe(dir: &Path) -> io::Result<()> {
    let (sender, receiver) = mpsc::channel();
    let dir = dir.to_path_buf();
    // On a thread of its own, as a daemon that is stuck never answers.
    std::thread::spawn(move || {
        let answer = fs::metadata(&dir).and_then(|metadata| match metadata.is_dir() {
            true => Ok(()),
            false => Err(io::ErrorKind::NotADirectory.into()),
        });
        // Fails only if nobody waits any more.
        let _ = sender.send(answer);
    });
    receiver.recv_timeout(PATIENCE).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn check_empty(dir: &Path) -> Result<(), MountError> {
    let first = fs::read_dir(dir).and_then(|mut entries| entries.next().transpose());
    match first {
        Ok(None) => Ok(()),
        Ok(Some(entry)) => {
            let first = entry.file_name().to_string_lossy().into_owned();
            Err(MountError::NotEmpty { dir: dir.to_path_buf(), first })
        }
        Err(source) => Err(MountError::Directory { op: "read", dir: dir.to_path_buf(), source }),
    }
}

/// Lines are `36 35 98:0 /root /mount/point options [optional fields] - type source options`.
fn find_in(table: &str, dir: &Path) -> Option<Mounted> {
    let parse = |line: &str| {
        let (place, what) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(2);
        let minor = place.next()?.split_once(':')?.1.parse().ok()?;
        let at_dir = unescape(place.nth(1)?) == dir.as_os_str().as_encoded_bytes();
        let mut what = what.split(' ');
        let (kind, device) = (what.next()?.to_owned(), what.next()?.to_owned());
        at_dir.then_some(Mounted { minor, kind, device })
    };
    table.lines().rev().find_map(parse)
}

/// Blanks and backslashes are written as `\` and three octal digits.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| byte == b'\\');
        let octal = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => {
                bytes.push(escaped);
                rest = &after[3..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
31 22 0:40 / /mnt/a\\040b rw,noatime shared:9 master:2 - fuse litefs rw,user_id=0
32 22 0:41 / /mnt/c rw - tmpfs none rw
33 32 0:42 / /mnt/c rw - fuse.other other rw
broken line
";

    #[test]
    fn the_topmost_mount_of_exactly_that_directory_is_found() {
        let found = |dir: &str| find_in(TABLE, Path::new(dir)).map(|m| (m.minor, m.kind, m.device));
        let fuse =
            |minor, kind: &str, device: &str| Some((minor, kind.to_owned(), device.to_owned()));
        assert_eq!(found("/mnt/a b"), fuse(40, "fuse", "litefs"));
        assert_eq!(found("/mnt/c"), fuse(42, "fuse.other", "other"));
        assert_eq!(found("/mnt"), None);
        assert_eq!(found("/mnt/c/d"), None);
    }

    #[test]
    fn escapes_that_are_none_stay() {
        assert_eq!(unescape("a\\134b\\04\\999\\"), b"a\\b\\04\\999\\");
    }

    #[test]
    fn a_directory_is_made_and_one_with_files_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("x/y");
        let ready = prepare(&dir).unwrap();
        assert!(ready.is_dir() && ready.ends_with("x/y"));
        fs::write(dir.join("precious.db"), "").unwrap();
        let text = prepare(&dir).unwrap_err().to_string();
        assert!(text.contains("precious.db") && text.contains("not empty"), "{text}");
        let text = prepare(&dir.join("precious.db")).unwrap_err().to_string();
        assert!(text.contains("precious.db"), "{text}");
    }
}
