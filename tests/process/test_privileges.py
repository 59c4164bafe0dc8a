"""Giving up root: all of it, for good, or not starting at all."""

from __future__ import annotations

import errno
import grp
import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from relayd.errors import StartError
from relayd.process.privileges import Identity, found_from
from tests.support import PATIENCE, ROOT

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives up root")

# Runs in a process of its own: what was given up is given up.
_CODE = """
import json, os, sys
from relayd.errors import StartError
from relayd.process.privileges import Identity, found_from

user, group, root, setup = sys.argv[1:]
identity = Identity(user, group)
exec(setup)
try:
    identity.assume(root)
except StartError as error:
    print(json.dumps({"reasons": error.reasons}))
    sys.exit()
found = {"uids": os.getresuid(), "gids": os.getresgid(), "groups": sorted(os.getgroups()), "cwd": os.getcwd()}
found["root"] = sorted(os.listdir("/")) if root else []
found["regained"] = []
for name, words in (("setuid", (0,)), ("seteuid", (0,)), ("setgid", (0,)), ("setegid", (0,)), ("setgroups", ([0],)),
                    ("setresuid", (0, 0, 0)), ("initgroups", ("root", 0)), ("chroot", (".",))):
    try:
        getattr(os, name)(*words)
        found["regained"].append(name)
    except PermissionError:
        pass
print(json.dumps(found))
"""


def assume(user: str, group: str = "", root: str = "", setup: str = "") -> dict[str, Any]:
    """Return what a process is that has become the user."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _CODE, user, group, root, setup], cwd=ROOT, capture_output=True,
        text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def groups_of(user: str, gid: int) -> list[int]:
    return sorted({gid, *(found.gr_gid for found in grp.getgrall() if user in found.gr_mem)})


# -- who ----------------------------------------------------------------------------------------


def test_unknown_names_are_told_together() -> None:
    with pytest.raises(StartError) as caught:
        Identity("nobody-of-that-name", "none-of-that-name")
    assert caught.value.reasons == (
        "user: there is no user 'nobody-of-that-name'",
        "group: there is no group 'none-of-that-name'",
    )


@pytest.mark.parametrize(("user", "group"), [("no-such-user", ""), ("", "no-such-group"), ("0", "")])
def test_an_unknown_user_or_group_is_an_error(user: str, group: str) -> None:
    with pytest.raises(StartError):
        Identity(user, group)


def test_the_group_is_the_users_own_where_none_is_given() -> None:
    nobody = pwd.getpwnam("nobody")
    identity = Identity("nobody", "")
    assert (identity.uid, identity.gid) == (nobody.pw_uid, nobody.pw_gid)
    daemon = grp.getgrnam("daemon").gr_gid
    assert Identity("nobody", "daemon").gid == daemon
    assert (Identity("", "daemon").uid, Identity("", "").gid) == (-1, -1)


def test_nobody_to_become_changes_nothing() -> None:
    before = os.getresuid(), os.getresgid(), os.getgroups(), os.getcwd()
    Identity("", "").assume("")
    assert (os.getresuid(), os.getresgid(), os.getgroups(), os.getcwd()) == before


def test_what_is_missing_in_a_chroot_is_told_to_have_been_looked_for_there() -> None:
    reasons = ["cannot write log /l: No such file or directory", "cannot write log /l: Permission denied"]
    assert found_from("/jail", reasons) == [f"{reasons[0]} (inside chroot /jail)", reasons[1]]
    assert found_from("", reasons) == reasons


# -- for good -----------------------------------------------------------------------------------


@as_root
def test_p22_nothing_of_root_is_left_and_nothing_can_be_had_again() -> None:
    nobody = pwd.getpwnam("nobody")
    found = assume("nobody", setup="os.setgroups([0, 4, 24])")
    assert found["uids"] == [nobody.pw_uid] * 3
    assert found["gids"] == [nobody.pw_gid] * 3
    assert found["groups"] == groups_of("nobody", nobody.pw_gid)
    assert found["regained"] == []


@as_root
def test_p22_a_group_of_its_own() -> None:
    nobody, daemon = pwd.getpwnam("nobody"), grp.getgrnam("daemon")
    found = assume("nobody", "daemon", setup="os.setgroups([0, 4, 24])")
    assert found["uids"] == [nobody.pw_uid] * 3
    assert found["gids"] == [daemon.gr_gid] * 3
    assert found["groups"] == groups_of("nobody", daemon.gr_gid)
    assert found["regained"] == []


@as_root
def test_p22_a_group_alone_drops_the_groups_too() -> None:
    daemon = grp.getgrnam("daemon")
    found = assume("", "daemon", setup="os.setgroups([0, 4, 24])")
    assert (found["gids"], found["groups"], found["uids"]) == ([daemon.gr_gid] * 3, [daemon.gr_gid], [0] * 3)


@as_root
def test_p22_the_chroot_is_entered_before_root_is_gone(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    found = assume("nobody", root=str(tmp_path))
    assert (found["root"], found["cwd"], found["regained"]) == (["inside"], "/", [])


@as_root
def test_p22_root_that_could_be_had_again_is_refused() -> None:
    # As with a capability that outlives setuid.
    found = assume("nobody", setup="os.setuid = lambda uid: os.setresuid(uid, uid, 0) if uid else os.seteuid(0)")
    assert found == {"reasons": ["cannot give up privileges: root could be had again"]}


@pytest.mark.parametrize("root", ["/nonexistent", "/etc/passwd"])
@as_root
def test_a_chroot_that_is_none_is_told(root: str) -> None:
    (reason,) = assume("nobody", root=root)["reasons"]
    assert reason.startswith(f"chroot: cannot enter {root}: No")


@as_root
def test_who_is_not_root_cannot_become_another() -> None:
    found = assume("daemon", setup="os.setgroups([]); os.setgid(65534); os.setuid(65534)")
    assert found == {"reasons": ["cannot give up privileges: Operation not permitted"]}


@as_root
def test_files_are_given_to_the_user(tmp_path: Path) -> None:
    file = tmp_path / "socket"
    file.touch()
    nobody, daemon = pwd.getpwnam("nobody"), grp.getgrnam("daemon")
    Identity("", "").own(str(file))
    assert (file.stat().st_uid, file.stat().st_gid) == (0, 0)
    Identity("", "daemon").own(str(file))
    assert (file.stat().st_uid, file.stat().st_gid) == (0, daemon.gr_gid)
    Identity("nobody", "").own(str(file))
    assert (file.stat().st_uid, file.stat().st_gid) == (nobody.pw_uid, nobody.pw_gid)


@pytest.mark.parametrize(("user", "group"), [("", ""), ("nobody", ""), ("", "nogroup"), ("nobody", "nogroup")])
@as_root
def test_a_file_that_is_theirs_already_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str, group: str
) -> None:
    """The shipped unit's sandbox answers every chown with EPERM, one that changes nothing too."""

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    file = tmp_path / "socket"
    file.touch()
    identity = Identity(user, group)
    os.chown(file, identity.uid, identity.gid)
    for name in ("chown", "lchown", "fchown"):
        monkeypatch.setattr(os, name, denied)
    identity.own(str(file))


@as_root
def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    """Who may write the directory must not choose a file for root to give away."""
    file, link = tmp_path / "file", tmp_path / "link"
    file.touch()
    link.symlink_to(file)
    Identity("nobody", "").own(str(link))
    assert (file.stat().st_uid, link.lstat().st_uid) == (0, pwd.getpwnam("nobody").pw_uid)


@as_root
def test_a_file_that_cannot_be_given_away_is_told(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    file = tmp_path / "socket"
    setup = f"os.setgroups([]); os.setgid(65534); os.setuid(65534); identity.assume = lambda _: identity.own('{file}')"
    (gone,) = assume("daemon", setup=setup)["reasons"]
    assert gone == f"cannot give {file} to the user: No such file or directory"
    file.touch()
    os.chown(file, 65534, 65534)
    (denied,) = assume("daemon", setup=setup)["reasons"]
    assert denied == (
        f"cannot give {file} to the user: Operation not permitted; start as root, or leave out user and group"
    )
