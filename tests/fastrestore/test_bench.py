"""Timers and reports on fakes: a clock that is told the time. No speed is asserted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastrestore import bench, environment
from fastrestore.arrays import F32, U8
from fastrestore.bench import Clock, Labels, Percentiles, Report, Run, Samples, compare, time_calls
from fastrestore.errors import InputError, ModelError
from fastrestore.spec import ModelSpec

LABELS = Labels("fake", "tiny")
IDLE = {"load_average": [0.1, 0.1, 0.1], "usable_cores": 2, "warnings": ["from the environment"]}


class FakeTime:
    """Time that passes only in `work`; the processor does half of it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.calls = 0
        self.clock = Clock(lambda: self.now_s, lambda: self.now_s / 2)

    def work(self, seconds: float = 0.01) -> None:
        self.now_s += seconds
        self.calls += 1


class FakeBackend:
    """Marks the state, so that a test can see whether it is handed on."""

    name = "fake"

    def __init__(self) -> None:
        self.spec = ModelSpec("tiny", "tiny", 16, 64, 6, "free", "CC0-1.0")
        self.states: list[int] = []
        self.warm: list[tuple[int, int, int]] = []

    def run(self, frame: U8, mask: U8, state: U8, sigma: F32) -> tuple[U8, U8]:
        assert (frame.dtype, mask.dtype, sigma.dtype) == (np.uint8, np.uint8, np.float32)
        assert mask.shape == (*frame.shape[:3], 1)
        assert state.shape == (*frame.shape[:3], 4)
        assert 0 < mask.mean() < 1
        self.states.append(int(state.max()))
        return frame, np.full_like(state, 7)

    def warm_up(self, shape: tuple[int, int, int]) -> None:
        self.warm.append(shape)

    def close(self) -> None:
        """Nothing is held."""


def fixed_timer(ms: list[float]) -> Callable[[Callable[[], object]], Samples]:
    def timer(fn: Callable[[], object]) -> Samples:
        fn()
        return Samples(list(ms), [v / 2 for v in ms])

    return timer


def report(ms: list[float], **changes: Any) -> dict[str, Any]:
    run = Run("host", LABELS, (8, 8, 3), Samples(ms, [2 * v for v in ms]))
    return json.loads(Report({**IDLE, **changes}, [run]).to_json())


def test_percentiles_of_a_known_series() -> None:
    p = Percentiles.of([float(v) for v in range(101)])
    assert (p.n, p.min, p.p50, p.p90, p.p95, p.p99, p.max) == (101, 0, 50, 90, 95, 99, 100)
    assert p.mean == 50
    assert p.std == pytest.approx(np.std(range(101), ddof=1))
    assert p.cv == p.std / 50


def test_percentiles_of_one_and_of_none() -> None:
    p = Percentiles.of([4.0])
    assert (p.min, p.p99, p.std, p.cv) == (4, 4, 0, 0)
    with pytest.raises(InputError, match="no samples"):
        Percentiles.of([])


def test_time_calls_takes_the_longer_of_time_and_count() -> None:
    t = FakeTime()
    s = time_calls(t.work, warm_up_s=0.05, min_s=1.0, min_n=3, clock=t.clock)
    assert s.wall_ms == pytest.approx([10.0] * len(s.wall_ms))
    assert s.cpu_ms == pytest.approx([5.0] * len(s.wall_ms))
    assert 100 <= len(s.wall_ms) <= 101
    assert 5 <= t.calls - len(s.wall_ms) <= 6  # warm-up calls are not samples
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


def test_bench_backend_warms_up_and_runs_with_a_past() -> None:
    backend = FakeBackend()
    run = bench.bench_backend(backend, (2, 32, 48), timer=fixed_timer([2.0, 4.0]))
    assert backend.warm == [(2, 32, 48)]
    assert backend.states == [0, 7]  # the timed call gets the state that a run made
    assert (run.level, run.shape, run.labels) == ("backend", (2, 32, 48, 3), LABELS)
    assert run.fps is None  # a batch of two is no stream
    single = bench.bench_backend(backend, (1, 32, 48), timer=fixed_timer([2.0, 4.0, 5.0]))
    assert single.fps == 250


@pytest.mark.parametrize("shape", [(1, 32, 40), (1, 8, 16), (0, 32, 32)])
def test_bench_backend_refuses_a_shape_the_model_cannot_take(shape: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="multiples of 16"):
        bench.bench_backend(FakeBackend(), shape)


def test_bench_host() -> None:
    image, seen = np.zeros((6, 5, 3), np.uint8), []

    def restorer(picture: U8, mask: U8 | None) -> U8:
        seen.append(mask)
        return picture

    run = bench.bench_host(restorer, image, None, LABELS, timer=fixed_timer([8.0]))
    assert (run.level, run.shape, run.fps) == ("host", (6, 5, 3), 125)
    assert seen == [None, None]


def test_bench_host_refuses_what_is_no_picture() -> None:
    image = np.zeros((6, 5, 3), np.uint8)
    with pytest.raises(ModelError, match="float64"):
        bench.bench_host(lambda i, m: i.astype(float), image, None, LABELS)  # type: ignore[arg-type,return-value]
    with pytest.raises(ModelError, match=r"\(5, 5, 3\)"):
        bench.bench_host(lambda i, m: i[1:], image, None, LABELS)


def clip(n: int) -> Iterator[U8]:
    return (np.full((4, 6, 3), i, np.uint8) for i in range(n))


def test_bench_frames_times_the_steps_after_the_warm_up() -> None:
    t = FakeTime()

    def video(frames: Iterator[U8]) -> Iterator[U8]:
        for i, frame in enumerate(frames):
            t.work(1.0 if i < 2 else 0.02 if i % 2 else 0.06)
            yield frame

    run = bench.bench_frames(video, clip(10), LABELS, warm_up_frames=2, clock=t.clock)
    assert run.samples.wall_ms == pytest.approx([60, 20] * 4)
    assert run.samples.cpu_ms == pytest.approx([30, 10] * 4)
    assert run.fps == pytest.approx(25)  # 8 frames in 0.32 s, not 1000 / p50
    assert (run.level, run.shape) == ("frames", (4, 6, 3))


def test_bench_frames_refuses_lost_and_few_frames() -> None:
    def halved(frames: Iterator[U8]) -> Iterator[U8]:
        return (f for i, f in enumerate(frames) if i % 2)

    with pytest.raises(ModelError, match="20 frames in, 10 out"):
        bench.bench_frames(halved, clip(20), LABELS)
    with pytest.raises(InputError, match="5 are warm-up"):
        bench.bench_frames(lambda frames: frames, clip(5), LABELS)
    with pytest.raises(ModelError, match="came out"):
        bench.bench_frames(lambda frames: (f[1:] for f in frames), clip(9), LABELS)


def test_report_has_the_documented_form() -> None:
    r = report([1.0, 2.0, 3.0])
    assert list(r) == ["schema", "env", "runs", "warnings"]
    assert r["schema"] == 1
    (run,) = r["runs"]
    assert (run["level"], run["shape"], run["precision"], run["n"]) == (
        "host",
        [8, 8, 3],
        "fp32",
        3,
    )
    assert run["ms"]["p50"] == 2
    assert run["cpu_ms"]["p50"] == 4
    assert run["samples_ms"] == [1, 2, 3]
    assert "from the environment" in r["warnings"]
    assert any("unstable, cv 0.50" in w for w in r["warnings"])
    assert report([2.0, 2.0])["warnings"] == ["from the environment"]


def test_report_keeps_a_bounded_number_of_samples() -> None:
    run = Run("host", LABELS, (8, 8, 3), Samples([1.0] * 6000, [1.0] * 6000)).to_dict()
    assert run["n"] == 6000
    assert len(run["samples_ms"]) == len(run["cpu_samples_ms"]) == bench.MAX_SAMPLES


def noisy(mean_ms: float, n: int = 300, seed: int = 0) -> list[float]:
    rng = np.random.default_rng(seed)
    return [float(v) for v in mean_ms * np.exp(rng.normal(0, 0.05, n))]


quick = partial(compare, resamples=200)


def test_compare_finds_a_difference_and_its_size() -> None:
    (row,) = quick(report(noisy(10)), report(noisy(8, seed=1)))
    assert row.verdict == "b is faster"
    assert row.ratio is not None
    assert row.low is not None
    assert row.high is not None
    assert row.low < 0.8 < row.high < 1
    assert row.low < row.ratio < row.high
    assert row.high - row.low < 0.05
    assert row.cpu_ratio == pytest.approx(0.8, abs=0.02)
    (back,) = quick(report(noisy(8, seed=1)), report(noisy(10)))
    assert back.verdict == "b is slower"


def test_compare_finds_no_difference_in_the_same_thing() -> None:
    (row,) = quick(report(noisy(10)), report(noisy(10, seed=1)))
    assert row.verdict == "no difference"


def test_compare_interval_is_wider_when_neighbours_are_alike() -> None:
    rng = np.random.default_rng(3)
    independent = [float(v) for v in np.exp(rng.normal(0, 0.3, 512))]
    in_bursts = [float(v) for v in np.repeat(np.exp(rng.normal(0, 0.3, 64)), 8)]
    (a,), (b,) = quick(report([1.0]), report(independent)), quick(report([1.0]), report(in_bursts))
    assert b.high is not None
    assert b.low is not None
    assert a.high is not None
    assert a.low is not None
    assert b.high - b.low > 1.7 * (a.high - a.low)


def test_compare_is_repeatable_and_pools_equal_runs() -> None:
    a, b = report(noisy(10)), report(noisy(9, seed=1))
    assert quick(a, b) == quick(a, b)
    a["runs"].append(report([100.0] * 901)["runs"][0])
    (row,) = quick(a, b)
    assert row.p50_a_ms == 100


def test_compare_shows_runs_that_one_report_lacks() -> None:
    a, b = report(noisy(10)), report(noisy(9))
    b["runs"][0]["model"] = "nano"
    assert [(r.verdict, r.ratio) for r in quick(a, b)] == [("only in a", None), ("only in b", None)]


def test_compare_refuses_a_busy_machine_unless_told() -> None:
    busy = report(noisy(10), load_average=[1.1, 0, 0])
    for pair in ((report(noisy(10)), busy), (busy, report(noisy(10)))):
        with pytest.raises(InputError, match=r"load 1\.1 on 2 cores"):
            quick(*pair)
        assert len(quick(*pair, busy_ok=True)) == 1
    assert len(quick(report([1.0], load_average=None), report([1.0]))) == 1  # not known there


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"schema": 1, "env": {}, "runs": []},
        {"schema": 1, "env": IDLE, "runs": [{"level": "host"}]},
        {"schema": 1, "env": IDLE, "runs": 3},
        {"schema": 1, "env": [], "runs": []},
    ],
)
def test_compare_refuses_what_is_no_report(broken: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="report b: not made by"):
        quick(report([1.0]), broken)


def test_compare_refuses_other_schemas_and_impossible_times() -> None:
    with pytest.raises(InputError, match="schema 2"):
        quick({**report([1.0]), "schema": 2}, report([1.0]))
    ragged = report([1.0, 2.0])
    ragged["runs"][0]["cpu_samples_ms"].pop()
    with pytest.raises(InputError, match="not made by"):
        quick(ragged, report([1.0]))
    zero = report([1.0])
    zero["runs"][0]["samples_ms"] = [0.0]
    with pytest.raises(InputError, match="above 0 ms"):
        quick(zero, report([1.0]))


# The environment of a report, from files laid out as the kernel and git lay them out.


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor\t: 0\nmodel name\t: Fast CPU @ 3 GHz\n", "Fast CPU @ 3 GHz"),
        ("processor\t: 0\nBogoMIPS: 38\n\nHardware\t: BCM2835\nModel\t\t: Pi 5\n", "Pi 5"),
    ],
)
def test_cpu_model(tmp_path: Path, text: str, name: str) -> None:
    write(tmp_path, {"cpuinfo": text})
    assert environment.cpu_model(tmp_path) == name
    assert environment.cpu_model(tmp_path / "absent")


A, B = "a" * 40, "b" * 40


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, None),
        ({".git/HEAD": f"{A}\n"}, A),
        ({".git/HEAD": "ref: refs/heads/main\n"}, None),
        ({".git/HEAD": "ref: refs/heads/main\n", ".git/refs/heads/main": f"{A}\n"}, A),
        (
            {
                ".git/HEAD": "ref: refs/heads/main\n",
                ".git/packed-refs": f"# pack-refs\n{B} refs/heads/other\n{A} refs/heads/main\n",
            },
            A,
        ),
        (
            {  # a loose ref is newer than its packed copy
                ".git/HEAD": "ref: refs/heads/main\n",
                ".git/refs/heads/main": f"{A}\n",
                ".git/packed-refs": f"{B} refs/heads/main\n",
            },
            A,
        ),
        (
            {  # a linked work tree keeps HEAD for itself and shares the refs
                ".git": "gitdir: repo/worktrees/w\n",
                "repo/worktrees/w/HEAD": "ref: refs/heads/side\n",
                "repo/worktrees/w/commondir": "../..\n",
                "repo/refs/heads/side": f"{B}\n",
            },
            B,
        ),
        ({".git/HEAD": "garbage\n"}, None),
    ],
)
def test_commit(tmp_path: Path, files: dict[str, str], found: str | None) -> None:
    write(tmp_path, files)
    assert environment.commit(tmp_path) == found


def test_commit_of_a_surrounding_checkout_is_not_ours(tmp_path: Path) -> None:
    write(tmp_path, {".git/HEAD": f"{A}\n"})
    assert environment.commit(tmp_path / "venv") is None


def test_describe_is_plain_json_and_says_what_is_doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "usable_cores", lambda: 2)
    monkeypatch.setattr(environment, "load_average", lambda: [1.5, 1.0, 0.5])
    memory = {"total": 1, "available": 1, "limit": None, "swap_used": 7}
    monkeypatch.setattr(environment, "memory_mb", lambda: memory)
    env = json.loads(json.dumps(environment.describe()))
    assert env["packages"]["numpy"] == np.__version__
    assert set(env["packages"]) == set(environment.PACKAGES)
    assert len([w for w in env["warnings"] if "load average 1.5 on 2 cores" in w]) == 1
    assert len([w for w in env["warnings"] if "7 MB of swap" in w]) == 1
    monkeypatch.setattr(environment, "load_average", lambda: [1.0, 1.0, 1.0])
    memory["swap_used"] = 0
    assert environment.describe()["warnings"] == []


def test_load_average_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "getloadavg", raising=False)
    assert environment.load_average() is None
