"""Summaries of times, and intervals of ratios by bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastrestore.arrays import F64
from fastrestore.errors import InputError

RESAMPLES = 2000
FEWEST_TURNS = 4  # with fewer the interval of a ratio would say nothing


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Summary of samples in ms; percentiles interpolate linearly, `cv` = `sd` / `mean`."""

    n: int
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    mean: float
    sd: float
    cv: float

    @classmethod
    def of(cls, samples_ms: Sequence[float] | F64) -> Percentiles:
        """Summarise the samples.

        Raises:
            InputError: No samples.
        """
        x = np.asarray(samples_ms, np.float64)
        if x.size == 0:
            raise InputError("no samples: nothing was timed")
        low, p50, p90, p95, p99, high = np.percentile(x, (0, 50, 90, 95, 99, 100)).tolist()
        mean = float(x.mean())
        sd = float(x.std(ddof=1)) if x.size > 1 else 0.0
        return cls(x.size, low, p50, p90, p95, p99, high, mean, sd, sd / mean if mean > 0 else 0.0)


@dataclass(frozen=True, slots=True)
class Ratio:
    """A median over another one; `low` and `high` bound it with 95 %."""

    value: float
    low: float
    high: float


def ratio_of_reports(b: F64, a: F64, rng: np.random.Generator, n: int = RESAMPLES) -> Ratio:
    """Return p50 of b over p50 of a, of times that were taken one after the other.

    A circular block bootstrap (blocks of n^(1/3) calls: neighbours in time share the machine's
    mood). It covers the scatter inside the two series, not what changed between them.

    Args:
        b: Times, `(n,)`.
        a: Times, `(m,)`.
        rng: Draws the blocks.
        n: Bootstrap samples.
    """
    ratios = _medians(b, n, rng) / _medians(a, n, rng)
    low, high = np.percentile(ratios, (2.5, 97.5)).tolist()
    return Ratio(float(np.median(b) / np.median(a)), low, high)


def ratio_in_turns(
    b: Sequence[F64], a: Sequence[F64], rng: np.random.Generator, n: int = RESAMPLES
) -> Ratio | None:
    """Return p50 of b over p50 of a round by round, and of that the median over the rounds.

    What the machine did in a round hit both sides and cancels; rounds are drawn for the interval.

    Args:
        b: Times of each turn.
        a: Times of each turn, of the same rounds.
        rng: Draws the rounds.
        n: Bootstrap samples.

    Returns:
        None with fewer than `FEWEST_TURNS` rounds.
    """
    turns = min(len(a), len(b))
    if turns < FEWEST_TURNS:
        return None
    of_rounds = np.array([np.median(b[i]) / np.median(a[i]) for i in range(turns)])
    drawn = rng.integers(0, turns, (n, turns))
    low, high = np.percentile(np.median(of_rounds[drawn], axis=1), (2.5, 97.5)).tolist()
    return Ratio(float(np.median(of_rounds)), low, high)


def _medians(times: F64, n: int, rng: np.random.Generator) -> F64:
    block = max(1, round(times.size ** (1 / 3)))
    found = np.empty(n)
    for i in range(n):
        starts = rng.integers(0, times.size, (-(-times.size // block), 1))
        found[i] = np.median(times[(starts + np.arange(block)).ravel()[: times.size] % times.size])
    return found
