//! How nodes know each other: TLS 1.3 under QUIC, with certificates of the cluster's own
//! authority on both sides.
//!
//! Three modes. *Cluster*: both sides verify the other's certificate, and that it is of the same
//! cluster. *Loopback*: without certificates, throw-away ones encrypt and prove nothing, so only
//! peers on loopback are accepted. *Insecure* (`tls.insecure: true`): the same for any peer.
//!
//! With TLS 1.3 a client's handshake succeeds before the server has seen its certificate: a
//! refusal arrives with the first read. [`TlsMode::check_peer`] must pass on every connection
//! before anything that came from it is used.

mod certs;
mod files;
pub(crate) mod https;
mod throw_away;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use socket2::{Domain, Protocol, Socket, Type};

pub use certs::{init_cluster, issue_node};

use crate::config::{Config, is_loopback};
use crate::forward;

/// The protocol's name in the TLS handshake; its number changes with the protocol.
pub const ALPN: &[u8] = b"litefs/1";

/// The server name in every node's certificate and every client's handshake: nodes are known by
/// their cluster's authority, not by an address.
pub const SERVER_NAME: &str = "litefs.internal";

/// A peer that sent nothing for this long is gone.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// Above 6553 bytes quinn's batches of 10 packets exceed what the kernel takes in one call, and
/// the packets are lost without an error.
const MTU_MAX: u16 = 6500;

/// The system's default of 208 KiB loses packets even on loopback.
const SOCKET_BUFFER: usize = 4 << 20;

/// Bounds what a connection keeps in memory in each direction.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Replicas send no more than control messages.
const SERVER_WINDOW: u32 = 1 << 20;
/// Of one stream of a replica: what it forwards must not keep the control stream from being read.
const FORWARD_WINDOW: u32 = 256 << 10;
const STREAMS_MAX: u32 = 1024;

/// Room for the packets that probe the path's MTU beside real ones. With the default of 12 kB a
/// new connection stalls for 35 ms, and what it sends last, such as why it closes, is lost.
const INITIAL_WINDOW: u64 = 64 << 10;

/// Section `tls` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// This node's certificate; `None` on loopback or with `insecure`.
    pub files: Option<TlsFiles>,
    /// Connect to and accept anybody, also from other hosts.
    pub insecure: bool,
}

/// The files of a node, as `litefs-node certs` writes them (PEM).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The cluster's authority, `ca.crt`.
    pub ca: PathBuf,
    /// This node's certificate.
    pub cert: PathBuf,
    /// This node's private key.
    pub key: PathBuf,
}

/// Why certificates cannot be made, read or accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

impl TlsError {
    fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    fn from_rcgen(error: rcgen::Error) -> Self {
        Self(format!("cannot make a certificate: {error}"))
    }

    fn from_rustls(error: rustls::Error) -> Self {
        Self(format!("cannot set up TLS: {error}"))
    }
}

/// Who a certificate belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeName {
    /// The cluster's name.
    pub cluster: String,
    /// The node's name in it.
    pub node: String,
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerIdentity {
    /// Proved by a certificate of our cluster.
    Certified(NodeName),
    /// Nothing is proved: a process on this host, or anybody with `tls.insecure`.
    Anonymous,
}

/// How this node proves who it is, and what it asks of others.
pub struct TlsMode(Mode);

enum Mode {
    Cluster(Identity),
    /// Throw-away certificate; `any_host` is `tls.insecure`.
    Open {
        cert: CertificateDer<'static>,
        key: PrivateKeyDer<'static>,
        any_host: bool,
    },
}

struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
    name: NodeName,
}

impl TlsMode {
    /// Reads the certificates that `config` names, or makes throw-away ones.
    ///
    /// `config` must have been validated: without certificates it is then on loopback, or
    /// insecure on purpose.
    pub fn load(config: &Config) -> Result<Self, TlsError> {
        match &config.tls.files {
            Some(files) => Ok(Self(Mode::Cluster(files::load(files)?))),
            None => Self::open(config.tls.insecure),
        }
    }

    fn open(any_host: bool) -> Result<Self, TlsError> {
        let (cert, key) = certs::throw_away()?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Ok(Self(Mode::Open { cert: cert.into(), key, any_host }))
    }

    /// This node's name, if it has a certificate.
    pub fn name(&self) -> Option<&NodeName> {
        match &self.0 {
            Mode::Cluster(identity) => Some(&identity.name),
            Mode::Open { .. } => None,
        }
    }

    /// Decides whether a connected peer may be listened to, and says who it is.
    pub fn check_peer(&self, connection: &quinn::Connection) -> Result<PeerIdentity, TlsError> {
        let remote = connection.remote_address();
        match &self.0 {
            Mode::Open { any_host, .. } if *any_host || is_loopback(remote.ip()) => {
                Ok(PeerIdentity::Anonymous)
            }
            Mode::Open { .. } => Err(TlsError::new(format!(
                "{remote} is not on this host, and without `tls` only loopback is accepted"
            ))),
            Mode::Cluster(identity) => {
                let name = peer_name(connection).ok_or_else(|| {
                    TlsError::new(format!("the certificate of {remote} names no litefs node"))
                })?;
                if name.cluster != identity.name.cluster {
                    return Err(TlsError::new(format!(
                        "{remote} is node {:?} of cluster {:?}, but this node is of cluster {:?}",
                        name.node, name.cluster, identity.name.cluster
                    )));
                }
                Ok(PeerIdentity::Certified(name))
            }
        }
    }
}

fn peer_name(connection: &quinn::Connection) -> Option<NodeName> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    certs::node_name(chain.first()?)
}

/// The server side: which certificate is shown, which clients get in, and the transport's limits.
pub fn quic_server_config(mode: &TlsMode) -> Result<quinn::ServerConfig, TlsError> {
    let builder = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::from_rustls)?;
    let mut tls = match &mode.0 {
        Mode::Cluster(identity) => {
            let roots = identity.roots.clone();
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                .build()
                .map_err(|e| TlsError::new(format!("cannot set up TLS: {e}")))?;
            builder
                .with_client_cert_verifier(verifier)
                .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        }
        Mode::Open { cert, key, .. } => {
            builder.with_no_client_auth().with_single_cert(vec![cert.clone()], key.clone_key())
        }
    }
    .map_err(TlsError::from_rustls)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let quic = QuicServerConfig::try_from(tls)
        .map_err(|e| TlsError::new(format!("cannot set up QUIC: {e}")))?;
    let mut transport = transport();
    transport
        .receive_window((SERVER_WINDOW + forward::STREAMS_MAX * FORWARD_WINDOW).into())
        .stream_receive_window(FORWARD_WINDOW.into())
        .max_concurrent_bidi_streams((1 + forward::STREAMS_MAX).into())
        .max_concurrent_uni_streams(0u32.into());
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(quic));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// The client side; connect with [`SERVER_NAME`].
pub fn quic_client_config(mode: &TlsMode) -> Result<quinn::ClientConfig, TlsError> {
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::from_rustls)?;
    let mut tls = match &mode.0 {
        Mode::Cluster(identity) => builder
            .with_root_certificates(identity.roots.clone())
            .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
            .map_err(TlsError::from_rustls)?,
        Mode::Open { .. } => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(throw_away::AnyServer::new(provider())))
            .with_no_client_auth(),
    };
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let quic = QuicClientConfig::try_from(tls)
        .map_err(|e| TlsError::new(format!("cannot set up QUIC: {e}")))?;
    let mut transport = transport();
    transport
        .max_concurrent_bidi_streams(0u32.into())
        .max_concurrent_uni_streams(STREAMS_MAX.into());
    let mut config = quinn::ClientConfig::new(Arc::new(quic));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// For every endpoint: accepts the packet size that [`quic_server_config`] and
/// [`quic_client_config`] may grow to.
pub fn quic_endpoint_config() -> quinn::EndpointConfig {
    let mut config = quinn::EndpointConfig::default();
    config.max_udp_payload_size(MTU_MAX).expect("BUG: 6500 is above QUIC's minimum of 1200");
    config
}

/// A UDP socket for QUIC with large buffers. `[::]` serves IPv4 too, and falls back to `0.0.0.0`
/// on a host without IPv6.
pub fn bind_socket(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket =
        match (Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP)), addr) {
            (Ok(socket), _) => socket,
            (Err(_), SocketAddr::V6(v6)) if v6.ip().is_unspecified() => {
                return bind_socket((Ipv4Addr::UNSPECIFIED, addr.port()).into());
            }
            (Err(e), _) => return Err(e),
        };
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // The kernel grants at most its own limit (net.core.rmem_max) and reports twice the amount.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    let granted = socket.recv_buffer_size()? / 2;
    if granted < SOCKET_BUFFER {
        tracing::debug!(
            "UDP receive buffer is {granted} bytes; sysctl net.core.rmem_max={SOCKET_BUFFER} \
             makes replication faster"
        );
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

fn transport() -> quinn::TransportConfig {
    let mut mtu = quinn::MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU_MAX);
    let idle = quinn::IdleTimeout::try_from(IDLE_TIMEOUT).expect("BUG: 10 s fits QUIC's integers");
    let mut congestion = quinn::congestion::CubicConfig::default();
    congestion.initial_window(INITIAL_WINDOW);
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .mtu_discovery_config(Some(mtu))
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(CONNECTION_WINDOW.into())
        .congestion_controller_factory(Arc::new(congestion))
        .datagram_receive_buffer_size(None);
    transport
}

/// The one cryptography provider; never rustls's process-wide default, which an application that
/// embeds a node may set to another.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[cfg(test)]
pub(crate) mod tests;
