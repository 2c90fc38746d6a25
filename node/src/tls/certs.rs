//! The cluster's own certificate authority, and the certificates of its nodes.
//!
//! `ca.crt` names the cluster as `litefs://<cluster>`, a node's certificate names the node as
//! `litefs://<cluster>/<node>` (both as URI names), so that an address needs no certificate and a
//! certificate of another cluster is told apart even under the same authority. Nodes are both
//! servers and clients. Keys are written for their owner alone; nothing is ever overwritten.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;

use super::{NodeName, SERVER_NAME, TlsError};

const DAY: Duration = Duration::from_secs(86_400);
const CA_VALIDITY: Duration = Duration::from_secs(3653 * 86_400);
const NODE_VALIDITY: Duration = Duration::from_secs(365 * 86_400);
const NAME_LEN_MAX: usize = 64;
const SCHEME: &str = "litefs://";

/// Makes a new authority for a cluster: `ca.crt` and `ca.key` in `dir`, valid for ten years.
///
/// Returns their paths. Fails, without a change, if one of them exists.
pub fn init_cluster(dir: &Path, cluster: &str) -> Result<(PathBuf, PathBuf), TlsError> {
    check_name("cluster", cluster)?;
    let (_, pem, key_pem) = new_authority(cluster)?;
    write_pair(dir, "ca", &pem, &key_pem)
}

/// Makes a node's certificate, signed by the authority in `dir`, valid for a year:
/// `<node>.crt` and `<node>.key` in `out`.
///
/// Returns their paths. Fails, without a change, if one of them exists.
pub fn issue_node(dir: &Path, node: &str, out: &Path) -> Result<(PathBuf, PathBuf), TlsError> {
    check_name("node", node)?;
    if node == "ca" {
        return Err(TlsError::new("a node cannot be named ca: its files would be the authority's"));
    }
    let (cluster, issuer) = load_authority(dir)?;
    let name = NodeName { cluster, node: node.to_owned() };
    let (cert, key) = sign_node(&name, &issuer, Validity::starting_now(NODE_VALIDITY))?;
    write_pair(out, node, &cert.pem(), &key.serialize_pem())
}

/// When a certificate is valid, in time since the Unix epoch.
#[derive(Clone, Copy)]
pub(super) struct Validity {
    pub(super) from: Duration,
    pub(super) until: Duration,
}

impl Validity {
    /// Begins a day early, for hosts whose clock is behind.
    pub(super) fn starting_now(length: Duration) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { from: now.saturating_sub(DAY), until: now + length }
    }

    fn apply(self, params: &mut CertificateParams) {
        let epoch = date_time_ymd(1970, 1, 1);
        // Whole seconds: a certificate has no finer times.
        params.not_before = epoch + Duration::from_secs(self.from.as_secs());
        params.not_after = epoch + Duration::from_secs(self.until.as_secs());
    }
}

/// An authority with its certificate and key as PEM.
pub(super) type Authority = (CertifiedIssuer<'static, KeyPair>, String, String);

pub(super) fn new_authority(cluster: &str) -> Result<Authority, TlsError> {
    let key = KeyPair::generate().map_err(TlsError::from_rcgen)?;
    let key_pem = key.serialize_pem();
    let mut params = CertificateParams::default();
    Validity::starting_now(CA_VALIDITY).apply(&mut params);
    params.distinguished_name = common_name(&format!("litefs cluster {cluster}"));
    params.subject_alt_names = vec![uri(&format!("{SCHEME}{cluster}"))?];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority = CertifiedIssuer::self_signed(params, key).map_err(TlsError::from_rcgen)?;
    let pem = authority.pem();
    Ok((authority, pem, key_pem))
}

pub(super) fn sign_node(
    name: &NodeName,
    issuer: &Issuer<'_, KeyPair>,
    validity: Validity,
) -> Result<(rcgen::Certificate, KeyPair), TlsError> {
    let key = KeyPair::generate().map_err(TlsError::from_rcgen)?;
    let mut params =
        CertificateParams::new(vec![SERVER_NAME.to_owned()]).map_err(TlsError::from_rcgen)?;
    validity.apply(&mut params);
    params.distinguished_name = common_name(&name.node);
    params.subject_alt_names.push(uri(&format!("{SCHEME}{}/{}", name.cluster, name.node))?);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let cert = params.signed_by(&key, issuer).map_err(TlsError::from_rcgen)?;
    Ok((cert, key))
}

/// A certificate for one run on loopback: proves nothing, only encrypts.
pub(super) fn throw_away() -> Result<(rcgen::Certificate, KeyPair), TlsError> {
    let key = KeyPair::generate().map_err(TlsError::from_rcgen)?;
    let mut params =
        CertificateParams::new(vec![SERVER_NAME.to_owned()]).map_err(TlsError::from_rcgen)?;
    Validity::starting_now(NODE_VALIDITY).apply(&mut params);
    let cert = params.self_signed(&key).map_err(TlsError::from_rcgen)?;
    Ok((cert, key))
}

/// The cluster and node that a certificate names, if it is one of ours.
pub(super) fn node_name(cert: &CertificateDer<'_>) -> Option<NodeName> {
    let name = litefs_uri(cert)?;
    let (cluster, node) = name.split_once('/')?;
    let good = check_name("cluster", cluster).and(check_name("node", node)).is_ok();
    good.then(|| NodeName { cluster: cluster.to_owned(), node: node.to_owned() })
}

fn load_authority(dir: &Path) -> Result<(String, Issuer<'static, KeyPair>), TlsError> {
    let (cert_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
    let read = |path: &Path| {
        fs::read_to_string(path).map_err(|e| {
            TlsError::new(format!(
                "cannot read {}: {e}; make the cluster's authority with `litefs-node certs init \
                 --dir {}`",
                path.display(),
                dir.display()
            ))
        })
    };
    let (cert_pem, key_pem) = (read(&cert_path)?, read(&key_path)?);
    let certs = super::files::parse_certs(&cert_path, cert_pem.as_bytes())?;
    let cluster = certs.first().and_then(litefs_uri).filter(|name| check_name("", name).is_ok());
    let cluster = cluster.ok_or_else(|| {
        TlsError::new(format!(
            "{} is no authority made by `litefs-node certs init`: it names no cluster",
            cert_path.display()
        ))
    })?;
    let bad_key =
        |e| TlsError::new(format!("{} is no usable private key: {e}", key_path.display()));
    let key = KeyPair::from_pem(&key_pem).map_err(bad_key)?;
    let issuer = Issuer::from_ca_cert_pem(&cert_pem, key).map_err(TlsError::from_rcgen)?;
    Ok((cluster, issuer))
}

/// What follows `litefs://` in the certificate's only such name.
fn litefs_uri(cert: &CertificateDer<'_>) -> Option<String> {
    let (_, cert) = x509_parser::parse_x509_certificate(cert).ok()?;
    let names = cert.subject_alternative_name().ok()??;
    let mut ours = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(SCHEME),
        _ => None,
    });
    let first = ours.next()?;
    ours.next().is_none().then(|| first.to_owned())
}

fn check_name(what: &str, name: &str) -> Result<(), TlsError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let good = !name.is_empty()
        && name.len() <= NAME_LEN_MAX
        && name.chars().all(allowed)
        && !name.starts_with(['.', '-']);
    if good {
        return Ok(());
    }
    Err(TlsError::new(format!(
        "{name:?} is no {what} name: use 1 to {NAME_LEN_MAX} letters, digits, '-', '_' and '.', \
         beginning with a letter or digit"
    )))
}

fn common_name(name: &str) -> DistinguishedName {
    let mut dn = DistinguishedName::new();
    dn.push(DnType::CommonName, name);
    dn
}

fn uri(text: &str) -> Result<SanType, TlsError> {
    Ok(SanType::URI(text.try_into().map_err(TlsError::from_rcgen)?))
}

/// Writes `<stem>.crt` and `<stem>.key`, or neither.
fn write_pair(
    dir: &Path,
    stem: &str,
    cert_pem: &str,
    key_pem: &str,
) -> Result<(PathBuf, PathBuf), TlsError> {
    fs::create_dir_all(dir)
        .map_err(|e| TlsError::new(format!("cannot create {}: {e}", dir.display())))?;
    let (cert, key) = (dir.join(format!("{stem}.crt")), dir.join(format!("{stem}.key")));
    write_new(&key, key_pem, 0o600)?;
    if let Err(e) = write_new(&cert, cert_pem, 0o644) {
        // The key is of no use without its certificate, and was made a moment ago.
        let _ = fs::remove_file(&key);
        return Err(e);
    }
    Ok((cert, key))
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => TlsError::new(format!(
            "{} exists and is not overwritten: choose another directory, or remove it first",
            path.display()
        )),
        _ => TlsError::new(format!("cannot write {}: {e}", path.display())),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_are_private_and_nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let (ca, ca_key) = init_cluster(dir.path(), "prod").unwrap();
        let (cert, key) = issue_node(dir.path(), "n1", dir.path()).unwrap();
        for path in [&ca_key, &key] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let before = [&ca, &ca_key, &cert, &key].map(|path| fs::read(path).unwrap());
        assert!(init_cluster(dir.path(), "prod").unwrap_err().to_string().contains("ca.key"));
        assert!(issue_node(dir.path(), "n1", dir.path()).is_err());
        assert_eq!(before, [&ca, &ca_key, &cert, &key].map(|path| fs::read(path).unwrap()));
        // A certificate that exists without its key: neither is touched.
        fs::remove_file(&key).unwrap();
        assert!(issue_node(dir.path(), "n1", dir.path()).is_err());
        assert!(!key.exists());
    }

    #[test]
    fn a_node_certificate_names_its_node_and_lasts_a_year() {
        let dir = tempfile::tempdir().unwrap();
        init_cluster(dir.path(), "prod").unwrap();
        let (path, _) = issue_node(dir.path(), "n1", &dir.path().join("out")).unwrap();
        let pem = fs::read(&path).unwrap();
        let cert = super::super::files::parse_certs(&path, &pem).unwrap().remove(0);
        let name = node_name(&cert).unwrap();
        assert_eq!((name.cluster.as_str(), name.node.as_str()), ("prod", "n1"));
        let (_, x509) = x509_parser::parse_x509_certificate(&cert).unwrap();
        let validity = x509.validity();
        let days = (validity.not_after.timestamp() - validity.not_before.timestamp()) / 86_400;
        assert_eq!(days, 366);
        let usage = x509.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && usage.client_auth && !usage.any);
        assert!(!x509.is_ca());
    }

    #[test]
    fn names_that_could_leave_the_directory_or_the_uri_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        init_cluster(dir.path(), "prod").unwrap();
        for bad in ["", "../x", "a/b", ".hidden", "a b", "ü", "-x", "ca", &"x".repeat(65)] {
            assert!(issue_node(dir.path(), bad, dir.path()).is_err(), "{bad:?}");
        }
        assert!(init_cluster(&dir.path().join("new"), "a/b").is_err());
        assert!(!dir.path().join("new").exists());
    }

    #[test]
    fn issuing_without_an_authority_says_how_to_make_one() {
        let dir = tempfile::tempdir().unwrap();
        let text = issue_node(dir.path(), "n1", dir.path()).unwrap_err().to_string();
        assert!(text.contains("certs init"), "{text}");
    }
}
