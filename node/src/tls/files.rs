//! Certificates and keys from PEM files, checked at start rather than at the first connection.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use super::{Identity, NodeName, TlsError, TlsFiles, certs, provider};

const EXPIRY_WARNING_DAYS: i64 = 30;

/// Reads a node's files and makes sure that they belong together and are valid now.
pub(super) fn load(files: &TlsFiles) -> Result<Identity, TlsError> {
    let chain = read_certs(&files.cert)?;
    let key = read_key(&files.key)?;
    let roots = load_roots(&files.ca)?;
    let name = certs::node_name(&chain[0]).ok_or_else(|| {
        TlsError::new(format!(
            "tls.cert: {} names no litefs node; make it with `litefs-node certs issue`",
            files.cert.display()
        ))
    })?;
    check_chain(files, &chain, &roots, &name)?;
    rustls::sign::CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider()).map_err(
        |e| {
            TlsError::new(format!(
                "tls.key: {} is not the key of {}: {e}",
                files.key.display(),
                files.cert.display()
            ))
        },
    )?;
    warn_if_readable_by_others(&files.key);
    warn_if_expiring(files, &chain[0], &name);
    Ok(Identity { chain, key, roots, name })
}

/// Reads the cluster's authority.
pub(super) fn load_roots(ca: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for cert in read_certs(ca)? {
        roots
            .add(cert)
            .map_err(|e| TlsError::new(format!("tls.ca: {} is no authority: {e}", ca.display())))?;
    }
    Ok(Arc::new(roots))
}

/// The certificates in a PEM text, at least one.
pub(super) fn parse_certs(
    path: &Path,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certs: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certs =
        certs.map_err(|e| TlsError::new(format!("{} is no PEM file: {e}", path.display())))?;
    if certs.is_empty() {
        return Err(TlsError::new(format!("{} holds no certificate", path.display())));
    }
    Ok(certs)
}

fn read_certs(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = fs::read(path).map_err(|e| cannot_read(path, &e))?;
    parse_certs(path, &pem)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = fs::read(path).map_err(|e| cannot_read(path, &e))?;
    PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|e| TlsError::new(format!("{} holds no private key: {e}", path.display())))
}

fn cannot_read(path: &Path, error: &std::io::Error) -> TlsError {
    TlsError::new(format!("cannot read {}: {error}", path.display()))
}

/// Verifies our own certificate as a peer would.
fn check_chain(
    files: &TlsFiles,
    chain: &[CertificateDer<'static>],
    roots: &Arc<RootCertStore>,
    name: &NodeName,
) -> Result<(), TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider())
        .build()
        .map_err(|e| TlsError::new(format!("tls.ca: {}: {e}", files.ca.display())))?;
    verifier.verify_client_cert(&chain[0], &chain[1..], UnixTime::now()).map(|_| ()).map_err(|e| {
        TlsError::new(format!(
            "tls.cert: {} does not verify against {}: {e}; issue a new one with `litefs-node \
             certs issue {}`",
            files.cert.display(),
            files.ca.display(),
            name.node
        ))
    })
}

fn warn_if_readable_by_others(key: &Path) {
    let mode = fs::metadata(key).map(|meta| meta.permissions().mode() & 0o077);
    if mode.is_ok_and(|others| others != 0) {
        tracing::warn!("tls.key: {} is readable by others: chmod 600 it", key.display());
    }
}

/// A node reads its certificate once, at start: the warning must come long before the end.
fn warn_if_expiring(files: &TlsFiles, cert: &CertificateDer<'_>, name: &NodeName) {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(cert) else { return };
    let left = parsed.validity().time_to_expiration();
    let days = left.map_or(0, |left| left.whole_days());
    if days < EXPIRY_WARNING_DAYS {
        tracing::warn!(
            "tls.cert: {} expires in {days} days: issue a new one with `litefs-node certs issue \
             {}` and restart",
            files.cert.display(),
            name.node
        );
    }
}
