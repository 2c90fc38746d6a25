//! Changes the node's part, one change at a time, and accepts connections.
//!
//! The static lease assigns a role; with Consul, the lease's own thread decides and gives orders.

use std::sync::Arc;

use quinn::{Incoming, VarInt};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use super::elector::{Event, Order};
use super::shared::{Part, Shared};
use super::{CONNECTIONS_EASY, CONNECTIONS_MAX, LINGER, NodeError, new_cluster_id};
use crate::config::{self, Endpoint};
use crate::faces::Faces;
use crate::http::Role;
use crate::lease::Assignment;
use crate::replication::follow::{Follow, Follower, LinkEvent};
use crate::replication::following::Following;
use crate::replication::primary::Identity;
use crate::replication::serve::{GOODBYE_TIMEOUT, Term};
use crate::replication::wire::{Close, Reason};

/// Who tells the conductor what to do.
pub(super) enum Commands {
    /// The static lease.
    Static(watch::Receiver<Assignment>),
    /// The lease's thread; the orders end with it.
    Elected(mpsc::UnboundedReceiver<Order>),
}

enum Command {
    Assigned(Assignment),
    Ordered(Order),
}

impl Commands {
    /// The next command; never, if there will be none.
    async fn next(&mut self) -> Command {
        let next = match self {
            Self::Static(lease) => {
                let changed = lease.changed().await;
                changed.ok().map(|()| Command::Assigned(lease.borrow_and_update().clone()))
            }
            Self::Elected(orders) => orders.recv().await.map(Command::Ordered),
        };
        match next {
            Some(command) => command,
            None => std::future::pending().await,
        }
    }
}

/// Takes up the roles that the lease assigns, and accepts connections.
pub(super) struct Conductor {
    pub shared: Arc<Shared>,
    pub commands: Commands,
    pub stop: Arc<Notify>,
    pub faces: Faces,
}

impl Conductor {
    pub async fn run(mut self) {
        let mut connections = JoinSet::new();
        if let Commands::Static(lease) = &mut self.commands {
            let assignment = lease.borrow_and_update().clone();
            self.change_role(assignment).await;
        }
        loop {
            tokio::select! {
                () = self.stop.notified() => break,
                command = self.commands.next() => match command {
                    Command::Assigned(assignment) => self.change_role(assignment).await,
                    Command::Ordered(order) => self.obey(order).await,
                },
                Some(incoming) = self.shared.endpoint.accept() => {
                    admit(&self.shared, incoming, &mut connections);
                }
                // Finished connections give back their memory.
                Some(_) = connections.join_next() => (),
            }
        }
        self.leave(Close::new(Reason::Shutdown, "this node is shutting down")).await;
        let endpoint = &self.shared.endpoint;
        let drained = async { while connections.join_next().await.is_some() {} };
        // Peers that do not answer are left alone.
        let _ = tokio::time::timeout(GOODBYE_TIMEOUT + GOODBYE_TIMEOUT / 2, drained).await;
        endpoint.close(VarInt::from_u32(Reason::Shutdown.code()), b"this node is shutting down");
        let _ = tokio::time::timeout(LINGER, endpoint.wait_idle()).await;
        self.faces.shutdown().await;
    }

    async fn change_role(&self, assignment: Assignment) {
        let result = match assignment {
            Assignment::Primary { epoch } => self.become_primary(epoch).await,
            Assignment::Replica { of } => {
                self.become_replica(of).await;
                Ok(())
            }
        };
        if let Err(text) = &result {
            tracing::error!("cannot become primary: {text}");
        }
        self.shared.changes.send_modify(|(done, last)| {
            *done += 1;
            *last = result;
        });
    }

    /// Does what the lease's thread wants. The gate is its own business.
    async fn obey(&self, order: Order) {
        let Some(lease) = &self.shared.lease else { return };
        match order {
            Order::BeginTerm { epoch, cluster } => {
                let result = self.begin_term(epoch, Some(cluster)).await;
                lease.tell(Event::TermBegan { epoch, result });
            }
            Order::EndTerm { reason } => self.leave(Close::new(Reason::Shutdown, reason)).await,
            Order::Follow(of) => {
                let close = Close::new(Reason::Shutdown, "this node follows another primary");
                self.leave(close).await;
                self.follow(of);
            }
            Order::AskTakeOver => {
                if !self.shared.of_follower(Follower::ask_take_over) {
                    lease.tell(Event::NoTakeOver("not connected to the primary".to_owned()));
                }
            }
        }
    }

    async fn become_primary(&self, epoch: u64) -> Result<(), String> {
        self.begin_term(epoch, None).await?;
        let shared = &self.shared;
        shared.store.gate().open();
        let url = shared.config.own_url(shared.addr);
        tracing::info!("this node is the primary, epoch {epoch}, at {url}");
        shared.show_as_primary();
        Ok(())
    }

    /// Begins to serve replicas, in the cluster of this id, or of its own. The gate is left as it
    /// is.
    async fn begin_term(&self, epoch: u64, cluster: Option<String>) -> Result<(), String> {
        self.leave(Close::new(Reason::Shutdown, "this node becomes the primary")).await;
        let shared = &self.shared;
        let store = &shared.store;
        let cluster = tokio::task::block_in_place(|| -> Result<String, NodeError> {
            Following::of(store.dir()).note_own_commits(epoch)?;
            store.set_epoch(epoch)?;
            let cluster = cluster.or_else(|| store.cluster_id()).unwrap_or_else(new_cluster_id);
            store.set_cluster_id(&cluster)?;
            Ok(cluster)
        });
        let cluster = cluster.map_err(|error| error.to_string())?;
        let hostname = shared.config.primary_hostname();
        let identity = Identity { node: store.node_id(), epoch, cluster, hostname };
        let asked = shared.clone();
        let take_over =
            Box::new(move |node, refuse: Box<dyn FnOnce(&str) + Send>| match &asked.lease {
                Some(lease) => lease.tell(Event::TakeOver { node, refuse }),
                None => refuse("its lease is static"),
            });
        let term =
            Arc::new(Term::begin(store.clone(), identity, shared.confirmer.clone(), take_over));
        *shared.part.lock() = Part::Primary(term);
        Ok(())
    }

    async fn become_replica(&self, of: Endpoint) {
        let shared = &self.shared;
        shared.store.gate().close(&replica_reason(&of));
        let url = of.to_string();
        shared.show(Role { primary_url: Some(url.clone()), ..Role::default() });
        let text = format!("this node is a replica now; the primary is {url}");
        self.leave(Close::new(Reason::NotPrimary, text)).await;
        self.follow(of);
    }

    /// Follows a primary; the present part has been left.
    fn follow(&self, of: Endpoint) {
        let shared = &self.shared;
        let (told, url) = (shared.clone(), of.to_string());
        let show = move |hostname: Option<&str>| {
            told.show(Role {
                is_primary: false,
                primary_hostname: hostname.map(str::to_owned),
                primary_url: Some(url.clone()),
            });
        };
        show(None);
        let told = shared.clone();
        let listener = Box::new(move |event: LinkEvent<'_>| {
            match &event {
                LinkEvent::Up(welcome) => show(Some(&welcome.hostname)),
                LinkEvent::Down => show(None),
                LinkEvent::InSync(_) | LinkEvent::NoTakeOver(_) => (),
            }
            let Some(lease) = &told.lease else { return };
            lease.tell(match event {
                LinkEvent::Up(welcome) => Event::Linked { epoch: welcome.epoch },
                LinkEvent::InSync(welcome) => Event::InSync { epoch: welcome.epoch },
                LinkEvent::NoTakeOver(why) => Event::NoTakeOver(why.to_owned()),
                LinkEvent::Down => Event::Unlinked,
            });
        });
        let follow = Follow {
            store: shared.store.clone(),
            endpoint: shared.endpoint.clone(),
            tls: shared.tls.clone(),
            target: of,
            filter: shared.config.lease.databases.clone(),
            // A static lease can be assigned to any node.
            may_lead: shared.lease.is_none() || shared.config.lease.candidate,
            listener,
            forwarding: shared.forwarding.clone(),
        };
        let hostname = config::os_hostname().unwrap_or_default();
        let delay = shared.config.lease.reconnect_delay;
        let seed = shared.store.node_id() ^ litefs_store::random();
        *shared.part.lock() = Part::Replica(Follower::start(follow, hostname, delay, seed));
    }

    /// Leaves the present part; when it returns, nothing of it goes on.
    async fn leave(&self, close: Close) {
        let part = std::mem::replace(&mut *self.shared.part.lock(), Part::None);
        match part {
            Part::None => (),
            Part::Primary(term) => term.end(&close),
            Part::Replica(follower) => follower.stop().await,
        }
    }
}

fn admit(shared: &Arc<Shared>, incoming: Incoming, connections: &mut JoinSet<()>) {
    if connections.len() >= CONNECTIONS_MAX {
        return incoming.refuse();
    }
    if connections.len() >= CONNECTIONS_EASY && !incoming.remote_address_validated() {
        // It fails only for an address that is validated.
        let _ = incoming.retry();
        return;
    }
    connections.spawn(shared.clone().serve(incoming));
}

/// What a client is told whose write is refused.
pub(super) fn replica_reason(primary: &Endpoint) -> String {
    format!("this node is a replica; the primary is {primary}")
}
