//! Handshakes between real endpoints on loopback: who gets in, and who does not.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{SystemTime, UNIX_EPOCH};

use super::certs::{Authority, Validity, new_authority, sign_node};
use super::*;

const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// A node's identity without files; `ago` moves its validity into the past.
fn node(authority: &Authority, cluster: &str, node: &str, validity: Validity) -> TlsMode {
    let name = NodeName { cluster: cluster.to_owned(), node: node.to_owned() };
    let (cert, key) = sign_node(&name, &authority.0, validity).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(authority.0.der().clone()).unwrap();
    TlsMode(Mode::Cluster(Identity {
        chain: vec![cert.into()],
        key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        roots: Arc::new(roots),
        name,
    }))
}

/// Nodes of the clusters `names`, all certified by one authority.
pub(crate) fn nodes_of_one_authority<const N: usize>(names: [&str; N]) -> [TlsMode; N] {
    let authority = new_authority("any").unwrap();
    names.map(|cluster| node(&authority, cluster, "n", valid_now()))
}

/// Knows the authority of `server`, and shows nothing.
pub(crate) fn client_without_certificate(server: &TlsMode) -> Arc<rustls::ClientConfig> {
    https::client(identity(server).roots.clone(), None).unwrap()
}

/// Knows the authority of `server`, and shows the certificate of `node`.
pub(crate) fn client_with_certificate_of(
    node: &TlsMode,
    server: &TlsMode,
) -> Arc<rustls::ClientConfig> {
    https::client(identity(server).roots.clone(), Some(identity(node))).unwrap()
}

fn identity(node: &TlsMode) -> &Identity {
    match &node.0 {
        Mode::Cluster(identity) => identity,
        Mode::Open { .. } => unreachable!("made with certificates"),
    }
}

fn valid_now() -> Validity {
    Validity::starting_now(YEAR)
}

fn expired() -> Validity {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Validity { from: now - YEAR, until: now - Duration::from_secs(3600) }
}

/// Connects, passes both peer checks and moves a byte each way. `Ok` holds who the server saw
/// and who the client saw; `Err` the first refusal on either side.
async fn meet(
    server: &TlsMode,
    client: &TlsMode,
) -> Result<(PeerIdentity, PeerIdentity), (String, String)> {
    let localhost = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let endpoint = |server_config| {
        let socket = bind_socket(localhost).unwrap();
        let runtime = Arc::new(quinn::TokioRuntime);
        quinn::Endpoint::new(quic_endpoint_config(), server_config, socket, runtime).unwrap()
    };
    let listener = endpoint(Some(quic_server_config(server).unwrap()));
    let dialer = endpoint(None);
    let config = quic_client_config(client).unwrap();
    let to = listener.local_addr().unwrap();

    let serve = async {
        let connection = listener.accept().await.unwrap().await.map_err(|e| e.to_string())?;
        let peer = server.check_peer(&connection).map_err(|e| e.to_string())?;
        let (mut send, mut recv) = connection.accept_bi().await.map_err(|e| e.to_string())?;
        let got = recv.read_to_end(16).await.map_err(|e| e.to_string())?;
        send.write_all(&got).await.map_err(|e| e.to_string())?;
        send.finish().map_err(|e| e.to_string())?;
        // Let the client read before the connection goes.
        let _ = send.stopped().await;
        Ok(peer)
    };
    let dial = async {
        let connection = dialer
            .connect_with(config, to, SERVER_NAME)
            .unwrap()
            .await
            .map_err(|e| e.to_string())?;
        let peer = client.check_peer(&connection).map_err(|e| e.to_string())?;
        let (mut send, mut recv) = connection.open_bi().await.map_err(|e| e.to_string())?;
        send.write_all(b"x").await.map_err(|e| e.to_string())?;
        send.finish().map_err(|e| e.to_string())?;
        assert_eq!(recv.read_to_end(16).await.map_err(|e| e.to_string())?, b"x");
        Ok(peer)
    };
    let both = async { tokio::join!(serve, dial) };
    let limit = Duration::from_secs(30);
    match tokio::time::timeout(limit, both).await.expect("a refusal must not hang") {
        (Ok(seen_by_server), Ok(seen_by_client)) => Ok((seen_by_server, seen_by_client)),
        (s, c) => Err((s.err().unwrap_or_default(), c.err().unwrap_or_default())),
    }
}

fn certified(cluster: &str, node: &str) -> PeerIdentity {
    PeerIdentity::Certified(NodeName { cluster: cluster.into(), node: node.into() })
}

#[tokio::test]
async fn nodes_of_one_cluster_know_each_other_by_name() {
    let ca = new_authority("prod").unwrap();
    let (a, b) = (node(&ca, "prod", "a", valid_now()), node(&ca, "prod", "b", valid_now()));
    let seen = meet(&a, &b).await.unwrap();
    assert_eq!(seen, (certified("prod", "b"), certified("prod", "a")));
}

#[tokio::test]
async fn another_authority_is_refused_in_both_directions() {
    let (ours, theirs) = (new_authority("prod").unwrap(), new_authority("prod").unwrap());
    let a = node(&ours, "prod", "a", valid_now());
    let rogue = node(&theirs, "prod", "a", valid_now());
    assert!(meet(&a, &rogue).await.is_err());
    let (_, client) = meet(&rogue, &a).await.unwrap_err();
    assert!(client.contains("invalid peer certificate"), "{client}");

    // A server that trusts both authorities would not help a client that does not show one.
    let mut two = RootCertStore::empty();
    two.add(ours.0.der().clone()).unwrap();
    two.add(theirs.0.der().clone()).unwrap();
    let TlsMode(Mode::Cluster(identity)) = rogue else { unreachable!() };
    let rogue = TlsMode(Mode::Cluster(Identity { roots: Arc::new(two), ..identity }));
    let (server, _) = meet(&a, &rogue).await.unwrap_err();
    assert!(server.contains("invalid peer certificate"), "{server}");
}

#[tokio::test]
async fn an_expired_certificate_is_refused_in_both_directions() {
    let ca = new_authority("prod").unwrap();
    let (good, old) = (node(&ca, "prod", "a", valid_now()), node(&ca, "prod", "b", expired()));
    let (server, _) = meet(&good, &old).await.unwrap_err();
    assert!(server.to_lowercase().contains("expired"), "{server}");
    let (_, client) = meet(&old, &good).await.unwrap_err();
    assert!(client.to_lowercase().contains("expired"), "{client}");
}

#[tokio::test]
async fn another_cluster_is_refused_even_under_the_same_authority() {
    let ca = new_authority("prod").unwrap();
    let prod = node(&ca, "prod", "a", valid_now());
    let staging = node(&ca, "staging", "b", valid_now());
    let (server, client) = meet(&prod, &staging).await.unwrap_err();
    assert!(server.contains("\"staging\"") && server.contains("\"prod\""), "{server}");
    assert!(client.contains("cluster \"prod\""), "{client}");
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let ca = new_authority("prod").unwrap();
    let cluster = node(&ca, "prod", "a", valid_now());
    let nobody = TlsMode::open(true).unwrap();
    let (server, _) = meet(&cluster, &nobody).await.unwrap_err();
    assert!(server.contains("certificate"), "{server}");
}

#[tokio::test]
async fn a_cluster_node_does_not_talk_to_a_server_without_a_certificate() {
    let ca = new_authority("prod").unwrap();
    let cluster = node(&ca, "prod", "a", valid_now());
    let open = TlsMode::open(false).unwrap();
    assert!(meet(&open, &cluster).await.is_err());
}

#[tokio::test]
async fn loopback_works_without_certificates() {
    let (a, b) = (TlsMode::open(false).unwrap(), TlsMode::open(false).unwrap());
    let anonymous = PeerIdentity::Anonymous;
    assert_eq!(meet(&a, &b).await.unwrap(), (anonymous.clone(), anonymous));
}

#[test]
fn files_are_checked_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    init_cluster(dir.path(), "prod").unwrap();
    init_cluster(other.path(), "prod").unwrap();
    issue_node(dir.path(), "a", dir.path()).unwrap();
    issue_node(dir.path(), "b", dir.path()).unwrap();
    let load = |ca: PathBuf, cert: &str, key: &str| {
        let files = TlsFiles { ca, cert: path(cert), key: path(key) };
        TlsMode::load(&Config::new("/tmp/x").with_tls(files)).map_err(|e| e.to_string())
    };

    let mode = load(path("ca.crt"), "a.crt", "a.key").unwrap();
    assert_eq!(mode.name().unwrap().node, "a");
    for (result, needed) in [
        (load(path("ca.crt"), "a.crt", "b.key"), "is not the key of"),
        (load(other.path().join("ca.crt"), "a.crt", "a.key"), "does not verify against"),
        (load(path("ca.crt"), "ca.crt", "ca.key"), "names no litefs node"),
        (load(path("ca.crt"), "missing", "a.key"), "cannot read"),
        (load(path("a.key"), "a.crt", "a.key"), "holds no certificate"),
        (load(path("ca.crt"), "a.crt", "a.crt"), "holds no private key"),
    ] {
        let error = result.err().unwrap();
        assert!(error.contains(needed), "{error}");
    }
}

#[test]
fn the_socket_for_all_addresses_serves_both_families() {
    let all = bind_socket((Ipv6Addr::UNSPECIFIED, 0).into()).unwrap();
    let port = all.local_addr().unwrap().port();
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    sender.send_to(b"x", (Ipv4Addr::LOCALHOST, port)).unwrap();
    all.set_nonblocking(false).unwrap();
    all.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(all.recv(&mut [0; 8]).unwrap(), 1);
}
