"""A relay: one source end, one pipeline each way, its destination ends."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.errors import StartError
from relayd.inlet import Inlet
from relayd.observe.counters import Counters
from relayd.observe.dump import Dump
from relayd.observe.writer import Lost
from relayd.outlet import ClientsOutlet, KeptOutlet, Outlet
from relayd.pipeline import Pipeline
from relayd.policy.overflow import Relief
from relayd.policy.returns import RETURNS
from relayd.relay import Destination, Relay
from relayd.returnpath import ReturnPath
from relayd.sink import SinkSettings
from relayd.wire.framing import Framing
from relayd.wire.framings import LINE, UBX
from tests.fakes import FakeEndpoint, FakeReactor, FakeTransport, bound_log
from tests.wire import streams


class Setting:
    """A relay with a source and clients, or kept destinations, on ends that bring the links they are told to."""

    def __init__(
        self, close_with_source: bool = False, unpaced: bool = False, relief: Relief = Relief.CUT, buffer: int = 10,
        kept: Sequence[str] = (), dump: bool = False, former: Setting | None = None, framing: Framing = LINE,
    ) -> None:  # fmt: skip
        """`kept`: the addresses that are connected to; `former`: what this one will follow, whose counters go on."""
        self.reactor = former.reactor if former else FakeReactor()
        self.counters = former.counters if former else Counters()
        self.forward, self.backward = Pipeline(self.reactor), Pipeline(self.reactor)  # type: ignore[arg-type]
        log, self.lines = bound_log(self.reactor)
        self.relay = Relay("ais", self.forward, self.backward, self.counters, close_with_source, unpaced, self._changed)

        def sinks(pipeline: Pipeline, relief: Relief, kept: bool) -> Any:
            return SinkSettings(self.reactor, pipeline, framing, buffer, relief, kept)  # type: ignore[arg-type]

        self.inlet = Inlet(
            self.reactor, self.forward, sinks(self.backward, Relief.HOLD, kept=True),  # type: ignore[arg-type]
            lambda: framing.framer(100), self.counters, log, True, 0.0,
            changed=self.relay.links_changed, lost=self.relay.source_lost,
        )  # fmt: skip
        back = ReturnPath(RETURNS["all"], self.backward, lambda: LINE.framer(100), self.counters)
        parts: Any = (sinks(self.forward, relief, bool(kept)), back, self.counters, log, self.relay.links_changed)
        self.outlets: list[Outlet] = [KeptOutlet(*parts, address, 2.0) for address in kept]  # type: ignore[arg-type]
        self.outlets = self.outlets or [ClientsOutlet(*parts, 2.0)]
        self.outlet = self.outlets[0]
        self.ends = [*(FakeEndpoint() for _ in self.outlets), FakeEndpoint()]
        self.shown = DumpTarget()
        self.relay.complete(
            self.inlet, self.ends[-1],
            [Destination(outlet, end) for outlet, end in zip(self.outlets, self.ends, strict=False)],
            Dump("ais", "raw", self.shown, log) if dump else None,
        )  # fmt: skip
        self.stopped = self.changes = 0

    def _changed(self) -> None:
        self.changes += 1

    def source(self, number: int = 1) -> FakeTransport:
        transport = FakeTransport(self.reactor, peer=("192.0.2.1", number))
        transport.start(self.inlet.link_made(transport, self.ends[-1]))
        return transport

    def client(self, number: int = 1, room: int | None = None, of: int = 0) -> FakeTransport:
        """Return a destination's link; `of` is which of several kept destinations."""
        transport = FakeTransport(self.reactor, room, peer=("192.0.2.2", number))
        transport.start(self.outlets[of].link_made(transport, self.ends[of]))
        return transport

    def followed(
        self, keeps_source: bool = True, keeps: Callable[[object], bool] | None = None, **settings: Any
    ) -> Setting:
        """Go over to a relay of other settings, as a reload does; return it. This one drains what it keeps."""
        after = Setting(former=self, **settings)
        for end in self.ends:
            end.stop()
        after.relay.inherit(self.relay, keeps_source, keeps or everybody)
        self.stop()
        after.relay.start()
        return after

    @property
    def totals(self) -> dict[str, int]:
        return self.relay.status(self.reactor.now)["totals"]  # type: ignore[no-any-return]

    def stop(self) -> None:
        def stopped() -> None:
            self.stopped += 1

        self.relay.stop(stopped)


class DumpTarget:
    """A dump's target, and what it was told."""

    def __init__(self) -> None:
        self.taken = bytearray()
        self.calls: list[str] = []
        self.refuse: tuple[str, ...] = ()

    def open(self) -> None:
        self.calls.append("open")
        if self.refuse:
            raise StartError(self.refuse)

    def has_room(self) -> bool:
        return True

    def write(self, data: bytes, lost: Lost) -> bool:
        self.taken += data
        return True

    def reopen(self) -> None:
        self.calls.append("reopen")

    def close(self) -> None:
        self.calls.append("close")


def everybody(address: object) -> bool:
    """Keep every destination, clients too, whose address is None."""
    return True


def nobody(address: object) -> bool:
    return False


def test_both_ways() -> None:
    setting = Setting()
    source, client = setting.source(), setting.client()
    source.deliver(b"down\n")
    client.deliver(b"up\n")
    assert (bytes(client.received), bytes(source.received)) == (b"down\n", b"up\n")


def test_a_lost_source_leaves_the_clients() -> None:
    setting = Setting()
    source, client = setting.source(), setting.client()
    source.deliver(b"one\ncut")
    source.lose()
    setting.source(2).deliver(b"two\n")
    assert client.closes == []
    assert bytes(client.received) == b"one\ntwo\n"


def test_a_lost_source_takes_the_clients_with_it_where_that_is_wanted() -> None:
    setting = Setting(close_with_source=True)
    source, client, slow = setting.source(), setting.client(1), setting.client(2, room=0)
    source.deliver(b"one\n")
    source.lose("eof")
    assert (client.closes, slow.closes) == (["source_lost"], [])
    slow.make_room()
    assert (slow.closes, bytes(slow.received)) == (["source_lost"], b"one\n")


def test_s1_a_source_that_broke_is_no_clean_end_for_its_clients() -> None:
    setting = Setting(close_with_source=True)
    source, client, slow = setting.source(), setting.client(1), setting.client(2, room=0)
    source.deliver(b"one\n")
    source.lose("reset")
    assert (client.aborts, slow.aborts) == (["source_lost"], [])
    slow.make_room()
    setting.reactor.advance(1)
    assert (slow.aborts, bytes(slow.received)) == (["source_lost"], b"one\n")
    assert not client.closes and not slow.closes


def test_a_replaced_source_is_not_a_lost_one() -> None:
    setting = Setting(close_with_source=True)
    setting.source(1)
    client = setting.client()
    setting.source(2)
    setting.reactor.end_turn()
    assert client.closes == []


def test_a_source_that_was_replaced_is_not_the_one_that_is_lost() -> None:
    """It lingers, and its end comes after that of the one that replaced it, which was a clean one."""
    setting = Setting(close_with_source=True)
    replaced = setting.source(1)
    slow = setting.client(1, room=0)
    live = setting.source(2)
    live.deliver(b"one\n")
    live.lose("eof")
    late = setting.client(2)
    replaced.lose("replaced")
    setting.reactor.advance(1)
    slow.make_room()
    setting.reactor.advance(1)
    assert (slow.closes, slow.aborts, bytes(slow.received)) == (["source_lost"], [], b"one\n")
    assert (late.closes, late.aborts) == ([], [])
    assert setting.inlet.last_reason == "eof"


@pytest.mark.parametrize("reason", ["eof", "reset"])
def test_who_has_still_to_get_the_end_of_a_source_gets_nothing_of_the_next(reason: str) -> None:
    setting = Setting(close_with_source=True, relief=Relief.HOLD)
    source, slow = setting.source(1), setting.client(1, room=0)
    source.deliver(b"one\n")
    source.deliver(b"two three\n")
    assert source.paused
    source.lose(reason)
    following = setting.source(2)
    assert not following.paused  # nor does anybody wait for it
    new = setting.client(2)
    following.deliver(b"two\n")
    after = setting.followed(close_with_source=True, relief=Relief.HOLD)
    following.deliver(b"six\n")
    slow.make_room()
    after.reactor.advance(1)
    assert (bytes(slow.received), bytes(new.received)) == (b"one\ntwo three\n", b"two\nsix\n")
    assert (slow.closes, slow.aborts) == ((["source_lost"], []) if reason == "eof" else ([], ["source_lost"]))
    assert after.totals["bytes_out"] == len(slow.received) + len(new.received)


@pytest.mark.parametrize("then", ["eof", "stop"])
def test_an_end_does_not_hide_the_error_before_it(then: str) -> None:
    setting = Setting(close_with_source=True)
    source, slow = setting.source(1), setting.client(1, room=0)
    source.deliver(b"one\n")
    source.lose("reset")
    if then == "eof":
        setting.source(2).lose("eof")
    else:
        setting.stop()
    slow.make_room()
    setting.reactor.advance(1)
    assert (slow.closes, slow.aborts, bytes(slow.received)) == ([], ["source_lost"], b"one\n")


def test_an_error_does_not_spoil_the_end_before_it() -> None:
    setting = Setting(close_with_source=True)
    source, slow = setting.source(1), setting.client(1, room=0)
    source.deliver(b"one\n")
    source.lose("eof")
    setting.source(2).lose("reset")
    slow.make_room()
    setting.reactor.advance(1)
    assert (slow.closes, slow.aborts) == (["source_lost"], [])


def test_an_unpaced_replay_waits_for_a_taker() -> None:
    setting = Setting(unpaced=True)
    source = setting.source()
    assert source.paused
    client = setting.client()
    assert not source.paused
    client.lose()
    assert source.paused


def test_a_paced_source_does_not_wait() -> None:
    setting = Setting()
    assert not setting.source().paused


def test_source_up() -> None:
    setting = Setting()
    assert not setting.relay.source_up
    source = setting.source()
    assert setting.relay.source_up
    source.lose()
    assert not setting.relay.source_up


def test_l1_open_tells_every_reason_and_gives_all_ports_back() -> None:
    setting = Setting()
    setting.ends[0].refuse = ("port 1 is taken",)
    setting.ends[1].refuse = ("port 2 is taken", "so is 3")
    with pytest.raises(StartError) as caught:
        setting.relay.open()
    assert caught.value.reasons == ("[relay ais] port 1 is taken", "[relay ais] port 2 is taken", "[relay ais] so is 3")
    assert [end.calls for end in setting.ends] == [["open", "stop"], ["open", "stop"]]


def test_stop_without_links_is_over_at_once() -> None:
    setting = Setting()
    setting.stop()
    assert setting.stopped == 1
    assert all("stop" in end.calls for end in setting.ends)


def test_stop_is_not_over_while_the_source_is_on_its_way_out() -> None:
    setting = Setting()
    source = setting.source()
    setting.stop()
    assert (source.closes, setting.stopped) == (["stopped"], 0)
    setting.reactor.end_turn()
    assert setting.stopped == 1


def test_p2_stop_reads_no_more_sends_what_waits_and_tells_once() -> None:
    setting = Setting()
    source, slow, good = setting.source(), setting.client(1, room=0), setting.client(2)
    source.deliver(b"one\n")
    setting.stop()
    assert source.closes == ["stopped"] and good.closes == ["stopped"] and slow.closes == []
    setting.reactor.end_turn()
    assert setting.stopped == 0
    slow.make_room()
    setting.reactor.end_turn()
    assert (bytes(slow.received), slow.closes, setting.stopped) == (b"one\n", ["stopped"], 1)
    setting.reactor.advance(100)
    assert setting.stopped == 1


def test_s11_stop_while_held_does_not_read_again() -> None:
    setting = Setting(relief=Relief.HOLD)
    source, slow = setting.source(), setting.client(1, room=0)
    source.deliver(b"12345678\n")
    source.deliver(b"12345678\n")
    assert source.paused
    before = source.resumes
    setting.stop()
    slow.make_room()
    assert source.paused and source.resumes == before
    setting.reactor.end_turn()
    assert (len(slow.received), setting.stopped) == (18, 1)


def test_p4_abort_resets_all_and_the_stop_is_over() -> None:
    setting = Setting()
    source, slow = setting.source(), setting.client(1, room=0)
    source.deliver(b"one\n")
    setting.stop()
    setting.relay.abort()
    setting.reactor.end_turn()
    assert slow.aborts == ["stopped"]
    assert setting.stopped == 1


def test_a_source_lost_while_stopping_is_no_reason_of_its_own() -> None:
    setting = Setting(close_with_source=True)
    setting.source()
    slow = setting.client(1, room=0)
    setting.forward.put(b"one\n", 1, "x")
    setting.stop()
    setting.reactor.end_turn()
    slow.make_room()
    assert slow.closes == ["stopped"]


# -- what is seen -----------------------------------------------------------------------------------


def test_a_dump_is_opened_with_the_ports_and_closed_when_the_last_link_is_gone() -> None:
    setting = Setting(dump=True)
    setting.relay.open()
    source, slow = setting.source(), setting.client(room=0)
    source.deliver(b"one\n")
    assert bytes(setting.shown.taken) == b"one\n"
    setting.relay.reopen_dump()
    setting.stop()
    setting.reactor.end_turn()
    assert setting.shown.calls == ["open", "reopen"]
    slow.make_room()
    setting.reactor.end_turn()
    assert (setting.shown.calls, setting.stopped) == (["open", "reopen", "close"], 1)


def test_a_dump_that_cannot_be_had_is_told_with_the_ports_that_cannot() -> None:
    setting = Setting(dump=True)
    setting.ends[0].refuse = ("port 1 is taken",)
    setting.shown.refuse = ("cannot write",)
    with pytest.raises(StartError) as caught:
        setting.relay.open()
    assert caught.value.reasons == ("[relay ais] port 1 is taken", "[relay ais] cannot write")
    assert all(end.calls == ["open", "stop"] for end in setting.ends)
    assert setting.shown.calls == ["open", "close"]


def test_destinations_open_and_start_before_the_source() -> None:
    """Who comes at once misses nothing of what the source has to say."""
    setting, order = Setting(kept=("a:1", "b:1")), []
    for number, end in enumerate(setting.ends):
        end.start = lambda number=number: order.append(number)  # type: ignore[method-assign, misc]
    setting.relay.start()
    assert order == [0, 1, 2]


def watcher(setting: Setting) -> tuple[Dump, DumpTarget]:
    target = DumpTarget()
    return Dump("ais", "raw", target, bound_log(setting.reactor)[0]), target


def test_who_watches_sees_both_ways_until_he_leaves() -> None:
    setting = Setting()
    source, client = setting.source(), setting.client()
    dump, target = watcher(setting)
    source.deliver(b"before\n")
    setting.relay.watch(dump, dump)
    source.deliver(b"down\n")
    client.deliver(b"up\n")
    setting.relay.unwatch(dump)
    setting.relay.unwatch(dump)
    source.deliver(b"after\n")
    assert bytes(target.taken) == b"down\nup\n"
    assert target.calls == []  # it is the watcher's to open and close


def test_kick_counts_both_ends() -> None:
    setting = Setting()
    source, client = setting.source(), setting.client()
    assert setting.relay.kick("192.0.2.1:1") == setting.relay.kick("192.0.2.2:1") == 1
    assert setting.relay.kick("nobody") == 0
    assert (source.aborts, client.aborts) == (["kicked"], ["kicked"])


def test_the_status_names_state_links_and_totals() -> None:
    setting = Setting()
    setting.source().deliver(b"one\n")
    setting.client(room=1)
    setting.forward.put(b"two\n", 1, "x")
    status = setting.relay.status(setting.reactor.now)
    assert (status["name"], status["source"]["state"], status["source"]["peer"]) == ("ais", "up", "192.0.2.1:1")
    (client,) = status["destinations"]
    assert (client["peer"], client["sent"], client["queued"], client["dropped"]) == ("192.0.2.2:1", 1, 3, 0)
    assert (status["totals"]["bytes_in"], status["totals"]["bytes_out"]) == (4, 1)


def test_every_link_that_comes_or_goes_is_told_of() -> None:
    setting = Setting()
    source, client = setting.source(), setting.client()
    assert setting.changes == 2
    source.lose()
    client.lose()
    assert setting.changes == 4


# -- a reload -------------------------------------------------------------------------------------


def test_r_everything_moves_and_the_stream_misses_and_doubles_nothing() -> None:
    before = Setting(buffer=100)
    source, fast, slow = before.source(), before.client(1), before.client(2, room=2)
    source.deliver(b"one\ntwo\nthr")
    after = before.followed(buffer=100)
    assert before.stopped == 1
    source.deliver(b"ee\nfour\n")
    slow.make_room()
    assert bytes(fast.received) == bytes(slow.received) == b"one\ntwo\nthree\nfour\n"
    assert all(link.closes == link.aborts == [] for link in (source, fast, slow))
    assert after.counters is before.counters
    assert (after.totals["bytes_in"], after.totals["bytes_out"], after.totals["dropped"]) == (19, 38, 0)
    assert (after.totals["source_links"], after.totals["destination_links"], after.totals["unframed"]) == (1, 2, 0)
    fast.deliver(b"up\n")
    assert bytes(source.received) == b"up\n"
    assert not [line for line in before.lines if "connected" not in line]


def test_r_totals_are_the_same_before_and_after() -> None:
    before = Setting(buffer=100)
    source = before.source()
    before.client(1)
    slow = before.client(2, room=2)
    source.deliver(b"one\ntwo\n")
    gone = before.client(3, room=0)
    source.deliver(b"three\n")
    gone.lose()
    totals = before.totals
    after = before.followed(buffer=100)
    assert after.totals == totals
    slow.lose()
    assert all(after.totals[name] >= totals[name] for name in totals)


def test_r_totals_do_not_go_backwards_while_the_former_drains_what_it_keeps() -> None:
    before = Setting(buffer=100)
    source, client = before.source(), before.client(1)
    slow = before.client(2, room=2)
    source.deliver(b"one\ntwo\n")
    totals = before.totals
    after = before.followed(keeps_source=False, keeps=nobody, buffer=100)
    assert client.closes == ["stopped"] and slow.closes == []
    assert all(after.totals[name] >= totals[name] for name in totals), (totals, after.totals)
    slow.make_room()
    before.reactor.end_turn()
    assert after.totals["bytes_out"] == 16


def test_r_totals_do_not_go_backwards_over_several_reloads_within_a_drain() -> None:
    """The relays between, which drain nothing, are gone at once: they must not take those before them along."""
    before = Setting(buffer=1000)
    source, slow = before.source(), before.client(room=0)
    for _ in range(10):
        source.deliver(b"sixteen bytes..\n")
    after, totals = before.followed(keeps=nobody, buffer=1000), before.totals
    for _ in range(3):
        slow.make_room(16)
        after = after.followed(buffer=1000)
        gc.collect()
        following = after.totals
        assert all(following[name] >= totals[name] for name in totals), (totals, following)
        totals = following
    assert totals["bytes_out"] == 48
    slow.make_room()
    before.reactor.end_turn()
    assert before.stopped == 1
    del before
    gc.collect()
    assert after.totals["bytes_out"] == 160
    assert after.followed(buffer=1000).totals == after.totals


def test_r_the_ends_of_the_former_are_stopped_and_the_new_ones_have_the_links() -> None:
    before = Setting()
    source, client = before.source(), before.client()
    after = before.followed()
    assert all("stop" in end.calls for end in before.ends)
    assert [end.calls for end in after.ends] == [["start"], ["start"]]
    assert after.ends[1].adopted == [(source, before.ends[1])]
    assert after.ends[0].adopted == [(client, before.ends[0])]
    source.lose("reset")
    client.lose("reset")
    assert [end.lost for end in after.ends] == [["reset"], ["reset"]]
    assert [end.lost for end in before.ends] == [[], []]
    assert before.stopped == 1


@pytest.mark.parametrize("kept", [(), ("one", "two")])
def test_r_ends_that_stay_follow_the_former_ones_though_no_link_is_up(kept: Sequence[str]) -> None:
    before = Setting(kept=kept)
    after = before.followed(kept=kept)
    assert [end.followed for end in after.ends] == [[end] for end in before.ends]
    fresh = after.followed(keeps_source=False, keeps=nobody, kept=kept)
    assert [end.followed for end in fresh.ends] == [[] for _ in before.ends]


def test_r_the_former_is_held_by_nobody_and_the_new_one_by_who_is_full() -> None:
    before = Setting(relief=Relief.HOLD)
    source, slow = before.source(), before.client(room=0)
    source.deliver(b"12345678\n")
    source.deliver(b"12345678\n")
    assert source.paused
    after = before.followed(relief=Relief.HOLD)
    assert source.paused and after.forward.held and not before.forward.held
    slow.make_room()
    assert not source.paused
    source.deliver(b"more\n")
    assert bytes(slow.received) == b"12345678\n" * 2 + b"more\n"


def test_r_a_source_that_was_paused_is_read_where_block_is_given_up() -> None:
    before = Setting(relief=Relief.HOLD)
    source, slow = before.source(), before.client(room=0)
    source.deliver(b"12345678\n")
    source.deliver(b"12345678\n")
    before.followed(relief=Relief.CUT, buffer=100)
    assert not source.paused
    slow.make_room()
    assert bytes(slow.received) == b"12345678\n" * 2


def test_r_a_kept_destination_that_is_down_goes_on_queueing() -> None:
    before = Setting(kept=("a:1", "b:1"), buffer=100)
    source = before.source()
    source.deliver(b"one\n")
    after = before.followed(kept=("b:1", "a:1"), buffer=100)  # in another order
    source.deliver(b"two\n")
    assert not before.lines.having("event=undelivered")
    assert before.stopped == 1
    for number in range(2):
        link = after.client(of=number)
        link.make_room()
        assert bytes(link.received) == b"one\ntwo\n"
    assert after.totals["dropped"] == 0


def test_r_only_what_was_removed_is_told_as_undelivered() -> None:
    before = Setting(kept=("a:1", "b:1"), buffer=100)
    before.source().deliver(b"one\n")
    after = before.followed(kept=("a:1",), buffer=100)
    (line,) = before.lines.having("event=undelivered")
    assert "destination=b:1" in line and "dropped=4" in line
    link = after.client()
    link.make_room()
    assert bytes(link.received) == b"one\n"
    assert after.totals["dropped"] == 4


def test_r_a_destination_that_was_removed_is_drained_and_gets_nothing_new() -> None:
    before = Setting(kept=("a:1", "b:1"), buffer=100)
    source, stays, goes = before.source(), before.client(of=0), before.client(room=1, of=1)
    source.deliver(b"one\n")
    after = before.followed(kept=("a:1",), buffer=100)
    assert before.stopped == 0
    source.deliver(b"two\n")
    goes.make_room()
    before.reactor.end_turn()
    assert (bytes(goes.received), goes.closes) == (b"one\n", ["stopped"])
    assert (bytes(stays.received), stays.closes) == (b"one\ntwo\n", [])
    assert (before.stopped, after.stopped) == (1, 0)
    assert before.ends[1].lost == ["stopped"]
    assert after.totals["bytes_out"] == 12


def test_r_a_destination_that_was_added_begins_with_what_comes_then() -> None:
    before = Setting(kept=("a:1",), buffer=100)
    source = before.source()
    source.deliver(b"one\n")
    after = before.followed(kept=("a:1", "b:1"), buffer=100)
    source.deliver(b"two\n")
    link = after.client(of=1)
    link.make_room()
    assert bytes(link.received) == b"two\n"


def test_r_a_source_that_is_not_kept_is_closed_and_its_cut_record_thrown_away() -> None:
    before = Setting(buffer=100)
    source, client = before.source(), before.client()
    source.deliver(b"one\ncut")
    after = before.followed(keeps_source=False, buffer=100)
    assert source.paused and source.closes == ["stopped"]
    assert before.stopped == 0
    fresh = after.source(2)
    fresh.deliver(b"two\n")
    before.reactor.end_turn()
    assert before.stopped == 1
    assert (bytes(client.received), client.closes) == (b"one\ntwo\n", [])
    assert after.totals["unframed"] == 3
    assert after.relay.source_up


def test_r_a_source_that_is_not_kept_gets_what_waits_for_it() -> None:
    before = Setting(buffer=100)
    source, client = before.source(), before.client()
    source.room = 2
    client.deliver(b"command\n")
    before.followed(keeps_source=False, buffer=100)
    assert source.closes == []
    source.make_room()
    assert (bytes(source.received), source.closes) == (b"command\n", ["stopped"])


def test_r_a_lost_former_source_closes_no_adopted_client() -> None:
    before = Setting(close_with_source=True, buffer=100)
    source, client = before.source(), before.client()
    after = before.followed(keeps_source=False, close_with_source=True, buffer=100)
    before.reactor.end_turn()
    assert source.protocol is None
    assert client.closes == []
    after.source(2).lose("eof")
    assert client.closes == ["source_lost"]


def test_r_on_source_loss_is_live() -> None:
    before = Setting(close_with_source=False, buffer=100)
    source, client = before.source(), before.client()
    before.followed(close_with_source=True, buffer=100)
    source.lose("eof")
    assert client.closes == ["source_lost"]


def test_r_links_that_are_not_kept_are_drained_and_closed() -> None:
    before = Setting(buffer=100)
    source, slow = before.source(), before.client(room=1)
    source.deliver(b"one\n")
    after = before.followed(keeps_source=False, keeps=nobody, buffer=100)
    assert (after.outlet.links, before.stopped) == ({}, 0)
    after.source(2).deliver(b"of the new\n")
    slow.make_room()
    before.reactor.end_turn()
    assert (bytes(slow.received), slow.closes, before.stopped) == (b"one\n", ["stopped"], 1)
    assert not before.lines.having("event=undelivered")


def test_r_an_unpaced_replay_is_held_by_demand_across_a_reload() -> None:
    before = Setting(unpaced=True, buffer=100)
    source = before.source()
    assert source.paused
    after = before.followed(unpaced=True, buffer=100)
    assert source.paused
    client = after.client()
    assert not source.paused
    last = after.followed(unpaced=True, buffer=100)
    assert not source.paused
    client.lose()
    assert source.paused and last.forward.held


def test_r_who_watches_goes_on_watching_once() -> None:
    before = Setting(buffer=100)
    source, client = before.source(), before.client()
    dump, target = watcher(before)
    before.relay.watch("key", dump)
    source.deliver(b"one\n")
    after = before.followed(buffer=100)
    source.deliver(b"two\n")
    client.deliver(b"up\n")
    assert bytes(target.taken) == b"one\ntwo\nup\n"
    before.relay.unwatch("key")  # nothing of it is left there
    source.deliver(b"three\n")
    after.relay.unwatch("key")
    source.deliver(b"four\n")
    assert bytes(target.taken) == b"one\ntwo\nup\nthree\n"


def test_r_a_dump_can_be_turned_on_and_off() -> None:
    before = Setting(buffer=100, dump=True)
    before.relay.open()
    source = before.source()
    source.deliver(b"one\n")
    after = before.followed(buffer=100)
    assert before.shown.calls == ["open", "close"]
    source.deliver(b"two\n")
    last = after.followed(buffer=100, dump=True)
    source.deliver(b"three\n")
    assert (bytes(before.shown.taken), bytes(after.shown.taken), bytes(last.shown.taken)) == (b"one\n", b"", b"three\n")


def test_r_a_record_of_the_return_path_is_not_torn() -> None:
    before = Setting(buffer=100)
    source, one, two = before.source(), before.client(1), before.client(2)
    one.deliver(b"on")
    two.deliver(b"tw")
    before.followed(buffer=100)
    two.deliver(b"o\n")
    one.deliver(b"e\n")
    assert bytes(source.received) == b"two\none\n"


def test_r_many_reloads_leave_nothing_behind() -> None:
    setting = Setting(buffer=100)
    source, client = setting.source(), setting.client()
    for number in range(50):
        source.deliver(b"%d\n" % number)
        setting = setting.followed(buffer=100)
    assert bytes(client.received) == b"".join(b"%d\n" % number for number in range(50))
    assert (len(setting.forward.sinks), len(setting.backward.sinks), setting.reactor.timers) == (1, 1, 0)
    setting.stop()
    setting.reactor.end_turn()
    assert setting.stopped == 1


def test_r_an_adopted_relay_can_be_stopped_and_aborted() -> None:
    before = Setting(buffer=100)
    source, slow = before.source(), before.client(room=0)
    source.deliver(b"one\n")
    after = before.followed(buffer=100)
    after.stop()
    after.relay.abort()
    after.reactor.end_turn()
    assert (source.closes or source.aborts, slow.aborts, after.stopped) == (["stopped"], ["stopped"], 1)


RECORDS = st.lists(st.sampled_from([b"", b"a\n", b"bcd\n", b"ef", b"gh\nij"]), max_size=6)


@given(st.lists(st.tuples(RECORDS, st.integers(0, 20), st.booleans()), min_size=1, max_size=8))
def test_r_over_any_reloads_every_client_gets_the_stream_whole(rounds: list[tuple[list[bytes], int, bool]]) -> None:
    setting = Setting(relief=Relief.HOLD, buffer=12)
    source, client, sent = setting.source(), setting.client(room=0), bytearray()
    for pieces, room, block in rounds:
        for piece in pieces:
            if piece and not source.paused:
                sent += piece
                source.deliver(piece)
        client.make_room(room)
        setting = setting.followed(relief=Relief.HOLD, buffer=12 if block else 1000)
        assert source.paused == setting.forward.held
    while setting.outlet.sinks[0].queue.size:
        client.make_room()
    assert not source.paused
    assert bytes(client.received) == bytes(sent[: sent.rfind(b"\n") + 1])
    totals = setting.totals
    assert totals["bytes_in"] == totals["bytes_out"] == len(client.received)


@pytest.mark.parametrize("how", ["reload", "stop"])
def test_whole_records_behind_what_was_none_go_out_before_their_source_is_given_up(how: str) -> None:
    """They wait in the framer, for what a false header promised; nobody looks there afterwards."""
    setting = Setting(framing=UBX, buffer=1000)
    source, client = setting.source(), setting.client()
    good = streams.ubx(b"good")
    source.deliver(b"\xb5\x62\1\7\x40\0" + good)
    if how == "reload":
        setting = setting.followed(keeps_source=False, framing=UBX, buffer=1000)
    else:
        setting.stop()
    setting.reactor.end_turn()
    assert bytes(client.received) == good
    assert (setting.totals["bytes_in"], setting.totals["bytes_out"]) == (len(good), len(good))
