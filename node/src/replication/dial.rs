//! Dials the primary.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quinn::{Connection, Endpoint, RecvStream, SendStream};

use super::follow::{Follow, explain};
use super::serve::close_connection;
use super::wire::{Close, Reason};
use crate::config;
use crate::tls::{self, TlsMode};

/// How long an address is alone with its chance.
const HEAD_START: Duration = Duration::from_millis(250);
/// More addresses of one name are not dialled.
const ADDRS_MAX: usize = 8;

/// Dials and opens the control stream, for which a peer may have us wait.
pub(super) async fn open_control(
    follow: &Follow,
) -> Result<(Connection, (SendStream, RecvStream)), String> {
    let connection = dial(follow).await?;
    let streams = connection.open_bi().await.map_err(|error| explain(&error).1)?;
    Ok((connection, streams))
}

async fn dial(follow: &Follow) -> Result<Connection, String> {
    let target = &follow.target;
    let found = tokio::net::lookup_host((target.host(), target.port())).await;
    let addrs = found.map_err(|e| e.to_string())?;
    let first = first_of(addrs, |addr| dial_addr(follow, addr)).await;
    first.map_err(|failures| match failures.is_empty() {
        true => format!("{} has no address", target.host()),
        false => failures.join("; "),
    })
}

/// Dials each address, one a [`HEAD_START`] after the other, whatever becomes of those before: a
/// name may have addresses that are silent, as `::1` where the primary listens on `127.0.0.1`. The
/// first one that works counts; else why each failed.
async fn first_of<T, Dial: Future<Output = Result<T, String>>>(
    addrs: impl Iterator<Item = SocketAddr>,
    dial: impl Fn(SocketAddr) -> Dial,
) -> Result<T, Vec<String>> {
    let dial = &dial;
    let dials = addrs.take(ADDRS_MAX).zip(0..).map(|(addr, place)| async move {
        tokio::time::sleep(HEAD_START * place).await;
        dial(addr).await.map_err(|text| format!("{addr}: {text}"))
    });
    let (mut dials, mut failures) = (FuturesUnordered::from_iter(dials), Vec::new());
    while let Some(dialled) = dials.next().await {
        match dialled {
            Ok(connection) => return Ok(connection),
            Err(text) => failures.push(text),
        }
    }
    Err(failures)
}

async fn dial_addr(follow: &Follow, addr: SocketAddr) -> Result<Connection, String> {
    let endpoint = endpoint_to(follow, addr)?;
    let connecting = endpoint.connect(addr, tls::SERVER_NAME).map_err(|e| e.to_string())?;
    let connection = connecting.await.map_err(|error| explain(&error).1)?;
    match follow.tls.check_peer(&connection) {
        Ok(_) => Ok(connection),
        Err(error) => {
            let close = Close::new(Reason::Identity, error.to_string());
            close_connection(&connection, &close);
            Err(close.text)
        }
    }
}

/// A node that listens on one address reaches, from there, only peers of the same kind.
fn endpoint_to(follow: &Follow, addr: SocketAddr) -> Result<Endpoint, String> {
    let own = follow.endpoint.local_addr().map_err(|e| e.to_string())?;
    let is_reachable = (own.is_ipv6() || addr.is_ipv4())
        && config::is_loopback(own.ip()) == config::is_loopback(addr.ip());
    if is_reachable || (own.ip().is_unspecified() && (own.is_ipv6() || addr.is_ipv4())) {
        return Ok(follow.endpoint.clone());
    }
    let any = if addr.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let socket = any.parse().map(tls::bind_socket).map_err(|_| "no address".to_owned())?;
    let socket = socket.map_err(|e| e.to_string())?;
    client_endpoint(socket, &follow.tls)
}

/// An endpoint that only dials.
fn client_endpoint(socket: UdpSocket, mode: &TlsMode) -> Result<Endpoint, String> {
    let runtime = Arc::new(quinn::TokioRuntime);
    let config = tls::quic_endpoint_config();
    let mut endpoint = Endpoint::new(config, None, socket, runtime).map_err(|e| e.to_string())?;
    endpoint.set_default_client_config(tls::quic_client_config(mode).map_err(|e| e.to_string())?);
    Ok(endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Port 1 never answers, 2 refuses, others are reached.
    async fn dialled(ports: &[u16]) -> Result<u16, Vec<String>> {
        let addrs = ports.iter().map(|port| SocketAddr::from(([127, 0, 0, 1], *port)));
        first_of(addrs, |addr| async move {
            match addr.port() {
                1 => std::future::pending().await,
                2 => Err("refused".to_owned()),
                port => Ok(port),
            }
        })
        .await
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_is_silent_does_not_keep_the_others_from_being_dialled() {
        let begun = tokio::time::Instant::now();
        assert_eq!(dialled(&[1, 2, 7, 8]).await, Ok(7));
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        assert_eq!(dialled(&[9, 7]).await, Ok(9));
        let refused = vec!["127.0.0.1:2: refused".to_owned(); 2];
        assert_eq!(dialled(&[2, 2]).await, Err(refused));
        assert_eq!(dialled(&[]).await, Err(Vec::new()));
    }
}
