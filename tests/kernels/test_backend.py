"""The Triton backend equals ONNX Runtime; its buffers, graphs and refusals, without a device."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="the extra kernels is not installed")
onnx = pytest.importorskip("onnx", reason="the extra kernels is not installed")

from fastrestore.arrays import F32, U8  # noqa: E402
from fastrestore.backend import Backend, blank_batch, find_model, open_backend  # noqa: E402
from fastrestore.errors import InputError, MissingExtraError, ModelError  # noqa: E402
from fastrestore.kernels import backend as module  # noqa: E402
from fastrestore.kernels import launch  # noqa: E402
from fastrestore.kernels.backend import KEPT_SHAPES, TritonBackend  # noqa: E402
from fastrestore.kernels.machine import Cpu, open_machine  # noqa: E402
from fastrestore.restore import Restorer  # noqa: E402
from fastrestore.spec import read_spec  # noqa: E402

Batch = tuple[U8, U8, U8, F32]
SIZES = [("nano", 64, 64), ("nano", 72, 104), ("tiny", 64, 64), ("tiny", 80, 112)]


def open_triton(name: str = "nano", device: str = "cpu", **options: Any) -> TritonBackend:
    data = find_model(name).read_bytes()
    return TritonBackend(data, read_spec(data, name), device=device, **options)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators compute by their references."""
    monkeypatch.setattr(launch, "INTERPRETED", False)


def batch(n: int, height: int, width: int, seed: int = 0, past: bool = True) -> Batch:
    """Smooth pictures with noise of their own strength, a hole each, and a past that moved."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    clean = np.stack([100 + 60 * np.sin(x / 9 + c) + 40 * np.cos(y / 7 - c) for c in range(3)], 2)
    sigma = np.linspace(0, 25, n).astype(np.float32)
    noisy = clean + sigma[:, None, None, None] * rng.standard_normal((n, height, width, 3))
    frame = noisy.round().clip(0, 255).astype(np.uint8)
    mask = np.zeros((n, height, width, 1), np.uint8)
    mask[:, height // 4 : height // 2, width // 4 : 3 * width // 4] = 1
    mask[0, -3:] = 255
    frame[mask[..., 0] > 0] = 0
    state = np.zeros((n, height, width, 4), np.uint8)
    if past:
        state[..., :3] = np.roll(clean, 1, 1).round().clip(0, 255)
        state[..., 3] = rng.integers(0, 240, (n, height, width))
        state[:, :8, :8] = 0
    return frame, mask, state, sigma


def levels(a: tuple[U8, U8], b: tuple[U8, U8]) -> tuple[int, int]:
    """Largest difference of picture and state."""
    one, two = (int(np.abs(x.astype(int) - y).max()) for x, y in zip(a, b, strict=True))
    return one, two


def run_ort(name: str, *batches: Batch) -> list[tuple[U8, U8]]:
    ort = open_backend(name, "ort", 1)
    results = [ort.run(*b) for b in batches]
    ort.close()
    return results


def film(backend: Backend, frames: int, height: int, width: int) -> list[tuple[U8, U8]]:
    """Run frames in order, each with the state that the one before returned."""
    results = []
    state = np.zeros((1, height, width, 4), np.uint8)
    for i in range(frames):
        frame, mask, _, _ = batch(1, height, width, seed=i)
        restored, state = backend.run(frame, mask, state, np.full(1, 10, np.float32))
        results.append((restored, state))
    return results


# What runs.


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize(("name", "height", "width"), SIZES)
def test_equals_onnx_runtime(name: str, height: int, width: int, past: bool) -> None:
    given = batch(2, height, width, past=past)
    backend = open_triton(name)
    (wanted,) = run_ort(name, given)
    found = backend.run(*given)
    assert found[0].shape == given[0].shape
    assert found[1].shape == given[2].shape
    assert found[0].dtype == found[1].dtype == np.uint8
    assert max(levels(found, wanted)) <= 1
    assert max(levels(found, (given[0], given[2]))) > 20  # the hole was filled, the state moved
    backend.close()


@pytest.mark.skipif(not launch.INTERPRETED, reason="kernels run on the device here")
def test_kernels_in_the_interpreter_equal_onnx_runtime() -> None:
    given = batch(1, 32, 32)
    given = (*given[:3], np.full(1, 15, np.float32))
    (wanted,) = run_ort("nano", given)
    assert max(levels(open_triton().run(*given), wanted)) <= 1


@pytest.mark.usefixtures("eager")
def test_a_video_equals_onnx_runtime() -> None:
    ort, ours = open_backend("nano", "ort", 1), open_triton()
    for a, b in zip(film(ort, 3, 64, 80), film(ours, 3, 64, 80), strict=True):
        assert max(levels(a, b)) <= 2
    ort.close()
    ours.close()


@pytest.mark.usefixtures("eager")
def test_our_blocks_equal_native_ones() -> None:
    given = batch(1, 32, 48)
    found = [open_triton(blocks=blocks).run(*given) for blocks in ("native", "kernel")]
    assert max(levels(*found)) <= 1


@pytest.mark.usefixtures("eager")
def test_inputs_and_earlier_results_are_left_alone() -> None:
    backend = open_triton()
    first, second = batch(1, 32, 32), batch(1, 32, 32, seed=1)
    copies = [a.copy() for a in first]
    results = [backend.run(*given) for given in (first, first, second)]
    assert all(np.array_equal(a, b) for a, b in zip(first, copies, strict=True))
    assert levels(results[0], results[1]) == (0, 0)
    assert min(levels(results[0], results[2])) > 0


@pytest.mark.usefixtures("eager")
def test_any_memory_layout_of_the_arrays_will_do() -> None:
    backend = open_triton()
    given = batch(2, 32, 32)
    other = [np.asfortranarray(a) for a in given]
    assert levels(backend.run(*given), backend.run(*other)) == (0, 0)  # type: ignore[arg-type]


@pytest.mark.usefixtures("eager")
def test_a_model_for_stills_only_gives_an_empty_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its state is neither read nor made, as on ONNX Runtime."""
    given = batch(1, 32, 32)
    empty: Batch = (*given[:2], np.zeros_like(given[2]), given[3])
    with_state = open_triton().run(*empty)
    monkeypatch.setattr(module, "has_state", lambda *_: False)
    restored, state = open_triton().run(*given)
    assert np.array_equal(restored, with_state[0])
    assert state.shape == given[2].shape
    assert not state.any()


@pytest.mark.usefixtures("eager")
def test_the_restorer_runs_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_machine", lambda device, model: Cpu())
    frame, mask, _, _ = batch(1, 64, 80)
    hole = np.minimum(mask[0, ..., 0], 1)
    with Restorer("nano", backend="triton") as ours, Restorer("nano", backend="ort") as ort:
        assert ours.backend == "triton"
        a, b = (r(frame[0], hole) for r in (ours, ort))
        known = hole == 0
        assert np.array_equal(a[known], frame[0][known])
        assert np.abs(a.astype(int) - b).max() <= 1
        frames = [batch(1, 64, 80, seed=i)[0][0] for i in range(3)]
        films = (r.video(frames, hole, sigma=8) for r in (ours, ort))
        for x, y in zip(*films, strict=True):
            assert np.abs(x.astype(int) - y).max() <= 2


# Buffers and graphs, on a machine that keeps CUDA's rules.


class Device(Cpu):
    """A replay repeats the captured work on the captured tensors; copies back end when waited."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def host(self, shape: Any, dtype: Any) -> Any:
        self.log.append("host")
        return super().host(shape, dtype)

    def upload(self, host: Any, device: Any) -> None:
        self.log.append("upload")
        super().upload(host, device)

    def download(self, device: Any, host: Any) -> Callable[[], None]:
        self.log.append("download")

        def wait() -> None:
            host.copy_(device)

        return wait

    def capture(self, compute: Any, *inputs: Any) -> Any:
        self.log.append("capture")
        results = tuple(torch.full_like(x, 77) for x in compute(*inputs))

        def replay(*again: Any) -> Any:
            assert all(a is b for a, b in zip(again, inputs, strict=True))
            self.log.append("replay")
            for kept, new in zip(results, compute(*inputs), strict=True):
                kept.copy_(new)
            return results

        return replay

    def free(self) -> None:
        self.log.append("free")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, eager: None) -> Device:
    device = Device()
    monkeypatch.setattr(module, "open_machine", lambda name, model: device)
    return device


def test_a_shape_is_captured_when_it_comes_back(device: Device) -> None:
    backend, plain = open_triton(), TritonBackend.run
    given = [batch(1, 16, 24, seed=i, past=i % 3 > 0) for i in range(8)]
    found = [backend.run(*g) for g in given]
    for g, f in zip(given, found, strict=True):
        device.log.clear()
        fresh = open_triton()
        assert levels(plain(fresh, *g), f) == (0, 0)
        assert "capture" not in device.log


def test_what_a_run_does(device: Device) -> None:
    backend = open_triton()
    seen = []
    for past in (False, False, False, True, True, True):
        device.log.clear()
        backend.run(*batch(1, 16, 16, past=past))
        seen.append(" ".join(e for e in device.log if e != "host"))
        assert device.log.count("host") == (6 if len(seen) == 1 else 0)
    still, moving = " ".join(["upload"] * 3), " ".join(["upload"] * 4)
    assert seen == [
        f"{still} download download",
        f"{still} capture replay download capture replay download",
        f"{still} replay download replay download",
        f"{moving} download download",
        f"{moving} capture replay download capture replay download",
        f"{moving} replay download replay download",
    ]


class Marks:
    """Writes into the device's log what is marked."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def mark(self, stream: int) -> None:
        self.log.append("mark")

    def read(self) -> None:
        self.log.append("read")


def test_what_is_timed_goes_one_step_after_the_other(device: Device) -> None:
    backend, given = open_triton(), batch(1, 16, 16)
    for _ in range(2):
        wanted = backend.run(*given)
    device.log.clear()
    backend.timed((1, 16, 16), Marks(device.log))
    up = ["upload"] * 4
    steps = ["mark", *up, "mark", "replay", "replay", "mark", "mark", "download", "read"]
    assert device.log == steps
    assert levels(backend.run(*given), wanted) == (0, 0)


def test_an_empty_state_is_never_sent(device: Device) -> None:
    backend = open_triton()
    frame, mask, state, sigma = batch(1, 16, 16, past=False)
    for at in (None, 0, -1):
        if at is not None:
            state = np.zeros_like(state)
            state.reshape(-1)[at] = 1
        device.log.clear()
        backend.run(frame, mask, state, sigma)
        assert device.log.count("upload") == (3 if at is None else 4)


def test_the_shapes_used_last_are_kept(device: Device) -> None:
    backend = open_triton()
    shapes = [(1, 8, 8 * i) for i in range(1, KEPT_SHAPES + 2)]

    def is_kept(shape: tuple[int, int, int]) -> bool:
        device.log.clear()
        backend.run(*blank_batch(shape))
        return "host" not in device.log

    assert [is_kept(s) for s in shapes[:KEPT_SHAPES]] == [False] * KEPT_SHAPES
    assert is_kept(shapes[0])  # used: now the second is the oldest
    assert not is_kept(shapes[-1])
    assert is_kept(shapes[0])
    assert not is_kept(shapes[1])
    assert not is_kept((2, 8, 8))  # a batch of another size is another shape


def test_warm_up_leaves_nothing_to_capture(device: Device) -> None:
    backend = open_triton()
    backend.warm_up((1, 16, 16))
    assert device.log.count("capture") == 4
    for past in (False, True):
        device.log.clear()
        backend.run(*batch(1, 16, 16, past=past))
        assert "capture" not in device.log
        assert "host" not in device.log


def test_threads_wait_for_each_other(device: Device) -> None:
    backend = open_triton()
    given = [batch(1, 16, 16 + 8 * (i % 2), seed=i, past=i % 2 == 0) for i in range(4)]
    wanted = [backend.run(*g) for g in given]
    found: dict[int, list[tuple[U8, U8]]] = {i: [] for i in range(len(given))}
    start = threading.Barrier(len(given))

    def work(i: int) -> None:
        start.wait()
        for _ in range(4):
            found[i].append(backend.run(*given[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for i, results in found.items():
        assert [levels(r, wanted[i]) for r in results] == [(0, 0)] * 4


# Refusals.


def refused(kind: type[Exception], words: str, call: Callable[[], object]) -> None:
    with pytest.raises(kind, match=words) as e:
        call()
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 300


def test_out_of_memory_is_one_line_with_the_size(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = open_triton()
    given = batch(1, 16, 24)
    wanted = backend.run(*given)

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried\nto allocate")

    words = "^nano: out of GPU memory at 24x16 px, batch of 1; .* use --backend ort$"
    for step in ("capture", "host"):
        with monkeypatch.context() as m:
            m.setattr(device, step, full)
            refused(ModelError, words, lambda: backend.run(*given))
        assert device.log[-1] == "free"
    assert levels(backend.run(*given), wanted) == (0, 0)  # memory is there again


def test_failures_of_the_device_are_one_line(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = open_triton()

    def broken(*_: Any) -> Any:
        raise RuntimeError("CUDA error: misaligned address\nCUDA kernel errors might be")

    with monkeypatch.context() as m:
        m.setattr(device, "upload", broken)
        words = r"^nano: failed at 16x32 px, batch of 2 \(CUDA error: misaligned address\)$"
        refused(ModelError, words, lambda: backend.run(*batch(2, 32, 16)))
    device.log.clear()
    backend.run(*batch(2, 32, 16))
    assert "host" in device.log  # half-written buffers are not used again


class PTXASError(Exception):
    """Triton's own errors derive from Exception."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PTXASError("ptxas failed\nRepro command"), "PTXASError: ptxas failed"),
        (subprocess.CalledProcessError(1, ["cc"]), r"CalledProcessError: Command .*status 1\."),
        (ImportError("no module\nnamed x"), "ImportError: no module"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_whatever_fails_on_the_device_is_one_line(
    error: Exception, words: str, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = open_triton()
    given = batch(1, 16, 16)
    wanted = backend.run(*given)

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    with monkeypatch.context() as m:
        m.setattr(device, "upload", fail)
        line = rf"^nano: failed at 16x16 px, batch of 1 \({words}\)$"
        refused(ModelError, line, lambda: backend.run(*given))
    device.log.clear()
    assert levels(backend.run(*given), wanted) == (0, 0)
    assert "host" in device.log
    monkeypatch.setattr(module, "Network", fail)
    refused(ModelError, rf"^nano: failed while loading \({words}\)$", open_triton)


@pytest.mark.parametrize("error", [InputError("pack: too large"), KeyboardInterrupt()])
def test_our_own_errors_and_interrupts_pass(
    error: BaseException, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = open_triton()

    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(device, "upload", fail)
    with pytest.raises(type(error)) as caught:
        backend.run(*batch(1, 16, 16))
    assert caught.value is error


def test_a_closed_backend_says_so(device: Device) -> None:
    backend = open_triton()
    backend.run(*batch(1, 16, 16))
    backend.close()
    backend.close()
    assert device.log[-1] == "free"
    words = "^nano: the backend is closed; open the model again$"
    refused(ModelError, words, lambda: backend.run(*batch(1, 16, 16)))


def test_arrays_that_are_not_the_protocols_are_named(device: Device) -> None:
    backend = open_triton()
    frame, mask, state, sigma = batch(1, 16, 16)
    cases: list[tuple[Any, str]] = [
        ((frame[0], mask, state, sigma), "frame must be"),
        ((frame[:, :12], mask, state, sigma), "frame must be .* multiples of 8, got"),
        ((frame[:0], mask[:0], state[:0], sigma[:0]), "frame must be"),
        ((frame[..., :2], mask, state, sigma), r"frame must be uint8 \(1, 16, 16, 3\)"),
        ((frame.astype(np.float32), mask, state, sigma), "frame must be uint8"),
        ((frame, mask[..., 0], state, sigma), r"mask must be uint8 \(1, 16, 16, 1\)"),
        ((frame, mask, state[..., :3], sigma), r"state must be uint8 \(1, 16, 16, 4\)"),
        ((frame, mask, state, sigma[:0]), r"sigma must be float32 \(1,\), got float32 \(0,\)"),
        ((frame, mask, state, sigma.astype(float)), "sigma must be float32"),
    ]
    for arrays, words in cases:
        refused(InputError, f"^nano: {words}", lambda a=arrays: backend.run(*a))
    assert device.log == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_another_backend_is_named() -> None:
    words = "^tiny: the backend triton needs a CUDA device, .* use --backend ort$"
    refused(ModelError, words, lambda: open_backend("tiny", "triton"))
    refused(ModelError, words, lambda: Restorer("tiny", backend="triton"))
    with pytest.raises(ModelError) as e:
        open_backend("tiny", "triton")
    assert e.value.exit_code == 4


def test_the_interpreter_and_a_device_do_not_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(launch, "INTERPRETED", True)
    refused(ModelError, "unset TRITON_INTERPRET$", lambda: open_triton(device="cuda"))


NO_DEVICES = ["gpu", "", "cuda:", "cuda:-1", "cuda:01", "cuda:1000", "cuda\n", "cpu:0", "mps"]


@pytest.mark.parametrize("name", NO_DEVICES, ids=repr)  # the id gpu alone would be a mark
def test_a_name_of_no_device_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(launch, "INTERPRETED", False)
    words = "^nano: device '.*' is not known; use cuda, cuda:0 or cpu$"
    refused(ModelError, words, lambda: open_machine(name, "nano"))


@pytest.mark.parametrize("name", ["cuda:2", "cuda:9", "cuda:256"])  # torch reads 256 as 0
def test_a_device_that_is_not_there_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(launch, "INTERPRETED", False)
    words = f"^nano: no device {name}, torch finds 2; use cuda:1$"
    refused(ModelError, words, lambda: open_machine(name, "nano"))


def test_other_models_are_refused() -> None:
    data = find_model("detector").read_bytes()
    spec = read_spec(data, "detector")
    words = "^detector: its inputs and outputs are not those of a restorer"
    refused(ModelError, words, lambda: TritonBackend(data, spec, device="cpu"))
    refused(ModelError, "is a detector, not a restorer", lambda: open_backend("detector", "triton"))
    spec = read_spec(find_model("nano").read_bytes(), "nano")
    words = "^nano: its layers are not those of a nano generator"
    refused(ModelError, words, lambda: TritonBackend(data, spec, device="cpu"))
    refused(InputError, "^blocks best: not known", lambda: open_triton(blocks="best"))


@pytest.mark.parametrize("absent", ["torch", "triton"])
def test_a_missing_library_names_its_extra(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [m for m in sys.modules if m.startswith("fastrestore.kernels.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, absent, None)
    words = rf"^{absent} is not installed: pip install 'fastrestore\[kernels\]'$"
    refused(MissingExtraError, words, lambda: open_backend("tiny", "triton"))


# On a device.


@pytest.mark.gpu
@pytest.mark.parametrize("blocks", ["native", "kernel"])
@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize(("name", "height", "width"), SIZES)
def test_a_gpu_equals_onnx_runtime(
    name: str, height: int, width: int, past: bool, blocks: str
) -> None:
    given = batch(2, height, width, past=past)
    (wanted,) = run_ort(name, given)
    backend = open_triton(name, "cuda", blocks=blocks)
    runs = [backend.run(*given) for _ in range(4)]  # plain, captured, replayed twice
    assert max(levels(runs[0], wanted)) <= 2
    for again in runs[1:]:
        assert levels(again, runs[0]) == (0, 0)
    backend.close()


@pytest.mark.gpu
def test_a_gpu_keeps_shapes_apart_and_forgets_the_oldest() -> None:
    backend = open_triton("nano", "cuda")
    sizes = [(64, 64 + 8 * i) for i in range(KEPT_SHAPES + 2)]
    given = [batch(1, *size, seed=i, past=i % 2 > 0) for i, size in enumerate(sizes)]
    wanted = [backend.run(*g) for g in given]
    for _ in range(3):
        for g, w in zip(given[:3], wanted[:3], strict=True):
            assert levels(backend.run(*g), w) == (0, 0)
    for g, w in zip(given, wanted, strict=True):
        assert levels(backend.run(*g), w) == (0, 0)
    backend.close()


@pytest.mark.gpu
def test_a_gpu_video_equals_onnx_runtime() -> None:
    ort, ours = open_backend("tiny", "ort", 1), open_backend("tiny", "triton")
    for a, b in zip(film(ort, 6, 96, 112), film(ours, 6, 96, 112), strict=True):
        assert max(levels(a, b)) <= 2
    ours.close()
    ort.close()


@pytest.mark.gpu
def test_a_new_size_compiles_nothing() -> None:
    """Kernels are compiled for no size: a video may change its own in the middle."""
    from fastrestore.kernels.registry import launches

    backend = open_triton("nano", "cuda", blocks="native")

    def compiled() -> int:
        kernels = {id(x.kernel): x.kernel for x in launches()}.values()
        return sum(len(cache[0]) for k in kernels for cache in k.device_caches.values())

    for past in (False, True):
        backend.run(*batch(1, 64, 64, past=past))
    before = compiled()
    assert before > 0
    for n, height, width in ((1, 72, 104), (2, 200, 8), (3, 1080, 1920)):
        for past in (False, True):
            backend.run(*batch(n, height, width, past=past))
    assert compiled() == before
    backend.close()


@pytest.mark.gpu
def test_a_gpu_backend_gives_its_memory_back() -> None:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        backend = open_triton("nano", "cuda")
        backend.warm_up((1, 256, 256))
        backend.close()
        del backend
    assert torch.cuda.memory_allocated() - before < 2**20
