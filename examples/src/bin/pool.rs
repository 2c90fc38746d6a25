//! A pool of connections (r2d2) to one database of a node: many readers beside one writer.
//!
//! `cargo run -p litefs-examples --bin pool -- data`

use std::error::Error;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use litefs_node::{Config, Node, NodeError};
use litefs_vfs::rusqlite::{self, Connection};

/// Opens the pool's connections.
struct Manager {
    node: Arc<Node>,
    database: &'static str,
}

impl r2d2::ManageConnection for Manager {
    type Connection = Connection;
    type Error = NodeError;

    fn connect(&self) -> Result<Connection, NodeError> {
        let connection = self.node.open(self.database)?;
        // A second writer waits its turn, instead of failing with SQLITE_BUSY.
        connection.busy_timeout(Duration::from_secs(10)).map_err(litefs_vfs::Error::from)?;
        Ok(connection)
    }

    fn is_valid(&self, connection: &mut Connection) -> Result<(), NodeError> {
        Ok(connection.execute_batch("SELECT 1").map_err(litefs_vfs::Error::from)?)
    }

    fn has_broken(&self, _: &mut Connection) -> bool {
        false
    }
}

const WRITERS: u32 = 4;
const ROWS: u32 = 250;

fn main() -> Result<(), Box<dyn Error>> {
    let data = std::env::args().nth(1).unwrap_or("data".to_owned());
    let node = Arc::new(Node::start(Config::new(data).listen("127.0.0.1:0".parse()?))?);
    let manager = Manager { node: node.clone(), database: "pool.db" };
    let pool = r2d2::Pool::builder().max_size(8).build(manager)?;
    pool.get()?.execute_batch("DROP TABLE IF EXISTS t; CREATE TABLE t (writer, n)")?;

    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let pool = pool.clone();
            thread::spawn(move || write(&pool, writer).map_err(|error| error.to_string()))
        })
        .collect();
    for writer in writers {
        writer.join().map_err(|_| "a writer panicked")??;
    }
    let rows: u32 = pool.get()?.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?;
    println!("{rows} rows from {WRITERS} threads");
    node.shutdown()?;
    if rows == WRITERS * ROWS { Ok(()) } else { Err("rows are missing".into()) }
}

fn write(pool: &r2d2::Pool<Manager>, writer: u32) -> Result<(), Box<dyn Error>> {
    for n in 0..ROWS {
        let mut connection = pool.get()?;
        // Immediate: a transaction that will write says so at its beginning, as everywhere in
        // SQLite; one that reads first can find that another wrote meanwhile.
        let behavior = rusqlite::TransactionBehavior::Immediate;
        let transaction = connection.transaction_with_behavior(behavior)?;
        transaction.execute("INSERT INTO t VALUES (?1, ?2)", (writer, n))?;
        transaction.commit()?;
    }
    Ok(())
}
