"""The loop of live video: order, turns, drops, losses, ends."""

from __future__ import annotations

import io
import json
import threading
from typing import Any, cast

import numpy as np
import pytest

from fastrestore.arrays import U8
from fastrestore.errors import InputError, OutputError
from fastrestore.live.frame import LiveFrame, SourceLostError
from fastrestore.live.policy import WINDOW, Ladder
from fastrestore.live.repair import Repair
from fastrestore.live.run import Live
from fastrestore.live.status import Status
from fastrestore.live.stream import LONG_GAP, Stream
from fastrestore.restore import Restorer
from tests.fastrestore.live.fakes import (
    Clock,
    FakeRestorer,
    ListSink,
    ListSource,
    frame,
    picture,
    until,
)


def repair(restorer: FakeRestorer, small: FakeRestorer | None = None, **how: Any) -> Repair:
    return Repair(cast(Restorer, restorer), cast(Any, small), **how)


def live(streams: list[Stream], restorer: FakeRestorer, **how: Any) -> Live:
    return Live(streams, repair(restorer), Status(stream=io.StringIO()), **how)


def frames(n: int) -> list[LiveFrame]:
    return [frame(i) for i in range(n)]


def test_a_finite_source_comes_out_whole_and_in_order() -> None:
    restorer, sink = FakeRestorer(), ListSink()
    stream = Stream(ListSource(frames(50)), sink)
    live([stream], restorer).run()
    assert sink.numbers == list(range(50))
    assert [int(f.rgb[0, 0, 0]) for f in sink.frames] == list(range(100, 150))
    assert [age for _, age, _ in restorer.calls] == list(range(50))  # each goes on from the last
    assert sink.ended == "finished"
    assert stream.stats.figures().dropped == 0
    assert stream.error is None
    assert restorer.warmed == 1


def test_the_newest_frame_wins_and_drops_are_counted() -> None:
    gate, taken = threading.Event(), threading.Event()

    def work() -> None:
        taken.set()
        gate.wait(5)

    items = [frame(0), lambda: taken.wait(5), *frames(10)[1:], gate.set]
    sink = ListSink()
    stream = Stream(ListSource(items, live=True), sink)
    live([stream], FakeRestorer(work)).run()
    assert sink.numbers == [0, 9]
    assert stream.stats.figures().dropped == 8


def test_a_fast_stream_does_not_take_the_turns_of_a_slow_one() -> None:
    order: list[str] = []

    class Prompt(Stream):
        """Always has a frame waiting, until its last."""

        left = 0

        def take(self) -> LiveFrame | None:
            got: list[LiveFrame | None] = []
            until(lambda: bool(got.append(super(Prompt, self).take()) or got[-1] or not self.left))
            if got[-1] is not None:
                self.left -= 1
                order.append(self.name)
            return got[-1]

    streams = [Prompt(ListSource(frames(n), name=str(n)), ListSink()) for n in (60, 20, 20)]
    for stream, left in zip(streams, (60, 20, 20), strict=True):
        stream.left = left
    live(list(streams), FakeRestorer()).run()
    names = [s.name for s in streams]
    assert order == names * 20 + names[:1] * 40


def test_every_stream_has_its_own_past() -> None:
    restorer = FakeRestorer()
    streams = [Stream(ListSource(frames(7)), ListSink()) for _ in range(3)]
    live(streams, restorer).run()
    ages = [age for _, age, _ in restorer.calls]
    assert sorted(ages) == sorted(list(range(7)) * 3)
    assert all(value == age for value, age, _ in restorer.calls)


@pytest.mark.parametrize(
    ("numbers", "ages"),
    [
        ([0, 1, 5, 13], [0, 1, 2, 3]),  # drops do not harm
        ([0, 1, 1 + LONG_GAP, 2 + LONG_GAP], [0, 1, 2, 3]),
        ([0, 1, 2 + LONG_GAP, 3 + LONG_GAP], [0, 1, 0, 1]),  # a long gap does
    ],
)
def test_when_the_past_is_forgotten(numbers: list[int], ages: list[int]) -> None:
    restorer = FakeRestorer()
    stream = Stream(ListSource([frame(n) for n in numbers]), ListSink())
    live([stream], restorer).run()
    assert [age for _, age, _ in restorer.calls] == ages
    assert stream.stats.figures().lost == numbers[-1] + 1 - len(numbers)


def test_another_size_forgets_the_past() -> None:
    restorer = FakeRestorer()
    items = [frame(0), frame(1), frame(2, shape=(8, 8)), frame(3, shape=(8, 8))]
    live([Stream(ListSource(items), ListSink())], restorer).run()
    assert [age for _, age, _ in restorer.calls] == [0, 1, 0, 1]


def test_a_waiting_sink_stops_no_other_stream() -> None:
    gate = threading.Event()

    class Stuck(ListSink):
        def write(self, item: LiveFrame) -> None:
            gate.wait(5)
            super().write(item)

    stuck, free = Stuck(), ListSink()
    streams = [Stream(ListSource(frames(20)), stuck), Stream(ListSource(frames(30)), free)]
    run = live(streams, FakeRestorer())
    thread = threading.Thread(target=run.run)
    thread.start()
    until(lambda: free.ended == "finished")
    assert not stuck.frames
    gate.set()
    thread.join(5)
    assert len(stuck.frames) == 20


def test_stop_completes_what_was_restored() -> None:
    sink = ListSink()
    source = ListSource(frames(5), live=True, waits=True)
    stream = Stream(source, sink, newest=False)
    run = live([stream], FakeRestorer())
    thread = threading.Thread(target=run.run)
    thread.start()
    until(lambda: len(sink.frames) == 5)
    run.stop()
    thread.join(5)
    assert not thread.is_alive()
    assert sink.ended == "finished"
    assert source.closed.is_set()
    assert stream.error is None
    assert run.stopped


def test_an_interrupt_completes_what_was_restored() -> None:
    def work() -> None:
        if len(restorer.calls) == 4:
            raise KeyboardInterrupt

    restorer, sink = FakeRestorer(work), ListSink()
    with pytest.raises(KeyboardInterrupt):
        live([Stream(ListSource(frames(9)), sink)], restorer).run()
    assert sink.numbers == [0, 1, 2]
    assert sink.ended == "finished"


def test_it_ends_after_the_given_seconds() -> None:
    clock, sink = Clock(), ListSink()

    def work() -> None:
        clock.now += 1.0

    stream = Stream(ListSource(frames(50)), sink, clock=clock)
    live([stream], FakeRestorer(work), seconds=10.0, clock=clock).run()
    assert sink.numbers == list(range(10))
    assert sink.ended == "finished"


def test_a_source_that_breaks_leaves_a_complete_result() -> None:
    sink = ListSink()
    stream = Stream(ListSource([*frames(3), InputError("in: broken")]), sink)
    live([stream], FakeRestorer()).run()
    assert str(stream.error) == "in: broken"
    assert (len(sink.frames), sink.ended) == (3, "finished")


def test_an_error_before_the_first_frame_leaves_nothing() -> None:
    sink = ListSink()
    stream = Stream(ListSource([InputError("in: broken")]), sink)
    live([stream], FakeRestorer()).run()
    assert (len(sink.frames), sink.ended) == (0, "abandoned")


def test_a_frame_that_cannot_be_restored_ends_its_stream_alone() -> None:
    good, bad = ListSink(), ListSink()
    items = [frame(i) for i in (0, 66, 67)]
    streams = [Stream(ListSource(items), bad), Stream(ListSource(frames(40)), good)]
    live(streams, FakeRestorer()).run()
    assert "does not fit" in str(streams[0].error)
    assert (bad.numbers, bad.ended) == ([0], "finished")
    assert (len(good.frames), streams[1].error) == (40, None)


def test_a_sink_that_fails_is_abandoned_and_its_source_closed() -> None:
    sink = ListSink(fails_at=2, error=OutputError("out: the disk is full"))
    source = ListSource(frames(20), waits=True)
    stream = Stream(source, sink)
    # The other stream goes on, and sees that.
    other = Stream(ListSource([lambda: until(source.closed.is_set), *frames(3)]), ListSink())
    live([stream, other], FakeRestorer()).run()
    assert str(stream.error) == "out: the disk is full"
    assert sink.ended == "abandoned"
    assert (other.error, other.stats.figures().frames) == (None, 3)


@pytest.mark.parametrize("side", ["source", "sink"])
def test_a_bug_in_a_thread_is_not_swallowed(side: str) -> None:
    bug = ZeroDivisionError("a bug")
    source = ListSource([frame(0), bug] if side == "source" else frames(3))
    sink = ListSink(fails_at=1, error=bug if side == "sink" else None)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        live([Stream(source, sink)], FakeRestorer()).run()


def test_steps_of_the_policy_reach_the_frames() -> None:
    clock = Clock()

    def slow() -> None:
        clock.now += 0.1

    main, small = FakeRestorer(slow), FakeRestorer(slow, "nano")
    ladder = Ladder(0.050, ["preset", "box"], clock=clock)
    items = [lambda: setattr(clock, "now", clock.now + 1), *frames(1)]
    items += [frame(i, captured=1e9) for i in range(1, 3 * WINDOW)]
    stream = Stream(
        ListSource(items), ListSink(), open_masks=lambda size: cast(Any, Dots(size)), clock=clock
    )
    out = io.StringIO()
    run = Live(
        [stream],
        repair(main, small, sigma=25.0),
        Status(stream=out),
        ladder=ladder,
        clock=clock,
    )
    run.run()
    assert [sigma for _, _, sigma in main.calls] == [25.0] * (WINDOW + 1)
    assert [sigma for _, _, sigma in small.calls][-4:] == [0.0] * 4
    assert small.calls[0][1] == WINDOW + 1  # the smaller model goes on from the same past
    assert "preset: the smaller model" in out.getvalue()


class Dots:
    """A mask of one pixel."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._mask = np.zeros(size, np.uint8)
        self._mask[0, 0] = 1

    def __call__(self, image: U8, number: int) -> U8:
        return self._mask

    def notes(self) -> list[str]:
        return ["one note of the mask"]

    def close(self) -> None:
        """Nothing is held."""


def test_notes_and_the_summary_are_said_as_json() -> None:
    out = io.StringIO()
    stream = Stream(
        ListSource(frames(3)), ListSink(), open_masks=lambda size: cast(Any, Dots(size))
    )
    Live([stream], repair(FakeRestorer()), Status(as_json=True, stream=out)).run()
    said = [json.loads(line) for line in out.getvalue().splitlines()]
    notes = [s["message"] for s in said if s["event"] == "note"]
    assert notes == ["one note of the source", "one note of the sink", "one note of the mask"]
    assert said[-1]["event"] == "summary"
    assert said[-1]["runs"] == "tiny on fake"
    assert said[-1]["streams"][0]["frames"] == 3
    assert said[-1]["streams"][0]["error"] is None


def test_without_a_way_back_a_loss_is_the_end() -> None:
    lost, sink = SourceLostError("camera: is gone"), ListSink()
    stream = Stream(ListSource([frame(0), lost], live=True), sink)
    live([stream], FakeRestorer()).run()
    assert stream.error is lost
    assert sink.ended == "finished"


def test_memory_does_not_keep_frames() -> None:
    import gc
    import weakref

    alive: list[weakref.ref[U8]] = []

    def tracked(n: int) -> LiveFrame:
        rgb = picture(n % 60)
        alive.append(weakref.ref(rgb))
        return LiveFrame(rgb, n, 0.0, None)

    class Counting:
        name, live, rate = "in", False, None
        notes: list[str] = []  # noqa: RUF012
        most = 0
        count = 0

        def read(self) -> LiveFrame | None:
            if self.count == 200:
                return None
            self.count += 1
            self.most = max(self.most, sum(r() is not None for r in alive))
            return tracked(self.count)

        def close(self) -> None:
            """Nothing is held."""

    class Nowhere(ListSink):
        def write(self, item: LiveFrame) -> None:
            """Forget it."""

    source = Counting()
    gc.disable()
    try:
        live([Stream(source, Nowhere())], FakeRestorer()).run()
    finally:
        gc.enable()
    assert source.most <= 8  # four that wait, one in each of three hands
