//! Does the same to a store on a simulated disk and to the model, and keeps, for each moment of the
//! disk, which contents a crash then may leave.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::slice::from_ref;
use std::sync::Arc;
use std::time::Duration;

use litefs_store::sim::{SimClock, SimDisk};
use litefs_store::{
    Database, DbName, Diverged, Durability, Error, OpenMode, Options, Pgno, Pos, Relation, Result,
    Snapshot, Storage, Store,
};

use super::model::{Pages, State};

pub const DIR: &str = "/data";
/// Divergences of a database that are kept before the old ones are removed.
const KEPT: usize = 4;

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Publish,
    /// Rolled back after the record was appended.
    RollBackPrepared,
    /// Rolled back after the record was synced.
    RollBackSynced,
}

/// States that a crash may leave, oldest first; the newest is last.
type States = Vec<Rc<State>>;

/// Diverged transactions that were acknowledged as kept.
#[derive(Clone, Debug)]
pub struct Kept {
    pub since_op: usize,
    /// When removing it began.
    pub until_op: usize,
    pub dir: PathBuf,
    /// The positions after each of its records.
    pub ends: Vec<Pos>,
    /// The database after them.
    pub newest: Rc<State>,
}

impl Kept {
    fn is_there(&self, at: usize) -> bool {
        (self.since_op..=self.until_op).contains(&at)
    }
}

/// One database, and what is known of it.
#[derive(Debug)]
pub struct Tracked {
    pub name: DbName,
    pub db: Database,
    /// What readers see.
    pub newest: Rc<State>,
    /// A failure left it unknown which state the next start finds.
    in_doubt: bool,
    /// Since the last import, snapshot or rewind's target.
    pub line: States,
    pub allowed: States,
    /// From an operation on, what a crash may leave.
    timeline: Vec<(usize, States)>,
    pub pins: Vec<(Snapshot, Rc<State>)>,
    pub kept: Vec<Kept>,
}

/// What a crash at some operation may leave of a database.
#[derive(Clone, Debug)]
pub struct Expected {
    pub name: DbName,
    pub allowed: States,
    pub kept: Vec<Kept>,
}

pub struct Driver {
    pub disk: SimDisk,
    pub clock: Arc<SimClock>,
    options: Options,
    pub store: Store,
    pub dbs: Vec<Tracked>,
    /// Epochs that were remembered: from an operation on, the lowest and the highest possible.
    epochs: Vec<(usize, u64, u64)>,
}

impl Driver {
    /// A store on a new disk, with databases of these names.
    pub fn new(disk: SimDisk, names: &[&str], log_size: u64) -> Self {
        Self::try_new(disk, names, log_size).unwrap()
    }

    pub fn try_new(disk: SimDisk, names: &[&str], log_size: u64) -> Result<Self> {
        let expected = names.iter().map(|name| Expected {
            name: DbName::new(name).unwrap(),
            allowed: vec![State::zero()],
            kept: Vec::new(),
        });
        let clock = Arc::new(SimClock::new());
        Self::open(disk, clock, log_size, expected.collect(), 0)
    }

    /// Opens the store on a disk that a crash has left, and checks that it is as expected. What it
    /// finds is taken as the newest state; `allowed` stays what another crash may leave.
    pub fn open(
        disk: SimDisk,
        clock: Arc<SimClock>,
        log_size: u64,
        expected: Vec<Expected>,
        epoch: u64,
    ) -> Result<Self> {
        let options = Options {
            background: false,
            node_id: Some(7),
            log_size: Some(log_size),
            retention: Duration::from_secs(2),
            storage: Arc::new(disk.clone()),
            clock: clock.clone(),
            cache_size: 1 << 20,
            ..Options::default()
        };
        let store = Store::open_with(DIR, options.clone())?;
        let epochs = vec![(0, epoch, store.epoch())];
        let dbs = expected.into_iter().map(|expected| Tracked::open(&store, expected));
        let dbs = dbs.collect::<Result<_>>()?;
        Ok(Self { disk, clock, options, store, dbs, epochs })
    }

    /// What a crash after the first `at` operations may leave, and the lowest and highest epoch.
    pub fn expected_at(&self, at: usize) -> (Vec<Expected>, u64, u64) {
        let dbs = self.dbs.iter().map(|tracked| Expected {
            name: tracked.name.clone(),
            allowed: tracked.allowed_at(at),
            kept: tracked.kept.iter().filter(|kept| kept.is_there(at)).cloned().collect(),
        });
        let epoch = self.epochs.iter().rev().find(|(op, ..)| *op <= at).unwrap();
        (dbs.collect(), epoch.1, epoch.2)
    }

    /// Ends the process, and starts another on the same disk, without loss of power.
    pub fn reopen(&mut self) -> Result<()> {
        for tracked in &mut self.dbs {
            tracked.pins.clear();
            tracked.in_doubt |= tracked.poisoned().is_some();
        }
        self.store.close()?;
        self.store = Store::open_with(DIR, self.options.clone())?;
        for tracked in &mut self.dbs {
            tracked.db = self.store.create(&tracked.name)?;
        }
        for tracked in &mut self.dbs {
            let found = tracked.find_in(&tracked.allowed)?;
            if !Rc::ptr_eq(&found, &tracked.newest) {
                assert!(tracked.in_doubt, "{} moved by a mere restart", tracked.name);
                tracked.newest = found.clone();
                tracked.line = vec![found];
            }
            tracked.in_doubt = false;
        }
        Ok(())
    }

    /// Reads everything through the store: it is what the model says.
    pub fn check(&self) -> Result<()> {
        for tracked in &self.dbs {
            assert_eq!(tracked.db.pos(), tracked.newest.pos, "position of {}", tracked.name);
            let mut bytes = Vec::new();
            tracked.db.export(&mut bytes)?;
            assert!(bytes == tracked.newest.bytes(), "content of {}", tracked.name);
            for (snapshot, state) in &tracked.pins {
                let mut bytes = Vec::new();
                snapshot.export(&mut bytes)?;
                assert!(bytes == state.bytes(), "pinned content of {}", tracked.name);
            }
        }
        Ok(())
    }

    /// A call that may lead database `i` to one of `also`. `done` says what a crash may leave once
    /// it has succeeded; if it has failed, everything is as before, unless the database says that
    /// it does not know.
    fn call<T>(
        &mut self,
        i: usize,
        also: &[Rc<State>],
        call: impl FnOnce(&Database) -> Result<T>,
        done: impl FnOnce(&mut Tracked, &T),
    ) -> Result<T> {
        self.clock.advance(Duration::from_millis(7));
        let start = self.disk.op_count();
        let tracked = &mut self.dbs[i];
        let during = [&tracked.allowed, also].concat();
        tracked.timeline.push((start + 1, during.clone()));
        let result = call(&tracked.db);
        match &result {
            Ok(value) => done(tracked, value),
            // Without an operation on the disk it was refused, and nothing can have changed.
            Err(_) if self.disk.op_count() == start => {}
            Err(_) if tracked.poisoned().is_some() => tracked.allowed = during,
            Err(_) => {}
        }
        tracked.believe_claims();
        let now = tracked.allowed.clone();
        tracked.timeline.push((self.disk.op_count(), now));
        result
    }

    /// A local transaction that writes `pages` and leaves `size` pages.
    pub fn commit(
        &mut self,
        i: usize,
        page_size: usize,
        pages: &Pages,
        size: usize,
        durability: Durability,
        ending: Ending,
    ) -> Result<()> {
        let old = self.dbs[i].newest.clone();
        let new = old.after(page_size, pages, size);
        let commit = |db: &Database| {
            let snapshot = db.snapshot()?;
            let mut writer = db.begin_write(&snapshot)?;
            for (number, page) in pages {
                writer.write_page(Pgno::new(*number).unwrap(), page)?;
            }
            writer.prepare(size as u32, durability, false)?;
            if ending != Ending::RollBackPrepared {
                writer.sync()?;
            }
            match ending {
                Ending::Publish => assert_eq!(writer.publish(), new.pos),
                _ => writer.rollback(),
            }
            assert_eq!(db.pos() == new.pos, ending == Ending::Publish);
            Ok(())
        };
        let done = |tracked: &mut Tracked, (): &()| match ending {
            Ending::Publish => tracked.committed(new.clone(), durability),
            _ if tracked.poisoned().is_some() => tracked.allowed.push(new.clone()),
            _ => {}
        };
        self.call(i, from_ref(&new), commit, done)
    }

    pub fn drop_database(&mut self, i: usize) -> Result<()> {
        let old = &self.dbs[i].newest;
        let new = State::of(old.pos.txid.next(), old.page_size, Vec::new());
        let call = |db: &Database| db.drop_database();
        self.call(i, from_ref(&new), call, |tracked, pos| {
            assert_eq!(*pos, new.pos);
            tracked.committed(new.clone(), Durability::Full);
        })?;
        Ok(())
    }

    /// Applies a record that leads to `new`.
    pub fn apply(
        &mut self,
        i: usize,
        record: &[u8],
        new: &Rc<State>,
        durability: Durability,
    ) -> Result<()> {
        let call = |db: &Database| db.apply(&mut Cursor::new(record), durability);
        self.call(i, from_ref(new), call, |tracked, pos| {
            assert_eq!(*pos, new.pos);
            tracked.committed(new.clone(), durability);
        })?;
        Ok(())
    }

    pub fn install(&mut self, i: usize, new: &Rc<State>, compressed: bool) -> Result<()> {
        let record = new.snapshot_record(compressed);
        let call = |db: &Database| db.install_snapshot(&mut Cursor::new(&record));
        self.call(i, from_ref(new), call, |tracked, pos| {
            assert_eq!(*pos, new.pos);
            tracked.replaced(vec![new.clone()]);
        })?;
        Ok(())
    }

    pub fn import(&mut self, i: usize, file: &[u8], page_size: usize) -> Result<()> {
        let new = self.dbs[i].newest.after_import(file, page_size);
        let call = |db: &Database| db.import(&mut Cursor::new(file));
        self.call(i, from_ref(&new), call, |tracked, pos| {
            assert_eq!(*pos, new.pos);
            tracked.replaced(vec![new.clone()]);
        })?;
        Ok(())
    }

    /// Drops what came after `line[keep]`.
    pub fn rewind(&mut self, i: usize, keep: usize) -> Result<()> {
        let line = self.dbs[i].line.clone();
        let to = line[keep].pos;
        self.call(
            i,
            &line[keep..],
            |db| db.rewind(to),
            |tracked, ()| {
                tracked.replaced(line[..=keep].to_vec());
            },
        )
    }

    /// Keeps what came after `line[common]` aside; before that, removes what is kept if it is much.
    pub fn preserve(&mut self, i: usize, common: usize) -> Result<()> {
        self.forget_old(i)?;
        let line = self.dbs[i].line.clone();
        let (from, newest) = (line[common].pos, line[line.len() - 1].clone());
        let in_log = self.dbs[i].db.relation(from)? == Relation::Behind;
        let apart = if in_log { &line[common + 1..] } else { &[] };
        let ends: Vec<Pos> = apart.iter().map(|state| state.pos).collect();
        let kept = self.call(i, &[], |db| db.preserve_diverged(Some(from)), |_, _| {})?;
        let kept = kept.expect("this position was kept never before");
        assert_eq!(kept.newest, newest.pos);
        // Unless the log could not be read.
        assert!(kept.common == Some(from) || kept.common.is_none());
        let ends = if kept.common.is_some() { ends } else { Vec::new() };
        let (since_op, until_op) = (self.disk.op_count(), usize::MAX);
        self.dbs[i].kept.push(Kept { since_op, until_op, dir: kept.path, ends, newest });
        Ok(())
    }

    fn forget_old(&mut self, i: usize) -> Result<()> {
        let old = self.dbs[i].db.diverged()?;
        if old.len() < KEPT {
            return Ok(());
        }
        for old in old {
            let at = self.disk.op_count();
            let of_it = self.dbs[i].kept.iter_mut().filter(|kept| kept.dir == old.path);
            of_it.for_each(|kept| kept.until_op = kept.until_op.min(at));
            old.forget(&self.disk)?;
        }
        Ok(())
    }

    pub fn sync(&mut self, i: usize) -> Result<()> {
        self.call(
            i,
            &[],
            |db| db.sync(),
            |tracked, pos| {
                assert_eq!(*pos, tracked.newest.pos);
                tracked.guarantee(*pos);
            },
        )?;
        Ok(())
    }

    pub fn fold(&mut self, i: usize) -> Result<()> {
        self.call(
            i,
            &[],
            |db| db.fold(),
            |tracked, ()| {
                if tracked.pins.is_empty() {
                    assert_eq!(tracked.db.stats().mark, tracked.newest.pos.txid);
                    tracked.guarantee(tracked.newest.pos);
                }
            },
        )
    }

    pub fn prepare_spare(&mut self, i: usize) -> Result<()> {
        self.call(i, &[], |db| db.prepare_spare(), |_, ()| {})
    }

    pub fn pin(&mut self, i: usize) -> Result<()> {
        let tracked = &mut self.dbs[i];
        tracked.pins.push((tracked.db.snapshot()?, tracked.newest.clone()));
        Ok(())
    }

    pub fn set_epoch(&mut self, epoch: u64) -> Result<()> {
        let (start, low) = (self.disk.op_count(), self.epochs.last().unwrap().1);
        self.epochs.push((start + 1, low, epoch));
        self.store.set_epoch(epoch)?;
        self.epochs.push((self.disk.op_count(), epoch, epoch));
        Ok(())
    }
}

impl Tracked {
    fn open(store: &Store, expected: Expected) -> Result<Self> {
        let Expected { name, mut allowed, mut kept } = expected;
        for kept in &mut kept {
            (kept.since_op, kept.until_op) = (0, usize::MAX);
        }
        let db = store.create(&name)?;
        let zero = State::zero();
        let tracked = Self {
            db,
            newest: zero,
            in_doubt: false,
            line: Vec::new(),
            timeline: Vec::new(),
            pins: Vec::new(),
            kept,
            allowed: Vec::new(),
            name,
        };
        let newest = tracked.find_in(&allowed)?;
        allowed.retain(|state| !Rc::ptr_eq(state, &newest));
        allowed.push(newest.clone());
        let timeline = vec![(0, allowed.clone())];
        Ok(Self { line: vec![newest.clone()], newest, timeline, allowed, ..tracked })
    }

    /// Which of these states the database is in: exactly that, or none.
    pub fn find_in(&self, states: &States) -> Result<Rc<State>> {
        let (name, pos) = (&self.name, self.db.snapshot()?.pos());
        let found = states.iter().rev().find(|state| state.pos == pos);
        let found = found.unwrap_or_else(|| {
            let all: Vec<_> = states.iter().map(|state| state.pos.to_string()).collect();
            panic!("{name} is at {pos}, not at one of {all:?}")
        });
        let mut bytes = Vec::new();
        self.db.export(&mut bytes)?;
        assert!(bytes == found.bytes(), "{name} at {pos} holds something else");
        assert_eq!(self.db.page_count() as usize, found.pages.len());
        assert_eq!(self.db.page_size().map_or(0, |size| size.len()), found.page_size);
        Ok(found.clone())
    }

    /// What was found is all that was on the disk: another crash cannot bring anything else.
    pub fn settle(&mut self) {
        self.allowed = vec![self.newest.clone()];
        self.timeline = vec![(0, self.allowed.clone())];
    }

    fn allowed_at(&self, at: usize) -> States {
        self.timeline.iter().rev().find(|(op, _)| *op <= at).unwrap().1.clone()
    }

    /// Why it refuses to write, if a failure made it.
    pub fn poisoned(&self) -> Option<String> {
        match self.db.snapshot().and_then(|snapshot| self.db.begin_write(&snapshot)) {
            Err(error @ Error::Poisoned { .. }) => Some(error.to_string()),
            _ => None,
        }
    }

    fn committed(&mut self, new: Rc<State>, durability: Durability) {
        self.line.push(new.clone());
        self.allowed.push(new.clone());
        self.newest = new;
        if durability == Durability::Full {
            self.guarantee(self.newest.pos);
        }
    }

    fn replaced(&mut self, line: States) {
        self.newest = line.last().unwrap().clone();
        self.line = line;
        self.allowed = vec![self.newest.clone()];
    }

    /// From now on nothing older than `pos` may come back.
    fn guarantee(&mut self, pos: Pos) {
        let at = self.allowed.iter().rposition(|state| state.pos == pos);
        self.allowed.drain(..at.expect("guaranteed what cannot be"));
    }

    /// What the engine tells peers to be on disk is an acknowledgement too.
    fn believe_claims(&mut self) {
        let claimed = self.db.synced_pos();
        if let Some(at) = self.allowed.iter().position(|state| state.pos == claimed) {
            self.allowed.drain(..at);
        }
    }
}

/// Diverged transactions that were kept are there, whole and in order, and make up the database.
pub fn check_kept(disk: &SimDisk, kept: &Kept) {
    let all = Diverged::list(disk, Path::new(DIR)).unwrap();
    let found = all.iter().find(|found| found.path == kept.dir);
    let found = found.unwrap_or_else(|| panic!("kept {} is gone", kept.dir.display()));
    let ends = found.records(disk).unwrap().into_iter().map(|path| {
        let summary = litefs_store::ltx::verify(Cursor::new(read_file(disk, &path)));
        let summary = summary.unwrap_or_else(|e| panic!("kept {} is bad: {e}", path.display()));
        Pos::new(summary.header.max_txid, summary.trailer.post_apply)
    });
    assert_eq!(ends.collect::<Vec<_>>(), kept.ends, "in {}", kept.dir.display());
    match found.whole_file() {
        Some(path) => assert!(content(&read_file(disk, &path)) == kept.newest.bytes()),
        None => assert!(!kept.ends.is_empty(), "{} holds nothing", kept.dir.display()),
    }
}

fn read_file(disk: &SimDisk, path: &Path) -> Vec<u8> {
    let file = disk.open(path, OpenMode::Read).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// The database in a snapshot record.
fn content(record: &[u8]) -> Vec<u8> {
    let mut decoder = litefs_store::ltx::Decoder::new(record).unwrap();
    let mut page = vec![0; decoder.header().page_size.len()];
    let mut all = Vec::new();
    while decoder.next_page(&mut page).unwrap().is_some() {
        all.extend_from_slice(&page);
    }
    decoder.finish().unwrap();
    all
}
