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

use fuser::Errno;
use litefs_store::{DbName, Unconfirmed, WriteGate};
use parking_lot::Mutex;

use crate::db::Result;
use crate::errno::log_once;
use crate::pool::{Lane, Pool};
use crate::requests::Mounted;

thread_local! {
    /// What the request that this thread serves has committed and not confirmed.
    static UNCONFIRMED: RefCell<Vec<Unconfirmed>> = const { RefCell::new(Vec::new()) };
}

/// The request that this thread serves has committed; its answer waits for what is unconfirmed.
pub(crate) fn answer_later(unconfirmed: Option<Unconfirmed>) {
    UNCONFIRMED.with_borrow_mut(|all| all.extend(unconfirmed));
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
                requests.into_iter().for_each(|(lane, request)| all.begin(lane, request));
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

    fn begin(self: &Arc<Self>, lane: Option<Arc<Lane>>, request: Request) {
        let all = self.clone();
        match lane {
            Some(lane) => {
                let again = lane.clone();
                lane.run(&self.pool, move || all.begin_here(Some(again), request));
            }
            None => self.pool.run(move || all.begin_here(None, request)),
        }
    }

    fn begin_here(self: &Arc<Self>, lane: Option<Arc<Lane>>, request: Request) {
        match self.gate().try_pass() {
            Some(_pass) => request(&self.mounted),
            None => self.keep(lane, request),
        }
    }
}

/// Does what the request asks for; answers it when everything that it committed is confirmed.
pub(crate) fn commit<T: Send + 'static>(
    mounted: &Arc<Mounted>,
    act: impl FnOnce(&Mounted) -> Result<T>,
    answer: impl FnOnce(Result<T>) + Send + 'static,
) {
    let result = act(mounted);
    let unconfirmed = UNCONFIRMED.take();
    match result {
        Ok(value) if !unconfirmed.is_empty() => {
            let mounted = mounted.clone();
            let confirmed = move |outcome: Result<()>| answer(outcome.map(|()| value));
            confirm(mounted, unconfirmed, Box::new(confirmed));
        }
        result => answer(result),
    }
}

type Confirmed = Box<dyn FnOnce(Result<()>) + Send>;

/// Has one after the other confirmed.
fn confirm(mounted: Arc<Mounted>, mut unconfirmed: Vec<Unconfirmed>, answer: Confirmed) {
    let Some(last) = unconfirmed.pop() else { return answer(Ok(())) };
    let name = last.db().clone();
    last.then(move |outcome| match outcome {
        Ok(_) => confirm(mounted, unconfirmed, answer),
        Err(error) => {
            log_once(&error.to_string());
            unconfirmed.iter().for_each(|other| refuse(&mounted, other.db()));
            refuse(&mounted, &name);
            answer(Err(Errno::EIO));
        }
    });
}

/// The client learns that its commit failed, and it is in the log.
fn refuse(mounted: &Mounted, name: &DbName) {
    if let Some(db) = mounted.database(name) {
        db.commit_not_answered();
    }
}
