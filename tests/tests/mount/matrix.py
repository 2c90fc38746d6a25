"""Commits, rollbacks, spills, savepoints and VACUUM through Python's sqlite3.

Arguments: database, journal mode, synchronous, page size. Prints what must be the same on any disk.
"""
import sqlite3
import sys

path, mode, synchronous, page_size = sys.argv[1:]
db = sqlite3.connect(path, timeout=30, isolation_level=None)
db.execute(f"PRAGMA page_size={page_size}")
print(db.execute(f"PRAGMA journal_mode={mode}").fetchone())
db.execute(f"PRAGMA synchronous={synchronous}")
db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, x TEXT, y BLOB)")


def state():
    print(db.execute("SELECT count(*), sum(id), sum(length(x)), total(length(y)) FROM t").fetchone())


def fill(first, count, size):
    rows = ((i, f"row {i} " * 5, bytes([i % 256]) * size) for i in range(first, first + count))
    db.executemany("INSERT INTO t VALUES (?, ?, ?)", rows)


db.execute("BEGIN IMMEDIATE")
fill(1, 300, 1000)
db.execute("COMMIT")
for i in range(1001, 1006):
    db.execute("INSERT INTO t VALUES (?, 'single', NULL)", (i,))
state()

db.execute("BEGIN")
db.execute("UPDATE t SET x = 'gone' WHERE id < 10")
db.execute("ROLLBACK")
state()

db.execute("PRAGMA cache_size=2")
db.execute("BEGIN")
db.execute("UPDATE t SET y = zeroblob(1500)")
fill(5000, 100, 3000)
db.execute("ROLLBACK")
state()

db.execute("BEGIN")
db.execute("UPDATE t SET x = x || ' twice', y = y || y WHERE id % 2")
db.execute("UPDATE t SET x = x || ' thrice' WHERE id % 3 = 0")
db.execute("COMMIT")
state()

db.execute("BEGIN")
fill(6000, 50, 2000)
db.execute("SAVEPOINT inner")
db.execute("UPDATE t SET y = zeroblob(5000) WHERE id < 200")
db.execute("ROLLBACK TO inner")
db.execute("DELETE FROM t WHERE id % 5 = 0")
db.execute("RELEASE inner")
db.execute("COMMIT")
state()

try:
    with db:
        db.execute("BEGIN")
        db.execute("UPDATE t SET x = 'lost'")
        db.execute("INSERT INTO t(id) VALUES (1)")
except sqlite3.IntegrityError as error:
    print(error)
state()

db.execute("CREATE INDEX tx ON t(x)")
db.execute("DELETE FROM t WHERE id > 50")
db.execute("VACUUM")
state()
db.execute("INSERT INTO t(x) VALUES ('last')")
state()
print(db.execute("PRAGMA integrity_check").fetchone())
db.close()
