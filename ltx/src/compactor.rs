//! Compaction: several files that follow each other become one that does the same.
//!
//! The result has the newest version of each page, up to the size that the last input leaves. It
//! begins where the first input begins and ends where the last one ends; WAL fields and node id are
//! 0. A page that was cut off by an input and not written again since must not come back: where
//! the database grew again, each page must come from an input after the cut.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{Read, Write};

use crate::decoder::BUFFER;
use crate::pages::next_stored;
use crate::{
    Checksum, CompactError, Decoder, Encoder, Error, Header, Misuse, PageSize, Pgno, Result,
    Summary,
};

/// Read buffers of all inputs together, in bytes, as long as each has [`SMALLEST_BUFFER`].
const BUFFERS: usize = 8 << 20;
const SMALLEST_BUFFER: usize = 4 << 10;

/// How to write the result of a compaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CompactOptions {
    /// Compress the pages.
    pub compressed: bool,
}

/// Merges files, given in the order of their transactions, into one, and returns what that holds.
///
/// Memory: a page and a small buffer for each input, and what decompression needs. The output is
/// flushed. If this fails, it has no trailer, so that no reader takes it for a file.
///
/// # Errors
/// [`Error::Compact`] if the inputs do not follow each other without a gap, each beginning with
/// the checksum that the one before ends with, or lack a page that the result needs;
/// [`Error::Input`] if one of them is not valid; [`Error::Io`] if the output cannot be written.
pub fn compact<R: Read, W: Write>(
    inputs: Vec<R>,
    out: W,
    options: CompactOptions,
) -> Result<Summary> {
    let mut merge = Merge::open(inputs)?;
    let header = Header { compressed: options.compressed, ..merge.result_header()? };
    let mut growth = Growth::new(&merge.inputs, &header);
    let mut encoder = Encoder::new(out, header)?;
    let mut pages = 0;
    while let Some((pgno, index)) = merge.next_page()? {
        if pgno.get() <= header.commit {
            growth.check(pgno, index)?;
            encoder.encode_page(pgno, &merge.inputs[index].page)?;
            pages += 1;
        }
        merge.advance(index)?;
    }
    growth.finish()?;
    let post_apply = merge.finish()?;
    let (mut out, trailer) = encoder.finish(post_apply).map_err(blame_inputs)?;
    out.flush()?;
    Ok(Summary { header, trailer, pages })
}

/// If the pages do not have the checksum that the last input promises, the inputs are wrong.
fn blame_inputs(error: Error) -> Error {
    match error {
        Error::Misuse(Misuse::PostApplyOfSnapshot { given, computed }) => {
            Error::ChecksumMismatch { what: "database", stored: given, computed }
        }
        error => error,
    }
}

struct Input<R: Read> {
    decoder: Decoder<R>,
    /// The page that it comes with next.
    page: Vec<u8>,
}

/// Reads all inputs side by side in the order of page numbers.
struct Merge<R: Read> {
    inputs: Vec<Input<R>>,
    /// The next page of each input that has one; of equal pages, the oldest input's first.
    next: BinaryHeap<Reverse<(Pgno, usize)>>,
}

impl<R: Read> Merge<R> {
    fn open(readers: Vec<R>) -> Result<Self> {
        let buffer = (BUFFERS / readers.len().max(1)).clamp(SMALLEST_BUFFER, BUFFER);
        let mut inputs: Vec<Input<R>> = Vec::with_capacity(readers.len());
        for (index, reader) in readers.into_iter().enumerate() {
            let decoder = Decoder::with_buffer(reader, buffer).map_err(|e| in_input(index, e))?;
            if let [first, ..] = &inputs[..] {
                let prev = inputs[index - 1].decoder.header();
                check_neighbours(index, first.decoder.header(), prev, decoder.header())?;
            }
            let page = vec![0; decoder.header().page_size.len()];
            inputs.push(Input { decoder, page });
        }
        let mut merge = Self { inputs, next: BinaryHeap::new() };
        for index in 0..merge.inputs.len() {
            merge.advance(index)?;
        }
        Ok(merge)
    }

    fn result_header(&self) -> Result<Header> {
        let (Some(first), Some(last)) = (self.inputs.first(), self.inputs.last()) else {
            return Err(CompactError::NoInput.into());
        };
        let (first, last) = (first.decoder.header(), last.decoder.header());
        Ok(Header {
            min_txid: first.min_txid,
            pre_apply: first.pre_apply,
            wal_offset: 0,
            wal_size: 0,
            wal_salt1: 0,
            wal_salt2: 0,
            node_id: 0,
            ..*last
        })
    }

    /// The lowest page left and the newest input that has it. The older inputs go on to their next
    /// pages; this one does so by [`Merge::advance`], after its page was used.
    fn next_page(&mut self) -> Result<Option<(Pgno, usize)>> {
        let Some(Reverse((pgno, mut newest))) = self.next.pop() else { return Ok(None) };
        while let Some(&Reverse((same, index))) = self.next.peek() {
            if same != pgno {
                break;
            }
            self.next.pop();
            self.advance(newest)?;
            newest = index;
        }
        Ok(Some((pgno, newest)))
    }

    fn advance(&mut self, index: usize) -> Result<()> {
        let input = &mut self.inputs[index];
        let pgno = input.decoder.next_page(&mut input.page).map_err(|e| in_input(index, e))?;
        if let Some(pgno) = pgno {
            self.next.push(Reverse((pgno, index)));
        }
        Ok(())
    }

    /// Verifies every input as a whole and that each continues the one before it. Returns the
    /// last post-apply checksum.
    fn finish(self) -> Result<Checksum> {
        let mut prev_post = Checksum::NONE;
        for (index, input) in self.inputs.into_iter().enumerate() {
            let pre = input.decoder.header().pre_apply;
            if index > 0 && pre != prev_post {
                return Err(CompactError::BrokenChain { index, prev_post, pre }.into());
            }
            let trailer = input.decoder.finish().map_err(|e| in_input(index, e))?;
            prev_post = trailer.post_apply;
        }
        Ok(prev_post)
    }
}

fn in_input(index: usize, source: Error) -> Error {
    Error::Input { index, source: Box::new(source) }
}

fn check_neighbours(
    index: usize,
    first: &Header,
    prev: &Header,
    this: &Header,
) -> std::result::Result<(), CompactError> {
    let (first, found) = (first.page_size, this.page_size);
    if found != first {
        return Err(CompactError::PageSize { index, first, found });
    }
    let (prev_max, min) = (prev.max_txid, this.min_txid);
    if prev_max.get().checked_add(1) != Some(min.get()) {
        return Err(CompactError::NotContiguous { index, prev_max, min });
    }
    Ok(())
}

/// Checks that no page comes from before the database was last too small for it, and that where
/// it grew since, no page is missing.
struct Growth {
    page_size: PageSize,
    commit: u32,
    /// The smallest size that the database has after any input: what is above, it grew over later.
    floor: u32,
    /// For each input, the smallest size that it has after any later input.
    floor_after: Vec<u32>,
    /// The next page above `floor` that the result needs.
    needed: u64,
}

impl Growth {
    fn new<R: Read>(inputs: &[Input<R>], result: &Header) -> Self {
        let mut floor = u32::MAX;
        let mut floor_after = vec![floor; inputs.len()];
        for (index, input) in inputs.iter().enumerate().rev() {
            floor_after[index] = floor;
            floor = floor.min(input.decoder.header().commit);
        }
        let (page_size, commit) = (result.page_size, result.commit);
        Self { page_size, commit, floor, floor_after, needed: next_stored(floor, page_size) }
    }

    /// Takes the next page of the result, which comes from the input with this index.
    fn check(&mut self, pgno: Pgno, index: usize) -> std::result::Result<(), CompactError> {
        let n = pgno.get();
        if n <= self.floor {
            return Ok(());
        }
        let stale = n > self.floor_after[index];
        if stale || u64::from(n) != self.needed {
            return Err(CompactError::MissingPage { pgno: self.needed });
        }
        self.needed = next_stored(n, self.page_size);
        Ok(())
    }

    fn finish(&self) -> std::result::Result<(), CompactError> {
        if self.needed <= u64::from(self.commit) {
            return Err(CompactError::MissingPage { pgno: self.needed });
        }
        Ok(())
    }
}
