"""A client of the lock on byte 72 of `<db>-lock`. Prints the outcome of each request.

Arguments: the lock file.
"""
import errno
import fcntl
import os
import struct
import subprocess
import sys

F_OFD_SETLK, F_OFD_SETLKW = 37, 38
fd = os.open(sys.argv[1], os.O_RDWR)


def ask(name, fd, command, kind, start=72, length=1):
    request = struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)
    try:
        fcntl.fcntl(fd, command, request)
        print(name, "granted")
    except OSError as error:
        print(name, errno.errorcode[error.errno])


ask("read lock", fd, F_OFD_SETLKW, fcntl.F_RDLCK)
ask("without waiting", fd, F_OFD_SETLK, fcntl.F_WRLCK)
ask("another byte", fd, F_OFD_SETLKW, fcntl.F_WRLCK, 71)
ask("two bytes", fd, F_OFD_SETLKW, fcntl.F_WRLCK, 72, 2)
ask("lock", fd, F_OFD_SETLKW, fcntl.F_WRLCK)
# A child that inherits the file and ends does not take the lock along.
subprocess.run(["true"], pass_fds=[fd], check=True)
ask("again", fd, F_OFD_SETLKW, fcntl.F_WRLCK)
ask("unlock", fd, F_OFD_SETLKW, fcntl.F_UNLCK)
ask("after unlock", fd, F_OFD_SETLKW, fcntl.F_WRLCK)
os.close(fd)
