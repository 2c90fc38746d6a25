//! Takes connections, not too many at once, and lets the running ones end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

/// What requests that run at shutdown may still take.
const GRACE: Duration = Duration::from_secs(2);
/// Wait after a failed accept (no descriptors left), so as not to spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A running server: the API or the proxy.
pub struct Server {
    addr: SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Server {
    /// Serves each of at most `most` connections with what `serving` makes of the sign to stop.
    pub(crate) fn start<F, Serving>(
        listener: std::net::TcpListener,
        most: usize,
        serving: impl FnOnce(watch::Receiver<bool>) -> F,
    ) -> io::Result<Self>
    where
        F: Fn(TcpStream, SocketAddr) -> Serving + Send + 'static,
        Serving: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::from_std(listener)?;
        let addr = listener.local_addr()?;
        let (stop, stopped) = watch::channel(false);
        let serve = serving(stopped.clone());
        let task = tokio::spawn(accept_loop(listener, most, stopped, serve));
        Ok(Self { addr, stop, task })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Takes no more requests and waits for the running ones, but at most two seconds.
    pub async fn shutdown(self) {
        let _ = self.stop.send(true);
        // A panic in the task was reported when it happened; there is nothing left to stop then.
        let _ = self.task.await;
    }
}

/// Serves at most `most` connections at once until `stop`; more wait in the kernel's queue.
async fn accept_loop<F, Serving>(
    listener: TcpListener,
    most: usize,
    mut stop: watch::Receiver<bool>,
    serve: F,
) where
    F: Fn(TcpStream, SocketAddr) -> Serving,
    Serving: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    let slots = Arc::new(Semaphore::new(most));
    loop {
        let accept = async {
            let slot = slots.clone().acquire_owned().await;
            (listener.accept().await, slot)
        };
        tokio::select! {
            (accepted, slot) = accept => match accepted {
                Ok((stream, peer)) => {
                    // What is sent is often small and must not wait for more.
                    let _ = stream.set_nodelay(true);
                    let serving = serve(stream, peer);
                    connections.spawn(async move {
                        let _slot = slot;
                        serving.await
                    });
                }
                Err(e) => {
                    tracing::warn!("cannot accept HTTP connections: {e}");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            },
            // Finished connections give back their memory.
            Some(_) = connections.join_next() => {}
            () = stopped(&mut stop) => break,
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    // What is left after the grace is ended with the set.
    let _ = tokio::time::timeout(GRACE, drained).await;
}

/// Waits for the shutdown.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the server itself is gone, which is a shutdown too.
    let _ = stop.wait_for(|stop| *stop).await;
}
