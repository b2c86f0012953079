"""What gives way, when, and how often: by a clock that is told the time."""

from __future__ import annotations

import pytest

from fastrestore.errors import InputError
from fastrestore.live.policy import MOST_SKIPPED, STEPS, WINDOW, Ladder, parse_steps
from tests.fastrestore.live.fakes import Clock


class Model:
    """Restores at a rate of 30 frames a second at most, in a time for each step taken."""

    def __init__(self, ladder: Ladder, clock: Clock, *times_ms: float) -> None:
        self.ladder, self.clock = ladder, clock
        self.times_ms = list(times_ms)
        self.said: list[str] = []

    def run(self, frames: int) -> None:
        for _ in range(frames):
            work = self.times_ms[len(self.ladder.taken)] / 1e3
            self.clock.now += max(work, 1 / 30)
            if said := self.ladder.record(0.0, work):
                self.said.append(said)


def make(budget_ms: float, *times_ms: float) -> Model:
    clock = Clock()
    steps = STEPS[: len(times_ms) - 1]
    return Model(Ladder(budget_ms / 1e3, steps, clock=clock), clock, *times_ms)


def test_nothing_gives_way_in_time() -> None:
    model = make(50, 40, 20)
    model.run(500)
    assert (model.ladder.taken, model.said) == ((), [])


def test_steps_are_taken_in_order_until_it_fits_each_said_once() -> None:
    model = make(50, 120, 80, 40, 20)
    model.run(WINDOW - 1)
    assert model.ladder.taken == ()
    model.run(1)
    assert model.ladder.taken == ("preset",)
    model.run(WINDOW)
    assert model.ladder.taken == ("preset", "box")
    model.run(200)
    assert model.ladder.taken == ("preset", "box")
    assert model.said == [
        "late: 120 ms a frame, 50 allowed; preset: the smaller model restores",
        "late: 80 ms a frame, 50 allowed; box: only the damage is restored, noise stays",
    ]


def test_one_slow_frame_in_three_changes_nothing() -> None:
    model = make(50, 20, 10)
    for i in range(90):
        model.times_ms[0] = 300 if i % 3 == 0 else 20
        model.run(1)
    assert model.ladder.taken == ()


def test_a_step_is_taken_back_when_there_is_room_for_a_while() -> None:
    model = make(50, 120, 20)
    model.run(WINDOW)
    model.times_ms[:] = [25, 20]  # whatever else ran on the machine has ended
    model.run(100)
    assert model.ladder.taken == ("preset",)  # 3.3 s: not yet
    model.run(100)
    assert model.ladder.taken == ()
    assert model.said[-1] == "in time again: 20 ms a frame; preset is taken back"
    model.run(2000)
    assert len(model.said) == 2


def test_a_step_stays_taken_where_there_is_little_room() -> None:
    model = make(50, 120, 35)
    model.run(5000)
    assert model.ladder.taken == ("preset",)
    assert len(model.said) == 1


def test_it_does_not_flap_where_only_the_step_makes_it_fit() -> None:
    model = make(50, 80, 10)
    model.run(30 * 600)  # ten minutes
    back = [s for s in model.said if "taken back" in s]
    assert 4 <= len(back) <= 7  # after 5, 10, 20, 40 ... 300 s
    assert model.ladder.taken == ("preset",)


def test_after_a_long_good_time_it_waits_short_again() -> None:
    model = make(50, 80, 10)
    model.run(30 * 100)
    model.times_ms[0] = 10
    model.run(30 * 400)
    assert model.ladder.taken == ()
    model.times_ms[0] = 80
    model.run(WINDOW)
    said = len(model.said)
    model.run(30 * 6)
    assert "taken back" in model.said[said]


def test_when_all_have_given_way_it_says_so_once() -> None:
    model = make(50, 200, 100)
    model.run(300)
    assert len(model.said) == 2
    assert "nothing more can give way" in model.said[-1]


def taken_skip(work: float) -> Ladder:
    ladder = Ladder(0.050, ["skip"], clock=Clock())
    for _ in range(WINDOW):
        ladder.record(0.1, work)
    assert ladder.taken == ("skip",)
    ladder.record(0.0, work)
    return ladder


def test_skip_drops_what_would_be_late_and_only_that() -> None:
    ladder = taken_skip(0.030)
    assert not ladder.skips(0.019, 0)
    assert ladder.skips(0.021, 0)


def test_skip_is_not_asked_before_it_is_taken() -> None:
    ladder = Ladder(0.050, ["skip"], clock=Clock())
    ladder.record(0.0, 0.030)
    assert not ladder.skips(10.0, 0)


def test_skip_lets_fresh_frames_through_where_nothing_can_be_in_time() -> None:
    ladder = taken_skip(0.100)
    assert not ladder.skips(0.001, 0)
    assert ladder.skips(0.033, 0)


def test_skip_never_starves_a_stream() -> None:
    ladder = taken_skip(0.100)
    assert ladder.skips(9.0, MOST_SKIPPED - 1)
    assert not ladder.skips(9.0, MOST_SKIPPED)


def test_steps_are_parsed() -> None:
    assert parse_steps(" skip, preset") == ("skip", "preset")
    for text in ("", "skip,skip", "skip,smaller"):
        with pytest.raises(InputError, match="name some of preset,box,skip"):
            parse_steps(text)
