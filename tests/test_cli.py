"""The command line: what it takes, what it refuses and how, and that nothing a user types is a traceback."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from relayd import __version__, cli
from relayd.address import TcpAddress
from relayd.config.keys import DAEMON_KEYS, MODES, RELAY_KEYS
from relayd.config.kinds import Waits
from relayd.config.settings import Config, RelayConfig
from relayd.errors import StartError
from relayd.net.owner import listening_process
from tests.support import PATIENCE, ROOT, free_port

ENDS = ["feed.example:5000", ":2101"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """What would have been run: nothing is."""
    configs: list[Config] = []
    monkeypatch.setattr(cli, "run_foreground", lambda config, load, environ: configs.append(config))
    return configs


def run(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run relayd as a process; for what main() cannot show."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "relayd", *words], cwd=ROOT, env={**os.environ, **environ},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip


def relay_of(started: list[Config]) -> RelayConfig:
    (config,) = started
    (relay,) = config.relays
    return relay


def complaints(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """Return what is said, a line each without the leading `relayd: `, of words that are wrong."""
    assert cli.main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert lines
    assert all(line.startswith("relayd: ") for line in lines)
    return [line[len("relayd: ") :] for line in lines]


# -- what it prints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["--version", "-V"])
def test_version(capsys: pytest.CaptureFixture[str], started: list[Config], word: str) -> None:
    assert cli.main([word]) == 0
    assert capsys.readouterr().out == f"relayd {__version__}\n"
    assert not started


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_shows_modes_options_and_every_key_with_its_default(
    capsys: pytest.CaptureFixture[str], started: list[Config], word: str
) -> None:
    assert cli.main([word]) == 0
    text = capsys.readouterr().out
    assert "usage: relayd SOURCE DESTINATION" in text
    for mode in MODES:
        assert f"  {mode} " in text
    lines = [line.strip() for line in text.splitlines()]
    for key in RELAY_KEYS.values():
        if key.default is not None:
            (line,) = [line for line in lines if line.partition(" ")[0] == key.name]
            assert key.help.replace("`", "") in line
            if not key.default_help:
                assert line.startswith(f"{key.name} = {key.default}".strip())
    assert not started


def test_help_wins_over_everything_that_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--bogus", "a", "b", "c", "--help"]) == 0
    assert capsys.readouterr().err == ""


def test_every_example_of_the_help_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--help"])
    text = capsys.readouterr().out
    examples = text.partition("examples:\n")[2].partition("\n\n")[0]
    lines = [line.strip().split("   ")[0] for line in examples.splitlines() if line.strip().startswith("relayd ")]
    assert len(lines) > 4
    for line in lines:
        words = line.split()[1:]
        if "--config" not in words:
            assert cli.main([*words, "--check"]) == 0, line


def test_p20_help_can_be_printed_wherever_the_output_goes() -> None:
    for encoding in ("ascii", "iso8859-2", "utf-8"):
        done = run("--help", PYTHONIOENCODING=encoding)
        assert (done.returncode, done.stderr) == (0, ""), encoding


@pytest.mark.parametrize("words", [["--help"], ["--version"], [*ENDS, "--check"]], ids=["help", "version", "check"])
def test_a_full_disk_is_said_and_no_traceback(words: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "relayd", *words], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True,
            timeout=PATIENCE, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "relayd", "--help"], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


# -- words that are right -----------------------------------------------------------------------------------


def test_two_addresses_are_a_relay(started: list[Config]) -> None:
    assert cli.main(ENDS) == 0
    relay = relay_of(started)
    assert relay.source == (TcpAddress("feed.example", 5000),)
    assert relay.destination == (TcpAddress("", 2101),)
    assert relay.mode == "connect-listen"
    assert relay.dump == "off"


@pytest.mark.parametrize("words", [["--dump", *ENDS], [ENDS[0], "--dump", ENDS[1]], [*ENDS, "--dump"]])
def test_dump_swallows_no_address(started: list[Config], words: list[str]) -> None:
    assert cli.main(words) == 0
    relay = relay_of(started)
    assert relay.dump == "text"
    assert [str(*relay.source), str(*relay.destination)] == ENDS


@pytest.mark.parametrize("style", ["text", "hex", "raw", "off"])
def test_dump_takes_its_format_after_an_equals_sign(started: list[Config], style: str) -> None:
    assert cli.main([f"--dump={style}", *ENDS]) == 0
    assert relay_of(started).dump == style


@pytest.mark.parametrize("words", [["--mode", "listen-listen"], ["--mode=listen-listen"], ["-o", "mode=listen-listen"]])
def test_mode(started: list[Config], words: list[str]) -> None:
    assert cli.main([":5000", *words, ":2101"]) == 0
    assert relay_of(started).mode == "listen-listen"


@pytest.mark.parametrize(
    ("text", "waits"), [("5", Waits(5, 5)), ("0.5", Waits(0.5, 0.5)), ("500ms", Waits(0.5, 0.5)), ("1..8", Waits(1, 8))]
)
def test_retry(started: list[Config], text: str, waits: Waits) -> None:
    assert cli.main([*ENDS, "--retry", text]) == 0
    assert relay_of(started).reconnect == waits


@pytest.mark.parametrize(
    "words", [["-o", "buffer=64K"], ["-obuffer=64K"], ["-o", "buffer = 64K"], ["-o=buffer=64K"]], ids=" ".join
)
def test_o_takes_its_value_in_every_way_it_is_written(started: list[Config], words: list[str]) -> None:
    assert cli.main([*ENDS, *words]) == 0
    assert relay_of(started).buffer == 65536


def test_after_two_dashes_everything_is_an_address(started: list[Config]) -> None:
    assert cli.main(["--dump", "--", *ENDS]) == 0
    assert relay_of(started).dump == "text"


def _mode_with(key: str) -> tuple[str, list[str]]:
    """Return a mode in which the key has an effect, and addresses for it."""
    if RELAY_KEYS[key].only_for == "source listen":
        return "listen-listen", [":5000", ":2101"]
    return "connect-listen", ENDS


@pytest.mark.parametrize("key", [key.name for key in RELAY_KEYS.values() if key.default is not None])
def test_o_takes_every_key_with_its_default(started: list[Config], key: str) -> None:
    mode, ends = _mode_with(key)
    words = [*ends] if key == "mode" else [*ends, "--mode", mode]
    assert cli.main(words) == 0
    plain = relay_of(started)
    started.clear()
    row = RELAY_KEYS[key]
    if row.default_help:
        assert not row.default, "a default that depends on other keys is told in words"
        return
    assert cli.main([*words, "-o", f"{key}={row.default}"]) == 0
    assert relay_of(started) == plain


@pytest.mark.parametrize("key", [key.name for key in RELAY_KEYS.values() if key.name != "dump_file"])
def test_o_shows_what_is_wrong_with_a_value_of_every_key(
    capsys: pytest.CaptureFixture[str], started: list[Config], key: str
) -> None:
    lines = complaints(capsys, *ENDS, "-o", f"{key}=%no:such/value")
    assert any(line.startswith(f"-o {key}: ") for line in lines)
    assert not started


# -- words that are wrong -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "SOURCE and DESTINATION, or --config FILE, are missing; relayd --help has examples"),
        (["feed.example:5000"], "DESTINATION: is missing; every relay needs one"),
        ([*ENDS, "more"], "more: is one word too many after SOURCE and DESTINATION"),
        ([*ENDS, "--chek"], "--chek: unknown option; did you mean '--check'?"),
        ([*ENDS, "--mod=x"], "--mod: unknown option; did you mean '--mode'?"),
        ([*ENDS, "-x"], "-x: unknown option; relayd --help lists them"),
        (["-c", "relayd.ini"], "-c: unknown option; relayd --help lists them"),
        (["--bogus"], "--bogus: unknown option; relayd --help lists them"),
        (["--config"], "--config: needs a value"),
        ([*ENDS, "--mode"], "--mode: needs a value"),
        ([*ENDS, "-o"], "-o: needs a value"),
        ([*ENDS, "--check=yes"], "--check: takes no value"),
        ([*ENDS, "-o", "buffer"], "-o: 'buffer' is not KEY=VALUE"),
        ([*ENDS, "-o", "nodelay"], "-o: 'nodelay' is not KEY=VALUE"),
        ([*ENDS, "-o", "=3"], "-o: '=3' is not KEY=VALUE"),
        ([*ENDS, "-o", "bufer=3"], "-o bufer: unknown key; did you mean 'buffer'?"),
        ([*ENDS, "-o", "log_level=debug"], "-o log_level: belongs into [relayd] of a configuration file"),
        ([*ENDS, "-o", "nodelay=maybe"], "-o nodelay: 'maybe' is neither 'yes' nor 'no'"),
        ([*ENDS, "--retry", "soon"], "--retry: 'soon' is no duration; write 500ms, 10s, 5m or 1h"),
        ([*ENDS, "--dump=hexx"], "--dump: 'hexx' is not known; choose off, text, hex or raw; did you mean 'hex'?"),
        ([*ENDS, "--mode", "listen-conect"], "--mode: 'listen-conect' is not known; choose connect-listen, "
         "listen-connect, connect-connect or listen-listen; did you mean 'listen-connect'?"),
        (["feed.example", ":2101"], "SOURCE: 'feed.example' has no port; write host:port, :port or unix:/path"),
        (["127.1:5000", ":2101"], "SOURCE: '127.1' is no IPv4 address; write all four numbers: 192.0.2.1"),
        (["f:5000", ":70000"], "DESTINATION: '70000' in ':70000' is no port; write a number from 1 to 65535"),
        ([":5000", ":2101"], "SOURCE: a connecting end needs a host; for this machine write localhost:5000"),
        ([*ENDS, "-o", "source=a:1"], "-o source: SOURCE sets source already; keep one of the two"),
        ([*ENDS, "-o", "nodelay=no", "-o", "nodelay=no"], "-o nodelay: -o nodelay sets nodelay already; keep one of "
         "the two"),
        ([*ENDS, "-o", "mode=listen-listen", "--mode", "x"], "--mode: -o mode sets mode already; keep one of the two"),
        ([*ENDS, "--dump", "--dump=hex"], "--dump: --dump sets dump already; keep one of the two"),
        ([*ENDS, "--dump", "-o", "dump=off"], "-o dump: --dump sets dump already; keep one of the two"),
        ([*ENDS, "-oreconnect=5", "--retry", "9"], "--retry: -o reconnect sets reconnect already; keep one of the two"),
        (["--config", "etc/relayd.ini", "--pidfile", "a", "--pidfile=b", "--check"],
         "--pidfile: given twice; keep one of the two"),
        (["--config", "/nowhere.ini", "--check"], "/nowhere.ini: cannot be read: No such file or directory"),
        (["--config", "etc", "--check"], None),
        (["--config", "", "--check"], None),
        (["--config", "/nowhere.ini"], None),
        (["--config", "/nowhere.ini", "--check", "--dump"], None),
        (["--config", "/nowhere.ini", "--check", *ENDS], None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_every_kind_of_wrong_word_is_exit_2_and_one_line(
    capsys: pytest.CaptureFixture[str], started: list[Config], words: list[str], said: str | None
) -> None:
    lines = complaints(capsys, *words)
    if said is not None:
        assert lines == [said]
    assert not started


def test_all_that_is_wrong_is_told_at_once_in_one_line_each(
    capsys: pytest.CaptureFixture[str], started: list[Config]
) -> None:
    lines = complaints(
        capsys, "feed", ":x", "third", "--mode", "foo", "--dump=xx", "--retry", "soon", "-o", "bufer=1",
        "-o", "nodelay=1", "-o", "backlog=0",
    )  # fmt: skip
    places = [line.partition(": ")[0] for line in lines]
    assert sorted(places) == sorted([
        "SOURCE", "DESTINATION", "third", "--mode", "--dump", "--retry", "-o bufer", "-o nodelay",
        "-o backlog",
    ])  # fmt: skip
    assert not started


def test_words_that_would_forge_a_line_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    for evil in ("x\nrelayd: all is well", "--\x1b[31m"):
        (line,) = complaints(capsys, *ENDS, evil)
        assert "\x1b" not in line


def test_c21_keys_without_effect_in_the_mode_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    lines = complaints(capsys, ":5000", "a.example:1", "--mode", "listen-connect", "-o", "allow=10.0.0.0/8")
    assert lines == ["-o allow: has no effect in mode listen-connect, whose destination does not listen"]


def test_n8_a_relay_that_feeds_itself_is_refused(capsys: pytest.CaptureFixture[str], started: list[Config]) -> None:
    for source in ("127.0.0.1:5000", "localhost:5000", "[::1]:5000"):
        (line,) = complaints(capsys, source, ":5000")
        assert "in a loop that never ends" in line
    assert not started


@pytest.mark.parametrize("source", ["0.0.0.0:5000", "[::]:5000", "255.255.255.255:5000", "224.0.0.1:5000", "f:0"])
def test_n17_what_nothing_can_connect_to_is_refused(capsys: pytest.CaptureFixture[str], source: str) -> None:
    assert complaints(capsys, source, ":2101")[0].startswith("SOURCE: ")


# -- it could not be done ---------------------------------------------------------------------------------------


def test_l1_a_port_that_is_taken_is_exit_1_with_the_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("127.0.0.1:1", f"127.0.0.1:{port}")
        owner = listening_process(port)
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use, by {owner}" in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr


def test_every_reason_has_a_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: Config, load: object, environ: object) -> None:
        raise StartError(["one", "two\nlines"])

    monkeypatch.setattr(cli, "run_foreground", fail)
    assert cli.main(ENDS) == 1
    assert capsys.readouterr().err == "relayd: one\nrelayd: two\\nlines\n"


def test_ctrl_c_before_the_loop_runs_is_a_graceful_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(config: Config, load: object, environ: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_foreground", interrupted)
    assert cli.main(ENDS) == 0


@pytest.mark.parametrize("word", ["", "--check"])
def test_ctrl_c_before_there_is_a_daemon_is_a_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, word: str
) -> None:
    def interrupted(*_: object) -> Config:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load_file", interrupted)
    assert cli.main(["--config", str(tmp_path / "relayd.ini"), *filter(None, [word])]) == 1
    assert capsys.readouterr() == ("", "relayd: interrupted\n")


@pytest.fixture
def gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that somebody has removed."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    return folder


@pytest.mark.usefixtures("gone")
def test_without_a_working_directory_addresses_still_work(started: list[Config]) -> None:
    assert cli.main(["unix:/run/feed", ":2101", "-o", "dump_file=/dev/null"]) == 0
    assert str(relay_of(started).source[0]) == "unix:/run/feed"


@pytest.mark.usefixtures("gone")
def test_without_a_working_directory_a_relative_address_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["192.0.2.1:1", "unix:feed"]) == 1
    assert capsys.readouterr().err.endswith("cannot listen on unix:/proc/self/cwd/feed: No such file or directory\n")


@pytest.mark.parametrize("option", ["--config", "--pidfile"])
@pytest.mark.usefixtures("gone")
def test_without_a_working_directory_a_relative_path_is_refused(
    capsys: pytest.CaptureFixture[str], started: list[Config], tmp_path: Path, option: str
) -> None:
    (tmp_path / "relayd.ini").write_text("[relay a]\nsource = 192.0.2.1:1\ndestination = :2\n")
    words = {"--config": str(tmp_path / "relayd.ini"), "--pidfile": str(tmp_path / "pid"), option: "../relayd.ini"}
    (line,) = complaints(capsys, "--foreground", *(part for pair in words.items() for part in pair))
    assert line == f"{option}: the working directory has been removed; give an absolute path"
    assert not started


# -- --check ---------------------------------------------------------------------------------------------------


def test_check_prints_the_effective_settings_which_can_be_read_again(
    capsys: pytest.CaptureFixture[str], started: list[Config], tmp_path: Path
) -> None:
    assert cli.main([*ENDS, "--check", "-o", "buffer=1M", "--retry", "5"]) == 0
    text = capsys.readouterr().out
    assert "buffer = 1M\n" in text
    assert "reconnect = 5s\n" in text
    assert not started
    path = tmp_path / "relayd.ini"
    path.write_text(text)
    assert cli.main(["--config", str(path), "--foreground", "--check"]) == 0
    again = capsys.readouterr().out
    assert again.splitlines()[1:] == text.splitlines()[1:]
    assert {"log = stderr", "umask ="} < set(text.splitlines())


def test_check_prints_what_is_in_effect_for_a_daemon(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "f.ini").write_text("[relayd]\ninclude = conf.d/*\n[relay a]\nsource = a:1\ndestination = :2\n")
    assert cli.main(["--config", str(tmp_path / "f.ini"), "--check"]) == 0
    printed = capsys.readouterr()
    assert {"log = syslog", "umask = 0027", "# include = conf.d/*"} < set(printed.out.splitlines())
    assert printed.err == (
        f"relayd: warning: {tmp_path}/f.ini:2: [relayd] include: there is no file {tmp_path}/conf.d/*\n"
    )


def test_c24_check_has_no_side_effects(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It binds nothing, though the port is taken; it looks nothing up, makes no file and removes no dead socket."""
    dead = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(dead))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = tmp_path / "relayd.ini"
        config.write_text(
            "[relay a]\nsource = nosuch.invalid:5000\n"
            f"destination = 127.0.0.1:{taken.getsockname()[1]}, unix:dead.sock\n"
            "dump = raw\ndump_file = dump.raw\n"
        )
        before = sorted(os.listdir(tmp_path)), dead.stat(), os.listdir("/proc/self/fd")
        trace = tmp_path.with_name("trace")
        done = subprocess.run(
            ["strace", "-f", "-qq", "-e", "trace=bind,connect,listen,unlink,mkdir,rename,sendto,kill", "-o", str(trace),
             sys.executable, "-m", "relayd", "--config", str(config), "--check"],
            cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE * 3, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert (sorted(os.listdir(tmp_path)), dead.stat(), os.listdir("/proc/self/fd")) == before
    calls = [line for line in trace.read_text().splitlines() if "__pycache__" not in line]
    assert calls == []


def test_c24_check_of_a_secret_does_not_show_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hidden.example:5000\n")
    secret.chmod(0o600)
    assert cli.main([f"@{secret}", ":2101", "--check"]) == 0
    text = capsys.readouterr().out
    assert "source = ***\n" in text
    assert "hidden" not in text


# -- anything at all -----------------------------------------------------------------------------------------


_WORDS = st.one_of(
    st.sampled_from([
        "--dump", "--dump=", "--dump=hex", "--mode", "--mode=listen-listen", "--retry", "--retry=", "-o", "--", "-", "",
        "--config", "--config=", "--config=/dev/null", "--config=/", "--check", "--foreground", "=", "-o=", "--=",
        "a:1", ":1", "[::1]:1", "[::1", "unix:/x", "unix:", "replay:/etc/passwd", "replay:/", "a:1,b:2", ",", "@",
        "@/nope", "${HOME}", "${NOPE}", "${", "$", "[fe80::1%x]:1", "\udcff", "unix:/\udcff",
    ]),
    st.builds("{}={}".format, st.sampled_from([*RELAY_KEYS, *DAEMON_KEYS]), st.text(max_size=12)),
    st.builds("-o{}={}".format, st.sampled_from([*RELAY_KEYS]), st.sampled_from(
        ["", "0", "1", "-1", "1e9", "9" * 12, "365d", "64K", "yes", "off", "1..2", "..", "1/2/3", "::/0", "@/x"])),
    st.text(st.characters(blacklist_characters="\0", blacklist_categories=()), max_size=20),
)  # fmt: skip


@given(words=st.lists(_WORDS, max_size=6))
@example(words=["a:1", ":2", "-o", "dump_file=\udcff"])
@example(words=["--config", "\udcff", "--check"])
@example(words=["unix:/\udcff", ":2", "--check"])
@example(words=["@/proc/self/mem", ":2"])
@example(words=["@/dev/null", ":2"])
@example(words=["a:1", ":2", "-o", "bind_source=\ud800"])
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_that_can_be_typed_is_a_traceback(
    capsys: pytest.CaptureFixture[str], started: list[Config], words: list[str]
) -> None:
    started.clear()
    status = cli.main(words)
    printed = capsys.readouterr()
    assert status in (0, 2)
    assert bool(printed.err) == (status == 2)
    assert all(line.startswith("relayd: ") for line in printed.err.splitlines())
    if status == 2:
        assert printed.out == ""
        assert not started


def test_a_name_that_is_not_utf_8_is_no_traceback() -> None:
    for words in (["unix:/tmp/\udcff", ":5000", "--check"], ["--config", "/\udcff", "--check"], ["\udcff", ":5000"]):
        for encoding in ("utf-8", "ascii"):
            done = subprocess.run(
                [sys.executable, "-m", "relayd", *words], cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": encoding},
                capture_output=True, timeout=PATIENCE, check=False,
            )  # fmt: skip
            assert b"Traceback" not in done.stderr, (words, encoding)


# -- starting ------------------------------------------------------------------------------------------------


def cpu_seconds(command: list[str]) -> float:
    """Return the least CPU time of five runs."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True, timeout=PATIENCE)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return min(once() for _ in range(5))


def test_starting_costs_little_more_than_the_library_it_stands_on() -> None:
    library = (
        "import configparser, dataclasses, difflib, glob, ipaddress, json, selectors, socket, threading, traceback"
    )
    bare = cpu_seconds([sys.executable, "-c", library])
    ours = cpu_seconds([sys.executable, "-m", "relayd", "--version"])
    assert ours < 6 * bare


def test_starting_imports_nothing_big() -> None:
    code = "import sys, relayd.cli; print(*sorted(set(sys.modules) & {'asyncio', 'ssl', 'http', 'email', 'argparse'}))"
    done: Any = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_free_ports_are_needed_by_nobody_here() -> None:
    """`relayd --check` with ports in use says nothing of them; running does (above)."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert cli.main([f"127.0.0.1:{free_port()}", f"127.0.0.1:{taken.getsockname()[1]}", "--check"]) == 0
