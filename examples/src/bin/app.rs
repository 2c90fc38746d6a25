//! The smallest app on a node: it is the primary, and replicas may connect to it.
//!
//! `cargo run -p litefs-examples --bin app -- data`

use std::error::Error;

use litefs_node::{Config, Node};

fn main() -> Result<(), Box<dyn Error>> {
    let data = std::env::args().nth(1).unwrap_or("data".to_owned());
    // Without certificates a node is reachable from this host only. Port 0: any that is free.
    let node = Node::start(Config::new(data).listen("127.0.0.1:0".parse()?))?;

    let db = node.open("app.db")?; // a rusqlite::Connection
    db.execute_batch("CREATE TABLE IF NOT EXISTS visit (at TEXT)")?;
    db.execute("INSERT INTO visit VALUES (datetime())", [])?;
    let visits: i64 = db.query_row("SELECT count(*) FROM visit", [], |row| row.get(0))?;
    println!("visit {visits}; app.db is at {}", node.position("app.db").ok_or("no position")?);

    drop(db);
    node.shutdown()?;
    Ok(())
}
