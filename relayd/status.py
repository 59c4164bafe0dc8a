"""What the ends of a relay look like from outside, as JSON has it.

Times are seconds: `for` since the state began, `lag` how old the first byte is that waits, `next_attempt` until then.
"""

from __future__ import annotations

from typing import Any

from relayd.endpoints.endpoint import Endpoint, EndpointState
from relayd.inlet import Inlet
from relayd.outlet import DestinationLink, Outlet
from relayd.sink import Sink


def source_status(inlet: Inlet, endpoint: Endpoint, now: float) -> dict[str, Any]:
    """Return the source end's state, and that of its link where there is one."""
    state = endpoint.state()
    link = inlet.link
    return {
        "state": "up" if link is not None else state.name,
        "peer": link.peer if link is not None else None,
        "for": round(now - inlet.changed_at, 3),
        "bytes": link.transport.bytes_read if link is not None else 0,
        "records": inlet.records,
        "last_data": round(now - link.transport.last_read, 3) if link is not None else None,
        "reconnects": state.reconnects,
        "last_reason": inlet.last_reason,
        "last_error": state.last_error,
        "next_attempt": _next_attempt(state),
    }


def destination_statuses(outlet: Outlet, endpoint: Endpoint, now: float) -> list[dict[str, Any]]:
    """Return each link of a destination end; a connected one that is down is shown as such."""
    links = [_link_status(link, now) for link in outlet.links]
    if links or outlet.address is None or not outlet.sinks:  # what is to end has let go of its sink
        return links
    state = endpoint.state()
    return [
        {
            "state": state.name,
            "peer": str(outlet.address),
            "for": round(now - outlet.changed_at, 3),
            **_sink_status(outlet.sinks[0], now),
            "last_reason": outlet.last_reason,
            "last_error": state.last_error,
            "next_attempt": _next_attempt(state),
        }
    ]


def _next_attempt(state: EndpointState) -> float | None:
    return None if state.next_attempt is None else round(state.next_attempt, 3)


def _link_status(link: DestinationLink, now: float) -> dict[str, Any]:
    return {
        "state": "up",
        "peer": link.peer,
        "for": round(now - link.transport.since, 3),
        **_sink_status(link.sink, now),
        "returned": link.transport.bytes_read,
    }


def _sink_status(sink: Sink, now: float) -> dict[str, Any]:
    waiting = sink.queue.size
    return {
        "sent": sink.sent,
        "repeated": sink.repeated,
        "dropped": sink.dropped,
        "dropped_records": sink.dropped_records,
        "stale_records": sink.stale_records,
        "queued": waiting,
        "lag": round(now - sink.queue.oldest, 3) if waiting else 0.0,
    }
