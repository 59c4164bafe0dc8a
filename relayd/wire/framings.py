from relayd.wire.framing import Framing, _Line, _Raw

RAW: Framing = _Raw()
LINE: Framing = _Line()
FRAMINGS = {"raw": RAW, "line": LINE}


def parse_framing(text: str) -> Framing:
    if text not in FRAMINGS:
        raise ValueError(f"'{text}' is not known; choose raw or line")
    return FRAMINGS[text]
