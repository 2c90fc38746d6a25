//! TLS under HTTP: the API of a node with certificates, and those who ask it.
//!
//! A client may show a certificate of the cluster; one that cannot be verified ends the handshake.

use std::path::Path;
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};

use super::{Identity, Mode, NodeName, SERVER_NAME, TlsError, TlsFiles, TlsMode};
use super::{certs, files, provider};

const HTTP: &[u8] = b"http/1.1";

impl TlsMode {
    /// The server's side; `None` without certificates.
    pub(crate) fn https_server(&self) -> Result<Option<Arc<ServerConfig>>, TlsError> {
        let Mode::Cluster(identity) = &self.0 else { return Ok(None) };
        let verifier =
            WebPkiClientVerifier::builder_with_provider(identity.roots.clone(), provider())
                .allow_unauthenticated()
                .build()
                .map_err(|e| TlsError::new(format!("cannot set up TLS: {e}")))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::from_rustls)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(identity.chain.clone(), identity.key.clone_key())
            .map_err(TlsError::from_rustls)?;
        config.alpn_protocols = vec![HTTP.to_vec()];
        Ok(Some(Arc::new(config)))
    }

    /// The side of a node that asks another one; `None` without certificates.
    pub(crate) fn https_client(&self) -> Result<Option<Arc<ClientConfig>>, TlsError> {
        match &self.0 {
            Mode::Cluster(identity) => client(identity.roots.clone(), Some(identity)).map(Some),
            Mode::Open { .. } => Ok(None),
        }
    }

    /// The node of our cluster to whom a verified chain belongs.
    pub(crate) fn https_peer(&self, chain: &[CertificateDer<'_>]) -> Option<NodeName> {
        let Mode::Cluster(identity) = &self.0 else { return None };
        certs::node_name(chain.first()?).filter(|name| name.cluster == identity.name.cluster)
    }
}

/// For a command with a node's files: shows its certificate.
pub(crate) fn client_of_node(files: &TlsFiles) -> Result<Arc<ClientConfig>, TlsError> {
    let identity = files::load(files)?;
    client(identity.roots.clone(), Some(&identity))
}

/// For a command that knows the cluster's authority only.
pub(crate) fn client_of_authority(ca: &Path) -> Result<Arc<ClientConfig>, TlsError> {
    client(files::load_roots(ca)?, None)
}

/// The name that every node's certificate has.
pub(crate) fn server_name() -> ServerName<'static> {
    ServerName::try_from(SERVER_NAME).expect("BUG: the constant is a DNS name")
}

pub(super) fn client(
    roots: Arc<RootCertStore>,
    identity: Option<&Identity>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::from_rustls)?
        .with_root_certificates(roots);
    let mut config = match identity {
        Some(identity) => builder
            .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
            .map_err(TlsError::from_rustls)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![HTTP.to_vec()];
    Ok(Arc::new(config))
}
