"""What the process gives up, what it never does, what it is denied, and which Python runs it."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import stat
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.links import Links, links_of
from tests.faults.lives import answers, is_refused, nothing_left, stop
from tests.faults.oracle import MIB, check_log
from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.integration.daemons import proc_status, relay, subreaper
from tests.support import (
    PATIENCE,
    ROOT,
    Sender,
    bulk,
    connect,
    free_port,
    listener,
    low_port,
    needs,
    receive,
    reset_connection,
    spawned,
    stalled_client,
    wait_until,
)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


# -- what it never does ---------------------------------------------------------------------------


@row(
    "P21",
    provoked="links, a name that is looked up, a reload, SIGUSR1 and a stop, all under strace",
    required="no fork and no exec in the running daemon; all descriptors are closed on exec",
)
@needs_root
def test_p21_no_fork_no_exec(rig: Rig) -> None:
    needs("strace")
    source_port, port, trace = free_port(), free_port(), rig.folder / "trace"
    dumped = relay("one", source_port, port, dump="text", dump_file=rig.folder / "dump")
    with subreaper(), rig.site(dumped, relay("name", "localhost:1", free_port(), "connect-listen")) as site:
        site.start()
        command = "strace", "-f", "-e", "trace=%process", "-o", trace, "-p", str(site.pid)
        with spawned(*command, stderr=subprocess.PIPE) as strace:
            assert strace.stderr is not None and b"attached" in strace.stderr.readline()
            with Links(site, "one", source_port, port) as links:
                links.carry()
                for fd, name in site.descriptors().items():
                    with contextlib.suppress(FileNotFoundError):  # that of our last question, which has ended
                        flags = Path(f"/proc/{site.pid}/fdinfo/{fd}").read_text().split("flags:")[1].split()[0]
                        assert fd <= 2 or int(flags, 8) & os.O_CLOEXEC, f"{fd} is {name}"
            site.hang_up()
            site.send(signal.SIGUSR1)
            site.wait_log("event=reopened")
            stop(site)
            strace.wait(PATIENCE)  # its trace is whole
        calls = trace.read_text().splitlines()
    assert any("exit_group" in call for call in calls)  # it did look on
    assert not [call for call in calls if "exec" in call or "fork" in call]
    threads = [call for call in calls if "clone" in call]  # only those of the resolver
    assert all("CLONE_THREAD" in call or "resumed" in call for call in threads), threads
    rig.saw("none")


# -- what it gives up -----------------------------------------------------------------------------


@row(
    "P22",
    provoked="started by root with `user = nobody`, a port below 1024, a Unix socket in root's folder; a reload after "
    "that; a start that may not become the user; a `chroot`",
    required="all ports are bound before; no group, capability or way back is left; a reload keeps the low port; who "
    "cannot give up root does not run, status 1",
)
@needs_root
def test_p22_root_is_given_up(rig: Rig, public: Path) -> None:
    (public / "rooms").mkdir(mode=0o755)  # root's own
    local, port, source_port, extra = public / "rooms" / "s", low_port(), free_port(), free_port()
    relays = [relay("one", source_port, port), relay("local", free_port(), f"unix:{local}")]
    with subreaper(), rig.site(*relays, user="nobody", group="nogroup") as site:
        site.start(extra_groups=[0, 4, 6])
        for _ in range(2):
            status = proc_status(site.pid)
            assert status["Uid"].split() == status["Gid"].split() == 4 * ["65534"]
            assert set(status["Groups"].split()) <= {"65534"}
            for capabilities in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
                assert int(status[capabilities], 16) == 0, capabilities
            with Links(site, "one", source_port, port) as links:
                links.carry()
            site.configure(*relays, relay("extra", free_port(), extra))
            site.file.chmod(0o644)
            site.hang_up()
        connect(extra).close()
        stop(site)
        rig.saw("nothing of root is left")


@row("P22", provoked="", required="")
@needs_root
def test_p22_a_low_port_outlives_a_reload_that_is_refused(rig: Rig, public: Path) -> None:
    """It could not be bound again: it has to go on as it is, whatever the new configuration wants in its place."""
    source_port, port = free_port(), low_port()
    before, taken = relay("one", source_port, port), f"unix:{public}/relayd.ini"
    with subreaper(), rig.site(before, user="nobody") as site:
        site.start()
        for refused, named in [
            ([relay("one", source_port, 1023)], "127.0.0.1:1023"),
            ([relay("one", source_port, free_port()), relay("two", free_port(), taken)], taken),
            ([relay("one", source_port, f":{port}")], f":{port}"),
        ]:
            site.configure(*refused)
            site.file.chmod(0o644)
            answer = site.ask("reload")
            assert not answer["ok"] and f"cannot listen on {named}: " in answer["error"], answer
            with Links(site, "one", source_port, port) as links:
                links.carry()
        site.configure(before)
        site.file.chmod(0o644)
        site.reload()
        with Links(site, "one", source_port, port) as links:
            links.carry()
        stop(site)


@row("P22", provoked="", required="")
@needs_root
def test_p22_who_cannot_give_up_root_does_not_run(rig: Rig) -> None:
    """Root in a sandbox that has taken CAP_SETUID and CAP_SETGID."""
    needs("setpriv")
    with rig.site(user="nobody") as site:
        done = site.launch(prefix=["setpriv", "--bounding-set", "-setuid,-setgid"])
        assert (done.returncode, done.stderr) == (1, "relayd: cannot give up privileges: Operation not permitted\n")
        nothing_left(site)
        assert is_refused(rig.control_ports[1])
        rig.saw("not allowed to: status 1")


@row("P22", provoked="", required="")
@needs_root
@pytest.mark.parametrize("null", [False, True], ids=["empty", "with /dev/null"])
def test_p22_a_chroot_with_nothing_in_it(rig: Rig, public: Path, null: bool) -> None:
    """No module can be loaded any more, no name looked up, no file read again: nothing of it may hurt the streams."""
    source_port, port, jail = free_port(), free_port(), public / "jail"
    jail.mkdir()
    jail.chmod(0o777)
    if null:
        (jail / "dev").mkdir()
        os.mknod(jail / "dev" / "null", stat.S_IFCHR, os.makedev(1, 3))
        (jail / "dev" / "null").chmod(0o666)
    name = relay("name", "relay.example:5000", free_port(), "connect-listen")
    keys = {"chroot": jail, "log": "/relayd.log", "control": "/control.sock"}  # as seen from inside
    with subreaper(), rig.site(relay("one", source_port, port), name, user="nobody", **keys) as site:
        site.log, site.control = jail / "relayd.log", jail / "control.sock"
        site.start()
        pid = site.pid
        site.wait_log("relay=name", "event=connect_failed")
        with Links(site, "one", source_port, port) as links:
            links.carry()
            site.send(signal.SIGHUP)
            site.wait_log("event=reload_failed", f"{site.file}: ")
            links.carry()
        assert os.readlink(f"/proc/{pid}/root") == str(jail)
        site.stop()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        check_log(site.lines())
        rig.saw("empty chroot: the streams go on")


@row(
    "P23",
    provoked="started by root without `user`",
    required="it works, and says so as a warning, with the cure",
)
@needs_root
def test_p23_root_without_a_user(rig: Rig) -> None:
    with rig.daemon() as site:
        assert site.lines(" warning ", "event=running_as_root", 'cure="set user in [relayd]"')
        rig.saw("a warning")


# -- how it ends ----------------------------------------------------------------------------------


@row(
    "P25",
    provoked="starts that fail again and again: wrong configuration, a port in use; a stop",
    required="status 2, 1 and 0; systemd's unit does not start again after 2, and gives up after 5 starts in 60 s",
)
def test_p25_what_a_supervisor_is_told(rig: Rig) -> None:
    with listener() as taken, subreaper(), rig.site() as site:
        for _ in range(rig.times(1, 100)):
            for words in ([], ["--foreground"]):
                site.configure(relay("one", free_port(), taken.getsockname()[1]), rig.control_relay)
                assert site.launch(*words).returncode == 1
                site.configure(relay("one", "nonsense", free_port()), rig.control_relay)
                assert site.launch(*words).returncode == 2
                nothing_left(site)
        site.configure(rig.control_relay)
        site.start()
        stop(site)
    unit = (ROOT / "systemd" / "relayd.service").read_text().splitlines()
    assert {"Restart=on-failure", "RestartPreventExitStatus=2", "StartLimitBurst=5"} <= set(unit)
    rig.saw("2, 1, 0")


# -- what it is denied ----------------------------------------------------------------------------


@row(
    "P26",
    provoked="no memory to be had (RLIMIT_AS is 8 MiB more than it has) while 64 MiB are to be queued; then there is",
    required="at worst links are lost; the process lives, the untouched stream is whole, and the relay serves again",
)
def test_p26_no_memory(rig: Rig) -> None:
    source_port, port = free_port(), free_port()
    with rig.daemon(relay("one", source_port, port, buffer="256M"), grows=16 * MIB, lag=0.5) as site:
        size = int(proc_status(site.pid)["VmSize"].split()[0]) * 1024
        before = resource.prlimit(site.pid, resource.RLIMIT_AS, (size + 8 * MIB, resource.RLIM_INFINITY))
        with stalled_client(port) as client, connect(source_port) as source:
            wait_until(lambda: links_of(site, "one") == (True, 1), "the links")
            sender = Sender(source, bulk(4_000_000))
            wait_until(lambda: not sender.is_alive() or links_of(site, "one") != (True, 1), "an end, in some way")
            resource.prlimit(site.pid, resource.RLIMIT_AS, before)
            for sock in (client, source):
                reset_connection(sock)
        wait_until(lambda: links_of(site, "one") == (False, 0), "the end of the links")
        assert site.lines("MemoryError") or site.lines("relay=one", "reason="), "it was never short"
        with Links(site, "one", source_port, port) as links:
            links.carry()
        rig.saw(site.lines("relay=one", "event=closed")[0].partition("reason=")[2].split()[0])


def _memory_cgroup(limit: int) -> Path | None:
    """Return a new cgroup with that limit, None where there can be none."""
    for root, name in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max"),
    ):  # fmt: skip
        group = root / f"relayd-test-{os.getpid()}"
        try:
            group.mkdir()
            (group / name).write_text(str(limit))
        except OSError:
            if group.exists():
                group.rmdir()
            continue
        return group
    return None


@row(
    "P27",
    provoked="a memory cgroup of 64 MiB, and 100 clients that read nothing of 32 MiB (`buffer = 4M`)",
    required="what waits is held once, and bounded by `buffer`: they are cut as slow, and nobody kills the process",
)
@needs_root
def test_p27_a_memory_cgroup(rig: Rig) -> None:
    source_port, port = free_port(), free_port()
    with ExitStack() as after:
        group = _memory_cgroup(64 * MIB)
        if group is None:
            pytest.skip("no memory cgroup can be made here")
        after.callback(lambda: wait_until(lambda: _removed(group), "the end of the cgroup"))
        prefix = ["sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec "$@"', str(group)]
        with rig.daemon(relay("one", source_port, port), prefix=prefix, grows=8 * MIB, lag=0.5) as site:
            stuck = [after.enter_context(stalled_client(port)) for _ in range(100)]
            wait_until(lambda: links_of(site, "one")[1] == 100, "100 clients")
            with ExitStack() as links:
                source, client = links.enter_context(connect(source_port)), connect(port)
                links.callback(reset_connection, client)
                wait_until(lambda: links_of(site, "one") == (True, 101), "the links")
                data = bulk(2_000_000)
                for sent in range(0, len(data), MIB):  # at a pace that one who reads can follow
                    piece = data[sent : sent + MIB]
                    source.sendall(piece)
                    assert receive(client, len(piece)) == piece
                wait_until(lambda: links_of(site, "one") == (True, 1), "the end of those who do not read")
                resident = site.memory()
            for sock in stuck:
                reset_connection(sock)
            assert len(site.lines("relay=one", "event=closed", "reason=slow")) <= 100
            rig.saw(f"100 cut, {resident / MIB:.0f} MiB resident")


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:
        return False
    return True


# -- which Python runs it -------------------------------------------------------------------------


@row(
    "P28",
    provoked="python -O, -OO, -I, -E, -B, -X dev with every warning an error, PYTHONWARNINGS=error",
    required="the same: it starts, carries, reloads, dumps and stops; Python has nothing to say on standard error",
)
@pytest.mark.parametrize("flags", ["-O", "-OO", "-I", "-E", "-X dev -W error", "-bb", "PYTHONWARNINGS=error"])
def test_p28_another_python(rig: Rig, flags: str) -> None:
    source_port, port = free_port(), free_port()
    dumped = relay("one", source_port, port, dump="hex", dump_file=rig.folder / "dump")
    with rig.site(dumped, relay("name", "localhost:1", free_port(), "connect-listen")) as site:
        words = [] if "=" in flags else flags.split()
        environ = {**os.environ, **dict(word.split("=") for word in flags.split() if "=" in word)}
        python = str(Path(site.program[0]).with_name("python"))
        command = [python, *words, "-m", "relayd", "--config", str(site.file), "--foreground"]
        # Elsewhere than in the tree, whose relayd would be run instead of the one that is installed.
        with spawned(*command, env=environ, cwd=rig.folder, stderr=subprocess.PIPE) as process:
            wait_until(lambda: answers(site), "the start")
            for _ in range(2):
                with Links(site, "one", source_port, port) as links:
                    links.carry()
                site.reload()
            site.wait_log("relay=name", "event=connect_failed")
            process.terminate()
            said = process.communicate(timeout=PATIENCE)[1].decode()
        assert (process.returncode, said) == (0, "")
        nothing_left(site)
        rig.saw(f"`{flags}`")
