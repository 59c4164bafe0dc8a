"""What no single key can see: loops, ports taken twice, ends against their roles."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from relayd.address import parse_addresses
from relayd.config import checks
from relayd.config.checks import check_together
from relayd.config.load import load_command_line, load_file
from relayd.errors import ConfigError
from tests.support import is_linear


def told(path: Path, *relays: tuple[str, str, str], control: str = "") -> list[str]:
    """Return the problems of relays of (mode, source, destination), called r0, r1, ..."""
    text = f"[relayd]\ncontrol = {control}\n" + "".join(
        f"[relay r{number}]\nmode = {mode}\nsource = {source}\ndestination = {destination}\n"
        for number, (mode, source, destination) in enumerate(relays)
    )
    (path / "f.ini").write_text(text)
    try:
        load_file(str(path / "f.ini"), {})
    except ConfigError as error:
        return [str(problem).partition(": ")[2] for problem in error.problems]
    return []


CL, LC, CC, LL = "connect-listen", "listen-connect", "connect-connect", "listen-listen"


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ("127.0.0.1:2101", ":2101"), ("localhost:2101", ":2101"), ("[::1]:2101", ":2101"), ("LOCALHOST.:2101", ":2101"),
        ("127.0.0.1:2101", "0.0.0.0:2101"), ("127.0.0.1:2101", "127.0.0.1:2101"), ("localhost:2101", "127.0.0.1:2101"),
        ("10.1.2.3:2101", "10.1.2.3:2101"), ("this.example:2101", "this.example:2101"), ("unix:/run/a", "unix:/run/a"),
        ("unix:/run/../run/a", "unix:/run/a"), ("a:1,127.0.0.1:2101", ":7,:2101"), ("[::ffff:127.0.0.1]:2101", ":2101"),
        ("127.0.0.2:2101", ":2101"),
    ],
)  # fmt: skip
def test_n8_a_relay_that_feeds_itself_is_refused(source: str, destination: str, tmp_path: Path) -> None:
    for ends in ((CL, source, destination), (LC, destination, source)):
        assert any("back to its own source" in problem for problem in told(tmp_path, ends)), ends


def test_n8_this_host_s_own_name_is_this_host(tmp_path: Path) -> None:
    name = socket.gethostname()
    assert told(tmp_path, (CL, f"{name}:2101", ":2101"))


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ("127.0.0.1:2101", ":2102"), ("a.example:2101", ":2101"), ("192.0.2.1:2101", ":2101"),
        ("127.0.0.1:2101", "192.0.2.1:2101"), ("unix:/run/a", "unix:/run/b"), ("192.0.2.1:2101", "0.0.0.0:2101"),
    ],
)  # fmt: skip
def test_what_is_no_loop_is_let_be(source: str, destination: str, tmp_path: Path) -> None:
    assert told(tmp_path, (CL, source, destination)) == []


def test_n9_a_circle_of_relays_is_refused_a_chain_is_not(tmp_path: Path) -> None:
    chain = [(CL, "a.example:1", ":2001"), (CL, "localhost:2001", ":2002"), (CL, "localhost:2002", ":2003")]
    assert told(tmp_path, *chain) == []
    circle = [(CL, "localhost:2003", ":2001"), *chain[1:]]
    assert len(told(tmp_path, *circle)) == 3
    push = [(LC, ":2001", "localhost:2002"), (LC, ":2002", "localhost:2001")]
    assert len(told(tmp_path, *push)) == 2


def test_n9_a_feeder_of_a_circle_is_not_blamed(tmp_path: Path) -> None:
    relays = [(LC, ":2000", "localhost:2001"), (LC, ":2001", "localhost:2002"), (LC, ":2002", "localhost:2001")]
    problems = told(tmp_path, *relays)
    assert len(problems) == 2
    assert not any("[relay r0]" in problem for problem in problems)


LAYOUTS: dict[str, Callable[[int], tuple[str, str]]] = {
    "chain": lambda number: (f"127.0.0.1:{10000 + number}", f":{10001 + number}"),
    "hub": lambda number: ("127.0.0.1:10000" if number else "a.example:1", f":{10000 + number}"),
    "many hosts": lambda number: (f"10.1.{number % 250}.1:1", f"10.0.{number // 250}.{number % 250}:1"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_twice_the_relays_take_twice_the_time(layout: str) -> None:
    """For a reload has them checked in the daemon's loop."""
    (plain,) = load_command_line([("source", "a:1", ""), ("destination", ":2", "")], {}).relays
    told: list[object] = []

    def prepared(size: int) -> Callable[[], object]:
        ends = [map(parse_addresses, LAYOUTS[layout](number)) for number in range(size)]
        relays = [
            replace(plain, name=f"r{number}", source=source, destination=destination)
            for number, (source, destination) in enumerate(ends)
        ]
        return lambda: check_together(relays, lambda *problem: told.append(problem))

    assert is_linear(prepared, 1000)
    assert not told


@pytest.mark.parametrize(
    ("one", "other", "taken"),
    [
        (":1", ":1", True), (":1", "127.0.0.1:1", True), ("127.0.0.1:1", ":1", True), ("0.0.0.0:1", "[::]:1", False),
        ("0.0.0.0:1", "10.0.0.1:1", True), ("[::]:1", "[::1]:1", True), ("[::]:1", "10.0.0.1:1", False),
        (":1", ":2", False),
        ("127.0.0.1:1", "127.0.0.2:1", False), ("unix:/a", "unix:/a", True), ("unix:/a", "unix:/b", False),
        ("localhost:1", "localhost:1", True), ("[::1]:1", "[0::1]:1", True),
    ],
)  # fmt: skip
def test_c15_an_address_is_listened_on_once(one: str, other: str, taken: bool, tmp_path: Path) -> None:
    assert bool(told(tmp_path, (CL, "a:1", one), (CL, "a:1", other))) == taken
    assert bool(told(tmp_path, (LL, one, other))) == taken


@pytest.mark.parametrize("listened", ["unix:c", "unix:x/../c", "unix:{0}/c", "unix:link/c", "unix:a, unix:c"])
def test_the_control_socket_is_where_no_relay_listens(listened: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    listened = listened.format(tmp_path)
    for ends, key in (((CL, "a:1", listened), "destination"), ((LC, listened, "a:1"), "source")):
        (problem,) = told(tmp_path, (CL, "a:1", "unix:b"), ends, control="c")
        assert problem.startswith(f"[relay r1] {key}: the control socket of [relayd] listens there; ")
    assert told(tmp_path, (CL, "a:1", listened), control="d") == []


def test_the_control_socket_s_path_is_measured_where_it_will_be(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    size = len(str(deep / "control.sock"))
    (problem,) = told(deep, (CL, "a:1", ":2"), control="control.sock")
    assert problem == f"[relayd] control: {deep}/control.sock has {size} bytes; a Unix socket's path may have 107"


def test_a_control_socket_that_nobody_has_asked_for_names_who_has(tmp_path: Path) -> None:
    (tmp_path / "f.ini").write_text("[relay a]\nsource = a:1\ndestination = :2\n")
    with pytest.raises(ConfigError, match=r"^RUNTIME_DIRECTORY: \[relayd\] control: .* has 214 bytes; "):
        load_file(str(tmp_path / "f.ini"), {"RUNTIME_DIRECTORY": "/" + "x" * 200})


def test_a_relay_that_does_not_run_takes_no_port(tmp_path: Path) -> None:
    text = "".join(
        f"[relay {name}]\nenabled = {enabled}\nsource = a:1\ndestination = :2\n"
        for name, enabled in (("a", "yes"), ("b", "no"))
    )
    (tmp_path / "f.ini").write_text(text)
    assert len(load_file(str(tmp_path / "f.ini"), {}).relays) == 2


def test_a_file_is_the_same_by_whatever_way(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").symlink_to("one")
    text = "".join(
        f"[relay {name}]\nsource = a:1\ndestination = :{number}\ndump = raw\ndump_file = {path}/dump\n"
        for number, (name, path) in enumerate({"a": "one", "b": "other", "c": "two"}.items(), 1)
    )
    (tmp_path / "f.ini").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_file(str(tmp_path / "f.ini"), {})
    (problem,) = caught.value.problems
    assert str(problem).endswith(":10: [relay b] dump_file: the dump of relay a is that file already; take another")


def test_any_number_of_dumps_share_the_standard_output(tmp_path: Path) -> None:
    relays = "".join(f"[relay {name}]\nsource = a:1\ndestination = unix:{name}\n" for name in "abc")
    (tmp_path / "f.ini").write_text("[defaults]\ndump = text\n" + relays)
    assert len(load_file(str(tmp_path / "f.ini"), {}).relays) == 3


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_a_replay_needs_a_file(kind: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (problem,) = told(tmp_path, (CL, f"replay:{kind}", ":1"))
    assert str(tmp_path / kind) in problem


def test_c24_a_check_binds_and_writes_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert told(tmp_path, (CL, "a:1", f"127.0.0.1:{port},unix:{tmp_path}/s")) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.ini"]


def test_a_unix_path_is_measured_where_it_will_be(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    assert told(deep, (CL, "a:1", "unix:feed.sock")) != []


# -- what the machine has ---------------------------------------------------------------------


def lacking(path: Path, text: str, relay: str = "") -> tuple[list[str], list[str]]:
    """Return the problems, and the warnings, of --check; the text is that of [relayd]."""
    (path / "f.ini").write_text(f"[relayd]\n{text}\n[relay a]\nsource = a:1\ndestination = :2\n{relay}\n")
    assert load_file(str(path / "f.ini"), {}), "a reload, which may be in a chroot, does not look"
    try:
        return [], list(load_file(str(path / "f.ini"), {}, of_machine=True).warnings)
    except ConfigError as error:
        return [str(problem).removeprefix(f"{path}/f.ini:") for problem in error.problems], []


def test_users_and_directories_that_are_not_there_are_told_with_their_lines(tmp_path: Path) -> None:
    none = tmp_path / "none"
    text = "\n".join(
        ["user = no-such", "group = none-such", *(f"{key} = none/{key}" for key in ("pidfile", "log", "control"))]
    )
    problems, _ = lacking(tmp_path, text, "dump = raw\ndump_file = none/dump")
    assert problems == [
        "2: [relayd] user: there is no user 'no-such'; make it (useradd --system no-such)",
        "3: [relayd] group: there is no group 'none-such'; make it (groupadd --system none-such)",
        *(f"{line}: [relayd] {key}: there is no directory {none}; make it" for line, key in
          ((4, "pidfile"), (5, "log"), (6, "control"))),
        f"11: [relay a] dump_file: there is no directory {none}; make it",
    ]  # fmt: skip


def test_a_chroot_and_what_is_looked_up_in_it(tmp_path: Path) -> None:
    assert lacking(tmp_path, "chroot = jail")[0] == [
        f"2: [relayd] chroot: there is no directory {tmp_path}/jail; make it, or leave chroot out"
    ]
    jail = tmp_path / "jail"
    (jail / "logs").mkdir(parents=True)
    outside = f"pidfile = {tmp_path}/pid"
    assert lacking(tmp_path, f"chroot = jail\nlog = /logs/l\n{outside}") == ([], [])
    assert lacking(tmp_path, f"chroot = jail\nlog = {jail}/logs/l\n{outside}")[0] == [
        f"3: [relayd] log: there is no directory {jail}{jail}/logs; make it, for chroot = {jail} and log is looked up "
        "in there"
    ]


def test_what_systemd_makes_when_it_starts_us_is_no_error(tmp_path: Path) -> None:
    problems, (warning,) = lacking(tmp_path, "control = /run/no-such/control.sock")
    assert problems == []
    assert warning.removeprefix(f"{tmp_path}/f.ini:") == (
        "2: [relayd] control: there is no directory /run/no-such; make it, unless systemd does (RuntimeDirectory=)"
    )


def test_what_may_not_be_looked_at_is_taken_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: str) -> os.stat_result:
        raise PermissionError

    monkeypatch.setattr(checks.os, "stat", forbidden)
    assert lacking(tmp_path, f"log = {tmp_path}/closed/l") == ([], [])
