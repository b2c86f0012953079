"""Timers and the report of a measurement, at three levels that are never mixed in one figure.

- `backend`: a loaded model alone, padded uint8 batch in, uint8 batch out.
- `host`: one picture through the whole restorer, host memory to host memory.
- `frames`: a stream of frames through the restorer's video call, without decoder and encoder.

Wall time says what a user waits; processor time (all threads of this process) is kept beside it:
on a busy machine the first moves by a factor of two or three, the second by a tenth. Warm-up,
least duration and percentiles are those of TensorRT's own timing tool.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from fastrestore.arrays import F64, U8
from fastrestore.backend import Backend
from fastrestore.environment import is_busy
from fastrestore.errors import InputError, ModelError

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
Times = tuple[F64, F64]  # wall and processor, ms


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
        low, p50, p90, p95, p99, high = np.percentile(x, (0, 50, 90, 95, 99, 100)).tolist()
        mean = float(x.mean())
        std = float(x.std(ddof=1)) if x.size > 1 else 0.0
        cv = std / mean if mean > 0 else 0.0
        return cls(x.size, low, p50, p90, p95, p99, high, mean, std, cv)


@dataclass(frozen=True, slots=True)
class Run:
    """One measured line; `shape` is the input's `(N, H, W, 3)`, or a picture's `(H, W, 3)`."""

    level: Level
    labels: Labels
    shape: tuple[int, ...]
    samples: Samples

    @property
    def fps(self) -> float | None:
        """Pictures a second at p50; all frames over the whole time; None for a batch."""
        x = self.samples.wall_ms
        if self.level == "frames":
            return 1e3 * len(x) / sum(x)
        return None if self.shape[:-3] not in ((), (1,)) else 1e3 / Percentiles.of(x).p50

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
    return Run("backend", labels, frame.shape, samples)


def bench_host(
    restorer: Restore, image: U8, mask: U8 | None, labels: Labels, *, timer: Timer = time_calls
) -> Run:
    """Time one picture from host memory to host memory.

    Args:
        restorer: Called as `restorer(image, mask)`, returns the restored picture.
        image: uint8 RGB `(H, W, 3)`.
        mask: uint8 `(H, W)`, 1 = hole, or None = clean the whole picture.
        labels: What runs.
        timer: As `bench_backend` takes it.

    Raises:
        ModelError: The restorer returns something else than a picture of the same size.
    """
    _expect(restorer(image, mask), image.shape, "restorer")
    return Run("host", labels, image.shape, timer(lambda: restorer(image, mask)))


def bench_frames(
    video: RestoreVideo,
    frames: Iterable[U8],
    labels: Labels,
    *,
    warm_up_frames: int = 5,
    clock: Clock | None = None,
) -> Run:
    """Time a stream: the interval from each restored frame to the next.

    The run's `fps` does not flatter bursts. Making the frames counts too: give them ready.

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
        _expect(restored, shapes[0], "video")
    made = len(at) - 1
    if made != len(shapes):
        raise ModelError(f"video: {len(shapes)} frames in, {made} out; nothing to be timed")
    if made <= warm_up_frames:
        raise InputError(f"video: {made} frames, {warm_up_frames} are warm-up; give a longer clip")
    samples = Samples(*(1e3 * np.diff(at[warm_up_frames:], axis=0)).T.tolist())
    return Run("frames", labels, shapes[0], samples)


def _expect(restored: U8, shape: tuple[int, ...], who: str) -> None:
    if restored.dtype != np.uint8 or restored.shape != shape:
        raise ModelError(f"{who}: {restored.dtype} {restored.shape} came out, not uint8 {shape}")


def _hash_noise(shape: tuple[int, ...]) -> U8:
    """Return the same white noise each time: a flat picture could meet shortcuts."""
    index = np.arange(math.prod(shape), dtype=np.uint32)
    return (index * np.uint32(2654435761) >> np.uint32(24)).astype(np.uint8).reshape(shape)


@dataclass(frozen=True, slots=True)
class Report:
    """All runs of one measurement, and the machine they ran on.

    `env` is `fastrestore.environment.describe()`, called **before** the runs: afterwards the load
    average is the measurement's own.
    """

    env: Mapping[str, Any]
    runs: Sequence[Run]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; `warnings` has those of the environment and the runs as well."""
        of_runs = []
        for run in self.runs:
            cv = Percentiles.of(run.samples.wall_ms).cv
            if cv > UNSTABLE_CV:
                size = "x".join(map(str, run.shape))
                of_runs.append(f"{run.level} {run.labels.backend} {size}: unstable, cv {cv:.2f}")
        return {
            "schema": SCHEMA,
            "env": dict(self.env),
            "runs": [run.to_dict() for run in self.runs],
            "warnings": [*self.env.get("warnings", ()), *of_runs],
        }

    def to_json(self) -> str:
        """Return the report's text."""
        return json.dumps(self.to_dict(), indent=1) + "\n"


@dataclass(frozen=True, slots=True)
class Row:
    """One run in two reports: `ratio` = p50 of b over p50 of a, below 1 = b is faster.

    `low` and `high` bound the ratio with 95 %; `cpu_ratio` is the same of processor time, None
    where the clock saw none. What needs both reports is None where one lacks the run.
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
    """Compare two reports as `Report.to_dict` makes them; equal runs of a report are pooled.

    The interval is a circular block bootstrap (blocks of n^(1/3) calls: neighbours in time share
    the machine's mood). It covers the scatter inside the runs, not what changed between them.

    Args:
        a: A report read from JSON.
        b: The report it is compared with.
        busy_ok: Compare although one was made on a busy machine.
        resamples: Bootstrap samples.
        rng: None = seed 0: the same files give the same interval.

    Raises:
        InputError: Not a report, or made on a busy machine.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    of_a, of_b = (_samples_by_run(n, r, busy_ok) for n, r in (("a", a), ("b", b)))
    runs = dict.fromkeys([*of_a, *of_b])  # the order of the reports, each run once
    p50s = partial(_resampled_p50s, resamples=resamples, rng=rng)
    return [_row(run, of_a.get(run), of_b.get(run), p50s) for run in runs]


def _samples_by_run(name: str, report: Mapping[str, Any], busy_ok: bool) -> dict[str, Times]:
    """Pool wall and processor times of a report by what was run."""
    times: dict[str, list[F64]] = {}
    try:
        schema, env = report["schema"], report["env"]
        load, cores = env["load_average"] or [0.0], env["usable_cores"]
        busy = is_busy(load[0], cores)
        for run in report["runs"]:
            labels = [run[k] for k in ("level", *Labels._fields)]
            key = " ".join([*labels, "x".join(map(str, run["shape"]))])
            both = np.array([run["samples_ms"], run["cpu_samples_ms"]], np.float64)
            times.setdefault(key, []).append(both)
    except (KeyError, TypeError, IndexError, ValueError) as e:
        raise InputError(f"report {name}: not made by `bench` ({type(e).__name__}: {e})") from e
    if schema != SCHEMA:
        raise InputError(f"report {name}: schema {schema}, this version reads {SCHEMA}")
    if busy and not busy_ok:
        raise InputError(f"report {name}: made at load {load[0]} on {cores} cores; repeat it idle")
    pooled = {key: np.concatenate(parts, axis=1) for key, parts in times.items()}
    for key, both in pooled.items():
        if both.size == 0 or not both[0].min() > 0:
            raise InputError(f"report {name}: {key}: times must be above 0 ms")
    return {key: (both[0], both[1]) for key, both in pooled.items()}


def _row(run: str, a: Times | None, b: Times | None, p50s: Callable[[F64], F64]) -> Row:
    wall_a, wall_b = (None if x is None else float(np.median(x[0])) for x in (a, b))
    if a is None or b is None or wall_a is None or wall_b is None:
        alone: Verdict = "only in b" if a is None else "only in a"
        return Row(run, wall_a, wall_b, None, None, None, None, alone)
    ratios = p50s(b[0]) / p50s(a[0])
    low, high = np.percentile(ratios, (2.5, 97.5)).tolist()
    cpu_a, cpu_b = float(np.median(a[1])), float(np.median(b[1]))
    verdict: Verdict = "b is faster" if high < 1 else "b is slower" if low > 1 else "no difference"
    cpu_ratio = cpu_b / cpu_a if cpu_a > 0 else None
    return Row(run, wall_a, wall_b, wall_b / wall_a, low, high, cpu_ratio, verdict)


def _resampled_p50s(times: F64, resamples: int, rng: np.random.Generator) -> F64:
    block = max(1, round(times.size ** (1 / 3)))
    p50s = np.empty(resamples)
    for i in range(resamples):
        starts = rng.integers(0, times.size, (-(-times.size // block), 1))
        p50s[i] = np.median(times[(starts + np.arange(block)).ravel()[: times.size] % times.size])
    return p50s
