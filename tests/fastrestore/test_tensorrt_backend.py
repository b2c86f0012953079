"""Engines as a backend, on stand-ins for the driver and TensorRT; the refusals of RTX are real."""

from __future__ import annotations

import gc
import hashlib
import importlib
import importlib.util
import json
import logging
import runpy
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from fastrestore import engine_cache, engine_here
from fastrestore.arrays import F32, U8
from fastrestore.backend import (
    blank_batch,
    find_model,
    frames_of,
    open_backend,
)
from fastrestore.backends import engine_choice
from fastrestore.backends import tensorrt as module
from fastrestore.backends.engine_load import log_of
from fastrestore.backends.rtx_cache import cache_file
from fastrestore.backends.tensorrt import TensorRtBackend, layers
from fastrestore.cuda import Device
from fastrestore.engine_file import (
    DeviceRecord,
    EngineRecord,
    ModelRecord,
    Verification,
    read_record,
    write_engine,
    write_record,
)
from fastrestore.engine_record import system
from fastrestore.errors import EngineError, InputError, MissingExtraError, ModelError
from fastrestore.restore import Restorer
from fastrestore.spec import read_spec

SHARED = runpy.run_path(str(Path(__file__).with_name("stand_in.py")))
StandIn, GPU, one_line = SHARED["StandIn"], SHARED["GPU"], SHARED["one_line"]
OS, ARCH = system()
ONNX = find_model("nano").read_bytes()
SPEC = read_spec(ONNX, "nano")
SHA = hashlib.sha256(ONNX).hexdigest()
MODEL = ModelRecord("nano", SPEC.version, SHA, "free", "CC0-1.0")
VERSION = {"tensorrt": "10.3.0", "tensorrt_rtx": "1.7.1.116"}
CHANNELS = {"frame": 3, "mask": 1, "state": 4, "restored": 3, "state_out": 4}
PASSED = Verification(58.25, 3.0, 0, 4.5, 12, "ort")
Shape = tuple[int, int, int]
SMALL: tuple[Shape, Shape] = ((1, 32, 48),) * 2
RECORD = EngineRecord(
    product="tensorrt",
    product_version="10.3.0",
    os=OS,
    arch=ARCH,
    model=MODEL,
    precision="fp16",
    profile={"frame": ((1, 32, 48, 3),) * 3},
    opt_level=3,
    build_seconds=1.0,
    code_version="0.1.0",
    device=DeviceRecord(GPU.name, GPU.sm),
    verification=PASSED,
)


# TensorRT, imitated: an engine file is a magic number and JSON that says what the engine takes.


class FakeTensorRt(ModuleType):
    """A restorer that inverts the frame and counts the state up, on the stand-in's memory."""

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4)

        def __init__(self) -> None: ...

    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    DataType = SimpleNamespace(UINT8="UINT8", FLOAT="FLOAT", HALF="HALF", INT32="INT32")
    CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
    LayerInformationFormat = SimpleNamespace(JSON="json")
    faults: ClassVar[list[str]] = []

    def __init__(self, product: str, driver: Any) -> None:
        super().__init__(product)
        self.__version__ = VERSION[product]
        self.driver = driver
        self.live = 0  # engines and contexts
        self.fails: set[str] = set()
        self.executed = 0
        self.runs_wrong: Callable[[], bool] = lambda: True
        self.compiled: list[bytes] = []
        fake = self

        class Counted:
            def __init__(self) -> None:
                fake.live += 1

            def __del__(self) -> None:
                fake.live -= 1

        class Runtime:
            def __init__(self, log: Any) -> None:
                assert isinstance(log, fake.ILogger)
                self.log = log

            def deserialize_cuda_engine(self, data: bytes) -> Any:
                assert driver.stack, "no context is current"
                if "driver" in fake.fails:
                    self.log.log(
                        1, "Error Code 1: Cuda Runtime (In X (cudaError 36: API call is not))"
                    )
                    return None
                if "deserialize" in fake.fails:
                    self.log.log(
                        1, "IRuntime::deserializeCudaEngine: Error Code 1:\nVersionRead == k"
                    )
                    return None
                return Engine(json.loads(data[4:]), self.log)

        class Engine(Counted):
            def __init__(self, says: dict[str, Any], log: Any) -> None:
                super().__init__()
                self.says, self.log = says, log
                self.frames = [tuple(tuple(d) for d in f) for f in says["frames"]]
                self.num_optimization_profiles = len(self.frames)
                self.types = {**dict.fromkeys(CHANNELS, "UINT8"), "sigma": "FLOAT"}
                self.types.update(says.get("types", {}))
                if not says.get("state", True):
                    del self.types["state"], self.types["state_out"]
                self.num_io_tensors = len(self.types)

            def get_tensor_name(self, i: int) -> str:
                return list(self.types)[i]

            def get_tensor_mode(self, name: str) -> str:
                return "output" if name in ("restored", "state_out") else "input"

            def get_tensor_dtype(self, name: str) -> str:
                return str(self.types[name])

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                low, high = self.frames[0]
                is_static = len(self.frames) == 1 and low == high
                return (*low, CHANNELS[name]) if is_static else (-1, -1, -1, CHANNELS[name])

            def get_tensor_profile_shape(self, name: str, i: int) -> list[tuple[int, ...]]:
                low, high = ((*d, CHANNELS[name]) for d in self.frames[i])
                return [low, low, high]

            def create_execution_context(self, config: Any = None) -> Any:
                if "context" in fake.fails:
                    self.log.log(1, "[defaultAllocator.cpp] Requested 1 GB, out of memory")
                    return None
                return Context(self, config)

            def create_runtime_config(self) -> Any:
                return Config()

            def create_engine_inspector(self) -> Any:
                text = self.says.get("layers", "")
                return SimpleNamespace(get_engine_information=lambda _: text)

        class Config:
            cuda_graph_strategy = "off"

            def create_runtime_cache(self) -> Any:
                return Cache()

            def set_runtime_cache(self, cache: Any) -> bool:
                self.cache = cache
                return True

        class Cache:
            data = b""

            def deserialize(self, data: bytes) -> bool:
                if data.startswith(b"bad"):
                    return False
                self.data = data
                return True

            def serialize(self) -> bytes:
                return self.data

        class Context(Counted):
            def __init__(self, engine: Engine, config: Any) -> None:
                super().__init__()
                self.engine, self.config = engine, config
                self.profile = 0
                self.shapes: dict[str, tuple[int, ...]] = {}
                self.addresses: dict[str, int] = {}

            def __del__(self) -> None:
                super().__del__()
                if not set(self.addresses.values()) <= set(driver.bytes):
                    fake.faults.append("a context outlives the memory that it was told of")

            def set_optimization_profile_async(self, i: int, stream: int) -> bool:
                assert stream in driver.live
                self.profile, self.shapes = i, {}
                return "profile" not in fake.fails

            def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
                low, high = self.engine.frames[self.profile]
                self.shapes[name] = shape
                known = all(a <= n <= b for a, n, b in zip(low, shape, high, strict=False))
                return known and "shape" not in fake.fails

            def set_tensor_address(self, name: str, pointer: int) -> bool:
                assert pointer in driver.bytes
                self.addresses[name] = pointer
                return "address" not in fake.fails

            def execute_async_v3(self, stream: int) -> bool:
                assert driver.stack, "no context is current"
                assert stream in driver.live
                if "execute" in fake.fails:
                    self.engine.log.log(1, "Error Code 1: Cask\n(shader failed)")
                    return False
                assert set(self.addresses) == set(self.engine.types)
                fake.executed += 1
                if self.config is not None:
                    self.config.cache.data = b"kernels of " + str(self.shapes["frame"]).encode()
                shapes = dict(self.shapes)
                driver.enqueue(stream, lambda: self.compute(shapes))
                return True

            def view(self, name: str, shape: tuple[int, ...], dtype: Any = np.uint8) -> Any:
                size = int(np.prod(shape)) * np.dtype(dtype).itemsize
                return driver.bytes[self.addresses[name]][:size].view(dtype).reshape(shape)

            def compute(self, shapes: dict[str, tuple[int, ...]]) -> None:
                frame = self.view("frame", shapes["frame"])
                kind = np.float16 if self.engine.types["sigma"] == "HALF" else np.float32
                sigma = self.view("sigma", shapes["sigma"], kind)
                mask = self.view("mask", shapes["mask"])
                shift = sigma.astype(np.uint8)[:, None, None, None] + mask
                self.view("restored", frame.shape)[:] = 255 - frame + shift
                if "state" in shapes:
                    state = self.view("state", shapes["state"])
                    self.view("state_out", state.shape)[:] = state + np.uint8(1)

        self.Runtime = Runtime


def wanted(frame: U8, mask: U8, state: U8, sigma: F32) -> tuple[U8, U8]:
    """What the imitated restorer gives."""
    shift = sigma.astype(np.uint8)[:, None, None, None] + mask
    return 255 - frame + shift, state + np.uint8(1)


def data_of(product: str = "tensorrt", *frames: Any, **says: Any) -> bytes:
    text = json.dumps({"frames": frames or [SMALL], **says}).encode()
    magic = {"tensorrt": b"ftrt", "tensorrt_rtx": b"vtrt"}[product]
    return magic + text


Batch = tuple[U8, U8, U8, F32]


def batch(shape: Shape = (1, 32, 48), seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    frame, mask, state = (rng.integers(0, 256, (*shape, c), np.uint8) for c in (3, 1, 4))
    return frame, mask, state, rng.integers(0, 50, shape[0]).astype(np.float32)


def same(a: tuple[U8, U8], b: tuple[U8, U8]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def refusal(kind: type[Exception], words: str, call: Callable[[], object]) -> str:
    with pytest.raises(kind, match=words) as e:
        call()
    assert str(e.value).isprintable()
    return str(e.value)


@pytest.fixture
def driver() -> Any:
    return StandIn(GPU)


@pytest.fixture(autouse=True)
def trt(monkeypatch: pytest.MonkeyPatch, driver: Any, tmp_path: Path) -> Iterator[FakeTensorRt]:
    """TensorRT 10.3 and TensorRT-RTX as installed, a device, an empty cache."""
    monkeypatch.setenv("FASTRESTORE_CACHE", str(tmp_path / "cache"))
    fake = FakeTensorRt("tensorrt", driver)
    for name in VERSION:
        monkeypatch.setitem(sys.modules, name, fake)
    for place in (module, engine_here, engine_choice):
        monkeypatch.setattr(place, "product_version", lambda product: VERSION[product])
    cuda: Any = sys.modules["fastrestore.cuda"]
    monkeypatch.setattr(cuda, "open_driver", lambda: driver)
    FakeTensorRt.faults.clear()
    yield fake
    gc.collect()
    assert FakeTensorRt.faults == []


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "engines" / "nano.engine"


def write(path: Path, data: bytes | None = None, record: EngineRecord = RECORD) -> Path:
    write_engine(path, data_of() if data is None else data, record)
    return path


def opened(path: Path, driver: Any, **more: Any) -> TensorRtBackend:
    return TensorRtBackend(path, SPEC, SHA, driver=driver, **more)


def dynamic(*frames: tuple[Shape, Shape]) -> EngineRecord:
    low, high = frames[0]
    return replace(RECORD, profile={"frame": ((*low, 3), (*low, 3), (*high, 3))})


# What runs.


@pytest.mark.parametrize("has_graphs", [True, False])
@pytest.mark.parametrize("integrated", [True, False])
def test_frames_go_through_the_engine(
    place: Path, trt: FakeTensorRt, has_graphs: bool, integrated: bool
) -> None:
    device = Device(0, GPU.name, GPU.sm, integrated, 1 << 30)
    driver = trt.driver = StandIn(device, has_graphs=has_graphs)
    fake = FakeTensorRt("tensorrt", driver)
    sys.modules["tensorrt"] = fake
    backend = opened(write(place), driver)
    assert (backend.name, backend.precision, backend.spec) == ("tensorrt", "fp16", SPEC)
    assert frames_of(backend) == (SMALL,)
    for seed in range(5):
        given = batch(seed=seed)
        copies = [a.copy() for a in given]
        assert same(backend.run(*given), wanted(*given))
        assert all(np.array_equal(a, b) for a, b in zip(given, copies, strict=True))
    assert fake.executed == (2 if has_graphs else 5)  # warm-up and capture, then replays
    assert driver.calls["launch"] == (4 if has_graphs else 0)
    backend.close()
    backend.close()
    gc.collect()
    assert (driver.live, fake.live) == ({}, 0)


def test_earlier_results_are_left_alone(place: Path, driver: Any) -> None:
    backend = opened(write(place), driver)
    results = [backend.run(*batch(seed=i)) for i in range(4)]
    assert all(same(r, wanted(*batch(seed=i))) for i, r in enumerate(results))


def test_any_memory_layout_will_do(place: Path, driver: Any) -> None:
    backend = opened(write(place), driver)
    other: Any = [np.asfortranarray(a) for a in batch()]
    assert same(backend.run(*other), wanted(*batch()))


def test_what_a_frame_does(place: Path, driver: Any) -> None:
    """Copies overlap: an input goes up while the next is written, the state comes down first."""
    backend = opened(write(place), driver)
    backend.warm_up((1, 32, 48))
    driver.log = []
    backend.run(*batch())
    up = ["upload"] * 4
    down = ["download", "record", "download", "synchronize_event", "synchronize"]
    assert driver.log == ["push", *up, "launch", *down, "pop"]


class Marks:
    """Writes into the driver's log what is marked."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def mark(self, stream: int) -> None:
        assert self.driver.live[stream] == "stream"
        self.driver.log.append("mark")

    def read(self) -> None:
        assert self.driver.stack, "no context is current"
        self.driver.log.append("read")


@pytest.mark.parametrize("mapped", [False, True])
def test_what_is_timed_goes_one_step_after_the_other(
    place: Path, driver: Any, mapped: bool
) -> None:
    backend = opened(write(place), driver, mapped=mapped)
    given = batch()
    for _ in range(2):
        backend.run(*given)
    driver.log = []
    backend.timed((1, 32, 48), Marks(driver))
    up, down = ([], []) if mapped else (["upload"] * 4, ["download"] * 2)
    steps = ["mark", *up, "mark", "launch", "mark", *down, "mark", "synchronize", "read"]
    assert driver.log == ["push", *steps, "pop"]
    assert same(backend.run(*given), wanted(*given))
    (record,) = backend.records
    assert record is not None
    assert (record.precision, len(record.engine_sha256)) == ("fp16", 64)
    with pytest.raises(EngineError, match="its engines take frames of"):
        backend.timed((1, 16, 16), Marks(driver))
    backend.close()
    with pytest.raises(EngineError, match="the backend is closed"):
        backend.timed((1, 32, 48), Marks(driver))


def test_on_shared_memory_nothing_is_copied(place: Path, driver: Any) -> None:
    backend = opened(write(place), driver, mapped=True)
    backend.warm_up((1, 32, 48))
    driver.log = []
    assert same(backend.run(*batch()), wanted(*batch()))
    assert driver.log == ["push", "launch", "synchronize", "pop"]
    assert driver.calls["allocate"] == 0


def test_the_state_is_out_before_the_picture_has_arrived(
    place: Path, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened(write(place), driver)
    queued: list[int] = []
    plain = driver.synchronize_event

    def watch(event: int) -> None:
        plain(event)
        queued.extend(len(q) for q in driver.queues.values())

    monkeypatch.setattr(driver, "synchronize_event", watch)
    backend.run(*batch())
    assert queued == [1]  # the copy of `restored`


def test_a_model_for_stills_gives_an_empty_state(place: Path, driver: Any) -> None:
    backend = opened(write(place, data_of(state=False)), driver)
    given = batch()
    for _ in range(3):
        restored, state = backend.run(*given)
        assert np.array_equal(restored, wanted(*given)[0])
        assert state.shape == given[2].shape
        assert not state.any()


def test_half_precision_noise_levels_are_converted(place: Path, driver: Any) -> None:
    backend = opened(write(place, data_of(types={"sigma": "HALF"})), driver)
    assert same(backend.run(*batch()), wanted(*batch()))


def test_a_dynamic_engine_takes_what_lies_between(place: Path, driver: Any, trt: Any) -> None:
    frames = ((1, 16, 16), (4, 64, 96))
    backend = opened(write(place, data_of("tensorrt", frames), dynamic(frames)), driver)
    before = dict(driver.calls)
    for shape in [(1, 16, 16), (4, 64, 96), (2, 32, 48), (2, 32, 48), (2, 32, 48), (1, 16, 16)]:
        assert same(backend.run(*batch(shape)), wanted(*batch(shape)))
    for call in ("allocate", "allocate_host", "make_stream", "make_event"):
        assert driver.calls[call] == before[call]  # the largest frame's memory serves all
    assert trt.executed == 5  # four plainly, one captured and replayed twice
    assert driver.calls["destroy_graph"] == 1
    assert driver.count_live("context 0") == len([*CHANNELS, "sigma"]) * 2 + 2
    backend.close()
    assert driver.live == {}


def test_several_profiles_of_one_engine(place: Path, driver: Any) -> None:
    a, b = ((1, 16, 16),) * 2, ((1, 32, 48), (1, 48, 64))
    backend = opened(write(place, data_of("tensorrt", a, b), dynamic(b)), driver)
    assert backend.frames == (a, b)
    for shape in [(1, 48, 48), (1, 16, 16), (1, 16, 16), (1, 16, 16), (1, 32, 48)]:
        assert same(backend.run(*batch(shape)), wanted(*batch(shape)))


def test_several_engines_each_take_their_sizes(tmp_path: Path, driver: Any) -> None:
    sizes = [((1, 32, 48),) * 2, ((1, 64, 64),) * 2]
    paths = [
        write(tmp_path / "e" / f"{i}.engine", data_of("tensorrt", f), dynamic(f))
        for i, f in enumerate(sizes)
    ]
    backend = TensorRtBackend(paths, SPEC, SHA, driver=driver)
    assert backend.frames == tuple(sizes)
    for shape in [(1, 64, 64), (1, 32, 48), (1, 64, 64)]:
        assert same(backend.run(*batch(shape)), wanted(*batch(shape)))
    backend.close()
    assert driver.live == {}


def test_ten_thousand_frames_allocate_nothing(place: Path, driver: Any, trt: Any) -> None:
    frames = ((1, 16, 16),) * 2
    backend = opened(write(place, data_of("tensorrt", frames), dynamic(frames)), driver)
    given = batch((1, 16, 16))
    for _ in range(10):
        frame, state = backend.run(*given)
    gc.collect()
    live, calls, blocks = dict(driver.live), dict(driver.calls), sys.getallocatedblocks()
    for _ in range(10_000):
        frame, state = backend.run(frame, given[1], state, given[3])
    gc.collect()
    assert driver.live == live
    made = {n for n in driver.calls if driver.calls[n] != calls.get(n, 0)}
    assert not {n for n in made if n.startswith(("allocate", "make", "end", "free", "destroy"))}
    assert sys.getallocatedblocks() - blocks < 500
    assert trt.live == 2
    backend.close()
    assert driver.live == {}


# Several threads.


@pytest.mark.parametrize("streams", [1, 3])
def test_threads_get_their_own_results(place: Path, driver: Any, streams: int) -> None:
    backend = opened(write(place), driver, streams=streams)
    assert sum(kind == "stream" for kind in driver.live.values()) == streams
    found: dict[int, list[tuple[U8, U8]]] = {i: [] for i in range(6)}
    start = threading.Barrier(len(found))

    def work(i: int) -> None:
        start.wait()
        for _ in range(8):
            found[i].append(backend.run(*batch(seed=i)))

    threads = [threading.Thread(target=work, args=(i,)) for i in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for i, results in found.items():
        assert len(results) == 8
        assert all(same(r, wanted(*batch(seed=i))) for r in results)
    backend.close()
    assert driver.live == {}


def test_two_streams_run_at_the_same_time(
    place: Path, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened(write(place), driver, streams=2)
    both, plain = threading.Barrier(2, timeout=10), driver.synchronize

    def meet(stream: int) -> None:
        both.wait()
        plain(stream)

    monkeypatch.setattr(driver, "synchronize", meet)
    threads = [threading.Thread(target=backend.run, args=batch()) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not both.broken


def test_close_waits_for_who_is_running_and_turns_away_who_waits(
    place: Path, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened(write(place), driver)
    inside, go_on, plain = threading.Event(), threading.Event(), driver.synchronize
    outcomes: list[object] = []

    def slow(stream: int) -> None:
        inside.set()
        assert go_on.wait(10)
        plain(stream)

    def call() -> None:
        try:
            outcomes.append(same(backend.run(*batch()), wanted(*batch())))
        except EngineError as e:
            outcomes.append(str(e))

    monkeypatch.setattr(driver, "synchronize", slow)
    callers = [threading.Thread(target=call) for _ in range(3)]
    callers[0].start()
    assert inside.wait(10)
    for caller in callers[1:]:
        caller.start()
    closer = threading.Thread(target=backend.close)
    closer.start()
    closer.join(0.05)
    assert closer.is_alive()
    go_on.set()
    for thread in (*callers, closer):
        thread.join(10)
    assert True in outcomes
    assert driver.live == {}
    refused = [o for o in outcomes if isinstance(o, str)]
    assert all(o.endswith("the backend is closed; open it again") for o in refused)


def test_who_comes_to_a_pool_as_it_closes_does_not_wait_for_ever(place: Path, driver: Any) -> None:
    backend = opened(write(place), driver, streams=2)
    (pool,) = backend._pools
    backend.close()
    refused = threading.Event()

    def call() -> None:
        with pytest.raises(EngineError, match="the backend is closed"):
            pool.run(*batch())
        refused.set()

    threading.Thread(target=call, daemon=True).start()
    assert refused.wait(5)


# What goes wrong.


def attempt(path: Path, driver: Any) -> str:
    """Load, run three frames and close; return what went wrong, in one line."""
    try:
        backend = opened(path, driver)
    except EngineError as e:
        return str(one_line(e))
    try:
        for _ in range(3):
            backend.run(*batch())
    except EngineError as e:
        return str(one_line(e))
    finally:
        backend.close()
    return ""


def test_every_call_that_can_fail_leaves_nothing_behind(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first, the second, the third ... call of the driver fails, until none is left to fail."""
    write(place)
    failures, n_calls = [], 0
    gc.collect()
    gc.freeze()  # or each collection below looks at all of pytest
    try:
        while not failures or n_calls >= len(failures):
            driver = StandIn(GPU)
            fake = FakeTensorRt("tensorrt", driver)
            monkeypatch.setitem(sys.modules, "tensorrt", fake)
            driver.fail_at = len(failures) + 1
            failures.append(attempt(place, driver))
            gc.collect()
            left = driver.live, driver.stack, fake.live
            assert left == ({}, [], 0), f"call {len(failures)}"
            n_calls = driver.n
    finally:
        gc.unfreeze()
    assert failures[-1] == ""  # there was no such call
    seen = [text for text in failures if text]
    assert len(seen) > 50
    assert all(text.startswith("CUDA: ") for text in seen)


@pytest.mark.parametrize("moment", ["first", "captured"])
def test_an_engine_that_refuses_to_run_is_one_line(
    place: Path, driver: Any, trt: FakeTensorRt, moment: str
) -> None:
    backend = opened(write(place), driver)
    if moment == "captured":
        backend.run(*batch())
    trt.fails = {"execute"}
    words = (
        r"nano.engine: cannot be run by TensorRT 10.3.0 \(Error Code 1: Cask \(shader failed\)\); "
    )
    one_line_of(words, lambda: backend.run(*batch()))
    assert driver.count_live("context 0") == 0  # its lane went
    trt.fails = set()
    assert same(backend.run(*batch()), wanted(*batch()))  # and came back
    backend.close()
    assert driver.live == {}


def one_line_of(words: str, call: Callable[[], object]) -> str:
    with pytest.raises(EngineError, match=words) as e:
        call()
    return str(one_line(e.value))


@pytest.mark.parametrize(
    ("fails", "words"),
    [
        (
            "deserialize",
            r"cannot be loaded by TensorRT 10.3.0 \(the engine was built by another ver",
        ),
        (
            "driver",
            r"TensorRT 10.3.0 \(CUDA error 36: API call is not\); `fastrestore doctor` looks",
        ),
        ("context", r"gets no execution context from TensorRT 10.3.0 \(out of GPU memory\); close"),
        ("shape", r"48x32 px, batch of 1: frame is refused by TensorRT"),
        ("address", r"48x32 px, batch of 1: the memory of \w+ is refused by TensorRT"),
    ],
)
def test_what_the_runtime_refuses_is_one_line(
    place: Path, driver: Any, trt: FakeTensorRt, fails: str, words: str
) -> None:
    trt.fails = {fails}
    write(place)

    def attempt() -> None:
        backend = opened(place, driver)
        try:
            backend.run(*batch())
        finally:
            backend.close()

    text = one_line_of(words, attempt)
    assert str(place) in text
    gc.collect()
    assert (driver.live, trt.live) == ({}, 0)


def test_a_refused_profile_is_one_line(place: Path, driver: Any, trt: FakeTensorRt) -> None:
    a, b = ((1, 16, 16),) * 2, ((1, 32, 48),) * 2
    backend = opened(write(place, data_of("tensorrt", a, b), dynamic(b)), driver)
    trt.fails = {"profile"}
    one_line_of("48x32 px, batch of 1: profile 1 is refused by", lambda: backend.run(*batch()))


def test_what_cannot_be_captured_runs_plainly_and_says_so(
    place: Path, driver: Any, trt: FakeTensorRt, caplog: pytest.LogCaptureFixture
) -> None:
    backend = opened(write(place), driver)
    driver.broken = {"end_capture"}
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            assert same(backend.run(*batch()), wanted(*batch()))
    (record,) = caplog.records
    assert record.getMessage().endswith("it runs without a CUDA graph")
    assert driver.calls["launch"] == 0
    assert trt.executed == 5


def test_a_device_that_is_gone_is_one_line_and_close_still_frees(
    place: Path, driver: Any, trt: FakeTensorRt, caplog: pytest.LogCaptureFixture
) -> None:
    backend = opened(write(place), driver)
    backend.run(*batch())
    driver.is_gone = True
    for _ in range(2):
        one_line_of("^CUDA: push failed", lambda: backend.run(*batch()))
    with caplog.at_level(logging.WARNING):
        backend.close()
    assert any("failed" in r.getMessage() for r in caplog.records)
    gc.collect()
    assert (driver.live, trt.live) == ({}, 0)


def test_an_interrupt_in_the_middle_of_a_frame_closes_the_lane(
    place: Path, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened(write(place), driver)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(driver, "synchronize_event", interrupt)
        with pytest.raises(KeyboardInterrupt):
            backend.run(*batch())
    assert driver.count_live("context 0") == 0
    assert same(backend.run(*batch()), wanted(*batch()))


def test_run_after_close_says_so(place: Path, driver: Any) -> None:
    backend = opened(write(place), driver)
    backend.close()
    one_line_of("^nano: the backend is closed; open it again$", lambda: backend.run(*batch()))
    backend.close()


def test_other_sizes_name_those_there_are_and_the_command(place: Path, driver: Any) -> None:
    backend = opened(write(place), driver)
    words = (
        "^nano: its engines take frames of 1x32x48, not 1x64x96; "
        "`fastrestore build-engine nano --target tensorrt --for 96x64`$"
    )
    one_line_of(words, lambda: backend.run(*blank_batch((1, 64, 96))))
    one_line_of("--for 48x32 --batch 2`$", lambda: backend.run(*blank_batch((2, 32, 48))))


def test_other_sizes_of_a_model_of_ones_own_name_its_file(place: Path, driver: Any) -> None:
    """The shipped model of the same name is another one."""
    own = replace(RECORD, model=replace(MODEL, sha256="a" * 64))
    for model, told in (("my own.onnx", "'my own.onnx'"), (None, "FILE.onnx")):
        backend = TensorRtBackend(
            write(place, record=own), SPEC, "a" * 64, model=model, driver=driver
        )
        words = rf"`fastrestore build-engine {told} --target tensorrt --for 96x64`$"
        one_line_of(words, lambda backend=backend: backend.run(*blank_batch((1, 64, 96))))
        backend.close()


def test_arrays_that_are_not_the_protocols_are_refused(place: Path, driver: Any) -> None:
    backend = opened(write(place), driver)
    frame, mask, state, sigma = batch()
    cases: list[tuple[Any, str]] = [
        ((frame[0], mask, state, sigma), "frame must be"),
        ((frame[:, :12], mask, state, sigma), "frame must be .* multiples of 8, got"),
        ((frame.astype(np.float32), mask, state, sigma), "frame must be uint8"),
        ((frame, mask[..., 0], state, sigma), r"mask must be uint8 \(1, 32, 48, 1\)"),
        ((frame, mask, state[..., :3], sigma), r"state must be uint8 \(1, 32, 48, 4\)"),
        ((frame, mask, state, sigma[:0]), r"sigma must be float32 \(1,\)"),
    ]
    driver.log = []
    for arrays, words in cases:
        refusal(InputError, f"^nano: {words}", lambda a=arrays: backend.run(*a))  # type: ignore[misc]
    assert driver.log == []


@pytest.mark.parametrize(
    ("says", "kind", "words"),
    [
        (
            {"types": {"sigma": "INT32"}},
            EngineError,
            "sigma is INT32, no restorer's; `fastrestore b",
        ),
        ({"types": {"mask": "FLOAT"}}, EngineError, "mask is FLOAT, no restorer's; `fastrestore b"),
        ({"types": {"damage": "UINT8"}}, ModelError, "are not those of a restorer"),
    ],
)
def test_engines_that_are_no_restorers(
    place: Path, driver: Any, trt: Any, says: Any, kind: Any, words: str
) -> None:
    write(place, data_of(**says))
    refusal(kind, words, lambda: opened(place, driver))
    gc.collect()
    assert (driver.live, trt.live) == ({}, 0)


# What is looked at before anything native.


@pytest.fixture
def nothing_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither CUDA nor a runtime may be touched."""

    def fail(*_: Any, **__: Any) -> Any:
        pytest.fail("native code was loaded")

    monkeypatch.setattr(sys.modules["fastrestore.cuda"], "open_driver", fail)
    monkeypatch.setattr("fastrestore.backends.engine_load.import_product", fail)


@pytest.mark.usefixtures("nothing_native")
def test_what_is_wrong_with_the_file_is_said_before_anything_is_loaded(place: Path) -> None:
    def attempt() -> object:
        return TensorRtBackend(place, SPEC, SHA, product="tensorrt")

    one_line_of("no such engine", attempt)
    write(place, record=replace(RECORD, product_version="10.9.0"))
    one_line_of("was built by TensorRT 10.9.0, here runs 10.3.0", attempt)
    write(place, record=replace(RECORD, model=replace(MODEL, sha256="a" * 64)))
    one_line_of("was built from another model", attempt)
    write(place)
    place.write_bytes(place.read_bytes()[:-1])
    one_line_of("cut short", attempt)
    place.write_bytes(b"")
    one_line_of("is empty", attempt)


def test_an_engine_for_another_gpu_never_reaches_the_runtime(
    place: Path, trt: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastrestore.backends.engine_load.import_product", pytest.fail)
    other = StandIn(Device(0, "Orin", "8.7", True, 1 << 30))
    words = (
        r"was built for Stand-in \(8.9\), this is Orin \(8.7\); `fastrestore build-engine nano --re"
    )
    one_line_of(words, lambda: opened(write(place), other))
    assert other.live == {}


def test_the_version_that_is_imported_counts(
    place: Path, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second TensorRT may lie before the one that pip knows of."""
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "10.9.0")
    words = "was built by TensorRT 10.3.0, here runs 10.9.0; `fastrestore build-engine nano"
    one_line_of(words, lambda: opened(write(place), driver))
    assert driver.live == {}


def test_the_device_can_be_chosen(place: Path) -> None:
    first = Device(0, "Other", "7.5", False, 1 << 30)
    second = replace(GPU, index=1)
    driver = StandIn(first, second)
    fake = sys.modules["tensorrt"] = FakeTensorRt("tensorrt", driver)
    backend = opened(write(place), driver, device=1)
    assert "context 1" in driver.live.values()
    assert same(backend.run(*batch()), wanted(*batch()))
    backend.close()
    one_line_of("was built for Stand-in", lambda: opened(place, driver, device=0))
    one_line_of("^device 2: devices 0 to 1 are visible", lambda: opened(place, driver, device=2))
    gc.collect()
    assert (driver.live, fake.live) == ({}, 0)


def test_engines_from_elsewhere_must_be_trusted(place: Path, driver: Any) -> None:
    place.parent.mkdir(mode=0o700)
    place.write_bytes(data_of())
    place.chmod(0o600)
    one_line_of("comes from elsewhere; .* add --trust-engine", lambda: opened(place, driver))
    backend = opened(place, driver, trust=True)
    assert (backend.name, backend.precision) == ("tensorrt", "")
    assert same(backend.run(*batch()), wanted(*batch()))


@pytest.mark.parametrize("gone", ["tensorrt", "tensorrt_rtx"])
def test_a_missing_runtime_names_its_extra(
    place: Path, driver: Any, gone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, gone, None)
    extra = "rtx" if gone == "tensorrt_rtx" else "tensorrt"
    record = replace(RECORD, product=gone, product_version=VERSION[gone])
    write(place, data_of(gone), record)
    refusal(
        MissingExtraError, rf"pip install 'fastrestore\[{extra}\]'$", lambda: opened(place, driver)
    )
    assert driver.live == {}


def test_a_runtime_without_its_libraries_says_which(
    place: Path, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> Any:
        raise ImportError("libnvinfer.so.10: cannot open shared object file: No such file")

    write(place)
    monkeypatch.setattr("fastrestore.errors.importlib", SimpleNamespace(import_module=fail))
    words = (
        r"^TensorRT: is installed but cannot be loaded \(libnvinfer.so.10: .*; `fastrestore doctor"
    )
    one_line_of(words, lambda: opened(place, driver))
    assert driver.live == {}


# Verification.


def gate(monkeypatch: pytest.MonkeyPatch, run: Callable[[Path], Any]) -> None:
    fake: Any = SimpleNamespace(verify_engine=lambda path, model, device, trust: run(path))
    monkeypatch.setitem(sys.modules, "fastrestore.export.gate", fake)


def test_the_first_load_verifies(place: Path, driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write(place, record=replace(RECORD, verification=None))
    seen = []

    def verify(path: Path) -> None:
        seen.append(path)
        with_gate = TensorRtBackend(path, driver=driver)  # as the gate itself loads it
        with_gate.run(*batch())
        with_gate.close()
        write_record(path, replace(read_record(path), verification=PASSED))

    gate(monkeypatch, verify)
    for _ in range(2):
        backend = opened(place, driver, verify=True)
        assert same(backend.run(*batch()), wanted(*batch()))
        backend.close()
    assert seen == [place]
    assert read_record(place).verification == PASSED


def test_an_engine_that_fails_the_gate_is_not_loaded(
    place: Path, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise EngineError(f"{path}: refused, 22 dB from FP32")

    gate(monkeypatch, refuse)
    write(place, record=replace(RECORD, verification=None))
    one_line_of("refused, 22 dB", lambda: opened(place, driver, verify=True))
    assert driver.live == {}


def test_where_nothing_can_verify_the_package_is_named(
    place: Path, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "fastrestore.export.gate", raising=False)
    for name in [m for m in sys.modules if m.startswith("fastrestore.export")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    write(place, record=replace(RECORD, verification=None))
    words = r"nano.engine: is not verified, and cannot be here: onnx is not installed: pip install"
    refusal(MissingExtraError, words, lambda: opened(place, driver, verify=True))
    assert driver.live == {}


# TensorRT-RTX.


RTX_RECORD = replace(
    RECORD,
    product="tensorrt_rtx",
    product_version="1.7.1.116",
    device=None,
    compute_capabilities=("8.0+",),
)


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch, driver: Any, place: Path) -> FakeTensorRt:
    fake = FakeTensorRt("tensorrt_rtx", driver)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake)
    write(place, data_of("tensorrt_rtx"), RTX_RECORD)
    return fake


def test_rtx_captures_by_itself_and_keeps_what_it_compiled(
    place: Path, driver: Any, rtx: FakeTensorRt
) -> None:
    backend = opened(place, driver)
    assert backend.name == "rtx"
    kept = cache_file(data_of("tensorrt_rtx"), "Stand-in 8.9 1.7.1.116")
    assert not kept.exists()
    for _ in range(3):
        assert same(backend.run(*batch()), wanted(*batch()))
    assert driver.calls["begin_capture"] == 0
    assert kept.read_bytes() == b"kernels of (1, 32, 48, 3)"
    assert kept.stat().st_mode & 0o777 == 0o600
    stamp = kept.stat().st_mtime_ns
    backend.close()
    again = opened(place, driver)
    again.run(*batch())
    again.close()
    assert kept.stat().st_mtime_ns == stamp  # nothing new, nothing written
    gc.collect()
    assert (driver.live, rtx.live) == ({}, 0)


def test_a_cache_of_another_driver_is_made_anew(
    place: Path, driver: Any, rtx: FakeTensorRt
) -> None:
    kept = cache_file(data_of("tensorrt_rtx"), "Stand-in 8.9 1.7.1.116")
    kept.write_bytes(b"bad: from another driver")
    kept.chmod(0o600)
    backend = opened(place, driver)
    assert same(backend.run(*batch()), wanted(*batch()))
    assert kept.read_bytes().startswith(b"kernels of")


@pytest.mark.parametrize("wrong", ["link", "writable", "no folder"])
def test_a_cache_in_other_hands_is_not_read(
    place: Path, driver: Any, rtx: FakeTensorRt, wrong: str, caplog: Any, tmp_path: Path
) -> None:
    kept = cache_file(data_of("tensorrt_rtx"), "Stand-in 8.9 1.7.1.116")
    kept.write_bytes(b"not ours")
    if wrong == "link":
        kept.rename(tmp_path / "elsewhere")
        kept.symlink_to(tmp_path / "elsewhere")
    elif wrong == "writable":
        kept.chmod(0o666)
    else:
        kept.unlink()
        kept.parent.rmdir()
        kept.parent.write_text("a file")
    with caplog.at_level(logging.WARNING):
        backend = opened(place, driver)
        assert same(backend.run(*batch()), wanted(*batch()))
        backend.close()
    assert all("kernels are compiled anew each time" in r.getMessage() for r in caplog.records)
    assert len(caplog.records) == 1


def test_layers_are_told(place: Path, driver: Any, trt: Any) -> None:
    told = ["conv1 + relu", {"Name": "conv2"}]
    write(place, data_of(layers=json.dumps({"Layers": told, "Bindings": []})))
    assert layers(place, driver=driver) == told
    write(place, data_of(layers="nothing"))
    one_line_of("no layers are told by TensorRT 10.3.0", lambda: layers(place, driver=driver))
    gc.collect()
    assert (driver.live, trt.live) == ({}, 0)


# Choosing.


def built(tmp_path: Path, record: EngineRecord = RECORD, **says: Any) -> Path:
    """Write an engine into the cache."""
    frame = record.profile["frame"]
    frames = [frame[0][:3], frame[2][:3]]
    data = data_of(record.product, frames, **says)
    path = engine_cache.engine_path(record)
    write_engine(path, data, record)
    return path


def test_auto_takes_a_verified_engine_that_fits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = built(tmp_path)
    with caplog.at_level(logging.INFO, "fastrestore"):
        backend = open_backend("nano")
    assert backend.name == "tensorrt"
    assert f"nano runs on tensorrt: {path.name}" in caplog.text
    backend.close()


AUTO: dict[str, tuple[dict[str, Any], str]] = {
    "unverified": ({"verification": None}, "no engine of it was built here"),
    "other model": ({"model": replace(MODEL, sha256="a" * 64)}, "no engine of it was built here"),
    "other version": ({"product_version": "10.9.0"}, "no engine of it was built here"),
    "other gpu": ({"device": DeviceRecord("Orin", "8.7")}, "its engines are of another device"),
}


@pytest.mark.parametrize("case", AUTO)
def test_auto_is_onnx_runtime_without_one_that_fits(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, driver: Any
) -> None:
    changes, why = AUTO[case]
    built(tmp_path, replace(RECORD, **changes))
    with caplog.at_level(logging.INFO, "fastrestore"):
        backend = open_backend("nano", threads=1)
    assert backend.name == "ort"
    assert [r.getMessage() for r in caplog.records] == [f"nano runs on ort: {why}"]
    assert driver.live == {}


@pytest.mark.usefixtures("nothing_native")
def test_auto_without_engines_asks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fastrestore"):
        assert open_backend("nano", threads=1).name == "ort"
    assert "nano runs on ort: no engine of it was built here" in caplog.text


def test_auto_falls_back_with_a_warning_when_an_engine_does_not_load(
    tmp_path: Path, trt: FakeTensorRt, caplog: pytest.LogCaptureFixture, driver: Any
) -> None:
    built(tmp_path)
    trt.fails = {"deserialize"}
    assert open_backend("nano", threads=1).name == "ort"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "nano runs on ort: " in record.getMessage()
    assert "cannot be loaded by TensorRT" in record.getMessage()
    assert driver.live == {}


def test_auto_without_a_home_is_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.delenv("FASTRESTORE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert open_backend("nano", threads=1).name == "ort"


def test_the_fastest_engine_of_each_size_is_taken(tmp_path: Path) -> None:
    def timed(ms: float, precision: Any, side: int) -> Path:
        return built(
            tmp_path,
            replace(
                RECORD,
                precision=precision,
                profile={"frame": ((1, side, side, 3),) * 3},
                verification=replace(PASSED, mean_latency_ms=ms),
            ),
        )

    timed(9, "fp32", 64)
    fast = timed(4, "int8", 64), timed(2, "fp16", 32)
    timed(3, "fp32", 32)
    wish = engine_choice.Wish(ONNX, SPEC, "nano")
    expected = wish.expected("tensorrt", DeviceRecord(GPU.name, GPU.sm))
    assert set(engine_choice.best(engine_cache.entries(), expected)) == set(fast)
    backend = open_backend("nano", "tensorrt")
    assert sorted(frames_of(backend) or ()) == [((1, n, n),) * 2 for n in (32, 64)]


def test_an_explicit_backend_verifies_what_it_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = built(tmp_path, replace(RECORD, verification=None))
    gate(
        monkeypatch,
        lambda p: write_record(p, replace(read_record(p), verification=PASSED)),
    )
    assert open_backend("nano", "tensorrt").name == "tensorrt"
    assert read_record(path).verification == PASSED


@pytest.mark.parametrize(("name", "product"), [("tensorrt", "tensorrt"), ("rtx", "tensorrt_rtx")])
def test_without_an_engine_the_command_is_named(
    name: str, product: str, tmp_path: Path, driver: Any
) -> None:
    words = f"no engine is here; `fastrestore build-engine nano --target {name}`$"
    one_line_of(words, lambda: open_backend("nano", name))
    assert driver.calls == {}  # nothing native for that
    built(tmp_path, replace(RECORD, device=DeviceRecord("Orin", "8.7")))
    if name == "tensorrt":
        one_line_of(r"was built for Orin \(8.7\), this is", lambda: open_backend("nano", name))
    assert driver.live == {}


@pytest.mark.usefixtures("nothing_native")
def test_what_can_be_built_here_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only TensorRT-RTX is installed, and TensorRT is asked for; and the other way round."""
    for name, other, title, there in (
        ("tensorrt", "rtx", "TensorRT", "TensorRT-RTX"),
        ("rtx", "tensorrt", "TensorRT-RTX", "TensorRT"),
    ):
        product = engine_choice.PRODUCTS[other]
        monkeypatch.setattr(engine_choice, "is_installed", lambda p, product=product: p == product)
        words = (
            f"^{title} is not installed here, {there} is; `fastrestore build-engine nano --target "
            f"{other}`, then use --backend {other}$"
        )
        refusal(MissingExtraError, words, lambda name=name: open_backend("nano", name))
    built(tmp_path)
    words = "^TensorRT-RTX is not installed here, TensorRT is; use --backend tensorrt$"
    refusal(MissingExtraError, words, lambda: open_backend("nano", "rtx"))
    monkeypatch.setattr(engine_choice, "is_installed", lambda p: False)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    words = r"^tensorrt is not installed: pip install 'fastrestore\[tensorrt\]'"
    refusal(MissingExtraError, words, lambda: open_backend("nano", "tensorrt"))


def test_whether_a_product_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_here, "product_version", lambda _: None)
    assert engine_here.is_installed("tensorrt")  # pip may not know of it
    monkeypatch.delitem(sys.modules, "tensorrt")
    found = {"tensorrt": object()}
    monkeypatch.setattr(importlib.util, "find_spec", found.get)
    assert engine_here.is_installed("tensorrt")
    found.clear()
    assert not engine_here.is_installed("tensorrt")
    monkeypatch.setattr(engine_here, "product_version", {"tensorrt": "10.3.0"}.get)
    assert engine_here.is_installed("tensorrt")


def test_an_engine_file_can_be_named(place: Path, driver: Any) -> None:
    write(place)
    for name in ("auto", "tensorrt"):
        backend = open_backend("nano", name, engine=place)
        assert backend.name == "tensorrt"
        backend.close()
    one_line_of(
        "is an engine of TensorRT, here runs TensorRT-RTX",
        lambda: open_backend("nano", "rtx", engine=place),
    )
    refusal(
        InputError, "backend ort takes no engine", lambda: open_backend("nano", "ort", engine=place)
    )
    one_line_of("was built from another model, nano", lambda: open_backend("tiny", engine=place))
    assert driver.live == {}


def test_the_model_of_an_engine_is_found_among_those_that_ship(place: Path, driver: Any) -> None:
    assert TensorRtBackend(write(place), driver=driver).spec == SPEC
    write(place, record=replace(RECORD, model=replace(MODEL, name="mine", sha256="a" * 64)))
    refusal(
        ModelError, "its model mine does not ship", lambda: TensorRtBackend(place, driver=driver)
    )


@pytest.mark.parametrize("name", ["restore", "demo"])
def test_the_command_line_hands_device_and_engine_on(
    name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastrestore.cli import main

    seen: list[dict[str, Any]] = []

    def stop(model: str, **given: Any) -> Any:
        seen.append(given)
        raise InputError("seen")

    monkeypatch.setattr("fastrestore.restore.Restorer", stop)
    picture = tmp_path / "a.png"
    picture.write_bytes(b"x")
    args = ["--device", "1", "--engine", str(place), "--trust-engine", "--backend", "rtx"]
    args += [str(picture)] if name == "restore" else []
    out = str(tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["fastrestore", name, "-o", out, *args])
    with pytest.raises(SystemExit) as e:
        main()
    assert e.value.code == InputError.exit_code
    engine = {"device": 1, "engine": str(place), "trust_engine": True}
    assert len(seen) == 1
    assert {"backend": "rtx", "threads": None, **engine}.items() <= seen[0].items()


def test_bench_takes_engines_that_are_verified(tmp_path: Path, driver: Any) -> None:
    assert engine_choice.with_engines(("nano",)) == []
    assert driver.calls == {}
    built(tmp_path)
    assert engine_choice.with_engines(("nano",)) == ["tensorrt"]
    assert engine_choice.with_engines(("nano", "tiny")) == []
    assert engine_choice.with_engines(("nano",), 3) == []  # no such device


def test_the_restorer_runs_on_an_engine(tmp_path: Path, driver: Any) -> None:
    side = 256
    built(tmp_path, replace(RECORD, profile={"frame": ((1, side, side, 3),) * 3}))
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (300, 500, 3), np.uint8)
    mask = np.zeros((300, 500), np.uint8)
    mask[100:130, 200:240] = 1
    mask[280:, 460:] = 1
    with Restorer("nano") as restorer:
        assert restorer.backend == "tensorrt"
        out = restorer(image, mask)
        assert np.array_equal(out[mask == 0], image[mask == 0])
        assert np.array_equal(out[mask > 0], 255 - image[mask > 0] + np.uint8(1))
        for frame in restorer.video([image, image], mask):
            assert np.array_equal(frame, out)
    assert driver.live == {}


# The names that the imitation has are those of the real runtimes.


def real_rtx() -> Any:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed")
    sys.modules.pop("tensorrt_rtx", None)
    return importlib.import_module("tensorrt_rtx")


def test_names_are_those_of_the_real_runtime(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tensorrt_rtx")
    real = real_rtx()
    fake = FakeTensorRt("tensorrt_rtx", driver)
    for kind in (
        "ILogger",
        "TensorIOMode",
        "DataType",
        "CudaGraphStrategy",
        "LayerInformationFormat",
    ):
        for name in vars(getattr(fake, kind)):
            assert name.startswith("_") or hasattr(getattr(real, kind), name), f"{kind}.{name}"
    for name in vars(fake.ILogger.Severity):
        assert hasattr(real.ILogger.Severity, name)
    members = {
        "Runtime": ["deserialize_cuda_engine"],
        "ICudaEngine": [
            "num_io_tensors",
            "num_optimization_profiles",
            "get_tensor_name",
            "get_tensor_mode",
            "get_tensor_dtype",
            "get_tensor_shape",
            "get_tensor_profile_shape",
            "create_execution_context",
            "create_runtime_config",
            "create_engine_inspector",
        ],
        "IExecutionContext": [
            "set_optimization_profile_async",
            "set_input_shape",
            "set_tensor_address",
            "execute_async_v3",
        ],
        "IRuntimeConfig": ["cuda_graph_strategy", "create_runtime_cache", "set_runtime_cache"],
        "IRuntimeCache": ["serialize", "deserialize"],
        "EngineInspector": ["get_engine_information"],
    }
    for kind, names in members.items():
        for name in names:
            assert hasattr(getattr(real, kind), name), f"{kind}.{name}"


# Real TensorRT-RTX, as far as it goes without a GPU.


def test_the_real_rtx_refuses_in_one_line(
    place: Path, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It builds an engine here, and cannot load it: there is no driver."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    monkeypatch.delitem(sys.modules, "tensorrt_rtx")
    real = real_rtx()
    from fastrestore.environment import has_cuda_device
    from fastrestore.export.precision import inline, to_fp16

    if has_cuda_device():
        pytest.skip("there is a CUDA device: it may well load")
    graph = inline(to_fp16(onnx.load_model_from_string(ONNX)))
    log = log_of(real).sink  # it would warn of a second logger
    builder = real.Builder(log)
    network = builder.create_network(0)
    parser = real.OnnxParser(network, log)
    assert parser.parse(graph.SerializeToString())
    profile = builder.create_optimization_profile()
    for name, channels in (("frame", 3), ("mask", 1), ("state", 4)):
        profile.set_shape(name, *[(1, 32, 48, channels)] * 3)
    profile.set_shape("sigma", (1,), (1,), (1,))
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    data = bytes(builder.build_serialized_network(network, config))
    assert data[:4] == b"vtrt"
    record = replace(RTX_RECORD, product_version=real.__version__)
    for name in ("fastrestore.backends.tensorrt", "fastrestore.engine_here"):
        monkeypatch.setattr(sys.modules[name], "product_version", lambda _: real.__version__)
    write(place, data, record)
    words = (
        rf"nano.engine: cannot be loaded by TensorRT-RTX {real.__version__} "
        r"\(NVIDIA's driver is absent or older than it needs\); install a newer driver, or use --ba"
    )
    one_line_of(words, lambda: opened(place, driver))
    write(place, data[:-100], record)
    one_line_of(
        r"cannot be loaded by .*\(the engine was cut short\)", lambda: opened(place, driver)
    )
    write(place, b"ftrt" + data[4:], record)
    one_line_of(
        "is an engine of TensorRT, its sidecar is of TensorRT-RTX; ", lambda: opened(place, driver)
    )
    assert driver.live == {}
