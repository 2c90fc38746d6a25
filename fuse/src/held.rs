//! Requests that may commit, while the store's write gate is held (during a hand-over).
//!
//! They wait here before they are begun, so that they have no thread and no lock of the mount
//! meanwhile: readers, and whoever takes and gives back locks, go on. One thread, there only as
//! long as something waits, watches the gate for all.

use std::io;
use std::sync::Arc;
use std::thread;

use litefs_store::WriteGate;
use parking_lot::Mutex;

use crate::pool::{Lane, Pool};
use crate::requests::Mounted;

type Request = Box<dyn FnOnce(&Mounted) + Send>;

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
    pub(crate) fn serve(
        self: &Arc<Self>,
        lane: impl FnOnce(&Mounted) -> Option<Arc<Lane>>,
        request: impl FnOnce(&Mounted) + Send + 'static,
    ) {
        match self.gate().try_pass() {
            Some(_pass) => request(&self.mounted),
            None => self.keep(lane(&self.mounted), Box::new(request)),
        }
    }

    fn keep(self: &Arc<Self>, lane: Option<Arc<Lane>>, request: Request) {
        let mut held = self.held.lock();
        if !held.watched {
            if let Err(error) = self.watch() {
                // Dropped, the request is answered with EIO.
                return tracing::error!(%error, "cannot start a thread for a commit that has to wait");
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
                lane.run(&self.pool, move || all.serve(|_| Some(again), request));
            }
            None => self.pool.run(move || all.serve(|_| None, request)),
        }
    }
}
