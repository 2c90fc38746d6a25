//! Risk: a database over 1 GiB breaks at the lock page (the one at byte 2^30, never stored).

mod common;

use common::*;

#[test]
fn a_database_grows_across_the_lock_page_and_back() {
    const PAGE: u64 = 65536;
    const LOCK_PAGE: u64 = (1 << 30) / PAGE + 1;
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, "PRAGMA synchronous = OFF");
    run(&conn, &format!("PRAGMA page_size = {PAGE}; PRAGMA auto_vacuum = INCREMENTAL"));
    run(&conn, "CREATE TABLE t (id INTEGER PRIMARY KEY, x)");
    for id in 1..=5 {
        run(&conn, &format!("INSERT INTO t VALUES ({id}, zeroblob(220000000))"));
    }
    assert!(u64::from(home.db("app.db").page_count()) > LOCK_PAGE);
    run(&conn, "INSERT INTO t VALUES (6, 'beyond')");
    let other = home.open("app.db");
    let sum = "SELECT sum(length(x)) FROM t";
    assert_eq!(number(&other, sum), 5 * 220_000_000 + 6);
    assert_eq!(text(&other, "SELECT x FROM t WHERE id = 6"), "beyond");
    check_integrity(&other);
    run(&conn, "DELETE FROM t WHERE id BETWEEN 2 AND 5");
    rows(&conn, "PRAGMA incremental_vacuum").unwrap();
    assert!(u64::from(home.db("app.db").page_count()) < LOCK_PAGE);
    assert_eq!(number(&other, sum), 220_000_006);
    check_integrity(&other);
    let expected = dump(&conn);
    drop((conn, other));
    home.close_and_check("app.db", &expected);
}
