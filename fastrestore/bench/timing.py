"""Timers. What is measured is called with nothing around it but two readings of two clocks.

Wall time says what a user waits; processor time (all threads of this process) is kept beside it:
on a busy machine the first moves by a factor of two or three, the second by a tenth. Warm-up,
least duration and least number of calls are those of TensorRT's own timing tool.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastrestore.arrays import F64
from fastrestore.errors import InputError

MAX_SAMPLES = 5000


class Clock(NamedTuple):
    """Two clocks that return seconds: of the wall, and of all threads of this process."""

    wall: Callable[[], float] = time.perf_counter
    cpu: Callable[[], float] = time.process_time


class Samples(NamedTuple):
    """Wall and processor times of the same calls in ms, in the order they were made.

    `turns` says how many calls each turn had: their sum is the number of samples.
    """

    wall_ms: F64
    cpu_ms: F64
    turns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """How long is measured.

    Attributes:
        seconds: Each subject is sampled for at least this long, over all its turns.
        rounds: Turns of each subject.
        warm_up_s: Calls before the first sample go on for this long; at least one is made.
        min_n: Calls at least, unless they take longer than `patience_s`.
        max_n: Calls at most, however short they are.
        patience_s: A subject that took longer, warm-up included, is not called again.
    """

    seconds: float = 3.0
    rounds: int = 10
    warm_up_s: float = 0.2
    min_n: int = 10
    max_n: int = MAX_SAMPLES
    patience_s: float = 30.0

    def __post_init__(self) -> None:
        """Refuse what cannot be kept."""
        if not 1 <= self.min_n <= self.max_n:
            raise InputError(f"min_n {self.min_n}, max_n {self.max_n}: choose 1 <= min_n <= max_n")
        if not 1 <= self.rounds <= self.max_n:
            raise InputError(f"rounds {self.rounds}: choose from 1 to {self.max_n}")


class Series:
    """The times of one subject, in buffers that are there before the first call."""

    def __init__(
        self,
        call: Callable[[], object],
        limits: Limits,
        clock: Clock,
        keep: Callable[[int], None] | None = None,
    ) -> None:
        """Prepare.

        Args:
            call: What is timed; its result is dropped.
            limits: How long.
            clock: Replaced in tests.
            keep: Called after each timed call, outside what is timed, with its number.
        """
        self._call, self._keep, self._limits, self._clock = call, keep, limits, clock
        self._times = np.empty((2, limits.max_n))
        self._n = 0
        self._turns: list[int] = []
        self._spent_s = self._last_s = 0.0
        self.is_over = False
        self.span = (0.0, 0.0)  # of the last turn

    def warm_up(self) -> None:
        """Call until the time for it is over, at least once."""
        wall = self._clock.wall
        start = before = wall()
        while True:
            self._call()
            now = wall()
            self._last_s, before = now - before, now
            if now - start >= self._limits.warm_up_s:
                break
        self._spent_s += now - start

    def turn(self) -> None:
        """Sample for this subject's share of a round."""
        limits, times, call, keep = self._limits, self._times, self._call, self._keep
        wall, cpu = self._clock
        share_s = limits.seconds / limits.rounds
        least = self._n + -(-limits.min_n // limits.rounds)
        most = min(limits.max_n, self._n + max(1, limits.max_n // limits.rounds))
        patience_s = limits.patience_s - self._spent_s
        if self._last_s < share_s / 4:
            call()  # what the others left in the caches is not this subject's time
        n = first = self._n
        start = now = wall()
        with _no_collector():
            while n < most and (n < least or now - start < share_s):
                cpu_before, before = cpu(), wall()
                call()
                now, cpu_after = wall(), cpu()
                times[0, n], times[1, n] = now - before, cpu_after - cpu_before
                if keep is not None:
                    keep(n)
                n += 1
                if now - start > patience_s:
                    break
        self._n, self._last_s = n, float(times[0, n - 1])
        self.span = (start, now)
        self._spent_s += now - start
        self._turns.append(n - first)
        self.is_over = n >= limits.max_n or self._spent_s > limits.patience_s

    def samples(self) -> Samples:
        """Return what was measured."""
        ms = 1e3 * self._times[:, : self._n]
        return Samples(ms[0], ms[1], tuple(self._turns))


def in_turns(
    series: Sequence[Series], rounds: int, after: Callable[[int], None] = lambda _: None
) -> None:
    """Measure subjects in turn, A B C A B C ..., so that the machine's moods hit all alike.

    Args:
        series: Of each subject.
        rounds: Turns of each.
        after: Called after each turn, outside what is timed, with the subject's number.
    """
    for one in series:
        one.warm_up()
    for _ in range(rounds):
        for i, one in enumerate(series):
            if not one.is_over:
                one.turn()
                after(i)


def time_calls(
    fn: Callable[[], object],
    *,
    warm_up_s: float = 0.2,
    min_s: float = 3.0,
    min_n: int = 10,
    max_n: int = MAX_SAMPLES,
    clock: Clock | None = None,
) -> Samples:
    """Call `fn` again and again and keep the time of each call.

    Args:
        fn: What is timed; its result is dropped.
        warm_up_s: Calls before the first sample go on for this long; at least one is made.
        min_s: Sampling goes on for at least this long.
        min_n: Calls to sample at least, however long they take.
        max_n: Calls to sample at most, however short they are.
        clock: Replaces the clocks, for tests.

    Raises:
        InputError: Not 1 <= min_n <= max_n.
    """
    limits = Limits(min_s, 1, warm_up_s, min_n, max_n, float("inf"))
    series = Series(fn, limits, clock or Clock())
    in_turns([series], 1)
    return series.samples()


@contextmanager
def _no_collector() -> Iterator[None]:
    """Let garbage wait until the turn is over."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
