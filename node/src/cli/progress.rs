//! Progress bars: on a terminal only, on stderr.

use std::io::{self, IsTerminal, Read, Write};

use indicatif::{ProgressBar, ProgressStyle};

/// A bar that counts bytes up to `total`; invisible when stderr is no terminal.
pub(super) fn bytes(total: u64, doing: &'static str) -> ProgressBar {
    bar(total, doing, "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
}

/// A bar that counts pages up to `total`; invisible when stderr is no terminal.
pub(super) fn pages(total: u64, doing: &'static str) -> ProgressBar {
    bar(total, doing, "{msg} {wide_bar} {pos}/{len} pages {eta}")
}

fn bar(total: u64, doing: &'static str, template: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(template).expect("BUG: the templates are constants");
    ProgressBar::new(total).with_style(style).with_message(doing)
}

/// Counts what passes through on a bar.
pub(super) struct Counted<T> {
    inner: T,
    bar: ProgressBar,
}

impl<T> Counted<T> {
    pub(super) fn new(inner: T, bar: &ProgressBar) -> Self {
        Self { inner, bar: bar.clone() }
    }
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.bar.inc(n as u64);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.bar.inc(n as u64);
        Ok(n)
    }
}
