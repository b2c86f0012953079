"""Level `host`: scenes, scenarios and rivals. No speed is asserted."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from fastrestore import classical
from fastrestore.bench.host import PER_STREAM, Host, together
from fastrestore.bench.rivals import Rivals
from fastrestore.bench.scene import SIGMA, scene
from fastrestore.errors import InputError, MissingExtraError

# Scenes.


def test_a_hole_in_the_middle_of_a_clean_picture() -> None:
    made = scene("fill", 60, 80, 0.05)
    assert made.image.shape == (60, 80, 3)
    assert made.mask is not None
    assert made.mask.sum() == 15**2  # 5 % are 240 px
    assert made.mask[22:37, 32:47].all()
    assert np.array_equal(made.image, scene("fill", 60, 80).image)


def test_noise_all_over_the_same_picture() -> None:
    made, clean = scene("denoise", 200, 400), scene("fill", 200, 400)
    assert made.mask is None
    error = made.image.astype(float) - clean.image
    assert 0.7 * SIGMA < error.std() < 1.1 * SIGMA
    assert np.array_equal(made.image, scene("denoise", 200, 400).image)


@pytest.mark.parametrize(("height", "width", "hole"), [(16, 400, 0.5), (16, 16, 0.0001)])
def test_a_hole_that_has_no_room_is_refused(height: int, width: int, hole: float) -> None:
    with pytest.raises(InputError, match=rf"hole {hole}: has no room in {width}x{height}"):
        scene("fill", height, width, hole)


# Scenarios.


class Stream:
    """Counts its pictures, and who restores at the same time."""

    running = 0
    most = 0
    lock = threading.Lock()

    def __init__(self) -> None:
        self.pictures = 0

    def __call__(self) -> Any:
        with Stream.lock:
            Stream.running += 1
            Stream.most = max(Stream.most, Stream.running)
        self.pictures += 1
        threading.Event().wait(0.01)
        with Stream.lock:
            Stream.running -= 1


@pytest.mark.parametrize(
    ("scenario", "streams", "each"),
    [
        ("single-stream", 1, 1),
        ("multi-stream", 1, 1),
        ("multi-stream", 3, 1),
        ("offline", 1, PER_STREAM),
        ("offline", 3, PER_STREAM),
    ],
)
def test_a_query_of_every_scenario(scenario: Any, streams: int, each: int) -> None:
    Stream.most = 0
    calls: list[Any] = [Stream() for _ in range(streams)]
    with ThreadPoolExecutor(streams) as pool:
        query, items = together(calls, scenario, pool if streams > 1 else None)
        query()
    assert items == each * streams
    assert [c.pictures for c in calls] == [each] * streams
    assert Stream.most == streams


def test_an_error_of_a_stream_is_the_querys() -> None:
    def fails() -> Any:
        raise InputError("broken")

    with ThreadPoolExecutor(2) as pool:
        query, _ = together([Stream(), fails], "multi-stream", pool)
        with pytest.raises(InputError, match="broken"):
            query()


@pytest.mark.parametrize("task", ["fill", "denoise"])
def test_a_real_model_restores_a_scene(task: Any) -> None:
    host = Host("nano", "ort", 1)
    made = scene(task, 48, 64)
    found = host.subject(made)
    assert found.labels == ("ort", "nano", "fp32", task, "single-stream", 1)
    assert (found.shape, found.items) == ((48, 64, 3), 1)
    restored: Any = found.call()
    assert restored.shape == (48, 64, 3)
    assert host.restorers[0].sigma == (0 if task == "fill" else SIGMA)
    host.close()


def test_every_stream_has_a_model_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host("nano", "ort", 4, streams=2)
    assert len({id(r) for r in host.restorers}) == 2
    found = host.subject(scene("fill", 48, 64), "multi-stream")
    assert (found.items, found.labels.streams) == (2, 2)
    found.call()
    host.close()


# Rivals.


def test_rivals_do_the_task_that_they_can() -> None:
    rivals = Rivals(["telea", "navier-stokes", "nlm", "bilateral"], threads=1)
    image = scene("fill", 40, 40)
    made = [make() for make in rivals.subjects(image)]
    assert [s.labels.model for s in made] == ["telea", "navier-stokes"]
    assert all(s.labels.backend == "opencv" and s.level == "host" for s in made)
    assert image.mask is not None
    assert np.array_equal(made[0].call(), classical.telea(image.image, image.mask))  # type: ignore[arg-type]
    noisy = scene("denoise", 40, 40)
    made = [make() for make in rivals.subjects(noisy)]
    assert [s.labels.model for s in made] == ["nlm", "bilateral"]
    assert np.array_equal(made[1].call(), classical.bilateral(noisy.image, SIGMA))  # type: ignore[arg-type]
    rivals.close()


def test_opencv_gets_our_threads_and_then_its_own_again() -> None:
    import cv2

    before = cv2.getNumThreads()
    rivals = Rivals(["telea"], threads=1)
    assert cv2.getNumThreads() == 1
    rivals.close()
    assert cv2.getNumThreads() == before


def test_scikit_image_is_asked_for_only_if_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.restoration", None)
    Rivals(["telea"]).close()
    with pytest.raises(MissingExtraError, match="skimage"):
        Rivals(["biharmonic"])


@pytest.mark.parametrize(
    ("names", "adapters", "words"),
    [
        (["magic"], [], r"rival magic: not known; choose telea, .*or an \.onnx file"),
        (["a.onnx"], [], r"a\.onnx: give --adapter once for all files or once for each, not 0"),
        (["a.onnx", "b.onnx", "c.onnx"], ["lama"] * 2, "not 2 times for 3"),
        (["telea"], ["lama"], "--adapter: there is no --rival FILE.onnx"),
    ],
)
def test_rivals_that_make_no_sense_are_refused(
    names: list[str], adapters: list[str], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        Rivals(names, adapters)
