"""Figures of a live stream, by a clock that is told the time."""

from __future__ import annotations

import numpy as np
import pytest

from fastrestore.live.stats import Histogram, StreamStats, percentile
from tests.fastrestore.live.fakes import Clock, frame


def test_percentiles_are_within_one_percent_of_the_sorted_list() -> None:
    rng = np.random.default_rng(0)
    seconds = np.exp(rng.uniform(np.log(2e-4), np.log(900), 4000))
    h = Histogram()
    for s in seconds:
        h.add(float(s))
    for p in (1, 50, 90, 99, 100):
        found = percentile(h.counts, p)
        assert found == pytest.approx(np.percentile(seconds, p, method="inverted_cdf"), rel=0.0102)


def test_a_histogram_never_grows_and_takes_any_time() -> None:
    h = Histogram()
    size = h.counts.nbytes
    for seconds in (0.0, -1.0, 1e-9, 1e12):
        h.add(seconds)
    assert h.counts.nbytes == size
    assert h.counts.sum() == 4
    assert h.counts[0] == 3
    assert percentile(np.zeros_like(h.counts), 50) is None


def run(stats: StreamStats, clock: Clock, frames: int, first: int = 0) -> None:
    """Write frames every 40 ms; each waits 10 ms, takes 20 to restore and 5 to write."""
    for i in range(first, first + frames):
        f = frame(i, captured=clock.now)
        stats.restored(f, clock.now + 0.010, clock.now + 0.030)
        stats.written(f, clock.now + 0.035)
        clock.now += 0.040


def test_figures_of_a_steady_stream() -> None:
    clock = Clock()
    stats = StreamStats(clock)
    run(stats, clock, 50)
    stats.dropped, stats.skipped, stats.lost, stats.queue = 3, 2, 1, 1
    f = stats.figures()
    assert (f.frames, f.seconds, f.fps) == (50, pytest.approx(2.0), pytest.approx(25.0))
    assert f.p50 == pytest.approx(35, rel=0.011)
    assert f.p99 == pytest.approx(35, rel=0.011)
    assert f.wait_p99 == pytest.approx(10, rel=0.011)
    assert f.work_p50 == pytest.approx(20, rel=0.011)
    assert f.jitter == 0
    assert (f.dropped, f.skipped, f.lost, f.queue) == (3, 2, 1, 1)
    assert f.to_json()["p99_ms"] == round(f.p99 or 0, 2)


def test_what_came_before_the_warm_up_counts_nowhere() -> None:
    clock = Clock()
    stats = StreamStats(clock)
    early = frame(0, captured=clock.now)
    stats.dropped = 7
    clock.now += 3.0  # the warm-up
    stats.begin()
    assert not stats.restored(early, clock.now, clock.now + 1)
    stats.written(early, clock.now + 1)
    assert stats.figures().p99 is None
    run(stats, clock, 10, 1)
    f = stats.figures()
    assert f.p99 == pytest.approx(35, rel=0.011)
    assert (f.dropped, f.frames) == (0, 11)
    assert f.seconds == pytest.approx(0.4)


def test_recent_figures_forget_but_losses_add_up() -> None:
    clock = Clock()
    stats = StreamStats(clock)
    run(stats, clock, 25)
    stats.dropped = 4
    assert stats.recent().fps == pytest.approx(25)
    clock.now += 1.0  # nothing comes
    f = stats.recent()
    assert (f.fps, f.p50, f.frames, f.dropped) == (0.0, None, 25, 4)


def test_jitter_is_what_the_slowest_gaps_are_above_the_usual() -> None:
    clock = Clock()
    stats = StreamStats(clock)
    for i in range(101):
        f = frame(i, captured=clock.now)
        stats.written(f, clock.now)
        clock.now += 0.120 if i % 20 == 0 else 0.040
    assert stats.figures().jitter == pytest.approx(80, rel=0.03)


def test_the_clock_of_a_finished_stream_stands() -> None:
    clock = Clock()
    stats = StreamStats(clock)
    run(stats, clock, 25)
    stats.finish()
    clock.now += 100.0
    assert stats.figures().fps == pytest.approx(25)
