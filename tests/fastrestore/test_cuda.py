"""CUDA behind one interface: on a stand-in, and both bindings over modules that imitate theirs."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import runpy
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastrestore import cuda as module
from fastrestore.cuda import (
    AbsentError,
    Cuda,
    Device,
    Driver,
    device_at,
    find_device,
    open_driver,
)
from fastrestore.cuda_bindings import CudaBindings
from fastrestore.cuda_pycuda import PyCuda
from fastrestore.errors import EngineError, MissingExtraError

SHARED = runpy.run_path(str(Path(__file__).with_name("stand_in.py")))
StandIn, GPU, one_line = SHARED["StandIn"], SHARED["GPU"], SHARED["one_line"]
ORIN = Device(1, "Orin", "8.7", True, 8 << 30)


def refusal(kind: type[Exception], words: str, call: Callable[[], object]) -> str:
    with pytest.raises(kind, match=words) as e:
        call()
    return str(one_line(e.value))


# Modules that imitate those of the bindings, over the host's own memory.


ATTRIBUTES = {
    "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR": 8,
    "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR": 7,
    "CU_DEVICE_ATTRIBUTE_INTEGRATED": 1,
}


class FakeBindings(ModuleType):
    """`cuda.bindings.driver`: every function returns a tuple that begins with its verdict."""

    CU_MEMHOSTALLOC_DEVICEMAP = 2

    class CUresult(int):
        CUDA_ERROR_NO_DEVICE = 100
        name = property(
            lambda self: {2: "CUDA_ERROR_OUT_OF_MEMORY"}.get(int(self), f"E{int(self)}")
        )

    CUdevice_attribute = SimpleNamespace(**ATTRIBUTES)
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUevent_flags = SimpleNamespace(CU_EVENT_DISABLE_TIMING=2)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread local")

    def __init__(self) -> None:
        super().__init__("cuda.bindings.driver")
        self.log: list[tuple[Any, ...]] = []
        self.verdicts: dict[str, int] = {}
        self.kept: dict[int, Any] = {}
        self.devices = 1
        self._work = self._works()

    def __getattr__(self, call: str) -> Any:
        if not call.startswith("cu"):
            raise AttributeError(call)

        def run(*args: Any) -> tuple[Any, ...]:
            self.log.append((call, *args))
            verdict = self.CUresult(self.verdicts.get(call, 0))
            if verdict:
                return (verdict,) if call == "cuInit" else (verdict, None)
            result = self._work.get(call, lambda *_: ())(*args)
            return (verdict, *(result if isinstance(result, tuple) else (result,)))

        return run

    def cuGetErrorString(self, error: Any) -> tuple[Any, bytes | None]:
        return self.CUresult(0), {2: b"out of memory", 100: b"no device"}.get(int(error))

    def _new(self, size: int = 64, flags: int = 0) -> int:
        buffer = (ctypes.c_uint8 * size)()
        self.kept[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def _free(self, handle: int) -> tuple[()]:
        del self.kept[handle]
        return ()

    def _copy(self, to: int, source: int, size: int, stream: int) -> tuple[()]:
        ctypes.memmove(to, source, size)
        return ()

    def _works(self) -> dict[str, Callable[..., Any]]:
        makers = (
            "cuDevicePrimaryCtxRetain cuStreamCreate cuEventCreate cuStreamEndCapture "
            "cuGraphInstantiate"
        )
        frees = (
            "cuMemFree cuMemFreeHost cuStreamDestroy cuEventDestroy cuGraphDestroy "
            "cuGraphExecDestroy"
        )
        return {
            **dict.fromkeys(makers.split(), lambda *_: self._new()),
            **dict.fromkeys(frees.split(), self._free),
            "cuDeviceGetCount": lambda: self.devices,
            "cuDeviceGet": lambda index: index,
            "cuDeviceGetName": lambda length, _: b"Orin" + bytes(length - 4),
            "cuDeviceTotalMem": lambda _: 8 << 30,
            "cuDeviceGetAttribute": lambda value, _: value,
            "cuMemGetInfo": lambda: (6 << 30, 8 << 30),
            "cuMemAlloc": self._new,
            "cuMemHostAlloc": self._new,
            "cuMemHostGetDevicePointer": lambda address, _: address,
            "cuMemcpyHtoDAsync": self._copy,
            "cuMemcpyDtoHAsync": self._copy,
        }


class FakePyCuda(ModuleType):
    """`pycuda.driver`: objects that free themselves."""

    class Error(Exception): ...

    class MemoryError(Error): ...

    host_alloc_flags = SimpleNamespace(DEVICEMAP=2)
    event_flags = SimpleNamespace(DISABLE_TIMING=2)
    device_attribute = SimpleNamespace(INTEGRATED="integrated")

    def __init__(self) -> None:
        super().__init__("pycuda.driver")
        self.log: list[tuple[Any, ...]] = []
        self.fails: dict[str, Exception] = {}
        fake = self

        def say(call: str, *args: Any) -> None:
            fake.log.append((call, *args))
            if call in fake.fails:
                raise fake.fails[call]

        class Thing:
            kind = "thing"

            def __init__(self, *args: Any) -> None:
                say(f"make {self.kind}", *args)
                self.handle = id(self)

        class Context(Thing):
            kind = "context"

            def push(self) -> None:
                say("push")

            def detach(self) -> None:
                say("detach")

            @staticmethod
            def pop() -> None:
                say("pop")

        class Stream(Thing):
            kind = "stream"

            def synchronize(self) -> None:
                say("synchronize")

        class Event(Thing):
            kind = "event"

            def record(self, stream: Stream) -> None:
                say("record", stream)

            def synchronize(self) -> None:
                say("synchronize event")

        class Allocation(Thing):
            kind = "allocation"

            def __init__(self, size: int) -> None:
                super().__init__(size)
                self.bytes = np.zeros(size, np.uint8)

            def __int__(self) -> int:
                return int(self.bytes.ctypes.data)

            def free(self) -> None:
                say("free")

        class Locked(np.ndarray):  # type: ignore[type-arg]
            @property
            def base(self) -> Any:
                return SimpleNamespace(
                    get_device_pointer=lambda: self.ctypes.data, free=lambda: say("free host")
                )

        class FakeDevice:
            def __init__(self, index: int) -> None: ...

            @staticmethod
            def count() -> int:
                say("count")
                return 1

            name = staticmethod(lambda: "Orin")
            compute_capability = staticmethod(lambda: (8, 7))
            total_memory = staticmethod(lambda: 8 << 30)
            get_attribute = staticmethod(lambda _: 1)
            retain_primary_context = staticmethod(Context)

        def pagelocked_empty(size: int, dtype: Any, mem_flags: int) -> Any:
            say("pagelocked_empty", mem_flags)
            return np.zeros(size, dtype).view(Locked)

        def htod(pointer: int, host: Any, stream: Stream) -> None:
            say("htod", stream)
            ctypes.memmove(pointer, host.ctypes.data, host.nbytes)

        def dtoh(host: Any, pointer: int, stream: Stream) -> None:
            say("dtoh", stream)
            ctypes.memmove(host.ctypes.data, pointer, host.nbytes)

        self.init: Any = lambda: say("cuInit")
        self.mem_get_info: Any = lambda: (6 << 30, 8 << 30)
        self.Context, self.Stream, self.Event, self.Device = Context, Stream, Event, FakeDevice
        self.mem_alloc, self.pagelocked_empty = Allocation, pagelocked_empty
        self.memcpy_htod_async, self.memcpy_dtoh_async = htod, dtoh


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> FakeBindings:
    fake = FakeBindings()
    for name in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", fake)
    return fake


@pytest.fixture
def pycuda(monkeypatch: pytest.MonkeyPatch) -> FakePyCuda:
    fake = FakePyCuda()
    absent(monkeypatch, "cuda")
    monkeypatch.setitem(sys.modules, "pycuda", ModuleType("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", fake)
    return fake


class Failing:
    """Makes the import of one module fail."""

    def __init__(self, name: str, error: ImportError) -> None:
        self.name, self.error = name, error

    def find_spec(self, name: str, *_: Any) -> Any:
        if name == self.name:
            raise self.error
        return None


def absent(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make packages look as if they were not installed."""
    for name in [m for m in sys.modules if m.split(".")[0] in names]:
        monkeypatch.delitem(sys.modules, name)
    hidden = [
        Failing(name, ModuleNotFoundError(f"No module named {name!r}", name=name)) for name in names
    ]
    monkeypatch.setattr(sys, "meta_path", [*hidden, *sys.meta_path])


# What every driver does.


@pytest.fixture(params=["stand-in", "cuda-bindings", "pycuda"])
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    if request.param == "stand-in":
        yield StandIn(Device(0, "Orin", "8.7", True, 8 << 30))
        return
    request.getfixturevalue("bindings" if request.param == "cuda-bindings" else "pycuda")
    yield open_driver()


def test_bytes_go_to_the_device_and_back(driver: Driver) -> None:
    cuda = Cuda(0, driver)
    assert cuda.device == Device(0, "Orin", "8.7", True, 8 << 30)
    with cuda.active():
        assert cuda.free_bytes() == 6 << 30
        stream, event, buffer = cuda.stream(), cuda.event(), cuda.buffer(100)
        there, back = cuda.host(100), cuda.host(100)
        assert there.pointer is None
        assert (there.array.shape, there.array.dtype) == ((100,), np.uint8)
        there.array[:] = np.arange(100)
        back.array[:] = 7
        stream.upload(there.array[:50], buffer.pointer)
        stream.download(buffer.pointer, back.array[:50])
        stream.record(event)
        event.synchronize()
        stream.synchronize()
        assert back.array.tolist() == [*range(50), *[7] * 50]
        for held in (stream, event, buffer, there, back):
            held.close()
            held.close()
    cuda.close()
    cuda.close()


def test_mapped_memory_is_the_devices_as_well(driver: Driver) -> None:
    cuda = Cuda(0, driver)
    with cuda.active():
        host = cuda.host(64, mapped=True)
        assert host.pointer == host.array.ctypes.data  # of these imitations
        host.close()
    cuda.close()


# The stand-in's rules are CUDA's.


@pytest.fixture
def stand_in() -> Any:
    return StandIn(GPU, ORIN)


def test_nothing_happens_before_it_is_waited_for(stand_in: Any) -> None:
    cuda = Cuda(0, stand_in)
    with cuda.active():
        stream, event, buffer, host = cuda.stream(), cuda.event(), cuda.buffer(8), cuda.host(8)
        host.array[:] = 1
        stream.upload(host.array, buffer.pointer)
        stream.record(event)
        stream.download(buffer.pointer, host.array)
        host.array[:] = 2
        event.synchronize()
        assert (stand_in.bytes[buffer.pointer] == 2).all()  # a copy reads when it runs
        host.array[:] = 3
        stream.synchronize()
        assert (host.array == 2).all()


def test_a_graph_repeats_what_was_captured(stand_in: Any) -> None:
    cuda = Cuda(0, stand_in)
    with cuda.active():
        stream, count = cuda.stream(), []
        add = lambda: stand_in.enqueue(stream.handle, lambda: count.append(1))  # noqa: E731
        graph = stream.capture(add)
        stream.synchronize()
        assert count == []
        for _ in range(3):
            graph.launch()
        stream.synchronize()
        assert count == [1, 1, 1]
        graph.close()
        stream.close()
    cuda.close()
    assert stand_in.live == {}


@pytest.mark.parametrize("broken", [None, "end_capture"])
def test_work_that_cannot_be_captured_leaves_the_stream_as_it_was(
    stand_in: Any, broken: str | None
) -> None:
    cuda = Cuda(0, stand_in)

    def work() -> None:
        raise EngineError("first")

    with cuda.active():
        stream, count = cuda.stream(), []
        stand_in.broken = {broken}
        with pytest.raises(EngineError, match=r"^first$"):
            stream.capture(work)
        stand_in.enqueue(stream.handle, lambda: count.append(1))
        stream.synchronize()
        assert count == [1]
        stream.close()
    cuda.close()
    assert stand_in.live == {}


def test_without_graphs_the_mend_is_named() -> None:
    cuda = Cuda(0, StandIn(GPU, has_graphs=False))
    assert not cuda.has_graphs
    with cuda.active():
        refusal(
            EngineError,
            "knows no CUDA graphs; pip install cuda-b",
            lambda: cuda.stream().capture(print),
        )


def test_a_pointer_that_is_refused_frees_its_memory(stand_in: Any) -> None:
    cuda = Cuda(0, stand_in)
    stand_in.broken = {"device_pointer"}
    with cuda.active(), pytest.raises(EngineError, match="device_pointer failed"):
        cuda.host(64, mapped=True)
    assert stand_in.count_live("context 0") == 0


def test_the_context_is_pushed_in_each_thread_and_popped_whatever_happens(stand_in: Any) -> None:
    cuda = Cuda(1, stand_in)
    seen: list[tuple[int, ...]] = []

    def work() -> None:
        with cuda.active():
            seen.append(tuple(stand_in.stack))
        seen.append(tuple(stand_in.stack))

    def fail() -> None:
        with cuda.active():
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert stand_in.stack == []
    (context,) = stand_in.live
    assert stand_in.live[context] == "context 1"
    assert seen == [(context,), ()]
    cuda.close()
    cuda.close()
    assert stand_in.calls["release"] == 1
    refusal(EngineError, "^Orin: the device is closed; open it again$", cuda.active().__enter__)


# Which driver, which device.


def test_cuda_bindings_come_before_pycuda(bindings: FakeBindings, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "pycuda.driver", FakePyCuda())
    assert open_driver().name == "cuda-bindings"


def test_pycuda_does_where_cuda_bindings_are_not(pycuda: FakePyCuda) -> None:
    driver = open_driver()
    assert (driver.name, driver.graphs) == ("pycuda", None)
    assert "pycuda.autoinit" not in sys.modules


def test_no_binding_is_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch, "cuda", "pycuda")
    words = "^no CUDA binding is installed: pip install cuda-bindings .*or use --backend ort$"
    refusal(MissingExtraError, words, open_driver)
    refusal(MissingExtraError, words, find_device)
    refusal(MissingExtraError, words, Cuda)


def test_a_binding_without_a_driver_says_that(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeBindings()

    def no_library(*_: Any) -> Any:
        raise RuntimeError("Failed to dlopen libcuda.so.1\nmore")

    fake.cuInit = no_library  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", ModuleType("cuda.bindings"))
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", fake)
    words = r"^cuda-bindings: is installed, but NVIDIA's driver is not \(.*\); install the driver, "
    refusal(AbsentError, words, open_driver)
    assert find_device() is None


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        (
            "libcuda.so.1: cannot open shared object file",
            AbsentError,
            "^pycuda: is installed, but NVIDIA's driver is not",
        ),
        (
            "libcurand.so.10: cannot open shared object file\n",
            EngineError,
            r"^pycuda: is installed but cannot be loaded \(libcurand.*; reinstall it, or use",
        ),
    ],
)
def test_a_binding_that_does_not_load_says_why(
    text: str, kind: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent(monkeypatch, "cuda")
    monkeypatch.delitem(sys.modules, "pycuda.driver", raising=False)
    package = ModuleType("pycuda")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "pycuda", package)
    failing = Failing("pycuda.driver", ImportError(text, name="pycuda._driver"))
    monkeypatch.setattr(sys, "meta_path", [failing, *sys.meta_path])
    refusal(kind, words, open_driver)


def test_half_of_cuda_bindings_is_not_taken_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own requirement is absent: that is broken, not missing."""
    package = ModuleType("cuda.bindings")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", package)
    monkeypatch.delitem(sys.modules, "cuda.bindings.driver", raising=False)
    absent(monkeypatch, "pycuda")

    error = ModuleNotFoundError("No module named 'cuda.pathfinder'", name="cuda.pathfinder")
    failing = Failing("cuda.bindings.driver", error)
    monkeypatch.setattr(sys, "meta_path", [failing, *sys.meta_path])
    words = (
        r"^cuda-bindings: is installed but cannot be loaded \(No module named 'cuda.pathfinder'\)"
    )
    refusal(EngineError, words, open_driver)


@pytest.mark.parametrize("visible", [None, "", "-1"])
def test_a_driver_without_a_device_says_what_hides_them(
    bindings: FakeBindings, visible: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        words = "^CUDA: the driver finds no device; see `nvidia-smi`, or use --backend ort$"
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        words = f"^CUDA: no device is visible, CUDA_VISIBLE_DEVICES is '{visible}'; unset it, or"
    bindings.verdicts["cuInit"] = 100
    refusal(AbsentError, words, open_driver)
    assert find_device() is None
    bindings.verdicts.clear()
    bindings.devices = 0
    refusal(AbsentError, words, device_at)
    assert find_device() is None


def test_a_driver_that_does_not_start_is_absent(bindings: FakeBindings) -> None:
    bindings.verdicts["cuInit"] = 803
    refusal(AbsentError, r"^CUDA: cuInit failed \(E803\); `fastrestore doctor` looks", open_driver)


def test_pycudas_driver_that_does_not_start_is_absent(pycuda: FakePyCuda) -> None:
    pycuda.fails["cuInit"] = pycuda.Error("cuInit failed: no CUDA-capable device is detected")
    refusal(AbsentError, "^CUDA: ", open_driver)
    pycuda.fails["cuInit"] = pycuda.Error("cuInit failed: system has unsupported display driver")
    refusal(AbsentError, r"^CUDA: cuInit failed \(system has unsupported display", open_driver)


@pytest.mark.parametrize("index", [-1, 2, 7])
def test_a_device_that_is_not_there_names_those_that_are(stand_in: Any, index: int) -> None:
    words = f"^device {index}: devices 0 to 1 are visible here; choose another --device, or set "
    refusal(EngineError, words, lambda: device_at(index, stand_in))
    refusal(EngineError, words, lambda: Cuda(index, stand_in))
    refusal(EngineError, words, lambda: find_device(index, stand_in))
    only = StandIn(GPU)
    refusal(EngineError, "only device 0 is visible", lambda: device_at(1, only))
    assert stand_in.live == {}


def test_devices_are_described_without_a_context(stand_in: Any) -> None:
    assert device_at(1, stand_in) == find_device(1, stand_in) == ORIN
    assert stand_in.calls["retain"] == 0
    assert find_device(driver=StandIn()) is None


# Either binding, call by call.


def test_every_failure_is_one_line_with_the_drivers_words(bindings: FakeBindings) -> None:
    cuda = Cuda(0, open_driver())
    bindings.verdicts["cuMemAlloc"] = 2
    words = r"^CUDA: cuMemAlloc failed \(out of memory\); close other programs that use the GPU, or"
    with cuda.active():
        refusal(EngineError, words, lambda: cuda.buffer(8))
        bindings.verdicts["cuMemHostAlloc"] = 719
        refusal(EngineError, r"cuMemHostAlloc failed \(E719\); `fast", lambda: cuda.host(8))


def test_a_driver_older_than_a_call_is_one_line(bindings: FakeBindings) -> None:
    cuda = Cuda(0, open_driver())

    def old(*_: Any) -> Any:
        raise RuntimeError('Function "cuStreamCreate" not found')

    bindings.cuStreamCreate = old  # type: ignore[attr-defined]
    with cuda.active():
        refusal(EngineError, 'cuStreamCreate failed .Function "cuStreamCreate" not', cuda.stream)


def test_what_cuda_bindings_are_told(bindings: FakeBindings) -> None:
    cuda = Cuda(0, open_driver())
    with cuda.active():
        stream = cuda.stream()
        graph = stream.capture(lambda: None)
        cuda.host(8)
        cuda.host(8, mapped=True)
        cuda.event()
        graph.launch()
        graph.close()
    made = {call[0]: call[1:] for call in bindings.log}
    assert made["cuStreamCreate"] == (1,)  # waits for no default stream
    assert made["cuStreamBeginCapture"] == (stream.handle, "thread local")
    assert made["cuEventCreate"] == (2,)
    assert [c[2] for c in bindings.log if c[0] == "cuMemHostAlloc"] == [0, 2]
    assert made["cuGraphLaunch"][1] == stream.handle
    assert {"cuGraphDestroy", "cuGraphExecDestroy"} <= {*made}
    cuda.close()
    calls = [c[0] for c in bindings.log]
    assert calls.count("cuDevicePrimaryCtxRetain") == calls.count("cuDevicePrimaryCtxRelease") == 1
    assert calls.count("cuCtxPushCurrent") == calls.count("cuCtxPopCurrent") == 1


def test_a_graph_that_cannot_be_made_ready_is_freed(bindings: FakeBindings) -> None:
    cuda = Cuda(0, open_driver())
    with cuda.active():
        stream = cuda.stream()
        before = set(bindings.kept)
        bindings.verdicts["cuGraphInstantiate"] = 719
        with pytest.raises(EngineError, match="cuGraphInstantiate failed"):
            stream.capture(lambda: None)
        assert set(bindings.kept) == before


def test_what_pycuda_is_told(pycuda: FakePyCuda) -> None:
    cuda = Cuda(0, open_driver())
    with cuda.active():
        held = [cuda.stream(), cuda.event(), cuda.buffer(8), cuda.host(8), cuda.host(8, True)]
        for one in held:
            one.close()
    cuda.close()
    assert [c for c in pycuda.log if c[0] != "count"] == [
        ("cuInit",),
        ("make context",),
        ("push",),
        ("make stream", 1),
        ("make event", 2),
        ("make allocation", 8),
        ("pagelocked_empty", 0),
        ("pagelocked_empty", 2),
        ("free",),
        ("free host",),
        ("free host",),
        ("pop",),
        ("detach",),
    ]


def test_pycudas_errors_are_one_line(pycuda: FakePyCuda) -> None:
    cuda = Cuda(0, open_driver())
    full = pycuda.MemoryError("cuMemAlloc failed: out of memory\n")
    pycuda.fails["make allocation"] = full
    pycuda.fails["synchronize"] = pycuda.Error("cuStreamSynchronize failed: misaligned address")
    words = r"^CUDA: cuMemAlloc failed \(out of memory\); close other programs that use the GPU, or"
    with cuda.active():
        refusal(EngineError, words, lambda: cuda.buffer(8))
        words = r"^CUDA: cuStreamSynchronize failed \(misaligned address\); `fastrestore doctor`"
        refusal(EngineError, words, cuda.stream().synchronize)


def test_the_names_are_those_of_the_real_cuda_bindings() -> None:
    if (
        importlib.util.find_spec("cuda") is None
        or importlib.util.find_spec("cuda.bindings") is None
    ):
        pytest.skip("cuda-bindings are not installed")
    real: Any = importlib.import_module("cuda.bindings.driver")
    text = Path(str(module.__file__)).with_name("cuda_bindings.py").read_text(encoding="utf-8")
    names = set(re.findall(r'"(cu[A-Z]\w+)"', text)) | {"cuInit", "cuGetErrorString"}
    assert len(names) > 25
    assert [n for n in sorted(names) if not callable(getattr(real, n, None))] == []
    assert int(real.CU_MEMHOSTALLOC_DEVICEMAP) == 2
    assert hasattr(real.CUstreamCaptureMode, "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL")
    for name in ATTRIBUTES:
        assert hasattr(real.CUdevice_attribute, name)


def test_the_drivers_have_what_the_protocol_asks() -> None:
    wanted = {n for n in vars(Driver) if not n.startswith("_")}
    for kind in (CudaBindings, PyCuda, StandIn):
        assert wanted - set(dir(kind)) <= {"graphs", "name"}


@pytest.mark.gpu
def test_a_gpu_copies_and_frees() -> None:
    cuda = Cuda()
    with cuda.active():
        stream, buffer, host = cuda.stream(), cuda.buffer(1 << 20), cuda.host(1 << 20)
        host.array[:] = np.arange(1 << 20)
        stream.upload(host.array, buffer.pointer)
        stream.synchronize()
        wanted, host.array[:] = host.array.copy(), 0
        stream.download(buffer.pointer, host.array)
        stream.synchronize()
        assert np.array_equal(host.array, wanted)
        for held in (buffer, host, stream):
            held.close()
    cuda.close()
