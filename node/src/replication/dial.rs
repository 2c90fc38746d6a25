//! Dials the primary.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use quinn::{Connection, Endpoint, RecvStream, SendStream};

use super::follow::{Follow, explain};
use super::serve::close_connection;
use super::wire::{Close, Reason};
use crate::config;
use crate::tls::{self, TlsMode};

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
    let addrs: Vec<SocketAddr> = found.map_err(|e| e.to_string())?.collect();
    let mut failure = format!("{} has no address", target.host());
    for addr in addrs {
        match dial_addr(follow, addr).await {
            Ok(connection) => return Ok(connection),
            Err(text) => failure = text,
        }
    }
    Err(failure)
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
