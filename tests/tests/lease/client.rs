//! The client against a real Consul.

use std::future::Future;
use std::time::{Duration, Instant};

use litefs_node::config::ConsulConfig;
use litefs_node::lease::consul::{
    Client, ConsulError, ConsulLease, Face, NewSession, Outcome, Step,
};
use litefs_node::lease::view::{Link, NodeEntry, NodeRecord};

use super::consul::Consul;

const TIMEOUT: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn client(url: &str) -> Client {
    Client::new(&ConsulConfig::new(url.parse().unwrap(), "k"), TIMEOUT).unwrap()
}

fn new_session() -> NewSession {
    NewSession { ttl: Duration::from_secs(10), lock_delay: Duration::from_millis(1500) }
}

#[test]
fn a_session_is_litefss_and_lives_until_it_is_destroyed() {
    let consul = Consul::start();
    for (prefix, node) in [("", "test"), ("/my/app", "my/app/litefs")] {
        let client = client(&format!("{}{prefix}", consul.url()));
        run(async {
            client.register_node().await.unwrap();
            let id = client.create_session(&new_session()).await.unwrap();
            let session = client.session(&id).await.unwrap().unwrap();
            assert_eq!((session.name.as_str(), session.node.as_str()), ("litefs", node));
            assert_eq!((session.behavior.as_str(), session.ttl.as_str()), ("delete", "10000ms"));
            assert_eq!(session.lock_delay, 1_500_000_000);
            assert!(client.renew_session(&id).await.unwrap());
            client.destroy_session(&id).await.unwrap();
            assert_eq!(client.session(&id).await.unwrap(), None);
            assert!(!client.renew_session(&id).await.unwrap());
            client.destroy_session(&id).await.unwrap();
        });
    }
    // No health check: a session must not end with the agent's opinion of its node.
    assert!(!consul.get("/v1/session/list").contains("serfHealth"));
}

#[test]
fn a_key_has_one_holder_and_goes_with_its_session() {
    let consul = Consul::start();
    let client = client(&consul.url());
    run(async {
        let first = client.create_session(&new_session()).await.unwrap();
        let second = client.create_session(&new_session()).await.unwrap();
        let value = vec![0, 0xff, b'"'];
        assert!(client.acquire("a key/with ü", &first, value.clone()).await.unwrap());
        assert!(!client.acquire("a key/with ü", &second, b"other".to_vec()).await.unwrap());
        let pair = client.get("a key/with ü").await.unwrap().unwrap();
        assert_eq!((pair.value, pair.session.as_ref()), (value, Some(&first)));
        assert!(client.acquire("a key/with ü", &first, Vec::new()).await.unwrap());
        assert_eq!(client.get("a key/with ü").await.unwrap().unwrap().value, b"");
        client.destroy_session(&first).await.unwrap();
        assert_eq!(client.get("a key/with ü").await.unwrap(), None);
        // The lock-delay keeps it from others for a while.
        assert!(!client.acquire("a key/with ü", &second, Vec::new()).await.unwrap());
        let began = Instant::now();
        while !client.acquire("a key/with ü", &second, Vec::new()).await.unwrap() {
            assert!(began.elapsed() < TIMEOUT);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}

/// Others must not take the lease over its head in the meantime.
#[test]
fn a_node_that_is_started_anew_is_seen_at_once_whatever_the_lock_delay() {
    let consul = Consul::start();
    let mut config = ConsulConfig::new(consul.url().parse().unwrap(), "k");
    config.lock_delay = Duration::from_secs(60);
    let (hostname, advertise_url) = ("n1".to_owned(), "http://n1".to_owned());
    let lease = ConsulLease::new(&config, Face { node: 1, hostname, advertise_url }).unwrap();
    let record = NodeRecord {
        node: 1,
        candidate: true,
        epoch: 3,
        term: 2,
        transactions: 9,
        link: Link::Lost(3),
    };
    run(async {
        let first = lease.open_session().await.unwrap();
        assert!(lease.publish(&first, &record).await.unwrap());
        lease.destroy_session(&first).await.unwrap();
        assert_eq!(lease.view(None).await.unwrap().nodes, []);
        let session = lease.open_session().await.unwrap();
        assert!(lease.publish(&session, &record).await.unwrap());
        let entry = NodeEntry { session, record: record.clone() };
        assert_eq!(lease.view(None).await.unwrap().nodes, [entry]);
        assert!(!matches!(lease.publish(&first, &record).await, Ok(true)), "it comes too late");
    });
}

#[test]
fn a_watcher_hears_of_changes_at_once_even_where_there_is_nothing_yet() {
    let consul = Consul::start();
    let client = client(&consul.url());
    run(async {
        let empty = client.tree("k", None).await.unwrap();
        assert_eq!((empty.pairs.len(), empty.index >= 1), (0, true));
        let watch = client.tree("k", Some((empty.index, Duration::from_secs(30))));
        let write = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let session = client.create_session(&new_session()).await.unwrap();
            for key in ["k2", "k/nodes/1", "kk/1"] {
                assert!(client.acquire(key, &session, b"x".to_vec()).await.unwrap());
            }
            Instant::now()
        };
        let (seen, written) = tokio::join!(watch, write);
        assert!(written.elapsed() < Duration::from_secs(10));
        // Others' keys that begin alike may wake a watcher, and are left out.
        let mut seen = seen.unwrap();
        while seen.pairs.is_empty() {
            let after = Some((seen.index, Duration::from_secs(30)));
            seen = client.tree("k", after).await.unwrap();
        }
        let keys: Vec<&str> = seen.pairs.iter().map(|pair| pair.key.as_str()).collect();
        assert_eq!(keys, ["k/nodes/1"]);
        let began = Instant::now();
        let newest = client.tree("k", None).await.unwrap().index;
        let same = client.tree("k", Some((newest, SHORT))).await.unwrap();
        assert!(began.elapsed() >= SHORT);
        assert_eq!(same.index, newest);
    });
}

async fn transact(client: &Client, steps: &[Step<'_>]) -> Outcome {
    client.transact("test", steps).await.unwrap()
}

/// The numbers of the steps that were refused.
fn refused(outcome: Outcome) -> Vec<usize> {
    match outcome {
        Outcome::Refused(steps) => steps.into_iter().map(|(step, _)| step).collect(),
        Outcome::Done(index) => panic!("done at {index}"),
    }
}

#[test]
fn a_transaction_is_done_as_a_whole_or_not_at_all() {
    let consul = Consul::start();
    let client = client(&consul.url());
    run(async {
        let first = client.create_session(&new_session()).await.unwrap();
        let second = client.create_session(&new_session()).await.unwrap();
        let value = |text: &str| text.as_bytes().to_vec();
        let take = [Step::Lock("k", &first, value("v")), Step::Replace("k/term", 0, value("1"))];
        let Outcome::Done(index) = transact(&client, &take).await else { panic!("refused") };
        let key = client.get("k").await.unwrap().unwrap();
        let term = client.get("k/term").await.unwrap().unwrap();
        assert_eq!((key.modify_index, term.modify_index), (index, index));
        assert_eq!(key.session.as_ref(), Some(&first));

        let other =
            [Step::Lock("k", &second, value("w")), Step::Replace("k/term", index, value("2"))];
        assert_eq!(refused(transact(&client, &other).await), [0], "it is held");
        let beat =
            |session| [Step::CheckHeld("k", session), Step::Replace("k/term", index, value("3"))];
        assert_eq!(refused(transact(&client, &beat(&second)).await), [0]);
        let Outcome::Done(later) = transact(&client, &beat(&first)).await else { panic!() };
        assert!(later > index);
        assert_eq!(refused(transact(&client, &beat(&first)).await), [1], "changed meanwhile");
        assert_eq!(refused(transact(&client, &beat(&second)).await), [0, 1]);
        let key = client.get("k").await.unwrap().unwrap();
        assert_eq!(key.modify_index, index, "what is checked is not written");

        let free = [
            Step::CheckHeld("k", &first),
            Step::Replace("k/term", later, value("4")),
            Step::Unlock("k", &first, value("v")),
        ];
        assert!(matches!(transact(&client, &free).await, Outcome::Done(_)));
        assert_eq!(client.get("k").await.unwrap().unwrap().session, None);
        client.destroy_session(&first).await.unwrap();
        let gone = [Step::Lock("k", &first, value("v"))];
        assert_eq!(refused(transact(&client, &gone).await), [0], "no such session");
        let now = [Step::Lock("k", &second, value("v"))];
        assert!(matches!(transact(&client, &now).await, Outcome::Done(_)), "no lock-delay");
    });
}

#[test]
fn nobody_waits_longer_than_the_deadline_for_a_consul_that_hangs() {
    let consul = Consul::start();
    let patient = client(&consul.url());
    let config = ConsulConfig::new(consul.url().parse().unwrap(), "k");
    let hasty = Client::new(&config, SHORT).unwrap();
    run(async {
        let session = patient.create_session(&new_session()).await.unwrap();
        consul.freeze();
        for _ in 0..2 {
            let began = Instant::now();
            let error = hasty.renew_session(&session).await.unwrap_err();
            assert!(matches!(error, ConsulError::Timeout { .. }), "{error}");
            assert!((SHORT..TIMEOUT).contains(&began.elapsed()));
        }
        let error = hasty.tree("k", Some((1, SHORT))).await.unwrap_err();
        assert!(matches!(error, ConsulError::Timeout { .. }), "{error}");
        consul.thaw();
        assert!(patient.renew_session(&session).await.unwrap());
    });
}

#[test]
fn what_is_not_consul_is_said_with_the_place_and_what_to_do() {
    let consul = Consul::start();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    run(async {
        let url = format!("http://127.0.0.1:{port}");
        let text = client(&url).tree("k", None).await.unwrap_err().to_string();
        assert!(text.contains(&url) && text.contains("lease.consul.url"), "{text}");
        assert!(text.contains("refused"), "{text}");

        let wrong_scheme = client(&consul.url().replace("http", "https"));
        let text = wrong_scheme.tree("k", None).await.unwrap_err().to_string();
        assert!(text.contains("cannot reach Consul"), "{text}");

        let text = client("http://nowhere.invalid:1").get("k").await.unwrap_err().to_string();
        assert!(text.contains("nowhere.invalid"), "{text}");

        let http = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let other = format!("http://{}", http.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = http.accept().await {
                use tokio::io::{AsyncReadExt, AsyncWriteExt};
                let _ = stream.read(&mut [0; 4096]).await;
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
                let _ = stream.write_all(answer).await;
            }
        });
        let text = client(&other).create_session(&new_session()).await.unwrap_err().to_string();
        assert!(text.contains("does not answer as Consul does"), "{text}");
    });
}

/// An authority and a certificate for an address, as an operator of Consul makes them.
pub fn certificates(ip: &str, dir: &std::path::Path) {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new([]).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    std::fs::write(dir.join("ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new([ip.to_owned()]).unwrap();
    let issuer = rcgen::Issuer::new(ca, &ca_key);
    let cert = params.signed_by(&key, &issuer).unwrap();
    std::fs::write(dir.join("cert.pem"), cert.pem()).unwrap();
    std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
}

#[test]
fn tls_and_tokens_are_used_and_their_lack_is_explained() {
    const TOKEN: &str = "11111111-2222-3333-4444-555555555555";
    let consul = Consul::start_guarded(TOKEN, certificates);
    let client = |url: String, ca: Option<&str>| {
        let mut config = ConsulConfig::new(url.parse().unwrap(), "k");
        config.ca = ca.map(|name| consul.file(name));
        Client::new(&config, TIMEOUT)
    };
    let good = client(consul.url_with(TOKEN), Some("ca.pem")).unwrap();
    run(async {
        let began = Instant::now();
        let session = loop {
            match good.create_session(&new_session()).await {
                Ok(session) => break session,
                Err(error) => assert!(began.elapsed() < TIMEOUT * 3, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let take = [Step::Lock("k", &session, Vec::new())];
        assert!(matches!(transact(&good, &take).await, Outcome::Done(_)));

        let anybody = client(consul.url(), Some("ca.pem")).unwrap();
        let error = anybody.create_session(&new_session()).await.unwrap_err();
        assert!(matches!(error, ConsulError::Denied { .. }), "{error}");
        assert!(error.to_string().contains("CONSUL_HTTP_TOKEN"), "{error}");
        let error = anybody.transact("test", &take).await.unwrap_err();
        assert!(matches!(error, ConsulError::Denied { .. }), "{error}");
        let wrong = client(consul.url_with("wrong"), Some("ca.pem")).unwrap();
        let error = wrong.tree("k", None).await.unwrap_err();
        assert!(matches!(error, ConsulError::Denied { .. }), "{error}");
        assert!(!error.to_string().contains("wrong@"), "{error}");

        let distrustful = client(consul.url_with(TOKEN), None).unwrap();
        let text = distrustful.tree("k", None).await.unwrap_err().to_string();
        assert!(text.contains("certificate"), "{text}");
    });
    let text = client(consul.url(), Some("key.pem")).err().unwrap().to_string();
    assert!(text.contains("lease.consul.ca") && text.contains("no certificate"), "{text}");
}
