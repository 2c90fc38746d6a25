//! The bytes of a simulated file, in blocks that are shared until they are written.

use std::sync::Arc;

/// The unit of sharing and of space: 4096 bytes.
pub(super) const BLOCK: u64 = 4096;

const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// A file's length and bytes. Cloning copies references, no bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    /// May be shorter than the file: the rest is holes. Bytes behind `len` in the last block are
    /// zero.
    blocks: Vec<Block>,
    len: u64,
    /// Blocks that occupy space: all but the holes.
    used: u64,
}

#[derive(Clone, Debug)]
enum Block {
    /// Reads as zeros, occupies no space.
    Hole,
    /// Reads as zeros, has its space.
    Reserved,
    Data(Arc<[u8; BLOCK as usize]>),
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// How many blocks of space the file occupies.
    pub(super) fn used(&self) -> u64 {
        self.used
    }

    /// Reads from `offset` up to the end of `buf` or of the file; returns how many bytes.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let wanted = self.len.saturating_sub(offset).min(buf.len() as u64) as usize;
        for (block, start, part) in pieces(offset, wanted) {
            let bytes = match self.blocks.get(block) {
                Some(Block::Data(bytes)) => &bytes[..],
                _ => &ZEROS[..],
            };
            let out = &mut buf[part.clone()];
            out.copy_from_slice(&bytes[start..start + part.len()]);
        }
        wanted
    }

    /// Writes `bytes` at `offset`, extending the file if need be.
    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) {
        if bytes.is_empty() {
            return;
        }
        for (block, start, part) in pieces(offset, bytes.len()) {
            let target = &mut self.block_mut(block)[start..start + part.len()];
            target.copy_from_slice(&bytes[part]);
        }
        self.len = self.len.max(offset + bytes.len() as u64);
    }

    /// Cuts or extends the file; new bytes are a hole.
    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            let keep = len.div_ceil(BLOCK) as usize;
            let cut = self.blocks.drain(keep.min(self.blocks.len())..);
            self.used -= cut.filter(|block| !matches!(block, Block::Hole)).count() as u64;
            let tail = (len % BLOCK) as usize;
            if let Some(Block::Data(bytes)) = self.blocks.get_mut(keep.wrapping_sub(1))
                && tail != 0
            {
                Arc::make_mut(bytes)[tail..].fill(0);
            }
        }
        self.len = len;
    }

    /// Gives the first `len` bytes their space, extending the file if need be.
    pub(super) fn allocate(&mut self, len: u64) {
        let count = len.div_ceil(BLOCK) as usize;
        if self.blocks.len() < count {
            self.blocks.resize(count, Block::Hole);
        }
        for block in &mut self.blocks[..count] {
            if matches!(block, Block::Hole) {
                *block = Block::Reserved;
                self.used += 1;
            }
        }
        self.len = self.len.max(len);
    }

    /// How many of `len` bytes at `offset` can be written when `free` more blocks may be occupied.
    pub(super) fn writable(&self, offset: u64, len: usize, mut free: u64) -> usize {
        for (block, _, part) in pieces(offset, len) {
            if matches!(self.blocks.get(block), None | Some(Block::Hole)) {
                if free == 0 {
                    return part.start;
                }
                free -= 1;
            }
        }
        len
    }

    fn block_mut(&mut self, index: usize) -> &mut [u8; BLOCK as usize] {
        if self.blocks.len() <= index {
            self.blocks.resize(index + 1, Block::Hole);
        }
        let block = &mut self.blocks[index];
        if !matches!(block, Block::Data(_)) {
            self.used += u64::from(matches!(block, Block::Hole));
            *block = Block::Data(Arc::new(ZEROS));
        }
        match block {
            Block::Data(bytes) => Arc::make_mut(bytes),
            _ => unreachable!("made a data block above"),
        }
    }
}

/// Splits `len` bytes at `offset` by blocks: block index, start within the block, range within the
/// bytes.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (usize, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done as u64;
        let start = (at % BLOCK) as usize;
        let part = done..len.min(done + BLOCK as usize - start);
        done = part.end;
        Some(((at / BLOCK) as usize, start, part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, Vec<u8>),
        SetLen(u64),
        Allocate(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let place = 0u64..5 * BLOCK;
        prop_oneof![
            (place.clone(), prop::collection::vec(1u8.., 0..6000))
                .prop_map(|(o, b)| Step::Write(o, b)),
            place.clone().prop_map(Step::SetLen),
            place.prop_map(Step::Allocate),
        ]
    }

    fn apply_to_vec(model: &mut Vec<u8>, step: &Step) {
        match step {
            Step::Write(_, bytes) if bytes.is_empty() => {}
            Step::Write(offset, bytes) => {
                let end = *offset as usize + bytes.len();
                model.resize(model.len().max(end), 0);
                model[*offset as usize..end].copy_from_slice(bytes);
            }
            Step::SetLen(len) => model.resize(*len as usize, 0),
            Step::Allocate(len) => model.resize(model.len().max(*len as usize), 0),
        }
    }

    proptest! {
        #[test]
        fn content_is_what_a_plain_vector_holds(steps in prop::collection::vec(step(), 1..20)) {
            let (mut content, mut model) = (Content::default(), Vec::new());
            for step in &steps {
                let before = (content.clone(), model.clone());
                match step {
                    Step::Write(offset, bytes) => content.write(bytes, *offset),
                    Step::SetLen(len) => content.set_len(*len),
                    Step::Allocate(len) => content.allocate(*len),
                }
                apply_to_vec(&mut model, step);
                // The clone from before the step must not have changed with it.
                for (content, model) in [(&before.0, &before.1), (&content, &model)] {
                    let mut read = vec![0xee; model.len() + 100];
                    prop_assert_eq!(content.read(&mut read, 0), model.len());
                    prop_assert_eq!(&read[..model.len()], &model[..]);
                    let used = content.blocks.iter().filter(|b| !matches!(b, Block::Hole)).count();
                    prop_assert_eq!(content.used(), used as u64);
                }
            }
        }
    }

    #[test]
    fn space_is_needed_for_new_blocks_only() {
        let mut content = Content::default();
        content.set_len(3 * BLOCK);
        assert_eq!(content.used(), 0);
        content.allocate(BLOCK);
        assert_eq!(content.used(), 1);
        let all = 3 * BLOCK as usize;
        assert_eq!(content.writable(0, all, 0), BLOCK as usize);
        assert_eq!(content.writable(0, all, 1), 2 * BLOCK as usize);
        assert_eq!(content.writable(100, all, 2), all - 100);
        assert_eq!(content.writable(100, all, 3), all);
        content.set_len(0);
        assert_eq!(content.used(), 0);
    }
}
