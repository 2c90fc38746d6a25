//! A primary and a replica in two processes.
//!
//! In one terminal:  `cargo run -p litefs-examples --bin cluster -- primary`
//! In another:       `cargo run -p litefs-examples --bin cluster -- replica`
//!
//! The primary commits a row each second; the replica prints what it reads from its own copy.
//! Either may be stopped (Ctrl-C, or even `kill -9`) and started again: it goes on where it was.

use std::error::Error;
use std::thread::sleep;
use std::time::Duration;

use litefs_node::{Config, Node};

/// Where the primary listens, unless the second argument says otherwise.
const PRIMARY: &str = "127.0.0.1:20210";
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let part = args.next().unwrap_or_default();
    let addr = args.next().unwrap_or(PRIMARY.to_owned());
    let dir = args.next().unwrap_or_else(|| format!("cluster-{part}"));
    match part.as_str() {
        "primary" => primary(Config::new(dir).listen(addr.parse()?)),
        "replica" => {
            let url = format!("http://{addr}");
            replica(Config::new(dir).listen("127.0.0.1:0".parse()?).replica_of(&url)?)
        }
        _ => Err("usage: cluster primary|replica [ADDRESS OF THE PRIMARY] [DATA DIRECTORY]".into()),
    }
}

fn primary(config: Config) -> Result<(), Box<dyn Error>> {
    let node = Node::start(config)?;
    let db = node.open("app.db")?;
    db.execute_batch("CREATE TABLE IF NOT EXISTS tick (n INTEGER PRIMARY KEY, at TEXT)")?;
    loop {
        db.execute("INSERT INTO tick (at) VALUES (datetime())", [])?;
        let position = node.position("app.db").ok_or("no position after a commit")?;
        println!("committed {position}, for {} replicas", node.replicas().len());
        sleep(Duration::from_secs(1));
    }
}

fn replica(config: Config) -> Result<(), Box<dyn Error>> {
    let node = Node::start(config)?;
    // Opens an empty database if the primary was not reached yet; it fills by itself.
    let db = node.open("app.db")?;
    let mut seen = node.position("app.db").unwrap_or_default().txid;
    loop {
        let database = node.store().create(&"app.db".parse()?)?;
        seen = database.wait_for(seen.next(), PATIENCE)?.txid;
        let sql = "SELECT n, at FROM tick ORDER BY n DESC LIMIT 1";
        let newest = db.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)));
        match newest {
            Ok((n, at)) => {
                let (n, at): (i64, String) = (n, at);
                println!("read row {n} of {at}, at transaction {seen}");
            }
            Err(litefs_vfs::rusqlite::Error::QueryReturnedNoRows) => println!("no rows yet"),
            Err(error) => return Err(error.into()),
        }
    }
}
