"""Files and command lines -> Config: everything wrong is found in one run, and nothing else comes out."""

from __future__ import annotations

import glob
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relayd.address import ReplayAddress, TcpAddress, UnixAddress
from relayd.cli import _effective
from relayd.config.keys import DAEMON_KEYS
from relayd.config.load import load_command_line, load_file
from relayd.config.settings import Config
from relayd.errors import ConfigError

CONFIGS = Path(__file__).parent.parent / "configs"
VALID = sorted((CONFIGS / "valid").glob("*.ini"))
INVALID = sorted((CONFIGS / "invalid").glob("*.ini"))
RELAY = "[relay a]\nsource = a.example:1\ndestination = :2\n"


def load(path: Path, text: str | bytes, environ: dict[str, str] | None = None, name: str = "relayd.ini") -> Config:
    """Write the text to a file of the folder and load it."""
    file = path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_file(str(file), environ or {})


def problems(path: Path, text: str | bytes, environ: dict[str, str] | None = None) -> list[str]:
    """Return what is wrong with the text, the folder's name left out."""
    with pytest.raises(ConfigError) as caught:
        load(path, text, environ)
    return [str(problem).replace(f"{path}/", "") for problem in caught.value.problems]


# -- the tables of files ------------------------------------------------------------------------


def test_there_are_files_to_test() -> None:
    assert len(VALID) >= 5
    assert len(INVALID) >= 15


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_valid_file(path: Path) -> None:
    assert load_file(str(path), {}).relays


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_c21_invalid_file_tells_all_with_their_lines(path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_file(str(path), {})
    told = [str(problem).replace(f"{path.parent}/", "") for problem in caught.value.problems]
    expected = path.with_suffix(".txt").read_text().splitlines()
    assert len(told) == len(expected), told
    for line, wanted in zip(told, expected, strict=True):
        number, _, text = wanted.partition(":")
        assert number.strip() == "" or line.startswith(f"{path.name}:{number}: "), line
        assert text.strip() in line


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_what_check_prints_means_the_same(path: Path, tmp_path: Path) -> None:
    config = load_file(str(path), {})
    again = load(tmp_path, _effective(config))
    assert again.relays == config.relays
    assert (again.log_level, again.drain_timeout) == (config.log_level, config.drain_timeout)
    assert _effective(again).splitlines()[1:] == _effective(config).splitlines()[1:]


def test_everything_is_not_at_its_default() -> None:
    """The example with every key has every key's effect."""
    config = load_file(str(CONFIGS / "valid" / "everything.ini"), {})
    one, out, push = config.relays
    assert (config.log_level, config.drain_timeout) == ("debug", 60.0)
    assert (one.max_record, out.buffer, push.linger_timeout) == (4096, 8 * 1024**2, 0.5)
    assert one.destination == (TcpAddress("::1", 7002), UnixAddress("/run/relayd/out.sock"))
    assert one.dump_file == str(CONFIGS / "valid" / "dump.hex")
    assert (one.overflow, one.stall_timeout, one.return_rule) == ("block", 90.0, "first")
    assert [str(network) for network in one.deny] == ["192.0.2.66/32", "10.0.0.0/8"]
    assert (out.keepalive, push.enabled, push.reconnect.low, push.reconnect.high) == (None, False, 5.0, 5.0)


# -- defaults that depend -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "source", "destination", "expected"),
    [
        ("connect-listen", "a:1", ":2", ("none", "disconnect", 60.0)),
        ("listen-listen", ":1", ":2", ("none", "disconnect", 60.0)),
        ("connect-connect", "a:1", "b:2", ("all", "block", 0.0)),
        ("listen-connect", ":1", "b:2", ("all", "block", 0.0)),
        ("connect-connect", "a:1", "b:2,c:3", ("none", "disconnect", 60.0)),
        ("connect-listen", "replay:f?rate=1", ":2", ("none", "disconnect", 60.0)),
        ("connect-listen", "replay:f", ":2", ("none", "block", 0.0)),
    ],
)
def test_dependent_defaults(mode: str, source: str, destination: str, expected: object, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"line\n")
    text = f"[relay a]\nmode = {mode}\nsource = {source}\ndestination = {destination}\n"
    relay = load(tmp_path, text).relays[0]
    assert (relay.return_rule, relay.overflow, relay.stall_timeout) == expected


def test_a_relay_overrides_the_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, "[defaults]\nbuffer = 1M\nframing = line\n" + RELAY + "buffer = 2M\n")
    assert (config.relays[0].buffer, str(config.relays[0].framing)) == (2 * 1024**2, "line")


def test_defaults_may_stand_last(tmp_path: Path) -> None:
    assert load(tmp_path, RELAY + "[defaults]\nbuffer = 1M\n").relays[0].buffer == 1024**2


def test_a_default_without_effect_in_one_relay_is_no_error(tmp_path: Path) -> None:
    text = (
        "[defaults]\ndeny = 192.0.2.0/24\n"
        + RELAY
        + "[relay b]\nmode = connect-connect\nsource = a:1\ndestination = b:1\n"
    )
    assert len(load(tmp_path, text).relays) == 2


# -- references ---------------------------------------------------------------------------------


def test_c20_the_environment_is_a_value_and_nothing_else(tmp_path: Path) -> None:
    environ = {"HOST": "a.example", "ODD": "@${HOST} # ; % ]"}
    relay = load(tmp_path, "[relay a]\nsource = ${HOST}:1\ndestination = :2\ndump_file = /${ODD}\n", environ).relays[0]
    assert relay.source == (TcpAddress("a.example", 1),)
    assert relay.dump_file == "/@${HOST} # ; % ]"


def test_c20_a_line_break_does_not_come_in_by_the_environment(tmp_path: Path) -> None:
    told = problems(tmp_path, RELAY + "dump_file = ${EVIL}\n", {"EVIL": "a\n[relay b]"})
    assert told == ["relayd.ini:4: [relay a] dump_file: what ${EVIL} holds has a control character in it"]


SECRETS = [
    ("source", "hunter2"),
    ("source", "replay:/hunter2"),
    ("source", "0.0.0.0:80,hunter2:1"),
    ("destination", "hunter2.example:1,hunter2.example:1"),
    ("buffer", "hunter2"),
    ("bind_source", "hunter2"),
    ("mode", "hunter2"),
    ("allow", "hunter2"),
    ("source", "hunter2\x07"),
    ("reconnect", "hunter2"),
]


@pytest.mark.parametrize(("key", "secret"), SECRETS)
def test_c20_what_a_secret_file_holds_is_in_no_error(key: str, secret: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(secret + "\n")
    values = {"source": "a.example:1", "destination": ":2", key: "@secret"}
    text = "[relay a]\n" + "".join(f"{name} = {value}\n" for name, value in values.items())
    assert "hunter2" not in "\n".join(problems(tmp_path, text))


def test_a_secret_in_an_address_that_is_listened_on_twice_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("unix:/hunter2\n")
    text = "[relay a]\nsource = a:1\ndestination = @secret\n[relay b]\nsource = a:1\ndestination = @secret\n"
    assert "hunter2" not in "\n".join(problems(tmp_path, text))


def test_a_secret_is_shown_as_stars(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2.example:1\r\n")
    config = load(tmp_path, "[relay a]\nsource = @secret\ndestination = :2\n")
    assert config.relays[0].source == (TcpAddress("hunter2.example", 1),)
    assert "hunter2" not in _effective(config)
    assert "source = ***" in _effective(config)


def test_a_secret_is_looked_for_beside_the_file_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (tmp_path / "secret").write_text("8M")
    assert load(tmp_path, RELAY + "buffer = @secret\n").relays[0].buffer == 8 * 1024**2
    assert load(tmp_path, RELAY + "[defaults]\nbuffer = @secret\n").relays[0].buffer == 8 * 1024**2


@pytest.mark.parametrize("reference", ["no-such-file", "", "folder", "/dev/zero", "fifo", "binary"])
def test_c16_a_secret_that_cannot_be_read_is_an_error(reference: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    before = sorted(os.listdir("/proc/self/fd"))
    told = problems(tmp_path, RELAY + f"bind_source = @{reference}\ndump_file = @{reference}\n")
    assert len(told) == 2
    assert sorted(os.listdir("/proc/self/fd")) == before


# -- files that are none ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["missing", "folder", "fifo", "socket", "/dev/zero", "/dev/null", "/proc/self/mem", "a\0b", ""]
)
def test_c16_what_is_no_regular_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = str(tmp_path / kind) if not kind.startswith("/") and kind else kind
    if kind == "folder":
        os.mkdir(path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        os.mknod(path, 0o140600)
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_file(path, {})
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_c16_a_file_of_1_mib_is_read_a_larger_one_is_not(tmp_path: Path) -> None:
    filler = b"#" * (1024 * 1024 - len(RELAY) - 1) + b"\n"
    assert load(tmp_path, filler + RELAY.encode()).relays
    assert problems(tmp_path, b"\n" + filler + RELAY.encode()) == [
        "relayd.ini: is larger than 1024 KiB, which is too large"
    ]


def test_c18_an_unreadable_file_says_so(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads every file")
    (tmp_path / "relayd.ini").touch(0)
    with pytest.raises(ConfigError, match="Permission denied"):
        load_file(str(tmp_path / "relayd.ini"), {})


def test_a_section_that_cannot_be_read_leaves_nothing_homeless(tmp_path: Path) -> None:
    assert problems(tmp_path, "\x01" + RELAY) == ["relayd.ini:1: control character U+0001 at column 1; take it out"]
    text = RELAY + "\x00[relay b]\nsource = b.example:1\ndestination = :3\n"
    assert problems(tmp_path, text) == ["relayd.ini:4: control character U+0000 at column 1; take it out"]


def test_a_list_of_networks_may_be_a_file_of_lines(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("192.0.2.0/24\n2001:db8::/32\n")
    (relay,) = load(tmp_path, RELAY + "allow = @list\n").relays
    assert [str(network) for network in relay.allow] == ["192.0.2.0/24", "2001:db8::/32"]
    assert problems(tmp_path, RELAY + "bind_source = @list\n") == [
        "relayd.ini:4: [relay a] bind_source: the file holds more than one line; a value is one line, its parts "
        "separated with commas"
    ]


def test_an_unknown_key_is_told_with_its_section_and_where_the_known_ones_are(tmp_path: Path) -> None:
    assert problems(tmp_path, f"[relayd]\nxyzzy = 1\n[defaults]\nxyzzy = 1\n{RELAY}") == [
        f"relayd.ini:2: [relayd] xyzzy: unknown key; there are {', '.join(DAEMON_KEYS)}",
        "relayd.ini:4: [defaults] xyzzy: unknown key; relayd --help lists them",
    ]


# -- include ------------------------------------------------------------------------------------


def test_c19_included_files_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "conf.d"
    folder.mkdir()
    for name, port in (("20-b.ini", 20), ("10-a.ini", 10), (".hidden.ini", 30), ("old.ini.rpmsave", 40)):
        (folder / name).write_text(f"[relay r{port}]\nsource = a:1\ndestination = :{port}\n")
    config = load(tmp_path, "[relayd]\ninclude = conf.d/*.ini\n[defaults]\nbuffer = 1M\n" + RELAY)
    assert [relay.name for relay in config.relays] == ["a", "r10", "r20"]
    assert {relay.buffer for relay in config.relays} == {1024**2}


def test_c19_an_error_in_an_included_file_names_it(tmp_path: Path) -> None:
    (tmp_path / "more.ini").write_text("[relay a]\nsource = a:1\ndestination = :3\n[relayd]\n[relay b]\nbufer = 1\n")
    told = problems(tmp_path, "[relayd]\ninclude = more.ini\n" + RELAY)
    assert [line.partition(": ")[0] for line in told] == [
        "more.ini:1",
        "more.ini:4",
        "more.ini:5",
        "more.ini:5",
        "more.ini:6",
    ]
    assert "stands at relayd.ini:3 already" in told[0]


@pytest.mark.parametrize("pattern", ["conf.d/*.ini", "conf.d/b.ini", "{0}/*.ini", "../br?1?/conf.d/*.ini"])
def test_the_folder_of_the_file_is_no_part_of_the_pattern(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "br[1]"
    (folder / "conf.d").mkdir(parents=True)
    (folder / "conf.d" / "b.ini").write_text("[relay b]\nsource = a:1\ndestination = :3\n")
    text = f"[relayd]\ninclude = {pattern.format(glob.escape(str(folder / 'conf.d')))}\n{RELAY}"
    assert [relay.name for relay in load(folder, text).relays] == ["a", "b"]
    monkeypatch.chdir(folder)
    assert [relay.name for relay in load_file("relayd.ini", {}).relays] == ["a", "b"]


def test_a_file_that_is_not_there_is_told_in_such_a_folder_too(tmp_path: Path) -> None:
    folder = tmp_path / "br[1]"
    folder.mkdir()
    assert problems(folder, f"[relayd]\ninclude = b.ini\n{RELAY}") == [
        "relayd.ini:2: [relayd] include: there is no file b.ini"
    ]


def test_a_pattern_that_finds_nothing_is_no_error_and_yet_told(tmp_path: Path) -> None:
    config = load(tmp_path, "[relayd]\ninclude = conf.d/*.ini\n" + RELAY)
    assert len(config.relays) == 1
    told = f"{tmp_path}/relayd.ini:2: [relayd] include: there is no file {tmp_path}/conf.d/*.ini"
    assert config.warnings == (told,)
    assert "# include = conf.d/*.ini" in _effective(config).splitlines()
    (problem,) = problems(tmp_path, "[relayd]\ninclude = conf.d/*.ini\n")
    assert problem == (
        "relayd.ini: no relay is defined; write a section [relay NAME] with source and destination; "
        "relayd.ini:2: [relayd] include: there is no file conf.d/*.ini"
    )
    secret = tmp_path / "secret"
    secret.write_text("conf.d/*.ini\n")
    (warning,) = load(tmp_path, "[relayd]\ninclude = @secret\n" + RELAY).warnings
    assert "conf.d" not in warning


# -- the command line ---------------------------------------------------------------------------


def test_a_command_line_is_one_relay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f").touch()
    config = load_command_line([("source", "replay:f?rate=1", "SOURCE"), ("destination", ":2", "DESTINATION")], {})
    assert config.relays[0].source == (ReplayAddress(str(tmp_path / "f"), 1.0),)
    assert config.path == ""


def test_c21_a_command_line_s_errors_name_the_word() -> None:
    options = [("source", "a:0", "SOURCE"), ("framing", "lin", "-o framing"), ("bufer", "1", "-o bufer")]
    with pytest.raises(ConfigError) as caught:
        load_command_line(options, {})
    told = sorted(str(problem) for problem in caught.value.problems)
    assert [line.partition(": ")[0] for line in told] == ["-o bufer", "-o framing", "DESTINATION", "SOURCE"]


# -- no input makes anything but a ConfigError, and none takes long -------------------------------


def relays(count: int) -> str:
    return "".join(f"[relay r{n}]\nsource = a.example:1\ndestination = :{n + 1000}\n" for n in range(count))


LARGE = {
    "relays": (relays, 200),
    "empty sections": (lambda n: "".join(f"[relay r{i}]\n" for i in range(n)), 2500),
    "blanks": (lambda n: f"[relay a]\na{' ' * n}b\n", 30_000),
    "references": (lambda n: f"[relay a]\nsource = {'${' * n}\n", 12_000),
    "addresses": (lambda n: f"[relay a]\nsource = {','.join(f'a{i}:1' for i in range(n))}\ndestination = :2\n", 5000),
    "networks": (lambda n: RELAY + f"allow = {' '.join(f'10.{i >> 8}.{i & 255}.1' for i in range(n))}\n", 5000),
    "unknown keys": (lambda n: RELAY + "".join(f"sourcx{i} = 1\n" for i in range(n)), 600),
    "one long value": (lambda n: RELAY + f"dump_file = {'x' * n}\n", 900_000),
    "one long key": (lambda n: RELAY + f"{'x' * n} = 1\n", 900_000),
    "brackets": (lambda n: "[" * n, 900_000),
    "equals signs": (lambda n: RELAY + "=" * n, 900_000),
    "dots": (lambda n: f"[relay a]\nsource = {'a.' * n}b:1\n", 400_000),
}


@pytest.mark.parametrize("shape", LARGE)
def test_c22_r14_large_files_take_less_than_a_second(shape: str, tmp_path: Path) -> None:
    make, count = LARGE[shape]
    text = make(count)
    assert len(text) < 1024 * 1024
    begin = time.process_time()
    try:
        load(tmp_path, text)
    except ConfigError as error:
        told = error.problems
    else:
        told = ()
    assert all("\n" not in str(problem) for problem in told)
    assert time.process_time() - begin < 1.0 * float(os.environ.get("RELAYD_TEST_SLOWNESS", "1"))


def guarded_load(path: Path, data: bytes) -> None:
    begin = time.process_time()
    try:
        load(path, data, {"HOME": "/root"})
    except ConfigError as error:
        told = [str(problem) for problem in error.problems]
    else:
        told = ["no error"]
    assert told and not any("\n" in problem for problem in told)
    assert time.process_time() - begin < 1.0


SAMPLES = [path.read_bytes() for path in (*VALID, *INVALID) if b"include" not in path.read_bytes()]
EDIT = st.tuples(
    st.sampled_from(["flip", "insert", "delete", "double", "swap", "splice"]),
    st.integers(0, 5000),
    st.binary(min_size=1, max_size=4),
)
SYNTAX = st.sampled_from(
    [b"[", b"]", b"=", b";", b"#", b" ", b"\n", b"\r", b"\t", b"${", b"}", b"@", b"%", b"\0", b",", b"\xc2\xa0"]
)
SYNTAX_EDIT = st.tuples(st.just("insert"), st.integers(0, 5000), SYNTAX)
WORDS = st.sampled_from([b"relay", b"a", b"source", b"defaults", b":1", b"relayd", b"log_level", b"[relay a]\n"])


def mutated(data: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    for action, number, piece in edits:
        at = number % (len(data) + 1)
        lines = data.split(b"\n")
        one, two = number % len(lines), (number * 7 + 1) % len(lines)
        if action == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ (piece[0] or 1)]) + data[at + 1 :]
        elif action == "insert":
            data = data[:at] + piece + data[at:]
        elif action == "delete":
            data = data[:at] + data[at + len(piece) :]
        elif action == "double":
            data = b"\n".join([*lines[: one + 1], *lines[one:]])
        elif action == "swap":
            lines[one], lines[two] = lines[two], lines[one]
            data = b"\n".join(lines)
        else:
            lines[one] += lines[two]
            data = b"\n".join(lines)
    return data


FUZZ = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(data=st.sampled_from(SAMPLES), edits=st.lists(EDIT | SYNTAX_EDIT, max_size=12))
def test_c22_mutated_files_give_nothing_but_config_errors(
    data: bytes, edits: list[tuple[str, int, bytes]], tmp_path: Path
) -> None:
    guarded_load(tmp_path, mutated(data, edits))


@FUZZ
@given(data=st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "replace")))
def test_c22_arbitrary_bytes_give_nothing_but_config_errors(data: bytes, tmp_path: Path) -> None:
    guarded_load(tmp_path, data)


@FUZZ
@given(parts=st.lists(SYNTAX | WORDS, max_size=40))
def test_c22_arbitrary_syntax_gives_nothing_but_config_errors(parts: list[bytes], tmp_path: Path) -> None:
    guarded_load(tmp_path, b"".join(parts))
