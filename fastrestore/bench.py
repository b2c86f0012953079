"""Timers and the report of a measurement. What is measured, and how far it reaches:

- `backend`: a loaded model alone, padded uint8 batch in, uint8 batch out.
- `host`: one picture through the whole restorer, host memory to host memory.
- `frames`: a stream of frames through the restorer's video call, without decoder and encoder.

The levels are never mixed in one figure. Wall time says what a user waits; processor time (all
threads of this process) is kept beside it: on a busy machine the first moves by a factor of two
or three, the second by a tenth. Warm-up 200 ms, at least 3 s and 10 calls, percentiles 90, 95
and 99 are the terms of TensorRT's own timing tool, so that figures can be put side by side.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from fastrestore.arrays import F64, U8
from fastrestore.backend import Backend
from fastrestore.environment import is_busy
from fastrestore.errors import InputError, ModelError, OutputError

SCHEMA = 1
MAX_SAMPLES = 5000
UNSTABLE_CV = 0.2

Level = Literal["backend", "host", "frames"]
Verdict = Literal["b is faster", "b is slower", "no difference", "only in a", "only in b"]
Restore = Callable[[U8, U8 | None], U8]
RestoreVideo = Callable[[Iterator[U8]], Iterable[U8]]


class Clock(NamedTuple):
    """Two clocks that return seconds: of the wall, and of all threads of this process."""

    wall: Callable[[], float] = time.perf_counter
    cpu: Callable[[], float] = time.process_time


class Samples(NamedTuple):
    """Wall and processor times of the same calls in ms, in the order they were made."""

    wall_ms: list[float]
    cpu_ms: list[float]


Timer = Callable[[Callable[[], object]], Samples]


class Labels(NamedTuple):
    """What ran, for the report; two runs are compared when level, shape and these agree."""

    backend: str
    model: str
    precision: str = "fp32"


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Summary of samples in ms; percentiles interpolate linearly, `cv` = `std` / `mean`."""

    n: int
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    mean: float
    std: float
    cv: float

    @classmethod
    def of(cls, samples_ms: Sequence[float]) -> Percentiles:
        """Summarise the samples.

        Raises:
            InputError: No samples.
        """
        if len(samples_ms) == 0:
            raise InputError("no samples: nothing was timed")
        x = np.asarray(samples_ms, np.float64)
        marks = [float(v) for v in np.percentile(x, (0, 50, 90, 95, 99, 100))]
        mean = float(x.mean())
        std = float(x.std(ddof=1)) if x.size > 1 else 0.0
        return cls(x.size, *marks, mean, std, std / mean if mean > 0 else 0.0)


@dataclass(frozen=True, slots=True)
class Run:
    """One measured line of a report.

    Attributes:
        level: What lies between two readings of the clock: see the module.
        labels: What ran.
        shape: Of the input: `(N, H, W, 3)`, or `(H, W, 3)` of a picture or frame.
        samples: All times.
        fps: Pictures or frames a second; None for a batch, whose pictures arrive together.
    """

    level: Level
    labels: Labels
    shape: tuple[int, ...]
    samples: Samples
    fps: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: labels, summaries and at most `MAX_SAMPLES` samples of each kind."""
        return {
            "level": self.level,
            **self.labels._asdict(),
            "shape": list(self.shape),
            "n": len(self.samples.wall_ms),
            "fps": self.fps,
            "ms": asdict(Percentiles.of(self.samples.wall_ms)),
            "cpu_ms": asdict(Percentiles.of(self.samples.cpu_ms)),
            "samples_ms": self.samples.wall_ms[:MAX_SAMPLES],
            "cpu_samples_ms": self.samples.cpu_ms[:MAX_SAMPLES],
        }

    def warnings(self) -> Iterator[str]:
        """Yield what makes this run doubtful."""
        cv = Percentiles.of(self.samples.wall_ms).cv
        if cv > UNSTABLE_CV:
            size = "x".join(map(str, self.shape))
            yield f"{self.level} {self.labels.backend} {size}: unstable, cv {cv:.2f}"


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
        min_n: Calls to sample at least.
        max_n: Calls to sample at most, whatever `min_s`.
        clock: Replaces the clocks, for tests.

    Raises:
        InputError: Not 1 <= min_n <= max_n.
    """
    if not 1 <= min_n <= max_n:
        raise InputError(f"min_n {min_n}, max_n {max_n}: choose 1 <= min_n <= max_n")
    wall, cpu = clock or Clock()
    start = wall()
    fn()
    while wall() - start < warm_up_s:
        fn()
    samples = Samples([], [])
    start = wall()
    while (n := len(samples.wall_ms)) < max_n and (n < min_n or wall() - start < min_s):
        cpu_before, before = cpu(), wall()
        fn()
        after, cpu_after = wall(), cpu()
        samples.wall_ms.append(1e3 * (after - before))
        samples.cpu_ms.append(1e3 * (cpu_after - cpu_before))
    return samples


def bench_backend(
    backend: Backend,
    shape: tuple[int, int, int],
    *,
    precision: str = "fp32",
    timer: Timer = time_calls,
) -> Run:
    """Time a backend alone on a noisy batch with a hole of 6 % and a past.

    Args:
        backend: A loaded model.
        shape: `(N, H, W)`; H and W multiples of the model's `spec.multiple`.
        precision: For the report.
        timer: `time_calls`, or a partial of it with other limits.

    Raises:
        InputError: The model cannot take this shape.
    """
    n, height, width = shape
    multiple = backend.spec.multiple
    if min(shape) < 1 or height % multiple or width % multiple:
        raise InputError(f"shape {shape}: height and width must be multiples of {multiple}")
    frame = _hash_noise((n, height, width, 3))
    mask = np.zeros((n, height, width, 1), np.uint8)
    mask[:, height // 4 : height // 2, width // 4 : width // 2] = 1
    sigma = np.full(n, 10, np.float32)
    backend.warm_up(shape)
    _, state = backend.run(frame, mask, np.zeros((n, height, width, 4), np.uint8), sigma)
    samples = timer(lambda: backend.run(frame, mask, state, sigma))
    labels = Labels(backend.name, backend.spec.name, precision)
    fps = _single_stream_fps(samples) if n == 1 else None
    return Run("backend", labels, frame.shape, samples, fps)


def bench_host(
    restorer: Restore, image: U8, mask: U8 | None, labels: Labels, *, timer: Timer = time_calls
) -> Run:
    """Time one picture from host memory to host memory.

    Args:
        restorer: Called as `restorer(image, mask)`, returns the restored picture.
        image: uint8 RGB `(H, W, 3)`.
        mask: uint8 `(H, W)`, 1 = hole, or None = clean the whole picture.
        labels: What runs.
        timer: `time_calls`, or a partial of it with other limits.

    Raises:
        ModelError: The restorer returns something else than a picture of the same size.
    """
    _same_kind(restorer(image, mask), image)
    samples = timer(lambda: restorer(image, mask))
    return Run("host", labels, image.shape, samples, _single_stream_fps(samples))


def bench_frames(
    video: RestoreVideo,
    frames: Iterable[U8],
    labels: Labels,
    *,
    warm_up_frames: int = 5,
    clock: Clock | None = None,
) -> Run:
    """Time a stream: the interval from each restored frame to the next.

    `fps` is all frames over the whole time, so that frames which come out in bursts are not
    flattered. Making the frames counts too: give them ready in memory.

    Args:
        video: Called once with an iterator of frames; its result is read to the end.
        frames: uint8 RGB `(H, W, 3)`, all of one size.
        labels: What runs.
        warm_up_frames: Frames at the start that are restored but not counted.
        clock: Replaces the clocks, for tests.

    Raises:
        InputError: No frames are left after the warm-up.
        ModelError: Frames were lost or invented, or came out in another shape.
    """
    wall, cpu = clock or Clock()
    shapes: list[tuple[int, ...]] = []

    def source() -> Iterator[U8]:
        for frame in frames:
            shapes.append(frame.shape)
            yield frame

    at = [(wall(), cpu())]
    for restored in video(source()):
        at.append((wall(), cpu()))
        if restored.dtype != np.uint8 or restored.shape != shapes[0]:
            raise ModelError(f"video: {restored.dtype} {restored.shape} came out, not {shapes[0]}")
    made = len(at) - 1
    if made != len(shapes):
        raise ModelError(f"video: {len(shapes)} frames in, {made} out; nothing to be timed")
    counted = at[warm_up_frames:]
    if len(counted) < 2:
        raise InputError(f"video: {made} frames, {warm_up_frames} are warm-up; give a longer clip")
    steps = list(zip(counted, counted[1:], strict=False))
    wall_ms = [1e3 * (after[0] - before[0]) for before, after in steps]
    cpu_ms = [1e3 * (after[1] - before[1]) for before, after in steps]
    seconds = counted[-1][0] - counted[0][0]
    fps = len(steps) / seconds if seconds > 0 else None
    return Run("frames", labels, shapes[0], Samples(wall_ms, cpu_ms), fps)


def _single_stream_fps(samples: Samples) -> float | None:
    p50 = Percentiles.of(samples.wall_ms).p50
    return 1e3 / p50 if p50 > 0 else None


def _same_kind(restored: U8, image: U8) -> None:
    if restored.dtype != np.uint8 or restored.shape != image.shape:
        raise ModelError(
            f"restorer: {restored.dtype} {restored.shape} came out, not uint8 {image.shape}"
        )


def _hash_noise(shape: tuple[int, ...]) -> U8:
    """Return the same white noise each time: a flat picture could meet shortcuts."""
    index = np.arange(math.prod(shape), dtype=np.uint32)
    return (index * np.uint32(2654435761) >> np.uint32(24)).astype(np.uint8).reshape(shape)


@dataclass(frozen=True, slots=True)
class Report:
    """All runs of one measurement with the machine they ran on.

    Attributes:
        env: `fastrestore.environment.describe()`, called **before** the runs: afterwards the
            load average is the measurement's own.
        runs: In the order they were made.
        warnings: More than the environment and the runs say themselves.
    """

    env: Mapping[str, Any]
    runs: Sequence[Run]
    warnings: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; `warnings` has those of the environment and the runs as well."""
        of_runs = [text for run in self.runs for text in run.warnings()]
        return {
            "schema": SCHEMA,
            "env": dict(self.env),
            "runs": [run.to_dict() for run in self.runs],
            "warnings": [*self.env.get("warnings", ()), *of_runs, *self.warnings],
        }

    def write(self, path: Path) -> None:
        """Write the report as JSON, whole or not at all.

        Raises:
            OutputError: The file cannot be written.
        """
        text = json.dumps(self.to_dict(), indent=1) + "\n"
        part = None
        try:
            handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(part, path)
        except OSError as e:
            if part is not None:
                with suppress(OSError):
                    os.unlink(part)
            raise OutputError(f"{path}: cannot be written ({e.strerror})") from e


def load_report(path: Path) -> dict[str, Any]:
    """Read a report that `Report.write` made.

    Raises:
        InputError: Unreadable, not JSON, or not a report of this schema.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror})") from e
    except ValueError as e:
        raise InputError(f"{path}: not JSON ({e})") from e
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise InputError(f"{path}: not a bench report of schema {SCHEMA}; make it with `bench`")
    return report


@dataclass(frozen=True, slots=True)
class Row:
    """Two reports on the same thing: p50 of b over p50 of a, below 1 = b is faster.

    `low` and `high` bound the ratio with 95 %; `cpu_ratio` is the same of processor time. Fields
    that need both reports are None where one lacks the run.
    """

    run: str
    p50_a_ms: float | None
    p50_b_ms: float | None
    ratio: float | None
    low: float | None
    high: float | None
    cpu_ratio: float | None
    verdict: Verdict


def compare(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    *,
    busy_ok: bool = False,
    resamples: int = 2000,
    rng: np.random.Generator | None = None,
) -> list[Row]:
    """Compare two reports, run by run; runs of equal labels and shape are pooled.

    The interval is a circular block bootstrap (blocks of n^(1/3) calls: neighbours in time share
    the machine's mood). It covers the scatter inside the runs, not what changed between them.

    Args:
        a: A report as `load_report` returns it.
        b: Another.
        busy_ok: Compare although one was made on a busy machine.
        resamples: Bootstrap samples.
        rng: None = seed 0: the same files give the same interval.

    Raises:
        InputError: Made on a busy machine, or not reports.
    """
    for name, report in (("a", a), ("b", b)):
        _refuse_busy(name, report, busy_ok)
    rng = np.random.default_rng(0) if rng is None else rng
    of_a, of_b = _runs_by_key("a", a), _runs_by_key("b", b)
    return [
        _row(key, of_a.get(key), of_b.get(key), resamples, rng) for key in dict.fromkeys([*of_a, *of_b])
    ]
