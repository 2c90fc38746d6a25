//! What `litefs-web` asks a node that runs in the application's own process.

use std::sync::Arc;
use std::time::Duration;

use litefs_ltx::Txid;
use litefs_store::DbName;
use litefs_web::{Cluster, Primary};

use crate::http::NodeView;
use crate::proxy::Position;

/// A database of this node, for [`litefs_web::ReadYourWrites`]. It does not keep the node running.
#[derive(Clone)]
pub struct WebDatabase {
    view: Arc<dyn NodeView>,
    position: Arc<Position>,
}

impl WebDatabase {
    pub(crate) fn new(view: Arc<dyn NodeView>, db: DbName) -> Self {
        let position = Arc::new(Position::of(&view, db));
        Self { view, position }
    }
}

impl Cluster for WebDatabase {
    fn primary(&self) -> Primary {
        let role = self.view.role().borrow().clone();
        match (role.is_primary, role.primary_hostname, role.primary_url) {
            (true, _, _) => Primary::ThisNode,
            (false, None, None) => Primary::Nobody,
            (false, hostname, url) => Primary::Other { hostname, url },
        }
    }

    fn transaction(&self) -> u64 {
        self.position.now(&self.view).map_or(0, Txid::get)
    }

    async fn wait_for(&self, transaction: u64, timeout: Duration) -> bool {
        let reached = self.position.reached(&self.view, Txid::new(transaction));
        tokio::time::timeout(timeout, reached).await.is_ok()
    }
}
