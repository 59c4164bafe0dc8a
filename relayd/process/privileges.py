"""Giving up root, for good and in the right order."""

from __future__ import annotations

# getaddrinfo asks for this codec at its first call, which may come when a chroot has put it out of reach.
import encodings.idna  # noqa: F401
import errno
import grp
import os
import pwd
from collections.abc import Iterable

from relayd.errors import StartError


class Identity:
    """Whom to become: looked up while that is still possible."""

    def __init__(self, user: str, group: str) -> None:
        """Raises StartError for a user or group that does not exist."""
        reasons = []
        self.name = user
        self.uid = self.gid = -1
        if user:
            try:
                found = pwd.getpwnam(user)
                self.uid, self.gid = found.pw_uid, found.pw_gid
            except KeyError:
                reasons.append(f"user: there is no user '{user}'")
        if group:
            try:
                self.gid = grp.getgrnam(group).gr_gid
            except KeyError:
                reasons.append(f"group: there is no group '{group}'")
        if reasons:
            raise StartError(reasons)

    def own(self, path: str) -> None:
        """Give a file that root has made to the user and group that are to be assumed; raises StartError."""
        try:
            found = os.lstat(path)
            if self.uid in (-1, found.st_uid) and self.gid in (-1, found.st_gid):
                return  # it is theirs; a sandbox may forbid even a call that changes nothing
            os.lchown(path, self.uid, self.gid)  # -1 leaves it as it is
        except OSError as error:
            cure = "; start as root, or leave out user and group" if isinstance(error, PermissionError) else ""
            raise StartError([f"cannot give {path} to the user: {error.strerror}{cure}"]) from error

    def assume(self, root: str) -> None:
        """Enter `root`, where one is given, and become the user; raises StartError where it is not possible.

        The order is forced: chroot needs root, the groups need root too, and once the user is
        another, nothing of it can be had again.
        """
        if not root and os.getuid() == os.geteuid() == self.uid and self.gid in (-1, os.getgid()):
            return  # it is who we are: systemd has seen to it
        if root:
            _enter(root)
        try:
            if self.gid >= 0:
                # Not DaemonContext(initgroups=True), which sets the groups and forgets setgid.
                if self.uid >= 0:
                    os.initgroups(self.name, self.gid)
                else:
                    os.setgroups([self.gid])
                os.setgid(self.gid)
            if self.uid >= 0:
                os.setuid(self.uid)
        except OSError as error:
            raise StartError([f"cannot give up privileges: {error.strerror}"]) from error
        if self.uid > 0 and _can_be_root():
            raise StartError(["cannot give up privileges: root could be had again"])


def found_from(root: str, reasons: Iterable[str]) -> list[str]:
    """Return the reasons; those that say a file is missing say, in a chroot, that it was looked for in there."""
    missing = os.strerror(errno.ENOENT)
    return [f"{reason} (inside chroot {root})" if root and missing in reason else reason for reason in reasons]


def _enter(root: str) -> None:
    try:
        os.chroot(root)
        os.chdir("/")
    except OSError as error:
        cure = "; start as root, or leave out chroot" if isinstance(error, PermissionError) else ""
        raise StartError([f"chroot: cannot enter {root}: {error.strerror}{cure}"]) from error


def _can_be_root() -> bool:
    try:
        os.setuid(0)
    except PermissionError:
        return False
    return True
