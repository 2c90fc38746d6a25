//! A web application on a primary and a replica: each client reads its own writes on both.
//!
//! In one terminal:  `cargo run -p litefs-examples --bin web -- primary`
//! In another:       `cargo run -p litefs-examples --bin web -- replica`
//! In a third, with the addresses that they print:
//!
//! `curl -c jar -X POST http://<primary>/visits; curl -b jar http://<replica>/visits`
//!
//! A POST to the replica is answered with 409 and the primary's address. (A node with a proxy,
//! `Config::with_proxy`, would forward it by itself.)

use std::error::Error;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use litefs_node::{Config, Node, NodeError};
use litefs_web::ReadYourWrites;
use tokio::net::TcpListener;

/// Where the primary's node listens, unless the second argument says otherwise.
const PRIMARY: &str = "127.0.0.1:20210";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let part = args.next().unwrap_or_default();
    let addr = args.next().unwrap_or(PRIMARY.to_owned());
    let config = Config::new(format!("web-{part}"));
    let config = match part.as_str() {
        "primary" => config.listen(addr.parse()?),
        "replica" => config.listen("127.0.0.1:0".parse()?).replica_of(&format!("http://{addr}"))?,
        _ => return Err("usage: web primary|replica [ADDRESS OF THE PRIMARY'S NODE]".into()),
    };
    let node = Arc::new(tokio::task::block_in_place(|| Node::start(config))?);
    if node.is_primary() {
        let sql = "CREATE TABLE IF NOT EXISTS visit (n INTEGER PRIMARY KEY, at TEXT)";
        node.open("app.db")?.execute_batch(sql)?;
    }

    let app = Router::new()
        .route("/visits", get(count).post(visit))
        .layer(ReadYourWrites::new(node.web("app.db")?))
        .with_state(node);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("serving http://{}/visits", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}

async fn count(State(node): State<Arc<Node>>) -> Result<String, Failure> {
    run(move || {
        let db = node.open("app.db")?;
        Ok(db.query_row("SELECT count(*) FROM visit", [], |row| row.get(0))?)
    })
    .await
    .map(|visits: i64| format!("{visits} visits\n"))
}

async fn visit(State(node): State<Arc<Node>>) -> Result<String, Failure> {
    run(move || {
        let db = node.open("app.db")?;
        db.execute("INSERT INTO visit (at) VALUES (datetime())", [])?;
        Ok(db.last_insert_rowid())
    })
    .await
    .map(|n| format!("visit {n}\n"))
}

type Failure = (StatusCode, String);

/// SQLite waits for disks: not on a thread that serves requests.
async fn run<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Trouble> + Send + 'static,
) -> Result<T, Failure> {
    let failed = |e: String| (StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n"));
    let done = tokio::task::spawn_blocking(work).await.map_err(|e| failed(e.to_string()))?;
    done.map_err(|Trouble(e)| failed(e))
}

/// What went wrong with the database.
struct Trouble(String);

impl From<NodeError> for Trouble {
    fn from(error: NodeError) -> Self {
        Self(error.to_string())
    }
}

impl From<litefs_vfs::rusqlite::Error> for Trouble {
    fn from(error: litefs_vfs::rusqlite::Error) -> Self {
        Self(error.to_string())
    }
}
