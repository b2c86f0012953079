"""Engines on a CUDA device: built, loaded, compared with ONNX Runtime, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastrestore.arrays import F32, U8
from fastrestore.backend import Backend, frames_of, open_backend
from fastrestore.errors import EngineError
from fastrestore.restore import Restorer

pytestmark = pytest.mark.gpu

SIDE = 256
PRODUCTS = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
Batch = tuple[U8, U8, U8, F32]


def batch(seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    frame = np.stack([128 + 100 * np.sin(x / (9 + c) + y / 17 + seed) for c in range(3)], -1)
    mask = (rng.random((SIDE // 8, SIDE // 8)) < 0.2).repeat(8, 0).repeat(8, 1)
    state = np.zeros((SIDE, SIDE, 4), np.uint8)
    sigma = np.full(1, 5 * seed, np.float32)
    return (
        frame.astype(np.uint8)[None],
        mask.astype(np.uint8)[None, ..., None],
        state[None],
        sigma,
    )


@pytest.fixture(scope="module", params=[*PRODUCTS])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backend]:
    name = str(request.param)
    pytest.importorskip(PRODUCTS[name], reason=f"{name} is not installed")
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTRESTORE_CACHE", str(cache))
        command = ["build-engine", "nano", "--target", name, "--for", f"{SIDE}x{SIDE}"]
        run = subprocess.run(
            [sys.executable, "-m", "fastrestore", *command, "--precision", "fp16"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr[-2000:]
        assert list(Path(cache, "engines").glob("*.engine"))
        try:
            backend = open_backend("nano", name)
        except EngineError as e:
            pytest.skip(f"{name} on this card: {e}")
        yield backend
        backend.close()


def levels(a: tuple[U8, U8], b: tuple[U8, U8]) -> int:
    return max(int(np.abs(x.astype(int) - y).max()) for x, y in zip(a, b, strict=True))


def test_it_equals_onnx_runtime(engine: Backend) -> None:
    assert frames_of(engine) == (((1, SIDE, SIDE),) * 2,)
    ort = open_backend("nano", "ort")
    for seed in range(6):
        wanted = ort.run(*batch(seed))
        runs = [engine.run(*batch(seed)) for _ in range(3)]
        assert levels(runs[0], wanted) <= 3
        assert all(levels(run, runs[0]) == 0 for run in runs)
    ort.close()


def test_threads_get_their_own_results(engine: Backend) -> None:
    wanted = [engine.run(*batch(seed)) for seed in range(4)]
    found: dict[int, list[Any]] = {i: [] for i in range(4)}

    def work(i: int) -> None:
        for _ in range(20):
            found[i].append(engine.run(*batch(i)))

    threads = [threading.Thread(target=work, args=(i,)) for i in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for i, runs in found.items():
        assert len(runs) == 20
        assert all(levels(run, wanted[i]) == 0 for run in runs)


def test_frames_leave_no_memory_behind(engine: Backend) -> None:
    from fastrestore.cuda import Cuda

    cuda = Cuda()
    with cuda.active():
        engine.warm_up((1, SIDE, SIDE))
        before = cuda.free_bytes()
        for i in range(1000):
            engine.run(*batch(i % 4))
        assert before - cuda.free_bytes() < 1 << 20
    cuda.close()


def test_a_large_picture_goes_through_in_windows(engine: Backend) -> None:
    image = np.tile(batch(1)[0][0], (3, 4, 1))[:700, :900]
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[100:120, 200:600] = 1
    with Restorer("nano", backend=engine.name) as ours, Restorer("nano", backend="ort") as ort:
        a, b = ours(image, mask), ort(image, mask)
    assert np.array_equal(a[mask == 0], image[mask == 0])
    assert np.abs(a.astype(int) - b)[mask > 0].mean() < 2
