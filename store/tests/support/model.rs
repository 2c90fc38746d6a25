//! What a database holds, by the definition of things rather than by the engine.

use std::rc::Rc;

use litefs_store::ltx::{Encoder, Header, page_checksum};
use litefs_store::{Checksum, PageSize, Pgno, Pos, Txid, sim};

/// Choices that depend on a seed alone.
#[derive(Clone, Debug)]
pub struct Rng(sim::Rng);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(sim::Rng::new(seed))
    }

    pub fn next(&mut self) -> u64 {
        self.0.number()
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }

    /// A page that no other call returns; half of it compresses well.
    pub fn page(&mut self, page_size: usize) -> Rc<[u8]> {
        let (word, fill) = (self.next().to_be_bytes(), self.next() as u8);
        let mut page = vec![fill; page_size];
        for chunk in page[..page_size / 2].chunks_mut(8) {
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        let words = page[page_size / 2 - 64..page_size / 2].chunks_mut(8);
        words.for_each(|chunk| chunk.copy_from_slice(&self.next().to_be_bytes()));
        page.into()
    }
}

/// One committed content of a database.
#[derive(Debug)]
pub struct State {
    pub pos: Pos,
    /// 0 before the first transaction.
    pub page_size: usize,
    pub pages: Vec<Rc<[u8]>>,
}

/// Pages to write, by number.
pub type Pages = Vec<(u32, Rc<[u8]>)>;

impl State {
    pub fn zero() -> Rc<Self> {
        Rc::new(Self { pos: Pos::ZERO, page_size: 0, pages: Vec::new() })
    }

    pub fn of(txid: Txid, page_size: usize, pages: Vec<Rc<[u8]>>) -> Rc<Self> {
        let numbered = pages.iter().zip(1..);
        let checksum = numbered.fold(Checksum::EMPTY, |sum, (page, number)| {
            sum.toggle(page_checksum(Pgno::new(number).unwrap(), page))
        });
        Rc::new(Self { pos: Pos::new(txid, checksum), page_size, pages })
    }

    /// The state after a transaction that writes `changed` and leaves `size` pages.
    pub fn after(&self, page_size: usize, changed: &Pages, size: usize) -> Rc<Self> {
        let mut pages = self.pages.clone();
        pages.resize(size, vec![0; page_size].into());
        for (number, page) in changed {
            pages[*number as usize - 1] = page.clone();
        }
        Self::of(self.pos.txid.next(), page_size, pages)
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.pages.concat()
    }

    /// A record with all pages: raw or LZ4.
    pub fn snapshot_record(&self, compressed: bool) -> Vec<u8> {
        let page_size = PageSize::new(self.page_size as u32).unwrap();
        let whole = Header::snapshot(page_size, self.pages.len() as u32, self.pos.txid);
        let header = Header { compressed, ..whole };
        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        for (page, number) in self.pages.iter().zip(1..) {
            encoder.encode_page(Pgno::new(number).unwrap(), page).unwrap();
        }
        encoder.finish(self.pos.checksum).unwrap().0
    }

    /// As a plain SQLite file with another first page, for an import.
    pub fn sqlite_file(rng: &mut Rng, page_size: usize, size: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..size).flat_map(|_| rng.page(page_size).to_vec()).collect();
        bytes[..16].copy_from_slice(b"SQLite format 3\0");
        let stated = if page_size == 65536 { 1 } else { page_size as u16 };
        bytes[16..18].copy_from_slice(&stated.to_be_bytes());
        bytes[28..32].copy_from_slice(&(size as u32).to_be_bytes());
        bytes.copy_within(24..28, 92);
        bytes
    }

    /// What importing that file leads to: over other content the schema cookie is raised.
    pub fn after_import(&self, file: &[u8], page_size: usize) -> Rc<Self> {
        let mut pages: Vec<Rc<[u8]>> = file.chunks(page_size).map(Rc::from).collect();
        if let Some(old) = self.pages.first() {
            let mut first = pages[0].to_vec();
            let cookie = |page: &[u8]| u32::from_be_bytes(page[40..44].try_into().unwrap());
            let raised = cookie(old).max(cookie(&first)).wrapping_add(1);
            first[40..44].copy_from_slice(&raised.to_be_bytes());
            pages[0] = first.into();
        }
        Self::of(self.pos.txid.next(), page_size, pages)
    }
}
