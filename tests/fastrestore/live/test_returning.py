"""A source that is lost and comes back: waits, numbers, stamps, the end of it."""

from __future__ import annotations

import io
import threading
from fractions import Fraction
from typing import Any, cast

import pytest

from fastrestore.errors import InputError
from fastrestore.live.frame import LiveFrame, SourceLostError
from fastrestore.live.repair import Repair
from fastrestore.live.returning import LONGEST_DELAY_S, ReturningSource
from fastrestore.live.run import Live
from fastrestore.live.status import Status
from fastrestore.live.stream import Stream
from tests.fastrestore.live.fakes import (
    Clock,
    FakeRestorer,
    ListSink,
    ListSource,
    frame,
    until,
)


class Outage:
    """Opens sources of which all but the last are away or break; notes the waits."""

    def __init__(self, *openings: ListSource | Exception) -> None:
        self._openings = list(openings)
        self.waits: list[float] = []

    def open(self) -> ListSource:
        opening = self._openings.pop(0)
        if isinstance(opening, Exception):
            raise opening
        return opening

    def wait(self, closed: threading.Event, seconds: float) -> bool:
        self.waits.append(seconds)
        return closed.is_set()


def returning(outage: Outage, clock: Clock) -> ReturningSource:
    return ReturningSource(outage.open(), outage.open, clock=clock, wait=outage.wait)


LOST = SourceLostError("camera: is gone")


def test_a_lost_source_is_opened_again_after_ever_longer_waits() -> None:
    clock = Clock()
    again = [frame(0, 110.0), frame(1, 110.04)]
    outage = Outage(
        ListSource([frame(0, 100.0), frame(1, 100.04), LOST], live=True),
        *[LOST] * 8,
        ListSource([LOST], live=True),  # there, and gone again before a frame came
        ListSource([*again, LOST], live=True),
        ListSource([], live=True),
    )
    source = returning(outage, clock)
    got = [source.read() for _ in range(5)]
    assert outage.waits == [0.5, 1, 2, 4, 8, 16, *[LONGEST_DELAY_S] * 4, 0.5]
    numbers = [f.number for f in got if f is not None]
    assert numbers[:2] == [0, 1]
    assert numbers[2] - numbers[1] == round((110.0 - 100.04) * 25)  # as if it had run on
    assert numbers[3] == numbers[2] + 1
    stamps = [f.pts for f in got if f is not None and f.pts is not None]
    assert stamps[2] - stamps[1] == Fraction(996, 100)
    assert got[-1] is None
    notes = [n for n in source.notes if n != "one note of the source"]
    assert notes[0] == "camera: is gone; opening it again until it is back"
    assert [n.partition(" after")[0] for n in notes[1:]] == ["in: back", notes[0], "in: back"][:2]


def test_a_short_outage_is_still_a_gap_that_forgets_the_past() -> None:
    outage = Outage(
        ListSource([frame(0, 100.0), LOST], live=True),
        ListSource([frame(0, 100.1)], live=True),
    )
    restorer = FakeRestorer()
    stream = Stream(returning(outage, Clock()), ListSink(), newest=False)
    repair = Repair(cast(Any, restorer))
    Live([stream], repair, Status(stream=io.StringIO())).run()
    assert [age for _, age, _ in restorer.calls] == [0, 0]


def test_closing_ends_the_wait_for_a_lost_source() -> None:
    inner = ListSource([LOST], live=True)
    source = ReturningSource(inner, lambda: inner)
    got: list[LiveFrame | None] = []
    thread = threading.Thread(target=lambda: got.append(source.read()))
    thread.start()
    until(lambda: bool(source.notes))
    source.close()
    thread.join(5)
    assert got == [None]


def test_an_input_that_is_wrong_for_good_is_not_opened_again() -> None:
    outage = Outage(ListSource([LOST], live=True), InputError("camera: another size"))
    with pytest.raises(InputError, match="another size"):
        returning(outage, Clock()).read()
