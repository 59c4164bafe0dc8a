"""The framings that a configuration can choose: the one table of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from relayd.errors import did_you_mean
from relayd.wire.beast import BEAST
from relayd.wire.delimited import LINE as LINE
from relayd.wire.delimited import parse_delimiter
from relayd.wire.framing import Framing, RawFraming
from relayd.wire.mavlink import MAVLINK
from relayd.wire.measured import parse_fixed, parse_length
from relayd.wire.nmea import NMEA
from relayd.wire.rtcm3 import RTCM3
from relayd.wire.ubx import UBX

RAW = RawFraming()


@dataclass(frozen=True)
class FramingKind:
    """One row: what can be written, and what comes of it."""

    name: str
    usage: str  # as the manual shows it
    help: str
    parse: Callable[[str], Framing]  # of the text behind the colon, "" if there is none; raises ValueError


def _single(framing: Framing, help_text: str) -> FramingKind:
    """Return the row of a framing that has nothing to choose."""

    def parse(text: str) -> Framing:
        if text:
            raise ValueError(f"{framing} takes no '{text}'; write {framing} alone")
        return framing

    return FramingKind(framing.text, framing.text, help_text, parse)


FRAMINGS = {
    kind.name: kind
    for kind in (
        _single(RAW, "bytes as they come; no records"),
        _single(LINE, "records end with LF: SBS, CSV and most of what is text"),
        FramingKind("delimiter", r"delimiter:\x00", "records end with these bytes", parse_delimiter),
        FramingKind("fixed", "fixed:188", "records of so many bytes, counted from the beginning", parse_fixed),
        FramingKind(
            "length",
            "length:u8|u16be|u16le|u32be|u32le[@OFFSET][+EXTRA]",
            "OFFSET bytes, a field, as many bytes as it says, EXTRA bytes (-EXTRA: it counts those too)",
            parse_length,
        ),
        _single(NMEA, "NMEA 0183 and AIS sentences of a right checksum; those that begin with `$` may have none"),
        _single(RTCM3, "RTCM 3 messages of a right checksum"),
        _single(MAVLINK, "MAVLink 1 and 2 packets of a right checksum"),
        _single(UBX, "u-blox UBX messages of a right checksum"),
        _single(BEAST, "Mode S Beast records, those of readsb too; back to the receiver, its settings"),
    )
}


def parse_framing(text: str) -> Framing:
    """Return the framing that a text asks for; raises ValueError, whose message says what would be right."""
    name, colon, argument = text.partition(":")
    kind = FRAMINGS.get(name)
    if kind is None:
        *most, last = FRAMINGS
        raise ValueError(f"'{name}' is not known; choose {', '.join(most)} or {last}{did_you_mean(name, FRAMINGS)}")
    if colon and not argument:
        raise ValueError(f"nothing follows '{text}'; write {kind.usage}")
    return kind.parse(argument)
