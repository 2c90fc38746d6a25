"""Adds 1 to a counter, again and again, each time to what it reads.

Arguments: the database, how often.
"""
import sqlite3
import sys

db = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
for _ in range(int(sys.argv[2])):
    db.execute("BEGIN IMMEDIATE")
    (n,) = db.execute("SELECT n FROM t").fetchone()
    db.execute("UPDATE t SET n = ?", (n + 1,))
    db.execute("COMMIT")
