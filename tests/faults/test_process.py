"""The process: its pidfile, whoever else has one, where it is started from, what it gives up, what it lacks."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.links import Links
from tests.faults.lives import answers, nothing_left, stop
from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.integration.daemons import Site, descriptors, proc_status, relay, subreaper
from tests.support import (
    PATIENCE,
    ROOT,
    SLOWNESS,
    Namespace,
    connect,
    free_port,
    keyed,
    needs,
    receive,
    spawned,
    wait_until,
)


def serves(site: Site, source_port: int, port: int) -> None:
    """Fail unless the daemon of the site is a healthy one, up to its end, whatever it was started from."""
    assert {site.descriptors().get(fd) for fd in (0, 1, 2)} == {os.devnull}
    for _ in range(2):
        with Links(site, "one", source_port, port) as links:
            links.carry()
        site.hang_up()
    stop(site)


# -- being alone ----------------------------------------------------------------------------------


@row(
    "P12",
    provoked="`kill -9`: the pidfile and the files of Unix sockets stay behind",
    required="the next start works and serves on the same addresses; the log says which pid was replaced",
)
def test_p12_kill_9(rig: Rig) -> None:
    source_port, local = free_port(), rig.folder / "local.sock"
    with subreaper(), rig.site(relay("one", source_port, f"unix:{local}")) as site:
        site.start()
        for _ in range(rig.times(3, 100)):
            before = site.pid
            site.stop(signal.SIGKILL)
            os.waitpid(before, 0)
            assert site.pid == before and local.exists() and site.control.exists()
            site.start()
            assert site.processes() == [site.pid] and site.pid != before
            site.wait_log("event=pidfile_replaced", f"pid={before} ")
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(local))
        stop(site)
        assert not local.exists()
        rig.saw("started again, pid replaced")


# Runs as the first process of a PID namespace, where it can say which pid is given next.
_REUSE = """
import os, signal, subprocess, sys
pidfile, control, relayd, config = sys.argv[1:]
start = [relayd, "--config", config]
stop = [os.path.join(os.path.dirname(relayd), "relayctl"), "--socket", control, "stop"]
subprocess.run(start, check=True)
pid = int(open(pidfile).read())
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
with open("/proc/sys/kernel/ns_last_pid", "w") as last:
    last.write(str(pid - 1))
innocent = subprocess.Popen(["sleep", "1000"])
assert innocent.pid == pid, (innocent.pid, pid)
assert subprocess.run(stop, capture_output=True).returncode == 1  # nobody to be stopped
assert innocent.poll() is None, "the innocent was killed"
subprocess.run(start, check=True)
fresh = int(open(pidfile).read())
assert fresh != pid
subprocess.run(stop, check=True, capture_output=True)
os.waitpid(fresh, 0)
assert innocent.poll() is None, "the innocent was killed"
print("reused", end="")
"""


@row(
    "P13",
    provoked="`kill -9`, and its pid is given to another program (PID namespace, `ns_last_pid`)",
    required="the other program is not taken for relayd: the start is not refused, `relayctl stop` does not kill it",
)
def test_p13_the_pid_is_given_to_another_program(rig: Rig) -> None:
    needs("unshare", "sleep")
    with rig.site() as site:
        words = ["unshare", *([] if os.geteuid() == 0 else ["-Ur"]), "--fork", "--pid", "--mount-proc", "--kill-child"]
        if subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
            pytest.skip("no PID namespace here")
        arguments = map(str, (site.pidfile, site.control, *site.program, site.file))
        done = subprocess.run(
            [*words, sys.executable, "-c", _REUSE, *arguments],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False, cwd=ROOT,
        )  # fmt: skip
        assert done.stdout == "reused", done.stderr
        assert site.lines("event=pidfile_replaced")
        nothing_left(site)
        rig.saw("the other lives")


@row(
    "P14",
    provoked="a second start; twenty starts at once, over a stale pidfile",
    required="the second exits with 1 and names the pid of the first, which is not hurt; of twenty exactly one lives",
)
@pytest.mark.parametrize("words", [[], ["--foreground"]], ids=["daemon", "foreground"])
def test_p14_a_second_instance(rig: Rig, words: list[str]) -> None:
    with rig.daemon() as site:
        done = site.launch(*words)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"relayd: already running, with pid {site.pid} ({site.pidfile})\n"
        assert site.processes() == [site.pid]
        rig.saw("refused, and names the first")


@row("P14", provoked="", required="")
def test_p14_twenty_starts_at_once(rig: Rig) -> None:
    source_port, port = free_port(), free_port()
    with subreaper(), rig.site(relay("one", source_port, port)) as site:
        for _ in range(rig.times(1, 20)):
            site.pidfile.write_text("999999\n")
            words = [*site.program, "--config", str(site.file)]
            starts = [
                subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT)
                for _ in range(20)
            ]
            said = [start.communicate(timeout=PATIENCE)[1] for start in starts]
            codes = [start.returncode for start in starts]
            assert sorted(codes) == [0] + 19 * [1], (codes, said)
            assert all("already running, with pid " in text for text, code in zip(said, codes, strict=True) if code)
            assert site.processes() == [site.pid]
            serves(site, source_port, port)
        rig.saw("of twenty one lives")


def _bad_pidfile(folder: Path, kind: str) -> Path:
    path = folder / "bad.pid"
    if kind == "missing folder":
        return folder / "missing" / "bad.pid"
    if kind == "directory":
        path.mkdir()
    elif kind == "symbolic link":
        (folder / "precious").write_text("42\n")
        path.symlink_to(folder / "precious")
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "device":
        return Path("/dev/null")
    return path


@row(
    "P15",
    provoked="a pidfile on a full disk, on a read-only one, in a missing folder; one that is a symbolic link, "
    "a directory, a FIFO, a device; one that is replaced while relayd runs",
    required="status 1 and one line that names it; no port, no process and no empty file is left, nothing of others is "
    "overwritten; at its end relayd removes only its own",
)
@pytest.mark.parametrize("kind", ["missing folder", "directory", "symbolic link", "FIFO", "device"])
def test_p15_a_pidfile_that_cannot_be(rig: Rig, kind: str) -> None:
    path = _bad_pidfile(rig.folder, kind)
    with rig.site(pidfile=path) as site:
        there = sorted(os.listdir(rig.folder))
        _is_refused_for(site, path)
        assert sorted(os.listdir(rig.folder)) == there
        assert kind != "symbolic link" or (rig.folder / "precious").read_text() == "42\n"
        rig.saw(f"{kind}: refused")


def _is_refused_for(site: Site, path: Path, prefix: list[str] | None = None) -> None:
    done = site.launch(prefix=prefix or [], timeout=5 * SLOWNESS)
    assert (done.returncode, done.stdout) == (1, ""), done
    assert len(done.stderr.splitlines()) == 1 and f"pidfile {path}: " in done.stderr, done.stderr
    assert site.processes() == []


@row("P15", provoked="", required="")
@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_p15_a_disk_that_takes_no_pidfile(rig: Rig, kind: str) -> None:
    with Namespace() as namespace:
        disk = rig.folder / "disk"
        disk.mkdir()
        namespace.run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk)
        inside = Path(f"/proc/{namespace.pid}/root{disk}")
        with contextlib.suppress(OSError), (inside / "ballast").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        if kind == "read-only":
            namespace.run("mount", "-o", "remount,ro", disk)
        with rig.site(pidfile=disk / "relayd.pid") as site:
            _is_refused_for(site, disk / "relayd.pid", namespace.enter)
            assert os.listdir(inside) == ["ballast"]
            rig.saw(f"{kind}: refused")


@row("P15", provoked="", required="")
def test_p15_a_pidfile_that_is_another_s_at_the_end(rig: Rig) -> None:
    with subreaper(), rig.site() as site:
        site.start()
        pid = site.pid
        site.pidfile.unlink()
        site.pidfile.write_text("42\n")
        os.kill(pid, signal.SIGTERM)
        site.wait_gone(pid)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert site.pidfile.read_text() == "42\n"
        rig.saw("replaced: left alone")


# -- where it is started from ---------------------------------------------------------------------


@row(
    "P18",
    provoked="standard input, output, error closed at the start, one or all; who reads the dump leaves",
    required="it works; 0, 1 and 2 are /dev/null and never a socket; the stream goes on without a reader",
)
@pytest.mark.parametrize("closed", ["<&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_p18_standard_descriptors_closed(rig: Rig, closed: str) -> None:
    source_port, port = free_port(), free_port()
    with subreaper(), rig.site(relay("one", source_port, port)) as site:
        done = site.launch(prefix=["sh", "-c", f'exec "$@" {closed}', "sh"])
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        serves(site, source_port, port)
        words = ["sh", "-c", f'exec "$@" {closed}', "sh", *site.program, "--config", str(site.file), "--foreground"]
        with spawned(*words, cwd=ROOT) as process:
            wait_until(lambda: answers(site), "the start")
            with Links(site, "one", source_port, port) as links:
                links.carry()
                open_ones = descriptors(process.pid)
                assert {open_ones[fd] for fd in (0, 1, 2)} == {os.devnull}
            process.terminate()
            assert process.wait(PATIENCE) == 0
        rig.saw(f"`{closed}`")


@row("P18", provoked="", required="")
def test_p18_the_reader_of_the_dump_leaves(rig: Rig) -> None:
    source_port, port = free_port(), free_port()
    with rig.site(relay("one", source_port, port, dump="text"), log="stderr") as site:
        words = [*site.program, "--config", str(site.file), "--foreground"]
        with spawned(*words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            wait_until(lambda: answers(site), "the start")
            with Links(site, "one", source_port, port) as links:
                assert process.stdout is not None and process.stderr is not None
                process.stdout.close()
                process.stderr.close()
                for _ in range(100):
                    links.carry()
            process.terminate()
            assert process.wait(PATIENCE) == 0
        rig.saw("the reader leaves")


def _environ(**changes: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("HOME", "PYTHONPATH", "LC_ALL", "LC_CTYPE")}
    return {**kept, **changes}


_SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # that relayd acts on


def _deafen() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@row(
    "P19",
    provoked="inherited descriptors; signals that are ignored (nohup) or blocked; umask 0; a working directory that "
    "is gone; no HOME, no environment at all; LANG=C",
    required="it works, and ends in time; what was inherited is closed; no file of it can be written by others",
)
@pytest.mark.parametrize("kind", ["signals", "umask", "directory", "HOME", "nothing"])
def test_p19_odd_surroundings(rig: Rig, kind: str) -> None:
    source_port, port = free_port(), free_port()
    gone = rig.folder / "gone"
    gone.mkdir()
    run: dict[str, object] = {
        "signals": {"preexec_fn": _deafen},
        "umask": {"umask": 0},
        "directory": {"prefix": ["sh", "-c", 'cd "$0" && rmdir "$0" && exec "$@"', str(gone)]},
        "HOME": {"env": _environ(LANG="C", LC_ALL="C")},
        "nothing": {"env": {}},
    }[kind]  # type: ignore[assignment]
    with subreaper(), rig.site(relay("one", source_port, port)) as site:
        site.start(**run)  # type: ignore[arg-type]
        blocked = int(proc_status(site.pid)["SigBlk"], 16)
        assert not any(blocked >> (number - 1) & 1 for number in _SIGNALS), "signals are blocked for ever"
        for path in (site.pidfile, site.log, site.control):
            assert not stat.S_IMODE(path.stat().st_mode) & 0o022, path
        serves(site, source_port, port)
        rig.saw(kind)


@row("P19", provoked="", required="")
def test_p19_inherited_descriptors(rig: Rig) -> None:
    source_port, port = free_port(), free_port()
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as pipe, subreaper(), rig.site(relay("one", source_port, port)) as site:
        mine, theirs = socket.socketpair()
        with mine, theirs:  # a socket as standard input: inetd's doing, python-daemon thinks
            site.start(pass_fds=[writer], stdin=theirs)
        os.close(writer)
        assert pipe.read() == b""  # its other end is closed everywhere
        serves(site, source_port, port)
        rig.saw("descriptors")


@row(
    "P20",
    provoked="LANG=C; the configuration in a folder whose name is no UTF-8",
    required="start, log, reload with its errors, `status` and stop work: what cannot be shown is escaped",
)
@pytest.mark.parametrize("name", ["Größe", os.fsdecode(b"latin\xe4")], ids=["UTF-8", "latin-1"])
def test_p20_names_beyond_ascii(rig: Rig, name: str) -> None:
    source_port = free_port()
    rig.folder = rig.folder / name
    rig.folder.mkdir()
    # Relative to the file, for a file in UTF-8 cannot hold every name.
    keys = {"pidfile": "relayd.pid", "control": "control.sock", "log": "relayd.log"}
    with subreaper(), rig.site(relay("one", source_port, "unix:local.sock"), **keys) as site:
        site.start(env=_environ(LANG="C", LC_ALL="C"))
        text = site.file.read_text()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fsencode(rig.folder / "local.sock"))
            client.settimeout(PATIENCE)
            wait_until(lambda: site.relay("one")["destinations"], "the client")
            with connect(source_port) as source:
                source.sendall(keyed("name", 0, 10))
                assert receive(client, 160) == keyed("name", 0, 10)
        site.file.write_text(text + "[relay two]\nmood = 1\n")
        site.send(signal.SIGHUP)
        site.wait_log("event=reload_failed", "relayd.ini:")
        assert "relayd.ini:" in site.status()["reload"]["error"]
        for words, said in (["reload"], b"relay two"), (["status"], b"last reload failed"):
            command = [str(Path(site.program[0]).with_name("relayctl")), "--socket", str(site.control), *words]
            done = subprocess.run(
                command, capture_output=True, env=_environ(LANG="C", LC_ALL="C"), timeout=PATIENCE, check=False
            )
            assert b"Traceback" not in done.stderr and said in done.stdout + done.stderr, done
        site.file.write_text(text)
        site.hang_up()
        stop(site)
        rig.saw(ascii(name).replace("\\", "\\\\"))
