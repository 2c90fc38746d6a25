//! Takes connections, not too many at once, and lets the running ones end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// What requests that run at shutdown may still take.
const GRACE: Duration = Duration::from_secs(2);
/// Wait after a failed accept (no descriptors left), so as not to spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves at most `most` connections at once until `stop`; more wait in the kernel's queue.
pub(crate) async fn accept_loop<F, Serving>(
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
