"""The targets: each takes an input and raises where something that was promised does not hold.

An exception that is not one of those named, an AssertionError and a broken limit all mean the same: a
finding.  `check` is how they are called.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import itertools
import json
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from relayd.address import (
    ReplayAddress,
    TcpAddress,
    check_connect,
    check_listen,
    parse_address,
    parse_addresses,
    rebased,
)
from relayd.cli import _effective, main
from relayd.config.keys import DAEMON_KEYS, RELAY_KEYS
from relayd.config.load import load_file
from relayd.errors import AddressError, ConfigError
from relayd.wire.chunk import Chunk
from relayd.wire.framing import Framer, Framing
from relayd.wire.framings import RAW, parse_framing
from tests.fuzz.daemon import CONFIG, Caller, Daemon
from tests.fuzz.script import Script
from tests.support import SLOWNESS
from tests.wire import slowly, streams
from tests.wire.test_framing import PARTS

Target = Callable[[bytes], None]

SECONDS_MAX = 3.0 * SLOWNESS  # of CPU time, for one input
_GROWTH_MAX = 100 * 1024  # KiB of memory likewise

_SECRET = "hunter2"  # what the file `secret` holds ends so


def check(target: Target, data: bytes) -> None:
    """Feed the target; fail too where that takes more time or memory than any input may."""
    begin, peak = time.process_time(), _peak()
    target(data)
    taken, growth = time.process_time() - begin, _peak() - peak
    assert taken < SECONDS_MAX, f"{len(data)} bytes took {taken:.1f} s"
    assert growth < _GROWTH_MAX, f"{len(data)} bytes took {growth} KiB"


def _peak() -> int:
    """Return the most memory that the process has had, in KiB: what one input needed can hide in it, not in turn."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@functools.cache
def _folder() -> Path:
    """Return a directory for the files of this process, with those in it that a configuration may refer to."""
    folder = tempfile.TemporaryDirectory(prefix="relayd-fuzz-")
    atexit.register(folder.cleanup)
    path = Path(folder.name)
    (path / "more.ini").write_text("[relay more]\nsource = a.example:1\ndestination = :65000\n")
    (path / "secret").write_text(f"unix:{_SECRET}\n")
    (path / "daemon.ini").write_text(CONFIG)
    return path


# -- text ---------------------------------------------------------------------------------------------

_ENVIRON = {"NAME": "word", "EMPTY": "", "PORT": "2101"}

# What would read, or list, files of the machine instead of the few in the folder: not for a fuzzer.
_REACHES_OUT = re.compile(rb"(?:include\s*=|=\s*@)[^\r\n]*(?:/|\.\.)")

_INCLUDES = re.compile(rb"include\s*=\s*[^@\s]")  # whose errors may quote what is no secret to a configuration file


def config(data: bytes) -> None:
    """A configuration file is a Config or a ConfigError; what --check shows of it means the same; secrets stay so."""
    if _REACHES_OUT.search(data):
        return
    path = _folder() / "relayd.ini"
    path.unlink(missing_ok=True)  # ext4 waits for the disk when a file that has something in it is emptied
    path.write_bytes(data)
    known = _SECRET.encode() in data or _INCLUDES.search(data)
    try:
        loaded = load_file(str(path), _ENVIRON)
    except ConfigError as error:
        told = [str(problem) for problem in error.problems]
        _check_told(told)
        assert known or _SECRET not in "".join(told), "a secret is told"
        return
    shown = _effective(loaded)
    assert known or _SECRET not in shown, "a secret is shown"
    if "***" in shown:
        return  # which stands for a secret, and is no value
    path.unlink()
    path.write_text(shown)
    # Keys of [defaults] without an effect on a relay are not shown, so what is compared is the text.
    again = _effective(load_file(str(path), {}))
    assert _without_comments(again) == _without_comments(shown), "what --check shows means something else"


def _without_comments(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


def _check_told(lines: list[str]) -> None:
    """Each of the errors is a line, and has nothing in it that a terminal obeys."""
    assert lines, "an error that says nothing"
    for line in lines:
        assert line and not _CONTROL.search(line), f"not a line: {line!r}"


def words(data: bytes) -> None:
    """A command line, NUL between its words: no traceback, errors one a line, and the exit status says which."""
    if b"--config" in data or b"@" in data:
        return  # it would read files of the machine
    arguments = data.decode("utf-8", "surrogateescape").split("\0")  # as Python makes sys.argv
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["--check", *arguments])
    assert status in (0, 2), f"exit status {status}"
    assert bool(out.getvalue()) == (status == 0), "output and exit status tell different things"
    assert bool(err.getvalue()) == (status == 2), "errors and exit status tell different things"
    if status == 2:
        assert err.getvalue().endswith("\n")
        _check_told(err.getvalue().split("\n")[:-1])


KINDS = list({key.kind.name: key.kind for key in (*RELAY_KEYS.values(), *DAEMON_KEYS.values())}.values())


def values(data: bytes) -> None:
    """A value of a kind (the first byte says which): durations, sizes, ranges, framings, ... read as they are shown."""
    script = Script(data)
    kind = script.pick(KINDS)
    try:
        value = kind.read(script.rest().decode("utf-8", "surrogateescape"))
    except ValueError as error:
        _check_meant(error)
        return
    shown = kind.show(value)
    assert kind.read(shown) == value, f"{shown!r} reads as {kind.read(shown)!r}, not {value!r}"


_LABEL = r"\w(?:[\w-]*\w)?"
_NAME = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*\.?)?", re.ASCII)  # the empty one is every address of this machine


def addresses(data: bytes) -> None:
    """An address, or a list of them, prints as it reads, and can be asked what it is good for."""
    text = data.decode("utf-8", "surrogateescape")
    with contextlib.suppress(AddressError):
        several = parse_addresses(text)
        assert parse_addresses(",".join(map(str, several))) == several, several
    try:
        address = parse_address(text)
    except AddressError as error:
        _check_meant(error)
        return
    assert parse_address(str(address)) == address, f"{address} reads as {parse_address(str(address))}"
    if isinstance(address, TcpAddress):
        assert 1 <= address.port <= 65535
        assert address.ip or _NAME.fullmatch(address.host), f"{address.host!r} is no name"
    assert not isinstance(address, ReplayAddress) or address.rate is None or address.rate > 0
    for good_for in (check_listen, check_connect):
        with contextlib.suppress(AddressError):
            good_for(address)
    absolute = rebased(address, "/run")
    assert rebased(absolute, "/etc") == absolute, f"{absolute} is as seen from somewhere"


def _check_meant(error: ValueError) -> None:
    """What is refused is refused by us, with a sentence: not by a codec, or by int()."""
    assert str(error) and not isinstance(error, UnicodeError), repr(error)
    assert not re.match(r"invalid literal|Exceeds the limit|could not convert", str(error)), repr(error)


# -- framers ------------------------------------------------------------------------------------------

_STREAM_MAX = 4096  # bytes; a script ends when it has made that much
_SLOWLY_MAX = 1024  # of a stream that is looked through the slow way, whose time is quadratic; below any debt of checks
_HELD_MAX = 1024  # bytes that a framer may hold besides a record

Events = list["tuple[bytes, str]"]  # what is fed, and what is called after it: skip_record or finish


def framers(data: bytes) -> None:
    """A stream of pieces, good and bad, in any framing: however it is cut, the same whole records come out.

    They are those that the slow way finds; every byte is handed on, counted or held, and no more is held than a
    record has.
    """
    script = Script(data)
    framing, parts, expected = _chosen(script)
    max_record = script.pick((1, 2, 5, 11, 12, 30, 50, 64, 1000, 65536))
    sizes = [script.byte() + 1 for _ in range(4)]
    events = _stream(script, parts)
    fed = sum(len(fed) for fed, _ in events)
    results = [_handed_on(framing, max_record, events, sizes), _handed_on(framing, max_record, events, [_STREAM_MAX])]
    if fed <= _SLOWLY_MAX:
        results.append(_handed_on(framing, max_record, events, [1]))
    assert all(result == results[0] for result in results), f"{framing} depends on how the stream is cut: {events}"
    astray = False
    for (stream, event), run in zip(events, results[0], strict=True):
        if len(stream) <= _SLOWLY_MAX:
            if not astray:
                records = b"".join(expected(stream, max_record))
                if event == "skip_record":  # those behind a beginning that was none are left out with it
                    records = records[: len(run)]
                assert run == records, f"{framing} of {stream!r}"
            for record in streams.split(framing, run):
                assert expected(record, max_record) == [record], f"{framing} hands on {record!r}"
        astray = event == "skip_record"


def _chosen(script: Script) -> tuple[Framing, list[bytes], slowly.Records]:
    """Return a framing, pieces of its streams, and what finds its records the slow way."""
    names = [*PARTS, "raw", "delimiter", "fixed", "length"]
    name = script.pick(names)
    if name in PARTS:
        return parse_framing(name), PARTS[name], slowly.RECORDS[name]
    if name == "raw":
        return RAW, [b"x"], lambda data, max_record: [data]
    if name == "delimiter":
        delimiter = script.take(1 + script.byte() % 4) or b"\n"
        escaped = "".join(f"\\x{byte:02x}" for byte in delimiter)
        parts = [delimiter, delimiter[:1], delimiter[-1:], b"x", b"x" * 40]
        return parse_framing(f"delimiter:{escaped}"), parts, slowly.delimited(delimiter)
    if name == "fixed":
        size = 1 + script.byte()
        return parse_framing(f"fixed:{size}"), [b"x", b"x" * size], slowly.fixed(size)
    field, width, order = script.pick((
        ("u8", 1, "big"), ("u16be", 2, "big"), ("u16le", 2, "little"), ("u32be", 4, "big"), ("u32le", 4, "little")
    ))  # fmt: skip
    offset, extra = script.byte() % 20, script.byte() % 40 - 20
    parts = [b"x" * offset + number.to_bytes(width, order) + b"y" * 9 for number in (0, 3, 9, 200)]
    return parse_framing(f"length:{field}@{offset}{extra:+d}"), parts, slowly.length(width, order, offset, extra)


def _stream(script: Script, parts: list[bytes]) -> Events:
    """Return what the rest of the script says: pieces as they are, changed, cut, repeated, and calls between them."""
    events: Events = []
    stream = bytearray()
    piece = b""
    while script and len(stream) < _STREAM_MAX:
        action = script.byte() % 8
        if action == 0:
            events.append((bytes(stream), script.pick(("finish", "skip_record"))))
            stream.clear()
            continue
        if action == 1:
            piece = script.take(script.byte() % 16)
        elif action == 2:
            piece = _changed(script.pick(parts), script)
        elif action == 3:
            piece = script.pick(parts)
            piece = piece[: script.byte() % (len(piece) + 1)]
        elif action == 4:
            piece = (piece * script.byte())[:_STREAM_MAX]
        else:
            piece = script.pick(parts)
        stream += piece
    return [*events, (bytes(stream), "finish")]


def _changed(part: bytes, script: Script) -> bytes:
    """Return the piece with one byte of it another."""
    at = script.byte() % len(part)
    return part[:at] + bytes([part[at] ^ script.byte()]) + part[at + 1 :]


def _handed_on(framing: Framing, max_record: int, events: Events, sizes: list[int]) -> list[bytes]:
    """Return the run that comes of each event, the reads of the given sizes in turn."""
    framer = framing.framer(max_record)
    length = itertools.cycle(sizes)
    fed = handed_on = 0
    runs = []
    for stream, event in events:
        run = bytearray()
        at = 0
        while at < len(stream):
            read = stream[at : at + next(length)]
            at += len(read)
            found = framer.feed(read)
            if found or framer.records:
                _check_run(framing, found, framer.records, max_record)
                run += found
            held = fed + at - handed_on - len(run) - framer.unframed
            assert 0 <= held <= max_record + _HELD_MAX, f"{framing} holds {held} bytes"
        assert _footprint(framer) <= 2 * max_record + _HELD_MAX, f"{framing} takes {_footprint(framer)} bytes"
        found = getattr(framer, event)() or b""
        _check_run(framing, found, framer.records if found else 0, max_record)
        run += found
        fed += len(stream)
        handed_on += len(run)
        assert fed == handed_on + framer.unframed, f"{framing} lost count of {fed - handed_on - framer.unframed} bytes"
        runs.append(bytes(run))
    return runs


def _check_run(framing: Framing, run: bytes, records: int, max_record: int) -> None:
    """What a read gave is whole records, so many of them, none longer than any may be."""
    if framing is RAW:
        return
    found = streams.split(framing, run)
    assert b"".join(found) == run, f"{framing}: {run!r} is torn"
    assert len(found) == records == framing.records_before(Chunk(run, records, 0.0), len(run)), (
        f"{framing}: {run!r} is not {records} records"
    )
    assert all(len(record) <= max_record for record in found), f"{framing}: {run!r} has a record over {max_record}"


def _footprint(framer: Framer) -> int:
    """Return the bytes of memory of all that a framer keeps for its stream."""
    kept = (getattr(framer, slot) for slot in type(framer).__slots__)
    return sum(sys.getsizeof(item) for item in kept if isinstance(item, (bytes, bytearray)))


# -- the control socket -------------------------------------------------------------------------------

_REQUEST_MAX = 64 * 1024
_STATUS = b'{"command": "status"}\n'
_REQUESTS = (
    _STATUS, b'{"command": "reload"}\n', b'{"command": "stop"}\n', b'{"command": "kick", "relay": "a", "peer": "x"}\n',
    b'{"command": "dump", "relay": "a"}\n', b'{"command": "dump", "relay": "a", "format": "hex"}\n',
    b'{"command": "dump", "relay": "a", "format": "off"}\n',
)  # fmt: skip
_WORDS = (
    "command", "relay", "peer", "format", "status", "stop", "kick", "dump", "a", "", "raw", "off", "\ud800", "\n", 1,
    None, True, 1e999, [], {},
)  # fmt: skip
_SYNTAX = (
    b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\", b"\\u", b"\r", b" ", b"\t", b"\xff", b"\xef\xbb\xbf", b"\0",
    b"NaN", b"-", b"9", b"1e999", b"null", b'"command"', b'"status"',
)  # fmt: skip


def control(data: bytes) -> None:
    """Whatever a caller sends, each of its lines has one answer, others are served, and it is let go when it ends."""
    script = Script(data)
    hangs_up = script.byte() & 1
    with Daemon(_folder() / "daemon.ini") as daemon:
        caller = daemon.call()
        sent = bytearray()
        while script and not caller.cut:
            request = _request(script)
            sent += request
            caller.send(request)
            if not request:
                caller.turn()
        lines = sent.split(b"\n")
        if hangs_up:
            daemon.hang_up()
        elif max(map(len, lines)) < _REQUEST_MAX and not _ends_own_dump(lines):
            _check_answers(caller, len(lines) - 1)
        other = daemon.call()
        other.send(_STATUS)
        _check_answers(other, 1)
        assert json.loads(other.answers[0])["ok"] is True
        if not hangs_up:
            caller.end()
            caller.turn_until(lambda: caller.cut, work=len(lines))
            daemon.check_let_go()


def _ends_own_dump(lines: list[bytearray]) -> bool:
    """Whether the caller may have been let go, because it had all dumps ended, its own among them."""
    dumps = [b'"off"' in line for line in lines if b'"dump"' in line]
    return False in dumps and True in dumps[dumps.index(False) :]


def _request(script: Script) -> bytes:
    """Return what to send next; b"" is a pause."""
    action = script.byte() % 8
    if action == 0:
        return b""
    if action == 1:
        return b"\n"
    if action == 2:
        return script.piece()
    if action == 3:
        return script.pick(_SYNTAX) * (script.byte() or 1)
    if action == 4:
        return script.pick((b"x", b" ", b"[", b'{"a":')) * 300 * script.byte()
    if action == 5:
        request: dict[str, Any] = json.loads(script.pick(_REQUESTS))
        key, value = str(script.pick(_WORDS)), script.pick(_WORDS)
        request[key] = value
        return json.dumps(script.pick((request, request, [request], value))).encode() + b"\n"
    return script.pick(_REQUESTS)


def _check_answers(caller: Caller, count: int) -> None:
    """So many answers come, each an object on a line of its own, and no more."""
    caller.end()
    caller.turn_until(lambda: len(caller.answers) >= count, work=count)
    for _ in range(3):
        caller.turn()
    assert len(caller.answers) == count, f"{len(caller.answers)} answers to {count} requests: {caller.answers}"
    for line in caller.answers:
        answer = json.loads(line)
        assert isinstance(answer, dict) and answer["ok"] in (True, False), answer
        assert answer["ok"] or isinstance(answer["error"], str), answer


TARGETS: dict[str, Target] = {
    target.__name__: target for target in (config, words, values, addresses, framers, control)
}
