"""Level `engine`: a backend's own call, device time by stand-ins for CUDA's events."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastrestore.arrays import F32, U8
from fastrestore.backend import Shape, find_model
from fastrestore.bench import engine, subject
from fastrestore.bench.device_time import MARKS, WORDS, CudaEvents, DeviceTimes
from fastrestore.bench.record import Labels
from fastrestore.bench.timing import Clock, Limits
from fastrestore.errors import EngineError, InputError, ModelError
from fastrestore.spec import ModelSpec

LABELS = Labels("fake", "tiny")
FEW = Limits(seconds=0, rounds=4, warm_up_s=0, min_n=4)


class FakeBackend:
    """Marks the state, so that a test can see whether it is handed on."""

    name = "fake"

    def __init__(self) -> None:
        self.spec = ModelSpec("tiny", "tiny", 16, 64, 6, "free", "CC0-1.0")
        self.states: list[int] = []
        self.warm: list[Shape] = []

    def run(self, frame: U8, mask: U8, state: U8, sigma: F32) -> tuple[U8, U8]:
        assert (frame.dtype, mask.dtype, sigma.dtype) == (np.uint8, np.uint8, np.float32)
        assert mask.shape == (*frame.shape[:3], 1)
        assert state.shape == (*frame.shape[:3], 4)
        assert 0 < mask.mean() < 1
        self.states.append(int(state.max()))
        return frame, np.full_like(state, 7)

    def warm_up(self, shape: Shape) -> None:
        self.warm.append(shape)

    def close(self) -> None:
        """Nothing is held."""


class FakeEvents:
    """A device's clock: half a millisecond from each mark to the next, the model takes 2 ms."""

    def __init__(self) -> None:
        self.at: dict[int, float] = {}
        self.is_closed = False

    def record(self, event: int, stream: int) -> None:
        assert stream == 42
        self.at[event] = (0.0, 0.5, 2.5, 3.0)[event]

    def elapsed_ms(self, first: int, last: int) -> float:
        return self.at[last] - self.at[first]

    def close(self) -> None:
        self.is_closed = True


class TimedBackend(FakeBackend):
    """Tells device time."""

    marks = MARKS

    def timed(self, shape: Shape, marks: Any) -> None:
        assert self.states, "run must come first"
        for _ in range(self.marks):
            marks.mark(42)
        marks.read()


def test_a_backend_is_warmed_up_and_runs_with_a_past() -> None:
    backend = FakeBackend()
    found = engine.subject_of(backend, (2, 32, 48), LABELS, {"model": "ab"})
    assert backend.warm == [(2, 32, 48)]
    assert backend.states == [0, 7]
    (run,) = subject.measure([found], FEW)
    assert set(backend.states[1:]) == {7}  # timed calls get the state that a run made
    assert (run.level, run.shape, run.labels) == ("engine", (2, 32, 48, 3), LABELS)
    assert (run.items, run.sha256, run.device) == (2, {"model": "ab"}, {})


@pytest.mark.parametrize("shape", [(1, 32, 40), (1, 8, 16), (0, 32, 32)])
def test_a_shape_the_model_cannot_take_is_refused(shape: Shape) -> None:
    with pytest.raises(InputError, match="multiples of 16"):
        engine.subject_of(FakeBackend(), shape, LABELS)


def test_what_returns_no_picture_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FakeBackend()
    monkeypatch.setattr(backend, "run", lambda f, m, s, g: (f[:, 1:], s))
    with pytest.raises(ModelError, match=r"fake: uint8 \(1, 31, 32, 3\) came out"):
        engine.subject_of(backend, (1, 32, 32), LABELS)


def test_device_time_is_told_in_the_words_of_tensorrt() -> None:
    events, now = FakeEvents(), [0.0]

    def clock() -> float:
        now[0] += 0.001
        return now[0]

    times = DeviceTimes(8, lambda: events, clock)
    found = engine.subject_of(TimedBackend(), (2, 32, 48), LABELS, make_times=lambda: times)
    (run,) = subject.measure([found], FEW, clock=Clock(clock, lambda: 0.0))
    p50 = {word: run.device[word].p50 for word in WORDS}
    assert p50 == pytest.approx(
        {
            "Latency": 3.0,
            "Enqueue Time": 1.0,
            "H2D Latency": 0.5,
            "GPU Compute Time": 2.0,
            "D2H Latency": 0.5,
        }
    )
    assert run.samples.wall_ms.tolist() == [2.0] * 4  # not the host's time
    assert run.rate == pytest.approx(2 * 1e3 / 3)  # all pictures over all the host's time
    assert events.is_closed
    assert run.notes == []


def test_a_gpu_that_waits_for_the_host_is_said() -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 0.004
        return now[0]

    times = DeviceTimes(8, FakeEvents, clock)
    found = engine.subject_of(TimedBackend(), (1, 32, 48), LABELS, make_times=lambda: times)
    (run,) = subject.measure([found], FEW)
    assert "the host takes longer to start the work than the GPU to do it: 4.00" in run.notes[0]


def test_a_backend_that_marks_too_little_is_a_bug() -> None:
    backend = TimedBackend()
    backend.marks = 3
    found = engine.subject_of(
        backend, (1, 32, 48), LABELS, make_times=lambda: DeviceTimes(8, FakeEvents)
    )
    with pytest.raises(EngineError, match="3 marks instead of 4"):
        found.call()


class FakeCuda:
    """The driver's calls for events, on numbers."""

    def __init__(self) -> None:
        self.code = 0
        self.alive: set[int] = set()
        self.at: dict[int, int] = {}

    def cuEventCreate(self, event: Any, flags: Any) -> int:
        assert flags.value == 0  # with a clock
        event._obj.value = 100 + len(self.alive)
        self.alive.add(event._obj.value)
        return self.code

    def cuEventRecord(self, event: Any, stream: Any) -> int:
        self.at[event.value] = stream.value
        return self.code

    def cuEventElapsedTime(self, ms: Any, first: Any, last: Any) -> int:
        ms._obj.value = self.at[last.value] - self.at[first.value]
        return self.code

    def cuEventDestroy_v2(self, event: Any) -> int:
        self.alive.remove(event.value)
        return 700


def test_events_are_the_drivers() -> None:
    cuda = FakeCuda()
    events = CudaEvents(2, cuda)
    events.record(0, 10)
    events.record(1, 25)
    assert events.elapsed_ms(0, 1) == 15
    events.close()
    events.close()
    assert cuda.alive == set()


def test_a_driver_that_refuses_is_one_line() -> None:
    cuda = FakeCuda()
    events = CudaEvents(1, cuda)
    cuda.code = 201
    with pytest.raises(EngineError, match=r"CUDA: cuEventRecord failed \(code 201\)"):
        events.record(0, 1)


# With a real model.


def test_a_model_is_loaded_once_for_all_sizes() -> None:
    loaded = engine.Engine("nano", "ort", 1)
    assert (loaded.name, loaded.precision, list(loaded.sha256)) == ("nano", "fp32", ["model"])
    for size, batch, shape in (((30, 41), 1, (1, 32, 48, 3)), ((32, 32), 2, (2, 32, 32, 3))):
        assert loaded.subject(size, batch).shape == shape
    loaded.close()


@pytest.mark.parametrize(
    ("model", "name", "attributes", "precision"),
    [
        ("nano", "ort", {}, "fp32"),
        ("nano", "triton", {}, "fp16"),
        ("nano", "openvino", {"precision": "bf16"}, "bf16"),
        ("nano", "tensorrt", {"precision": ""}, "unknown"),  # no sidecar
        ("tiny-u8", "ort", {}, "int8"),
    ],
)
def test_precision_is_what_the_convolutions_run_in(
    model: str, name: str, attributes: dict[str, Any], precision: str
) -> None:
    pytest.importorskip("onnxruntime")
    if not find_model("nano").with_stem(model).is_file():
        pytest.skip(f"{model} is not among the models here")
    backend = type("Backend", (), {"name": name, **attributes})()
    assert engine.identity(model, backend)[0] == precision


def test_engines_have_hashes_of_their_own() -> None:
    records = tuple(type("Record", (), {"engine_sha256": s})() for s in ("12", "34"))
    backend: Any = type("Backend", (), {"name": "tensorrt", "records": (*records, None)})()
    hashes = engine.identity("nano", backend)[1]
    assert (hashes["engine 1"], hashes["engine 2"]) == ("12", "34")
    assert len(hashes) == 3
