"""What destination links send back: none, all or the first of them, whole records at a time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.observe.counters import Counters
from relayd.pipeline import Pipeline
from relayd.policy.returns import RETURNS
from relayd.returnpath import ReturnPath
from relayd.wire.framing import Framing
from relayd.wire.framings import LINE, UBX
from tests.fakes import FakeReactor
from tests.wire import streams


class Link:
    """A destination link that may send back."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.paused = False
        self.half_closed = False
        self.has_sent = True
        self.small_reads = 0

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def read_little(self) -> None:
        self.small_reads += 1


class Setting:
    """A return path with a rule; `got` is what reached the source's pipeline."""

    def __init__(
        self, rule: str, max_record: int = 100, former: Setting | None = None, framing: Framing = LINE
    ) -> None:
        """`former`: that of the configuration before, whose counters go on."""
        self.pipeline, self.counters, self.got = Pipeline(FakeReactor()), former.counters if former else Counters(), []
        self.pipeline.taps += (lambda chunk, peer: self.got.append((chunk, peer)),)
        self.path = ReturnPath(RETURNS[rule], self.pipeline, lambda: framing.framer(max_record), self.counters)

    def links(self, count: int) -> list[Link]:
        links = [Link(f"peer{number}") for number in range(count)]
        for link in links:
            self.path.joined(link)
        return links

    @property
    def bytes(self) -> bytes:
        return b"".join(chunk for chunk, _ in self.got)


def test_s19_none_reads_throws_away_and_counts() -> None:
    setting = Setting("none")
    (link,) = setting.links(1)
    setting.path.received(link, b"garbage\n")
    setting.pipeline.hold("the source")
    assert (setting.got, setting.counters.discarded, setting.counters.returned) == ([], 8, 0)
    assert not link.paused  # it is read even while the source takes nothing
    setting.path.left(link)


def test_all_never_interleaves_inside_a_record() -> None:
    setting = Setting("all")
    one, two = setting.links(2)
    for link, data in ((one, b"on"), (two, b"tw"), (one, b"e\non"), (two, b"o\n"), (one, b"e\n")):
        setting.path.received(link, data)
    assert setting.got == [(b"one\n", "peer0"), (b"two\n", "peer1"), (b"one\n", "peer0")]
    assert setting.counters.returned == 12


def test_of_noise_little_is_read_in_one_turn() -> None:
    setting = Setting("all", max_record=4)
    (link,) = setting.links(1)
    setting.path.received(link, b"one\ntwo\n")
    assert link.small_reads == 0
    setting.path.received(link, b"too long\ntwo\n")
    assert link.small_reads == 1


def test_first_admits_the_longest_connected_alone() -> None:
    setting = Setting("first")
    one, two = setting.links(2)
    setting.path.received(two, b"two\n")
    setting.path.received(one, b"one\n")
    assert setting.bytes == b"one\n"
    assert setting.counters.discarded == 4


def test_first_passes_the_turn_on_when_it_leaves_or_half_closes() -> None:
    setting = Setting("first")
    one, two, three = setting.links(3)
    setting.path.left(one)  # at FIN
    setting.path.left(one)  # and again when the link is closed
    setting.path.received(three, b"three\n")
    setting.path.received(two, b"two\n")
    assert setting.bytes == b"two\n"
    setting.path.received(one, b"late\n")
    assert setting.bytes == b"two\n"


def test_first_whose_turn_comes_starts_at_a_border() -> None:
    setting = Setting("first")
    one, two = setting.links(2)
    setting.path.received(two, b"missed\ncut of")
    setting.path.left(one)
    setting.path.received(two, b"f\nnext\n")
    assert setting.bytes == b"cut off\nnext\n"  # whole: its beginning was kept while it waited


def test_a_record_cut_by_leaving_is_thrown_away() -> None:
    setting = Setting("all")
    one, two = setting.links(2)
    setting.path.received(one, b"whole\ncut")
    setting.path.left(one)
    setting.path.received(two, b"other\n")
    assert setting.bytes == b"whole\nother\n"
    assert setting.counters.unframed == 3


@pytest.mark.parametrize(("rule", "returned"), [("all", 2), ("first", 1), ("none", 0)])
def test_records_behind_what_was_none_count_when_the_link_leaves(rule: str, returned: int) -> None:
    setting = Setting(rule, framing=UBX)
    false_header, good = b"\xb5\x62\1\7\x40\0", streams.ubx(b"good")
    links = setting.links(2)
    for link in links:
        setting.path.received(link, false_header + good)
    for link in reversed(links):
        setting.path.left(link)
        setting.path.left(link)
    counters = setting.counters
    unframed = 0 if rule == "none" else 2 * len(false_header)
    assert setting.bytes == good * returned
    assert (counters.returned, counters.unframed) == (returned * len(good), unframed)
    assert counters.returned + counters.discarded + counters.unframed == 2 * len(false_header + good)


def test_overlong_records_are_counted_once() -> None:
    setting = Setting("all", max_record=4)
    (link,) = setting.links(1)
    setting.path.received(link, b"too long\nok\n")
    assert (setting.bytes, setting.counters.unframed) == (b"ok\n", 9)


@pytest.mark.parametrize("rule", ["all", "first"])
def test_links_wait_while_the_source_takes_nothing(rule: str) -> None:
    setting = Setting(rule)
    one, two = setting.links(2)
    setting.pipeline.hold("the source")
    assert one.paused and two.paused
    setting.path.left(one)
    setting.pipeline.release("the source")
    assert not two.paused


@given(
    st.sampled_from(sorted(RETURNS)),
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from([b"a", b"bc\n", b"\n", b"d\ne", b"x" * 9])), max_size=30),
    st.sets(st.integers(0, 2)),
)
def test_every_byte_is_returned_discarded_or_unframed(
    rule: str, sends: list[tuple[int, bytes]], leaving: set[int]
) -> None:
    setting = Setting(rule, max_record=6)
    links = setting.links(3)
    for number, data in sends:
        setting.path.received(links[number], data)
    for number in leaving:
        setting.path.left(links[number])
    for link in links:
        setting.path.left(link)
    counters = setting.counters
    assert counters.returned == len(setting.bytes)
    assert counters.returned + counters.discarded + counters.unframed == sum(len(data) for _, data in sends)


# -- a reload -------------------------------------------------------------------------------------


def adopted(former: Setting, links: list[Link], rule: str, max_record: int = 100) -> Setting:
    """Return the path of the next configuration, which has taken the links over."""
    after = Setting(rule, max_record, former)
    for link in links:
        after.path.adopt(link, former.path)
    return after


@pytest.mark.parametrize("rule", ["all", "first"])
def test_an_adopted_link_goes_on_in_the_middle_of_a_record(rule: str) -> None:
    before = Setting(rule)
    (link,) = links = before.links(1)
    before.path.received(link, b"one\ntw")
    after = adopted(before, links, rule)
    after.path.received(link, b"o\n")
    assert (before.bytes, after.bytes, after.counters.unframed) == (b"one\n", b"two\n", 0)
    assert after.counters.returned == 8


def test_the_longest_connected_stays_the_first() -> None:
    before = Setting("first")
    one, two, three = links = before.links(3)
    before.path.left(one)
    after = adopted(before, links[1:], "first")
    after.path.received(three, b"three\n")
    after.path.received(two, b"two\n")
    assert after.bytes == b"two\n"


@pytest.mark.parametrize("rule", ["all", "first"])
def test_adopted_links_are_held_and_released_by_the_new_pipeline_alone(rule: str) -> None:
    before = Setting(rule)
    (link,) = links = before.links(1)
    before.pipeline.hold("the source")
    after = adopted(before, links, rule)
    assert not link.paused
    before.pipeline.release("the source")
    after.pipeline.hold("the source")
    assert link.paused
    before.pipeline.hold("x")
    before.pipeline.release("x")
    assert link.paused


@pytest.mark.parametrize("former", ["all", "first"])
def test_to_none_the_record_that_was_begun_is_thrown_away_and_the_link_is_read(former: str) -> None:
    before = Setting(former)
    (link,) = links = before.links(1)
    before.path.received(link, b"one\ncut")
    before.pipeline.hold("the source")
    after = adopted(before, links, "none")
    assert not link.paused
    after.path.received(link, b" here\n")
    assert (after.bytes, after.counters.unframed, after.counters.discarded) == (b"", 3, 6)
    after.path.left(link)
    assert after.counters.unframed == 3


def test_from_none_links_may_send() -> None:
    before = Setting("none")
    one, two = links = before.links(2)
    one.has_sent = two.has_sent = False
    after = adopted(before, links, "first")
    after.path.received(two, b"two\n")
    after.path.received(one, b"one\n")
    assert after.bytes == b"one\n"


def test_from_none_in_the_middle_of_a_record_its_rest_is_no_record() -> None:
    """The source never sees a torn record: what began while it was thrown away is thrown away to its end."""
    before = Setting("none")
    (link,) = links = before.links(1)
    before.path.received(link, b"set power ")
    after = adopted(before, links, "all")
    after.path.received(link, b"off\nnext\n")
    assert after.bytes == b"next\n"


def test_a_link_that_had_half_closed_stays_out_of_the_order() -> None:
    """It will send nothing more, so with `first` nobody else's turn would come."""
    before = Setting("first")
    one, two = links = before.links(2)
    one.half_closed = True
    before.path.left(one)  # at its FIN
    after = adopted(before, links, "first")
    after.path.received(two, b"my turn\n")
    assert after.bytes == b"my turn\n"


def test_the_new_max_record_is_live() -> None:
    before = Setting("all")
    (link,) = links = before.links(1)
    after = adopted(before, links, "all", max_record=4)
    after.path.received(link, b"too long\nok\n")
    assert (after.bytes, after.counters.unframed) == (b"ok\n", 9)
