//! Requests that may commit: they wait where a commit has to wait, and keep nobody waiting.
//!
//! *Before* it, while the store's write gate is held (during a hand-over), they are kept aside.
//! *After* it, where replicas have to confirm it, only the answer is. Either way they have no
//! thread and no lock of the mount meanwhile: readers, and whoever takes and gives back locks,
//! go on. One thread, there only as long as something is kept, watches the gate for all.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::thread;

use fuser::{Errno, INodeNo};
use litefs_store::{DbName, Unconfirmed, WriteGate};
use parking_lot::Mutex;

use crate::db::Result;
use crate::errno::log_once;
use crate::locks::Lock;
use crate::name::DbFile;
use crate::pool::{Lane, Pool};
use crate::requests::Mounted;
use crate::tree::Node;

/// A database to which a request has committed, and what has to be confirmed before its answer.
type Committed = (DbName, Option<Unconfirmed>);

thread_local! {
    /// What the request that this thread serves has committed.
    static COMMITTED: RefCell<Vec<Committed>> = const { RefCell::new(Vec::new()) };
}

/// The request that this thread serves has committed to a database.
pub(crate) fn note_commit(db: &DbName, unconfirmed: Option<Unconfirmed>) {
    COMMITTED.with_borrow_mut(|all| all.push((db.clone(), unconfirmed)));
}

/// Does what a request asks for, and then, maybe later, answers it.
type Request = Box<dyn FnOnce(&Arc<Mounted>) + Send>;

/// See the module's text.
pub(crate) struct Committing {
    mounted: Arc<Mounted>,
    pool: Pool,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    requests: Vec<(Option<Arc<Lane>>, Request)>,
    /// A thread watches the gate.
    watched: bool,
}

impl Committing {
    pub(crate) fn new(mounted: Arc<Mounted>, pool: Pool) -> Arc<Self> {
        Arc::new(Self { mounted, pool, held: Mutex::default() })
    }

    pub(crate) fn gate(&self) -> &WriteGate {
        self.mounted.tree.shared().store.gate()
    }

    /// Serves a request that may commit, now and here, or if commits are held, later, on a thread
    /// of `lane`.
    pub(crate) fn serve<T: Send + 'static>(
        self: &Arc<Self>,
        lane: impl FnOnce(&Mounted) -> Option<Arc<Lane>>,
        act: impl FnOnce(&Mounted) -> Result<T> + Send + 'static,
        answer: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        match self.gate().try_pass() {
            Some(_pass) => commit(&self.mounted, act, answer),
            None => {
                let request = move |mounted: &Arc<Mounted>| commit(mounted, act, answer);
                self.keep(lane(&self.mounted), Box::new(request));
            }
        }
    }

    /// Serves a request for a lock. One with which a transaction would begin better waits here than
    /// in the middle of it, where clients that read may have to wait with it.
    pub(crate) fn begin(
        self: &Arc<Self>,
        ino: INodeNo,
        lock: &Lock,
        request: impl FnOnce(&Mounted) + Send + 'static,
    ) {
        match self.mounted.tree.node(ino.0) {
            Ok(Node::Db(_, db, DbFile::Part(part)))
                if self.gate().is_held() && db.begins_to_write(part, lock) =>
            {
                let request = move |mounted: &Arc<Mounted>| request(mounted);
                self.keep(Some(db.lane.clone()), Box::new(request));
            }
            _ => request(&self.mounted),
        }
    }

    fn keep(self: &Arc<Self>, lane: Option<Arc<Lane>>, request: Request) {
        let mut held = self.held.lock();
        if !held.watched {
            if let Err(error) = self.watch() {
                // Dropped, the request is answered with EIO.
                tracing::error!(%error, "cannot start a thread for a commit that has to wait");
                return;
            }
            held.watched = true;
        }
        held.requests.push((lane, request));
    }

    fn watch(self: &Arc<Self>) -> io::Result<()> {
        let all = self.clone();
        let watch = move || {
            while let Some(requests) = all.next_batch() {
                requests.into_iter().for_each(|(lane, request)| all.resume(lane, request));
            }
        };
        thread::Builder::new().name("fuse held".to_owned()).spawn(watch).map(drop)
    }

    /// Waits for the end of the hold; `None` if nothing waits any more.
    fn next_batch(&self) -> Option<Vec<(Option<Arc<Lane>>, Request)>> {
        self.gate().wait_while_held();
        let mut held = self.held.lock();
        held.watched = !held.requests.is_empty();
        held.watched.then(|| std::mem::take(&mut held.requests))
    }

    fn resume(self: &Arc<Self>, lane: Option<Arc<Lane>>, request: Request) {
        let all = self.clone();
        match lane {
            Some(lane) => {
                let again = lane.clone();
                lane.run(&self.pool, move || all.resume_here(Some(again), request));
            }
            None => self.pool.run(move || all.resume_here(None, request)),
        }
    }

    fn resume_here(self: &Arc<Self>, lane: Option<Arc<Lane>>, request: Request) {
        match self.gate().try_pass() {
            Some(_pass) => request(&self.mounted),
            None => self.keep(lane, request),
        }
    }
}

/// Does what the request asks for; answers it when everything that it committed is confirmed, and
/// only if commits are still allowed then.
pub(crate) fn commit<T: Send + 'static>(
    mounted: &Arc<Mounted>,
    act: impl FnOnce(&Mounted) -> Result<T>,
    answer: impl FnOnce(Result<T>) + Send + 'static,
) {
    let collecting = Collecting(mounted);
    let result = act(mounted);
    let committed = COMMITTED.take();
    drop(collecting);
    match result {
        Ok(value) if !committed.is_empty() => {
            let confirmed = move |outcome: Result<()>| answer(outcome.map(|()| value));
            confirm(mounted.clone(), committed, Box::new(confirmed));
        }
        result => answer(result),
    }
}

/// Of a request that panics, nothing is left to the thread's next one.
struct Collecting<'a>(&'a Mounted);

impl Drop for Collecting<'_> {
    fn drop(&mut self) {
        not_answered(self.0, &COMMITTED.take());
    }
}

type Confirmed = Box<dyn FnOnce(Result<()>) + Send>;

/// Has one after the other confirmed.
fn confirm(mounted: Arc<Mounted>, mut committed: Vec<Committed>, answer: Confirmed) {
    let waits = committed.iter_mut().find_map(|(_, unconfirmed)| unconfirmed.take());
    let Some(unconfirmed) = waits else {
        let is_open = mounted.tree.shared().store.gate().is_open();
        return end(&mounted, &committed, is_open, answer);
    };
    unconfirmed.then(move |outcome| match outcome {
        Ok(_) => confirm(mounted, committed, answer),
        Err(error) => {
            log_once(&error.to_string());
            end(&mounted, &committed, false, answer);
        }
    });
}

fn end(mounted: &Mounted, committed: &[Committed], well: bool, answer: Confirmed) {
    if well {
        return answer(Ok(()));
    }
    not_answered(mounted, committed);
    answer(Err(Errno::EIO));
}

/// The clients learn that their commits failed, and they are in the log.
fn not_answered(mounted: &Mounted, committed: &[Committed]) {
    committed.iter().filter_map(|(name, _)| mounted.database(name)).for_each(|db| {
        tracing::warn!(db = %db.name(), "a transaction was committed and not acknowledged");
        db.commit_not_answered();
    });
}
