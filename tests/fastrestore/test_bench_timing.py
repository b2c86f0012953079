"""Timers on fakes: a clock that is told the time. No speed is asserted."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import pytest

from fastrestore.bench.stats import Percentiles, ratio_in_turns, ratio_of_reports
from fastrestore.bench.timing import Clock, Limits, Series, in_turns, time_calls
from fastrestore.errors import InputError


class FakeTime:
    """Time that passes only in `work`; the processor does half of it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.calls = 0
        self.clock = Clock(lambda: self.now_s, lambda: self.now_s / 2)

    def work(self, seconds: float = 0.01) -> None:
        self.now_s += seconds
        self.calls += 1

    def subject(self, name: str, seconds: float, log: list[str]) -> Callable[[], None]:
        def call() -> None:
            self.work(seconds)
            log.append(name)

        return call


def test_percentiles_of_a_known_series() -> None:
    p = Percentiles.of([float(v) for v in range(101)])
    assert (p.n, p.min, p.p50, p.p90, p.p95, p.p99, p.max) == (101, 0, 50, 90, 95, 99, 100)
    assert p.mean == 50
    assert p.sd == pytest.approx(np.std(range(101), ddof=1))
    assert p.cv == p.sd / 50


def test_percentiles_of_one_and_of_none() -> None:
    p = Percentiles.of([4.0])
    assert (p.min, p.p99, p.sd, p.cv) == (4, 4, 0, 0)
    with pytest.raises(InputError, match="no samples"):
        Percentiles.of([])


def test_time_calls_takes_the_longer_of_time_and_count() -> None:
    t = FakeTime()
    s = time_calls(t.work, warm_up_s=0.05, min_s=1.0, min_n=3, clock=t.clock)
    assert s.wall_ms.tolist() == pytest.approx([10.0] * len(s.wall_ms))
    assert s.cpu_ms.tolist() == pytest.approx([5.0] * len(s.wall_ms))
    assert 100 <= len(s.wall_ms) <= 101
    assert s.turns == (len(s.wall_ms),)
    # warm-up and the call that settles the caches are no samples
    assert 6 <= t.calls - len(s.wall_ms) <= 7
    t = FakeTime()
    s = time_calls(t.work, warm_up_s=0, min_s=0.02, min_n=7, clock=t.clock)
    assert len(s.wall_ms) == 7
    assert t.calls == 8  # one warm-up call at least


def test_time_calls_stops_at_max_n() -> None:
    t = FakeTime()
    assert len(time_calls(t.work, min_s=1e9, max_n=20, clock=t.clock).wall_ms) == 20


@pytest.mark.parametrize(("low", "high"), [(0, 5), (6, 5)])
def test_time_calls_refuses_impossible_counts(low: int, high: int) -> None:
    with pytest.raises(InputError, match="min_n"):
        time_calls(lambda: None, min_n=low, max_n=high)


def test_time_calls_on_the_real_clock() -> None:
    s = time_calls(lambda: None, warm_up_s=0, min_s=0, min_n=5)
    assert len(s.wall_ms) == len(s.cpu_ms) == 5


def test_subjects_take_turns() -> None:
    t, log = FakeTime(), list[str]()
    limits = Limits(seconds=4, rounds=4, warm_up_s=0, min_n=4)
    series = [Series(t.subject(n, 0.5, log), limits, t.clock) for n in "ab"]
    ended: list[int] = []
    in_turns(series, limits.rounds, ended.append)
    assert "".join(log[:2]) == "ab"  # warm-up
    assert "".join(log[2:]) == "aabb" * 4
    assert ended == [0, 1] * 4
    assert [s.samples().turns for s in series] == [(2,) * 4] * 2


def test_what_the_others_left_in_the_caches_is_not_timed() -> None:
    """A short call is made once before its turn; a long one is not called for nothing."""
    t, log = FakeTime(), list[str]()
    limits = Limits(seconds=4, rounds=4, warm_up_s=0, min_n=1)
    series = [Series(t.subject(n, s, log), limits, t.clock) for n, s in (("a", 0.125), ("B", 0.5))]
    in_turns(series, 1)
    assert "".join(log) == "aB" + "a" + 8 * "a" + "BB"
    assert [len(s.samples().wall_ms) for s in series] == [8, 2]


def test_a_subject_that_takes_too_long_is_called_no_more() -> None:
    t, log = FakeTime(), list[str]()
    limits = Limits(seconds=1.25, rounds=10, warm_up_s=0, min_n=10, patience_s=3.0)
    slow, fast = (
        Series(t.subject(n, s, log), limits, t.clock) for n, s in (("S", 4), ("f", 0.125))
    )
    in_turns([slow, fast], limits.rounds)
    assert log.count("S") == 2  # once to warm up, once to be timed
    assert slow.samples().wall_ms.tolist() == [4000]
    assert slow.is_over
    assert len(fast.samples().wall_ms) == 10


def test_samples_end_at_the_size_of_the_buffers_in_equal_turns() -> None:
    t = FakeTime()
    limits = Limits(seconds=9.0, rounds=3, warm_up_s=0, min_n=1, max_n=12)
    series = Series(t.work, limits, t.clock)
    in_turns([series], limits.rounds)
    assert series.samples().turns == (4, 4, 4)


def test_what_is_kept_beside_a_call_comes_with_its_number() -> None:
    t, kept = FakeTime(), list[int]()
    limits = Limits(seconds=0.06, rounds=2, warm_up_s=0.05, min_n=2)
    series = Series(t.work, limits, t.clock, kept.append)
    in_turns([series], 2)
    assert kept == list(range(len(series.samples().wall_ms)))


def test_garbage_is_not_collected_in_a_turn() -> None:
    t, during = FakeTime(), list[bool]()

    def call() -> None:
        t.work()
        during.append(gc.isenabled())

    assert gc.isenabled()
    time_calls(call, warm_up_s=0, min_s=0, min_n=3, clock=t.clock)
    assert during == [True, False, False, False]
    assert gc.isenabled()


def test_the_collector_comes_back_after_an_error() -> None:
    t = FakeTime()

    def call() -> None:
        t.work()
        if t.calls > 1:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        time_calls(call, warm_up_s=0, clock=t.clock)
    assert gc.isenabled()


# Ratios.


def test_a_ratio_in_turns_is_free_of_the_machines_moods() -> None:
    """Rounds are slow by up to four times; the ratio in each is 0.8, a percent more or less."""
    rng = np.random.default_rng(0)
    moods = rng.uniform(1, 4, 12)
    a = [m * rng.normal(10, 0.05, 8) for m in moods]
    b = [m * rng.normal(8, 0.05, 8) for m in moods]
    found = ratio_in_turns(b, a, np.random.default_rng(0))
    assert found is not None
    assert 0.78 < found.low <= found.value <= found.high < 0.82
    one, other = (np.concatenate(x) for x in (a, b[::-1]))
    apart = ratio_of_reports(other, one, np.random.default_rng(0))
    assert apart.high - apart.low > 10 * (found.high - found.low)


def test_a_ratio_of_few_rounds_is_none() -> None:
    few = [np.ones(9)] * 3
    assert ratio_in_turns(few, few, np.random.default_rng(0)) is None
    assert ratio_in_turns([*few, np.ones(1)], [*few, np.ones(1)], np.random.default_rng(0))
