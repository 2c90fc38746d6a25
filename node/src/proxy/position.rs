//! Waits until this node has what a client has seen.

use std::sync::Arc;

use litefs_ltx::Txid;
use litefs_store::{DbName, Event, Subscription};
use tokio::sync::watch;

use crate::http::NodeView;

/// The position of the database that cookies speak of.
pub(crate) struct Position {
    db: DbName,
    moved: watch::Sender<()>,
    _subscription: Subscription,
}

impl Position {
    pub(crate) fn of(view: &Arc<dyn NodeView>, db: DbName) -> Self {
        let moved = watch::Sender::new(());
        let (sender, ours) = (moved.clone(), db.clone());
        let subscription = view.store().subscribe(move |event| {
            if matches!(event, Event::Position { db, .. } if *db == ours) {
                sender.send_replace(());
            }
        });
        Self { db, moved, _subscription: subscription }
    }

    /// The newest transaction here; `None` if there is none.
    pub(crate) fn now(&self, view: &Arc<dyn NodeView>) -> Option<Txid> {
        let txid = view.store().database(&self.db)?.pos().txid;
        (txid != Txid::ZERO).then_some(txid)
    }

    /// Returns when the application sees the database at `txid` or further, or when this is the
    /// primary, which has the newest there is. (A cookie beyond the primary's position names a
    /// transaction that was lost with another primary.)
    pub(crate) async fn reached(&self, view: &Arc<dyn NodeView>, txid: Txid) {
        let mut moved = self.moved.subscribe();
        let mut shown = view.shown();
        let mut role = view.role();
        loop {
            // Marked as seen before they are looked at, so that no change is missed.
            moved.borrow_and_update();
            shown.borrow_and_update();
            if role.borrow_and_update().is_primary {
                return;
            }
            if view.visible(&self.db).is_some_and(|visible| visible >= txid) {
                return;
            }
            tokio::select! {
                // Errors mean that the node shuts down: the caller's time limit ends the wait.
                Ok(()) = moved.changed() => {}
                Ok(()) = shown.changed() => {}
                Ok(()) = role.changed() => {}
                else => std::future::pending().await,
            }
        }
    }
}
