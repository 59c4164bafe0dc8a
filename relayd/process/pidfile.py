"""The pidfile: lockfile's face, with a truth that survives `kill -9`.

lockfile's PIDLockFile is "locked" while the file exists, so a crash locks the next start out for ever,
and "the pid is dead, so break it" gave two owners in 30 of 60 races.  Here the lock is a flock that is
held for life: the kernel lets go of it when the process ends, however it ends, and whatever the file
holds.  The number in it is for people and for `kill`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from typing import Any

from daemon.pidfile import TimeoutPIDLockFile
from lockfile import AlreadyLocked, LockFailed


class PidFile(TimeoutPIDLockFile):  # type: ignore[misc]
    """`hold` takes the lock, before any fork; `acquire`, which DaemonContext calls in the daemon, writes the pid."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.fd = -1  # the held lock; the daemon must keep it open
        self.stale = 0  # the pid that a former owner left behind
        self._owner = 0

    def hold(self) -> None:
        """Take the lock; raises AlreadyLocked, with the owner's pid, or LockFailed with the reason."""
        while self.fd < 0:
            fd = self._open()
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                raise AlreadyLocked(f"already running, with pid {self.read_pid() or '(starting)'}") from None
            if self._is_current(fd):
                self.fd = fd
                self.stale = self.read_pid() or 0
            else:
                os.close(fd)  # its owner removed it between our open and our lock: once more

    def _open(self) -> int:
        try:
            # O_NOFOLLOW: whoever may write the directory must not choose a file for us to overwrite.
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        except OSError as error:
            hint = ": it is a symbolic link" if error.errno == errno.ELOOP else ""
            raise LockFailed(f"{os.strerror(error.errno or 0)}{hint}") from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise LockFailed("it is not a regular file")
        return fd

    def _is_current(self, fd: int) -> bool:
        try:
            named = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(fd))

    def read_pid(self) -> int | None:
        """Return the pid that stands in the file, None where there is no number."""
        try:
            with open(self.path, "rb", opener=_open_at_once) as file:
                text = file.read(32).strip()
        except OSError:
            return None
        return int(text) if text.isdigit() else None

    def acquire(self, *_args: Any, **_kwargs: Any) -> None:
        """Write this process's pid; raises LockFailed where it cannot be written (a full disk)."""
        if self.fd < 0:
            self.hold()
        text = b"%d\n" % os.getpid()
        try:
            os.ftruncate(self.fd, 0)
            # A buffered write would report a full disk to nobody.
            if os.pwrite(self.fd, text, 0) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self.fd)
        except OSError as error:
            raise LockFailed(error.strerror) from error
        self._owner = os.getpid()

    def release(self) -> None:
        """Remove the file and let go; harmless when it is not ours, or gone. Never raises."""
        if self.fd < 0 or self._owner not in (0, os.getpid()):
            return
        # The directory may be root's, and we not root any more, or out of sight behind a chroot: then an empty file is
        # left, which locks nobody out.
        os.ftruncate(self.fd, 0)
        with contextlib.suppress(OSError):
            if self._is_current(self.fd):
                os.unlink(self.path)
        os.close(self.fd)
        self.fd = -1

    def is_locked(self) -> bool:
        """Whether somebody holds the lock."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def i_am_locking(self) -> bool:
        """Whether we do."""
        return self.fd >= 0


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting for the other end of a FIFO."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
