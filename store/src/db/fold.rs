//! Fold: the newest page versions go from the log to the base, and the mark moves.
//!
//! 1. The log is synced up to the target: the base must never hold what the log may lose.
//! 2. The mark's ceiling becomes the target, durably: from now on the base may be that new.
//! 3. Base and checksum table are written and synced.
//! 4. The mark becomes the target, durably.
//! 5. Memory follows: what is folded leaves the index.
//!
//! The target never passes the oldest pinned snapshot, so no reader needs a page of the base that
//! is being overwritten: it finds that page's version in the log until step 5. A crash anywhere
//! leaves the log from the old mark on, which hides whatever the base holds of step 3.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

use litefs_ltx::{Checksum, PageSize, Pgno, Txid};

use super::log::MAX_CAPACITY;
use super::published::{StateAt, Version};
use super::{Content, Db, sums};
use crate::error::IoContext;
use crate::{File, OpenMode, Result};

/// Bytes written to the base at once.
const RUN_LEN: usize = 1 << 20;
/// Pages that leave the index under one lock.
const BATCH: usize = 1024;

/// Bytes of a spare segment filled at once past the kernel's cache, where commits do not find them.
const DURABLE_FILL: u64 = 256 << 10;
/// Bytes filled at once elsewhere: the kernel caches a file in pieces as large as the writes that
/// made it, and a commit's small write would then dirty a large piece.
const CACHED_FILL: u64 = 4096;

/// What one fold does.
struct Plan {
    target: StateAt,
    page_size: PageSize,
    /// The newest version at or below the target of each page that the base lacks, ascending.
    pages: Vec<(Pgno, Version)>,
}

impl Db {
    /// Folds up to the oldest pinned snapshot, then applies retention.
    pub(crate) fn fold(&self) -> Result<()> {
        let _alone = self.folding.lock();
        self.check_well()?;
        let content = self.content();
        if self.pos().is_zero() {
            return Ok(());
        }
        // Before the ceiling rises: settling writes the mark, and the log is not synced yet.
        self.settle()?;
        if let Some(target) = self.raise_ceiling(&content) {
            let begun = self.shared.clock.now();
            self.fold_to(&content, target)?;
            self.folds.fetch_add(1, Ordering::Relaxed);
            self.shared.timings.fold.add(self.shared.clock.now().saturating_sub(begun));
        }
        self.retire(0)
    }

    /// Chooses the target, and lets no snapshot be taken below it any more.
    fn raise_ceiling(&self, content: &Content) -> Option<Txid> {
        let mut published = content.published.write();
        let newest = published.newest.pos.txid;
        // First, so that a reader that ends meanwhile has the fold done again.
        self.fold_blocked.store(true, Ordering::Release);
        let target = content.oldest_pin().map_or(newest, |pin| pin.min(newest));
        if target == newest {
            self.fold_blocked.store(false, Ordering::Release);
        }
        if target <= published.mark.pos.txid {
            return None;
        }
        published.mark.ceiling = published.mark.ceiling.max(target);
        Some(target)
    }

    fn fold_to(&self, content: &Content, target: Txid) -> Result<()> {
        self.sync_log()?;
        let storage = self.shared.storage.as_ref();
        let mut mark = content.published.read().mark;
        mark.write(storage, &self.dir)?;
        content.published.write().mark = mark;

        let plan = plan(content, target);
        self.write_base(content, &plan)?;
        self.write_sums(&plan)?;
        if mark.page_size.is_none() {
            // The first fold; whether it is the first try does not matter.
            storage.sync_dir(&self.dir).at("sync", &self.dir)?;
        }

        mark.pos = plan.target.pos;
        mark.page_size = Some(plan.page_size);
        mark.pages = plan.target.pages;
        mark.write(storage, &self.dir)?;
        forget_folded(content, &plan, mark);
        Ok(())
    }

    fn write_base(&self, content: &Content, plan: &Plan) -> Result<()> {
        let path = self.dir.join("base");
        let storage = &self.shared.storage;
        let file = storage.open(&path, OpenMode::Create).at("open", &path)?;
        let page_len = plan.page_size.len();
        let mut run = Vec::with_capacity(RUN_LEN);
        let mut run_at = 0;
        for (pgno, version) in &plan.pages {
            let offset = pgno.offset(plan.page_size);
            let joins = run_at + run.len() as u64 == offset && run.len() + page_len <= RUN_LEN;
            if !joins {
                file.write_all_at(&run, run_at).at("write", &path)?;
                run.clear();
                run_at = offset;
            }
            let start = run.len();
            run.resize(start + page_len, 0);
            self.read_version(content, version, *pgno, &mut run[start..])?;
        }
        file.write_all_at(&run, run_at).at("write", &path)?;
        let len = u64::from(plan.target.pages) * page_len as u64;
        if file.len().at("read", &path)? != len {
            file.set_len(len).at("resize", &path)?;
        }
        file.sync_data().at("sync", &path)
    }

    fn write_sums(&self, plan: &Plan) -> Result<()> {
        let path = self.dir.join("checksums");
        let storage = &self.shared.storage;
        let file = storage.open(&path, OpenMode::Create).at("open", &path)?;
        let entries: Vec<(Pgno, Checksum)> =
            plan.pages.iter().map(|(pgno, version)| (*pgno, version.sum)).collect();
        sums::update(file.as_ref(), &entries, plan.target.pages).at("write", &path)?;
        file.sync_data().at("sync", &path)
    }

    /// Removes log segments below the mark that are too old, or would make the log too large with a
    /// spare of `spare` bytes.
    fn retire(&self, spare: u64) -> Result<()> {
        let options = &self.shared.options;
        let mark = self.content().published.read().mark;
        let base_len =
            mark.page_size.map_or(0, |size| u64::from(size.get()) * u64::from(mark.pages));
        let bound = options.log_size.unwrap_or_else(|| base_len.max(DEFAULT_LOG_SIZE));
        let now = self.shared.clock.now();
        let mut log = self.log.lock();
        let before = log.transactions();
        let retired = log.retire(mark.pos.txid, spare, |segment, total| {
            total > bound || segment.age(now) > options.retention
        });
        self.retired.fetch_add(before.saturating_sub(log.transactions()), Ordering::Relaxed);
        retired.map(|_| ())
    }

    /// Prepares the next segment ahead of its use.
    pub(crate) fn prepare_spare(&self) -> Result<()> {
        let _alone = self.folding.lock();
        if !self.log.lock().wants_spare() {
            return Ok(());
        }
        self.settle()?;
        // The best spare is a segment that has to go: its space has been written before.
        self.retire(MAX_CAPACITY)?;
        let Some((path, capacity)) = self.log.lock().begin_spare() else { return Ok(()) };
        self.write_spare(&path, capacity).inspect_err(|_| {
            let _ = self.shared.storage.remove_file(&path); // space may be what is missing
        })?;
        self.log.lock().note_spare(capacity);
        Ok(())
    }

    fn write_spare(&self, path: &Path, capacity: u64) -> Result<()> {
        let file = self.shared.storage.open(path, OpenMode::CreateNew).at("create", path)?;
        file.allocate(capacity).at("create", path)?;
        if self.syncs_commits.load(Ordering::Relaxed) {
            fill_with_zeros(file.as_ref(), capacity).at("write", path)?;
            file.sync_data().at("sync", path)?;
        }
        Ok(())
    }

    /// Reads a version from cache or log.
    fn read_version(
        &self,
        content: &Content,
        version: &Version,
        pgno: Pgno,
        buf: &mut [u8],
    ) -> Result<()> {
        match self.shared.cache.get(self.id, pgno, version.sum) {
            Some(page) => {
                buf.copy_from_slice(&page);
                Ok(())
            }
            None => self.read_log_page(content, version, pgno, buf),
        }
    }
}

/// What a log may always take: catching up by records beats a snapshot only while they are smaller
/// than the database, but small databases need not be that strict.
const DEFAULT_LOG_SIZE: u64 = 64 << 20;

fn fill_with_zeros(file: &dyn File, len: u64) -> io::Result<()> {
    let zeros = vec![0; DURABLE_FILL as usize];
    let mut offset = 0;
    while offset < len {
        let piece = &zeros[..DURABLE_FILL.min(len - offset) as usize];
        if file.write_durably_at(piece, offset)? {
            offset += piece.len() as u64;
        } else {
            let piece = &zeros[..CACHED_FILL.min(len - offset) as usize];
            file.write_all_at(piece, offset)?;
            offset += piece.len() as u64;
        }
    }
    Ok(())
}

fn plan(content: &Content, target: Txid) -> Plan {
    let published = content.published.read();
    let target = published.state_at(target).expect("BUG: folds end at a record");
    let page_size = target.page_size.expect("BUG: a database with a record has a page size");
    let newest_within = |(pgno, versions): (&Pgno, &Vec<Version>)| {
        let version = versions.iter().rev().find(|version| version.txid <= target.pos.txid)?;
        (pgno.get() <= target.pages).then(|| (*pgno, version.clone()))
    };
    let mut pages: Vec<_> = published.versions.iter().filter_map(newest_within).collect();
    pages.sort_unstable_by_key(|(pgno, _)| *pgno);
    Plan { target, page_size, pages }
}

/// Moves what was folded from the index of versions to the base's checksums.
fn forget_folded(content: &Content, plan: &Plan, mark: super::mark::Mark) {
    let target = plan.target.pos.txid;
    {
        let mut published = content.published.write();
        published.mark = mark;
        published.sums.resize(plan.target.pages as usize, Checksum::NONE);
        while published.records.front().is_some_and(|record| record.pos.txid <= target) {
            let record = published.records.pop_front().expect("BUG: there is a front");
            published.unfolded -= record.len;
        }
    }
    for batch in plan.pages.chunks(BATCH) {
        let mut published = content.published.write();
        for (pgno, version) in batch {
            published.sums[pgno.get() as usize - 1] = version.sum;
            published.forget_versions(*pgno, target);
        }
    }
    let mut published = content.published.write();
    let beyond = |pgno: &Pgno| pgno.get() > plan.target.pages;
    let cut_off: Vec<Pgno> = published.versions.keys().copied().filter(beyond).collect();
    for pgno in cut_off {
        published.forget_versions(pgno, target);
    }
}
