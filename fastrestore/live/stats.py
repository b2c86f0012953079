"""What a live stream has done so far, counted in memory that never grows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrestore.live.frame import LiveFrame

# Two bins lie 2 % apart: 0.1 ms is the first and 1000 s lies in the last.
_LEAST_S, _STEP, _BINS = 1e-4, math.log(1.02), 816

_TIMES = ("p50", "p99", "wait_p99", "wait_max", "work_p50", "jitter")

Counts = npt.NDArray[np.int64]


class Histogram:
    """Durations in bins of 2 %, for percentiles of a run of any length. One thread adds.

    Attributes:
        counts: int64, one number a bin.
    """

    def __init__(self) -> None:
        self.counts: Counts = np.zeros(_BINS, np.int64)

    def add(self, seconds: float) -> None:
        """Count one duration."""
        at = math.log(seconds / _LEAST_S) / _STEP if seconds > _LEAST_S else 0
        self.counts[min(_BINS - 1, int(at))] += 1


def percentile(counts: Counts, percent: float) -> float | None:
    """Return a percentile of counted durations, within 1 %.

    Args:
        counts: Of a histogram, or the difference between two of its states.
        percent: 0 to 100.

    Returns:
        Seconds, the middle of the bin; None where nothing is counted.
    """
    total = int(counts.sum())
    if not total:
        return None
    rank = max(1, math.ceil(total * percent / 100))
    at = int(np.searchsorted(np.cumsum(counts), rank))
    return _LEAST_S * math.exp((at + 0.5) * _STEP)


@dataclass(frozen=True, slots=True)
class Figures:
    """One stream over a time. Durations in ms; None where nothing was counted.

    Attributes:
        seconds: How long.
        frames: Frames written.
        fps: Frames written a second.
        wait_p99: From capture to the start of restoring: what waiting adds.
        wait_max: As wait_p99, the longest.
        work_p50: Restoring alone.
        p50: From capture to written: the age of what is shown.
        p99: As p50.
        jitter: Between two frames written: p99 less p50.
        dropped: Frames replaced by newer ones while they waited.
        skipped: Frames left out because they would have been late.
        lost: Frames that the source lost before they came here.
        queue: Frames that wait now.
    """

    seconds: float
    frames: int
    fps: float
    wait_p99: float | None
    wait_max: float | None
    work_p50: float | None
    p50: float | None
    p99: float | None
    jitter: float | None
    dropped: int
    skipped: int
    lost: int
    queue: int

    def to_json(self) -> dict[str, Any]:
        """Return the object of `--json`."""
        times = {k: getattr(self, k) for k in _TIMES}
        return {
            "seconds": round(self.seconds, 1),
            "frames": self.frames,
            "fps": round(self.fps, 2),
            **{f"{k}_ms": None if v is None else round(v, 2) for k, v in times.items()},
            "dropped": self.dropped,
            "skipped": self.skipped,
            "lost": self.lost,
            "queue": self.queue,
        }


@dataclass(slots=True)
class _State:
    """Everything counted up to a moment."""

    at: float
    frames: int
    counts: tuple[Counts, ...]
    losses: tuple[int, int, int]


class StreamStats:
    """Counts one stream. Three threads add, each to fields of its own; any may read.

    What was captured before `begin` is no part of the latencies: it waited for the warm-up.

    Attributes:
        dropped: Frames replaced while they waited; set by the stream.
        skipped: Frames that the policy left out.
        lost: Frames that never reached us.
        queue: Frames that wait; set by the stream.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wait, self._work, self._total, self._gap = (Histogram() for _ in range(4))
        self._written = 0
        self._last: float | None = None
        self._ended: float | None = None
        self.dropped = self.skipped = self.lost = self.queue = 0
        self._began = clock()
        self._base = self._recent = self._state(self._began)

    def begin(self) -> None:
        """Start to count: the model is warm. Frames written or dropped so far are forgotten."""
        self._last = None
        self._began = self._clock()
        state = self._state(self._began)
        self._base = self._recent = replace(state, losses=(self.dropped, 0, 0))

    def finish(self) -> None:
        """Stop the clock: the last frame was written."""
        self._ended = self._clock()

    def restored(self, frame: LiveFrame, taken: float, now: float) -> bool:
        """Count a frame that was restored from `taken` to `now`; tell whether it counts."""
        if frame.captured < self._began:
            return False
        self._wait.add(taken - frame.captured)
        self._work.add(now - taken)
        return True

    def written(self, frame: LiveFrame, now: float) -> None:
        """Count a frame that the sink has taken."""
        self._written += 1
        if frame.captured < self._began:
            return
        self._total.add(now - frame.captured)
        if self._last is not None:
            self._gap.add(now - self._last)
        self._last = now

    def figures(self) -> Figures:
        """Return the figures since `begin`."""
        return self._since(self._base, self._state(self._now()))

    def recent(self) -> Figures:
        """Return the figures since the last call of it; losses and frames count from `begin`."""
        state = self._state(self._now())
        recent, whole = self._since(self._recent, state), self._since(self._base, state)
        self._recent = state
        return replace(
            recent,
            seconds=whole.seconds,
            frames=whole.frames,
            dropped=whole.dropped,
            skipped=whole.skipped,
            lost=whole.lost,
        )

    def _now(self) -> float:
        return self._clock() if self._ended is None else self._ended

    def _state(self, now: float) -> _State:
        histograms = (self._wait, self._work, self._total, self._gap)
        counts = tuple(h.counts.copy() for h in histograms)
        return _State(now, self._written, counts, (self.dropped, self.skipped, self.lost))

    def _since(self, before: _State, after: _State) -> Figures:
        wait, work, total, gap = (a - b for a, b in zip(after.counts, before.counts, strict=True))
        dropped, skipped, lost = (a - b for a, b in zip(after.losses, before.losses, strict=True))
        seconds = max(after.at - before.at, 1e-9)
        frames = after.frames - before.frames
        shortest, longest = _ms(gap, 50), _ms(gap, 99)
        jitter = None if shortest is None or longest is None else longest - shortest
        return Figures(
            seconds,
            frames,
            frames / seconds,
            _ms(wait, 99),
            _ms(wait, 100),
            _ms(work, 50),
            _ms(total, 50),
            _ms(total, 99),
            jitter,
            dropped,
            skipped,
            lost,
            self.queue,
        )


def _ms(counts: Counts, percent: float) -> float | None:
    seconds = percentile(counts, percent)
    return None if seconds is None else 1e3 * seconds
