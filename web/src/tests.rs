//! The layer over a service that counts its calls.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::{Arc, Mutex};

use super::*;

/// A cluster whose node has caught up as soon as somebody waits for less than its limit.
#[derive(Clone)]
struct Fake {
    primary: Primary,
    transaction: u64,
    arrives: u64,
}

impl Cluster for Fake {
    fn primary(&self) -> Primary {
        self.primary.clone()
    }

    fn transaction(&self) -> u64 {
        self.transaction
    }

    async fn wait_for(&self, transaction: u64, timeout: Duration) -> bool {
        if transaction > self.arrives {
            tokio::time::sleep(timeout).await;
        }
        transaction <= self.arrives
    }
}

/// Counts what reaches the application.
#[derive(Clone, Default)]
struct App(Arc<Mutex<u32>>);

impl Service<Request<()>> for App {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Ready<Result<Response<String>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        *self.0.lock().unwrap() += 1;
        ready(Ok(Response::new("served".to_owned())))
    }
}

fn replica() -> Fake {
    let primary = Primary::Other { hostname: Some("n1".into()), url: Some("http://n1:1".into()) };
    Fake { primary, transaction: 5, arrives: 7 }
}

async fn ask(layer: ReadYourWrites<Fake>, method: &str, cookie: &str) -> Response<String> {
    let app = App::default();
    let request = Request::builder().method(method).header("cookie", cookie).body(()).unwrap();
    let response = layer.layer(app.clone()).call(request).await.unwrap();
    let served = response.body() == "served";
    assert_eq!(*app.0.lock().unwrap(), u32::from(served), "{method} {cookie}");
    response
}

fn cookie(response: &Response<String>) -> Option<&str> {
    response.headers().get(header::SET_COOKIE).map(|value| value.to_str().unwrap())
}

#[tokio::test]
async fn a_write_on_a_replica_is_sent_to_the_primary() {
    for method in ["POST", "PUT", "PATCH", "DELETE", "PROPFIND"] {
        let response = ask(ReadYourWrites::new(replica()), method, "").await;
        assert_eq!(response.status(), 409, "{method}");
        assert_eq!(response.headers()["fly-replay"], "instance=n1");
        assert_eq!(response.headers()["litefs-primary"], "http://n1:1");
        assert_eq!(cookie(&response), None);
    }
    let nobody = Fake { primary: Primary::Nobody, ..replica() };
    assert_eq!(ask(ReadYourWrites::new(nobody), "POST", "").await.status(), 503);
}

#[tokio::test(start_paused = true)]
async fn a_read_waits_for_its_clients_write_and_is_sent_on_if_that_does_not_come() {
    let layer = || ReadYourWrites::new(replica()).timeout(Duration::from_secs(2));
    for number in ["", "__txid=0000000000000005", "__txid=0000000000000007", "txnum=9"] {
        assert_eq!(ask(layer(), "GET", number).await.status(), 200, "{number}");
    }
    let started = tokio::time::Instant::now();
    let response = ask(layer(), "HEAD", "__txid=0000000000000008").await;
    assert_eq!(response.status(), 409);
    assert_eq!(response.headers()["fly-replay"], "instance=n1");
    assert_eq!(started.elapsed().as_secs(), 2);
    let decimal = layer().cookie(Cookie::TxNum);
    assert_eq!(ask(decimal, "GET", "txnum=8").await.status(), 409);
}

#[tokio::test]
async fn the_primary_serves_everything_and_names_the_transaction_after_writes() {
    let primary = Fake { primary: Primary::ThisNode, ..replica() };
    let layer = ReadYourWrites::new(primary.clone());
    // A position that was lost with another primary is no reason to wait.
    let read = ask(layer.clone(), "GET", "__txid=00000000000000ff").await;
    assert_eq!((read.status().as_u16(), cookie(&read)), (200, None));
    let written = ask(layer.clone(), "POST", "").await;
    let expected = "__txid=0000000000000005; Path=/; Max-Age=300; HttpOnly";
    assert_eq!((written.status().as_u16(), cookie(&written)), (200, Some(expected)));
    let written = ask(layer.cookie(Cookie::TxNum), "POST", "").await;
    assert_eq!(cookie(&written), Some("txnum=5; Path=/; HttpOnly; SameSite=Lax; Secure"));
    let empty = ReadYourWrites::new(Fake { transaction: 0, ..primary });
    assert_eq!(cookie(&ask(empty, "POST", "").await), None);
}
