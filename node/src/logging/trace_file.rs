//! The trace log: a file that is replaced when it is full. The full ones are kept as `PATH.1` (the
//! newest) to `PATH.N`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::config::TraceConfig;

/// A file that never grows past its bound, unless one line does.
#[derive(Debug)]
pub(super) struct TraceFile {
    path: PathBuf,
    file: File,
    len: u64,
    max_size: u64,
    max_count: usize,
}

impl TraceFile {
    /// Goes on with the file, or creates it.
    pub(super) fn open(config: &TraceConfig) -> io::Result<Self> {
        let (path, max_size) = (config.path.clone(), config.max_size);
        let file = append_to(&path)?;
        let len = file.metadata()?.len();
        Ok(Self { path, file, len, max_size, max_count: config.max_count })
    }

    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |n: usize| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{n}"));
            PathBuf::from(name)
        };
        for n in (1..self.max_count).rev() {
            if numbered(n).exists() {
                fs::rename(numbered(n), numbered(n + 1))?;
            }
        }
        match self.max_count {
            0 => fs::remove_file(&self.path)?,
            _ => fs::rename(&self.path, numbered(1))?,
        }
        self.file = append_to(&self.path)?;
        self.len = 0;
        Ok(())
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

impl Write for TraceFile {
    /// Takes one line whole.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.len > 0 && self.len + line.len() as u64 > self.max_size {
            self.rotate()?;
        }
        self.file.write_all(line)?;
        self.len += line.len() as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_files_are_kept_up_to_their_count_and_nothing_in_between_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace.log");
        let config = TraceConfig { path: path.clone(), max_size: 10, max_count: 2 };
        let mut file = TraceFile::open(&config).unwrap();
        for n in 0..4 {
            file.write_all(format!("line{n}\n").as_bytes()).unwrap();
        }
        // A second life goes on with the same file.
        drop(file);
        TraceFile::open(&config).unwrap().write_all(b"x\n").unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("trace.log"), "line3\nx\n");
        assert_eq!(read("trace.log.1"), "line2\n");
        assert_eq!(read("trace.log.2"), "line1\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn without_old_files_only_the_current_one_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace.log");
        let config = TraceConfig { path: path.clone(), max_size: 4, max_count: 0 };
        let mut file = TraceFile::open(&config).unwrap();
        file.write_all(b"one\n").unwrap();
        file.write_all(b"two\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
