"""Something that is timed, whatever it is: a call, and what the report says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastrestore.arrays import U8
from fastrestore.bench.device_time import COMPUTE, ENQUEUE, WORDS, DeviceTimes
from fastrestore.bench.power import PowerLog, Span
from fastrestore.bench.quiet import Watch
from fastrestore.bench.record import Labels, Level, Run
from fastrestore.bench.stats import Percentiles
from fastrestore.bench.timing import Clock, Limits, Samples, Series, in_turns
from fastrestore.errors import ModelError

HOST_BOUND = "the host takes longer to start the work than the GPU to do it: {:.2f} and {:.2f} ms"


@dataclass(frozen=True, slots=True)
class Subject:
    """What is timed.

    Attributes:
        level: Of the report.
        labels: What runs.
        shape: Of the input.
        call: Does it once; nothing else is timed.
        items: Pictures in one call.
        device: Keeps device time, where the backend is asked for it.
        sha256: Of the files that run.
        notes: What the reader must know.
    """

    level: Level
    labels: Labels
    shape: tuple[int, ...]
    call: Callable[[], object]
    items: int = 1
    device: DeviceTimes | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def run(self, samples: Samples, power: Sequence[Mapping[str, Any]] = ()) -> Run:
        """Return the report's line.

        At level `engine` on a device the samples are GPU compute time, not the host's.
        """
        notes, device, rate = list(self.notes), {}, None
        if self.device is not None:
            n = len(samples.wall_ms)
            device = {word: Percentiles.of(self.device.of(word, n)) for word in WORDS}
            rate = 1e3 * self.items * n / float(samples.wall_ms.sum())
            enqueue, compute = device[ENQUEUE].p50, device[COMPUTE].p50
            if enqueue > compute:
                notes.append(HOST_BOUND.format(enqueue, compute))
            samples = samples._replace(wall_ms=self.device.of(COMPUTE, n))
        return Run(
            self.level,
            self.labels,
            self.shape,
            samples,
            self.items,
            rate,
            device,
            self.sha256,
            power,
            notes,
        )


def measure(
    subjects: Sequence[Subject],
    limits: Limits,
    *,
    watch: Watch | None = None,
    power: PowerLog | None = None,
    clock: Clock | None = None,
) -> list[Run]:
    """Time subjects in turn and return a line for each.

    Args:
        subjects: At least one.
        limits: How long.
        watch: Looks at the machine after every turn.
        power: Runs meanwhile.
        clock: Replaced in tests.
    """
    clock = clock or Clock()
    spans: list[list[Span]] = [[] for _ in subjects]
    series = [
        Series(s.call, limits, clock, None if s.device is None else s.device.keep) for s in subjects
    ]

    def after(i: int) -> None:
        spans[i].append(series[i].span)
        if watch is not None:
            watch.look()

    in_turns(series, limits.rounds, after)
    found = []
    for subject, one, when in zip(subjects, series, spans, strict=True):
        samples = one.samples()
        each = float(samples.wall_ms.mean()) / 1e3 / subject.items
        found.append(subject.run(samples, power.summary(when, each) if power else ()))
        if subject.device is not None:
            subject.device.close()
    return found


def expect(restored: U8, shape: tuple[int, ...], who: str) -> None:
    """Refuse what is no restored picture: its time would be that of something else.

    Raises:
        ModelError: Another dtype or shape.
    """
    if restored.dtype != np.uint8 or restored.shape != shape:
        raise ModelError(f"{who}: {restored.dtype} {restored.shape} came out, not uint8 {shape}")
