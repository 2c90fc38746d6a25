"""One of several clients of a bank whose money never changes in sum.

Arguments: role (write or read), database, seconds. Prints how many transactions it made.
"""
import random
import sqlite3
import sys
import time

role, path, seconds = sys.argv[1:]
db = sqlite3.connect(path, timeout=60, isolation_level=None)
until = time.monotonic() + float(seconds)
done = 0
while time.monotonic() < until:
    if role == "write":
        a, b = random.sample(range(1, 101), 2)
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE account SET money = money - 7 WHERE id = ?", (a,))
        db.execute("UPDATE account SET money = money + 7 WHERE id = ?", (b,))
        db.execute("INSERT INTO transfer(a, b) VALUES (?, ?)", (a, b))
        db.execute("ROLLBACK" if done % 10 == 9 else "COMMIT")
    else:
        db.execute("BEGIN")
        total, = db.execute("SELECT sum(money) FROM account").fetchone()
        transfers, = db.execute("SELECT count(*) FROM transfer").fetchone()
        again, = db.execute("SELECT sum(money) FROM account").fetchone()
        later, = db.execute("SELECT count(*) FROM transfer").fetchone()
        db.execute("COMMIT")
        assert total == again == 100_000, f"the sum is {total}, then {again}"
        assert transfers == later, f"{transfers} transfers, then {later}"
    done += 1
    if role == "read" and done % 50 == 0:
        check, = db.execute("PRAGMA quick_check").fetchone()
        assert check == "ok", check
print(done)
