//! The bytes of an LTX file as they come in: buffered, counted, and with an eye on its end.

use std::io::{self, BufReader, ErrorKind, Read};

use crate::{Error, Header, Result};

/// Bytes after the header that are kept to recognise other versions.
const PREFIX_LEN: usize = 16;

#[derive(Debug)]
pub(crate) struct Source<R> {
    inner: BufReader<R>,
    /// How many bytes were taken.
    offset: u64,
    /// The reader said that there are no more bytes.
    ended: bool,
    prefix: [u8; PREFIX_LEN],
}

impl<R: Read> Source<R> {
    pub(crate) fn new(reader: R, buffer: usize) -> Self {
        let inner = BufReader::with_capacity(buffer, reader);
        Self { inner, offset: 0, ended: false, prefix: [0; PREFIX_LEN] }
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// Fills `buf`; if the input ends before, the error says that it ends in `part`.
    pub(crate) fn read_part(&mut self, buf: &mut [u8], part: &'static str) -> Result<()> {
        match self.read_exact(buf) {
            Err(_) if self.ended => Err(Error::Truncated { offset: self.offset, part }),
            result => Ok(result?),
        }
    }

    /// Fails if anything is left.
    pub(crate) fn expect_end(&mut self) -> Result<()> {
        let offset = self.offset;
        match self.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(Error::TrailingBytes { offset }),
        }
    }

    /// The 16 bytes that follow the header, with zeros where the input is shorter. Reads up to
    /// there if need be, so the source is of no use for anything else afterwards.
    pub(crate) fn take_prefix(&mut self) -> [u8; PREFIX_LEN] {
        let end = (Header::LEN + PREFIX_LEN) as u64;
        let missing = end.saturating_sub(self.offset).min(PREFIX_LEN as u64) as usize;
        // What cannot be read does not look like anything.
        let _ = self.read_exact(&mut [0; PREFIX_LEN][..missing]);
        self.prefix
    }

    /// Keeps what was read just now if it lies in the prefix.
    fn keep_prefix(&mut self, bytes: &[u8]) {
        let (start, end) = (Header::LEN as u64, (Header::LEN + PREFIX_LEN) as u64);
        if self.offset >= end {
            return;
        }
        for (at, &byte) in (self.offset..end).zip(bytes) {
            if at >= start {
                self.prefix[(at - start) as usize] = byte;
            }
        }
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = loop {
            match self.inner.read(buf) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        self.ended |= n == 0 && !buf.is_empty();
        self.keep_prefix(&buf[..n]);
        self.offset += n as u64;
        Ok(n)
    }
}
