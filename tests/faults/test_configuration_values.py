"""Configurations that are wrong in their values, or in several at once."""

from __future__ import annotations

import json
import signal
import time
from itertools import zip_longest

from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.faults.victim import Line, Victim, ends, victim
from tests.integration.daemons import relay
from tests.support import SLOWNESS, free_port

__all__ = ["victim"]  # the fixture

# -- values ---------------------------------------------------------------------------------------

PORTS = [
    "",
    "0",
    "-1",
    "65536",
    "99999999999",
    "1e3",
    "0x50",
    "80.0",
    " 80",
    "+80",
    "8_0",
    "\u0668\u0660",
    "\uff18\uff10",
]


@row(
    "C12",
    provoked="ports: none, 0, -1, 65536, 99999999999, 1e3, 0x50, 80.0, ' 80', +80, 8_0, Arabic and full-width digits",
    required="refused: only one to five ASCII digits from 1 to 65535 are a port",
)
def test_c12_ports(rig: Rig, victim: Victim) -> None:
    lines: list[Line] = []
    for number, port in enumerate(PORTS):
        lines += [f"[relay p{number}]", (f"source = a.example:{port}", f"'{port}' in ", "a number from 1 to 65535"),
                  (f"destination = 127.0.0.1:{port}", "is no port")]  # fmt: skip
    told = victim.refuses(*lines)
    rig.saw(f"{len(told)} of {2 * len(PORTS)} refused")


# As written, and as shown: reading what is shown gives the same again.
ADDRESSES = {
    text: shown or text
    for text, shown in {
        "a:1": "", "a.example:65535": "", "A.Example:5000": "", "a-b.c_d:1": "", "xn--bcher-kva.example:1": "",
        "a.example.:1": "", "localhost:1": "", "127.0.0.1:1": "", "192.0.2.1:00080": "192.0.2.1:80", "[::1]:1": "",
        "[2001:DB8::1]:1": "[2001:db8::1]:1", "[2001:db8:0:0:0:0:0:1]:1": "[2001:db8::1]:1",
        "[::ffff:192.0.2.1]:1": "[::ffff:c000:201]:1", "[fe80::1%lo]:1": "", "unix:/run/x.sock": "",
        "unix:/run/a b": "", "unix:/run/../x": "unix:/x", "a:1,b:2": "a:1, b:2", "a:1 ,  [::1]:2": "a:1, [::1]:2",
        "unix:/a,b:1": "unix:/a, b:1",
    }.items()
}  # fmt: skip

NO_ADDRESSES = {
    ":1": "needs a host", "a": "has no port", "[::1]": "no address", "::1:80": "two ways", "[::1:80": "no address",
    "[]:1": "'' is no IPv6", "[a]:1": "is no IPv6", "[fe80::1]:1": "needs its interface", "0.0.0.0:1": "every address",
    "[::]:1": "every address", "127.1:1": "all four numbers", "2130706433:1": "all four numbers",
    "0x7f000001:1": "all four numbers", "01.2.3.4:1": "all four numbers", "256.0.0.1:1": "all four numbers",
    "239.1.2.3:1": "multicast", "255.255.255.255:1": "broadcast", "a..b:1": "no host name", "-a:1": "no host name",
    "a b:1": "no host name", "b\u00fccher.example:1": "xn--", f"{'a' * 64}.b:1": "no host name",
    "unix:": "needs a path", "unix:@abstract": "needs a path", f"unix:/{'x' * 107}": "107", "a:1,": "is missing",
    "a:1,a:1": "twice",
    "unlx:/run/x:1": "two ways", "tcp://a:1": "two ways", "replay:": "needs a file", "replay:/no/such": "no file",
}  # fmt: skip


@row(
    "C13",
    provoked="51 addresses: names, IPv4, IPv6, scopes, wildcards, Unix paths, lists, and what only looks like one",
    required="what is taken is shown so that reading it again shows the same; the rest is refused with what is wrong",
)
def test_c13_addresses(rig: Rig, victim: Victim) -> None:
    def settings(addresses: list[str]) -> list[str]:
        text = "".join(f"[relay r{n}]\nenabled = no\nsource = {address}\ndestination = :1\n"
                       for n, address in enumerate(addresses))  # fmt: skip
        victim.write(text.encode())
        status, said, told = victim.check()
        assert (status, told) == (0, []), told
        shown = [line.removeprefix("source = ") for line in said.splitlines() if line.startswith("source = ")]
        return shown[-len(addresses) :]

    once = settings(list(ADDRESSES))
    assert once == list(ADDRESSES.values())
    assert settings(once) == once
    lines: list[Line] = []
    for number, (address, words) in enumerate(NO_ADDRESSES.items()):
        lines += [f"[relay n{number}]", (f"source = {address}", words), "destination = 127.0.0.1:1", "enabled = no"]
    victim.refuses(*lines)
    rig.saw(f"{len(ADDRESSES)} taken, {len(NO_ADDRESSES)} refused")


NO_DURATIONS = [
    "1h30m",
    "-1",
    "1e9",
    "inf",
    "nan",
    "10 s",
    "10S",
    "10sec",
    "0.0001",
    "400d",
    "9" * 12,
    ".5",
    "\u0661\u0660",
]
NO_SIZES = ["10mbs", "10MB", "-1", "1e9", "inf", "1.5M", "4 M", "9" * 13, "65G", "0x10", "\uff11"]


@row(
    "C14",
    provoked="durations and sizes: 1h30m, -1, 1e9, 10mbs, inf, nan, 0.0001, 400d, 65G, other digits, out of bounds",
    required="refused with what would be right; `10`, `10s`, `10000ms` are the same, and so are `65536`, `64K`, `64k`",
)
def test_c14_durations_and_sizes(rig: Rig, victim: Victim) -> None:
    lines: list[Line] = []
    for number, (duration, size) in enumerate(zip_longest(NO_DURATIONS, NO_SIZES, fillvalue="x")):
        lines += [f"[relay r{number}]", *ends(), (f"source_idle = {duration}", f"'{duration}'"),
                  (f"send_buffer = {size}", f"'{size}'")]  # fmt: skip
    lines += ["[relay bounds]", *ends(), ("buffer = 1", "'1' is not between 4K and 4G"), ("coalesce = 11", "10s")]
    told = victim.refuses(*lines)
    same = [("10", "65536"), ("10s", "64K"), ("10000ms", "64k"), ("0.01h", "0")]
    settings = victim.takes("".join(
        relay(f"r{n}", free_port(), free_port(), stable_after=one, send_buffer=two)
        for n, (one, two) in enumerate(same)).encode())  # fmt: skip
    assert {settings[f"r{n}"]["stable_after"] for n in range(3)} == {"10s"}
    assert {settings[f"r{n}"]["send_buffer"] for n in range(3)} == {"64K"}
    rig.saw(f"{len(told)} refused")


@row(
    "C15",
    provoked="what contradicts itself or others: a loop of one relay and of two, a port listened on twice, a network "
    "allowed and denied, limits that exceed each other, keys without effect; more clients than descriptors",
    required="refused, with the other place or the limit; `max_clients` above the descriptor limit is lowered with a "
    "line in the log",
)
def test_c15_contradictions(rig: Rig, victim: Victim) -> None:
    port, other, back = (free_port() for _ in range(3))
    told = victim.refuses(
        "[relay circle]",
        f"source = 127.0.0.1:{port}",
        (f"destination = 127.0.0.1:{port}", "destination: leads back to its own source"),
        "[relay there]",
        f"source = 127.0.0.1:{back}",
        (f"destination = 127.0.0.1:{other}", "leads through relay back back to its own source"),
        "[relay back]",
        f"source = 127.0.0.1:{other}",
        (f"destination = 127.0.0.1:{back}", "leads through relay there back to its own source"),
        "[relay twice]",
        "source = a.example:1",
        (f"destination = 0.0.0.0:{port}", "relay circle listens there already"),
        "[relay bounds]",
        *ends(free_port()),
        "allow = 192.0.2.0/24",
        ("deny = 10.0.0.0/8, 192.0.2.0/24", "192.0.2.0/24 is allowed and denied"),
        "buffer = 1M",
        ("history = 1M", "is more than half of buffer"),
        ("slow_after = 1M 5s", "is no less than buffer"),
        "coalesce = 10ms",
        ("source_idle = 10ms", "is no longer than coalesce"),
        ("overflow = drop_oldest", "needs a framing"),
        ("max_age = 5s", "needs a framing"),
        ("source_deny = 10.0.0.0/8", "has no effect in mode connect-listen, whose source does not listen"),
        "[relay record]",
        *ends(free_port()),
        "framing = line",
        ("buffer = 32K", "is smaller than max_record"),
    )
    rig.saw(f"{len(told)} refused")


@row("C15", provoked="", required="")
def test_c15_more_clients_than_descriptors(rig: Rig) -> None:
    ports = free_port(), free_port()
    with rig.site(relay("one", *ports, max_clients=5000)) as site:
        site.start(prefix=["prlimit", "--nofile=256:256"])
        line = site.wait_log(" warning ", "relay=one", "max_clients")
        rig.saw(line.partition(" warning ")[2])


# -- names, and all at once -----------------------------------------------------------------------

NAMES = ["a/b", "..\\x", "a b", "c\td", "\u00fc", "a" * 65, "a" * 300, "", "a\u202eb", "$(x)", "<b>", "a=b", '"a"']


@row(
    "C23",
    provoked="relay names with a slash, blanks, quotes, an ANSI escape, other letters, of 65 and 300 characters, none",
    required="refused: a name has 1 to 64 of `[A-Za-z0-9_.-]`; what is said of it is one printable line",
)
def test_c23_names(rig: Rig, victim: Victim) -> None:
    lines: list[Line] = []
    for name in NAMES:
        lines += [(f"[relay {name}]", "write [" if name in ("", "c\td") else "a relay's name has 1 to 64"), *ends()]
    lines += [("[relay \x1b[31mred]", "control character U+001B at column 8")]
    told = victim.refuses(*lines)
    assert all(line.isascii() or line.isprintable() for line in told)
    good = [relay(name, free_port(), free_port(), enabled="no") for name in ("..", "-", "a" * 64, "A_b.c-1")]
    victim.takes("".join(good).encode())
    rig.saw(f"{len(told)} refused")


@row(
    "C21",
    provoked="a file with 30 errors: `--check`, the start, SIGHUP, `relayctl reload`",
    required="each error in one line FILE:LINE: [relay NAME] KEY: what is wrong and would be right, in their order, "
    "status 2 (relayctl: 1), nothing else on either output; SIGHUP logs each",
)
def test_c21_all_errors_at_once(rig: Rig) -> None:
    with rig.site(relay("one", free_port(), free_port())) as site:
        site.start()
        good = site.file.read_text()
        bad = "".join(f"[relay r{n}]\nsource = a.example\ndestination = :{n + 1000}\nbufer = 1\n" for n in range(15))
        site.file.write_text(good + bad)
        first = good.count("\n")
        checked = site.launch("--check")
        told = checked.stderr.splitlines()
        assert (checked.returncode, checked.stdout, len(told)) == (2, "", 30)
        for number, line in enumerate(told):
            at, key = first + 4 * (number // 2) + (4 if number % 2 else 2), ("source", "bufer")[number % 2]
            assert line.startswith(f"relayd: {site.file}:{at}: [relay r{number // 2}] {key}: "), line
            assert ("write host:port" if key == "source" else "did you mean 'buffer'?") in line
        started = site.launch("--foreground")
        assert (started.returncode, started.stdout, started.stderr) == (2, "", checked.stderr)
        asked = site.relayctl("reload")
        assert (asked.returncode, asked.stdout) == (1, "")
        assert [line.partition(": ")[2] for line in asked.stderr.splitlines()] == [
            line.removeprefix("relayd: ") for line in told]  # fmt: skip
        site.send(signal.SIGHUP)
        site.wait_log("event=reload_failed", times=60)
        assert [line.partition("error=")[2].strip('"') for line in site.lines("event=reload_failed")][:30] == [
            json.dumps(line.removeprefix("relayd: "))[1:-1] for line in told]  # fmt: skip
        rig.saw("30 lines, of each")


EDITS = [b"[", b"]", b"=", b";", b"#", b" ", b"\n", b"\r", b"\t", b"${", b"}", b"@", b"%", b"\0", b",", b"\xc2\xa0",
         b"\xff", b"[relay a]\n", b"[defaults]\n", b"source", b":1", b"0", b"9" * 40, b"/dev/zero"]  # fmt: skip


@row(
    "C22",
    provoked="a file with random edits, a reload for each",
    required="it is taken or refused with lines of the file; each answer comes within 1 s; the memory comes back",
)
def test_c22_mutated_files(rig: Rig, victim: Victim) -> None:
    count = rig.times(150, 100_000)
    worst, taken = 0.0, 0
    for _ in range(count):
        victim.restore()
        good = victim.site.file.read_bytes()
        data = bytearray(
            b"[defaults]\nbuffer = 1M\n[relay two]\nenabled = no\nsource = a.example:1\ndestination = :2\n"
            b"framing = line\nallow = 10.0.0.0/8\nreconnect = 1s..30s\nhistory = 64K\nkeepalive = 30s/10s/3\n"
        )
        for _ in range(rig.random.randrange(1, 6)):
            at = rig.random.randrange(len(data))
            data[at : at + rig.random.choice((0, 0, 1, 5))] = rig.random.choice(EDITS)
        victim.site.file.write_bytes(good + data)
        began = time.monotonic()
        answer = victim.site.ask("reload")
        worst = max(worst, time.monotonic() - began)
        taken += answer["ok"]
        lines = answer.get("error", "").split("\n")
        assert answer["ok"] or all(line.startswith((f"{victim.site.file}", "cannot listen on")) for line in lines), (
            lines
        )
    victim.restore()
    victim.site.reload()
    victim.is_as_before()
    assert worst < 1.0 * SLOWNESS
    rig.saw(f"{count} files, {taken} taken, the slowest {1000 * worst:.0f} ms")
