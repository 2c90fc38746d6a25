"""Writes through a replica under LiteFS's HALT lock.

Arguments: the database on the replica, the database on the primary.
"""
import fcntl
import os
import sqlite3
import struct
import sys

replica, primary = sys.argv[1], sys.argv[2]


def lock(fd, kind):
    fcntl.fcntl(fd, 38, struct.pack("hhqqi4x", kind, os.SEEK_SET, 72, 1, 0))


fd = os.open(replica + "-lock", os.O_RDWR)
lock(fd, fcntl.F_WRLCK)
db = sqlite3.connect(replica, timeout=20, isolation_level=None)
for _ in range(2):
    db.execute("INSERT INTO t(x) VALUES ('halted')")
other = sqlite3.connect(primary, timeout=0.2, isolation_level=None)
try:
    other.execute("INSERT INTO t(x) VALUES ('too early')")
    sys.exit("the primary wrote under the lock")
except sqlite3.OperationalError as error:
    if "locked" not in str(error):
        sys.exit(f"the primary's client got: {error}")
lock(fd, fcntl.F_UNLCK)
other = sqlite3.connect(primary, timeout=20, isolation_level=None)
other.execute("INSERT INTO t(x) VALUES ('primary')")
print("ok")
