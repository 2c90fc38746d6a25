//! The lease in Consul: what the role machine asks of the lease service, as Consul's requests.
//!
//! | module    | what                                                        |
//! |-----------|-------------------------------------------------------------|
//! | `client`  | Consul's HTTP API                                           |
//! | `records` | the keys below the lease's key, and their values            |
//!
//! [`ConsulLease`] joins the two. Each of its calls is one request, made once.

mod client;
mod records;

use std::time::Duration;

pub use client::{Client, ConsulError, NewSession, Outcome, Pair, Session, Step, Tree};
pub use records::{Face, Names};

use super::action::{Acquire, Acquisition, REQUEST_TIMEOUT, Renewal, Replace, Replacement};
use super::view::{NodeRecord, SessionId, View};
use crate::config::{ConfigError, ConsulConfig};

/// The lease's part of a Consul. Clones share their connections.
#[derive(Clone)]
pub struct ConsulLease {
    client: Client,
    names: Names,
    face: Face,
    session: NewSession,
}

/// Why nothing is known of what was asked; the text is for the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// Consul.
    #[error(transparent)]
    Consul(#[from] ConsulError),
    /// What lies below the key is not a lease of this release.
    #[error("{0}")]
    Unreadable(String),
}

type Result<T> = std::result::Result<T, LeaseError>;

impl ConsulLease {
    /// `face` is what others learn of this node.
    ///
    /// # Errors
    /// The token or the certificates cannot be used.
    pub fn new(config: &ConsulConfig, face: Face) -> std::result::Result<Self, ConfigError> {
        Ok(Self {
            client: Client::new(config, REQUEST_TIMEOUT)?,
            names: Names::new(config.url.prefix(), &config.key),
            face,
            session: NewSession { ttl: config.ttl, lock_delay: config.lock_delay },
        })
    }

    /// Opens a session for this node.
    pub async fn open_session(&self) -> Result<SessionId> {
        self.client.register_node().await?;
        Ok(SessionId(self.client.create_session(&self.session).await?))
    }

    /// Renews this node's session.
    pub async fn renew_session(&self, session: &SessionId) -> Result<Renewal> {
        Ok(match self.client.renew_session(&session.0).await? {
            true => Renewal::Renewed,
            false => Renewal::Gone,
        })
    }

    /// Destroys a session; one that is gone already is no error.
    pub async fn destroy_session(&self, session: &SessionId) -> Result<()> {
        Ok(self.client.destroy_session(&session.0).await?)
    }

    /// All that lies below the key; `after` waits for a change since that index, or for that time.
    pub async fn view(&self, after: Option<(u64, Duration)>) -> Result<View> {
        let tree = self.client.tree(&self.names.key, after).await?;
        records::view(&self.names, tree).map_err(LeaseError::Unreadable)
    }

    /// Writes this node's record; false if the session is gone.
    pub async fn publish(&self, session: &SessionId, record: &NodeRecord) -> Result<bool> {
        let key = self.names.node(record.node, session);
        Ok(self.client.acquire(&key, &session.0, records::node(&self.face, record)).await?)
    }

    /// Tries to take the lease.
    pub async fn acquire(&self, acquire: &Acquire) -> Result<Acquisition> {
        let names = &self.names;
        let value = records::holder(&self.face);
        let term = records::term(&acquire.term);
        let mut steps = vec![
            Step::Lock(&names.key, &acquire.session.0, value),
            Step::Replace(&names.term, acquire.expected.unwrap_or(0), term),
        ];
        if let Some(cluster) = &acquire.cluster {
            steps.push(Step::Replace(&names.cluster, 0, cluster.clone().into_bytes()));
        }
        Ok(match self.client.transact("take the lease", &steps).await? {
            Outcome::Done(index) => Acquisition::Acquired { index },
            Outcome::Refused(why) => {
                tracing::debug!("Consul refused the lease: {why:?}");
                Acquisition::Refused
            }
        })
    }

    /// Extends the right of this node, which holds the lease.
    pub async fn beat(&self, beat: &Replace) -> Result<Replacement> {
        self.replace("extend the lease", beat, false).await
    }

    /// Frees the key and says in the term record that it was released.
    pub async fn release(&self, release: &Replace) -> Result<Replacement> {
        self.replace("release the lease", release, true).await
    }

    async fn replace(
        &self,
        what: &'static str,
        replace: &Replace,
        unlock: bool,
    ) -> Result<Replacement> {
        let names = &self.names;
        let mut steps = vec![
            Step::CheckHeld(&names.key, &replace.session.0),
            Step::Replace(&names.term, replace.expected, records::term(&replace.term)),
        ];
        if unlock {
            let value = records::holder(&self.face);
            steps.push(Step::Unlock(&names.key, &replace.session.0, value));
        }
        Ok(match self.client.transact(what, &steps).await? {
            Outcome::Done(index) => Replacement::Done { index },
            // Consul tries all steps: the first one says more.
            Outcome::Refused(why) if why.iter().all(|(step, _)| *step == 1) => {
                Replacement::Conflict
            }
            Outcome::Refused(why) => {
                tracing::debug!("Consul does not know this node as the holder: {why:?}");
                Replacement::Gone
            }
        })
    }
}
