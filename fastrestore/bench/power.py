"""Power while something is measured, and energy a picture: idle first, then turn by turn.

A thread reads every meter ten times a second; a reading counts for a subject if all of it lies
inside that subject's turns. Energy a picture is mean power times the time that it takes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, Protocol

from fastrestore.bench.nvml import Nvml
from fastrestore.bench.rails import Rails, Rapl
from fastrestore.bench.tegrastats import Tegrastats
from fastrestore.jetson import is_jetson

INTERVAL_S = 0.1
IDLE_S = 3.0

Span = tuple[float, float]


class Meter(Protocol):
    """Something that measures power."""

    name: str

    def read(self, now_s: float) -> Mapping[str, float]:
        """Return the power of each rail in W: of this moment, or since the last reading."""

    def total(self, watts: Mapping[str, float]) -> tuple[str, float] | None:
        """Return the name and the power of the whole; None if the rails do not tell."""

    def close(self) -> None:
        """Let go of it."""


class Reading(NamedTuple):
    """Power of a meter's rails between two moments."""

    first_s: float
    last_s: float
    watts: Mapping[str, float]


def meters(device: int = 0) -> tuple[list[Meter], list[str]]:
    """Return the meters of this machine, running, and what is absent, in words.

    Args:
        device: CUDA device, as CUDA counts.
    """
    found: list[Meter] = []
    absent = []
    card = Nvml.here(device)
    if isinstance(card, str):
        absent.append(card)
    elif card.has_power():
        found.append(card)
    else:
        absent.append(f"NVML tells no power of {card.card}")
        card.close()
    board: Meter | None = (Tegrastats.here() if is_jetson() else None) or Rails.here()
    if board is None:
        absent.append("no tegrastats")
    else:
        found.append(board)
    processor = Rapl.here()
    if isinstance(processor, str):
        absent.append(processor)
    else:
        found.append(processor)
    return found, absent


class PowerLog:
    """Reads meters in a thread of its own, from `start` to `close`; without meters it does not."""

    def __init__(
        self,
        meters: Sequence[Meter],
        clock: Callable[[], float] = time.perf_counter,
        interval_s: float = INTERVAL_S,
    ) -> None:
        """Take the meters over; `close` closes them.

        Args:
            meters: May be none.
            clock: That of the spans.
            interval_s: Between two readings.
        """
        self._meters, self._clock, self._interval_s = meters, clock, interval_s
        self._readings: dict[str, list[Reading]] = {m.name: [] for m in meters}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._idle: dict[str, dict[str, float]] = {}

    def start(self, idle_s: float = IDLE_S) -> None:
        """Begin, and wait for as long as idle power is measured: not at all without meters."""
        if not self._meters:
            return
        began = self._clock()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        self._ended.wait(idle_s)
        spans = [(began, self._clock())]
        self._idle = {m.name: _mean(self._within(m, spans)) for m in self._meters}

    def summary(self, spans: Sequence[Span], seconds_an_item: float) -> list[dict[str, Any]]:
        """Return power and energy of what ran in some spans: an entry for each meter's whole.

        Args:
            spans: When it ran.
            seconds_an_item: What a picture took.
        """
        return [
            entry
            for meter in self._meters
            if (entry := self._of(meter, spans, seconds_an_item)) is not None
        ]

    def close(self) -> None:
        """End the thread and close the meters."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        with ExitStack() as held:
            for meter in self._meters:
                held.callback(meter.close)

    def take(self) -> None:
        """Read every meter once."""
        for meter in self._meters:
            now = self._clock()
            watts = meter.read(now)
            readings = self._readings[meter.name]
            before = readings[-1].last_s if readings else now
            readings.append(Reading(before, now, dict(watts)))

    def _follow(self) -> None:
        while not self._ended.wait(self._interval_s):
            self.take()

    def _of(
        self, meter: Meter, spans: Sequence[Span], seconds_an_item: float
    ) -> dict[str, Any] | None:
        readings = self._within(meter, spans)
        mean = _mean(readings)
        whole = meter.total(mean)
        if whole is None:
            return None
        rail, watts = whole
        idle = meter.total(self._idle.get(meter.name, {}))
        above = None if idle is None else 1e3 * (watts - idle[1]) * seconds_an_item
        return {
            "meter": meter.name,
            "rail": rail,
            "n": len(readings),
            "mean_w": watts,
            "idle_w": None if idle is None else idle[1],
            "mj_per_item": 1e3 * watts * seconds_an_item,
            "mj_per_item_above_idle": above,
            "rails_w": mean,
        }

    def _within(self, meter: Meter, spans: Sequence[Span]) -> list[Reading]:
        return [
            r
            for r in self._readings[meter.name]
            if r.watts and any(a <= r.first_s and r.last_s <= b for a, b in spans)
        ]


def _mean(readings: Iterable[Reading]) -> dict[str, float]:
    """Return the mean of each rail; readings without it do not count."""
    found: dict[str, list[float]] = {}
    for reading in readings:
        for rail, watts in reading.watts.items():
            found.setdefault(rail, []).append(watts)
    return {rail: sum(values) / len(values) for rail, values in found.items()}
