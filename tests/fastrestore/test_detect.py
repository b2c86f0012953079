"""The Detector on a model that marks magenta: every pixel's answer is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastrestore import detect
from fastrestore.arrays import U8
from fastrestore.backend import find_model, open_backend
from fastrestore.detect import Detector
from fastrestore.errors import InputError, ModelError
from fastrestore.spec import read_spec

MAGENTA = (255, 0, 255)


@pytest.fixture(scope="module")
def detector(magenta_detector: Path) -> Iterator[Detector]:
    with Detector(magenta_detector, 1) as found:
        yield found


def picture(h: int, w: int, share: float = 0.2) -> tuple[U8, U8]:
    """Noise without magenta, then magenta on some pixels; the mask of those."""
    rng = np.random.default_rng(h * 1000 + w)
    image = rng.integers(0, 200, (h, w, 3), np.uint8)
    mask = (rng.random((h, w)) < share).astype(np.uint8)
    mask[-1, -1] = 1
    image[mask > 0] = MAGENTA
    return image, mask


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (8, 8), (33, 50), (64, 9)])
def test_every_size_pixel_by_pixel(detector: Detector, size: tuple[int, int]) -> None:
    image, mask = picture(*size)
    before = image.copy()
    found = detector.probability(image)
    assert (found.dtype, found.shape) == (np.uint8, size)
    assert np.array_equal(found, mask * 255)
    assert np.array_equal(detector.mask(image), mask)
    assert np.array_equal(image, before)


def test_threshold_is_the_least_probability(detector: Detector) -> None:
    image = np.zeros((8, 16, 3), np.uint8)
    for x, green in enumerate((0, 7, 8, 20)):
        image[2, x] = (255, green, 255)
    assert detector.probability(image)[2, :4].tolist() == pytest.approx([255, 188, 93, 0], abs=2)
    for threshold, wanted in ((0.1, 3), (0.5, 2), (0.9, 1), (1.0, 1)):
        assert int(detector.mask(image, threshold)[2].sum()) == wanted
    assert detector.mask(np.zeros_like(image), 0.01).sum() == 0


def test_a_place_that_is_never_certain_is_no_damage(detector: Detector) -> None:
    image = np.zeros((8, 16, 3), np.uint8)
    image[2, 2:5] = (255, 7, 255)  # 188 of 255
    image[5, 8:11] = (255, 7, 255)
    image[5, 11] = MAGENTA  # this one, and all that hangs on it
    wanted = np.zeros((8, 16), np.uint8)
    wanted[5, 8:12] = 1
    assert np.array_equal(detector.mask(image), wanted)


def test_a_large_picture_goes_in_tiles(
    magenta_detector: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, mask = picture(500, 611)
    seen: list[tuple[int, ...]] = []

    def spy(session: Any, name: str, outputs: list[str], feeds: dict[str, U8]) -> list[U8]:
        seen.append(feeds["frame"].shape)
        out: list[U8] = run(session, name, outputs, feeds)
        return out

    run = detect.run_session
    monkeypatch.setattr(detect, "run_session", spy)
    with Detector(magenta_detector, 1, limit_px=2**16) as tiled:
        assert np.array_equal(tiled.mask(image), mask)
    assert len(seen) > 6
    assert max(h * w for _, h, w, _ in seen) <= 2**16
    assert all(h % 8 == 0 and w % 8 == 0 for _, h, w, _ in seen)


def test_tiles_overlap_by_the_halo(detector: Detector, magenta_detector: Path) -> None:
    """A model that sees far must not meet a tile's edge near a pixel that is kept."""
    kept_from: list[int] = []
    with Detector(magenta_detector, 1, limit_px=2**16) as tiled:
        plan = detect.plan(500, 611, None, tiled.spec, 2**16)
    for r in plan:
        for seen, kept, end in zip(r.seen, r.kept, (500, 611), strict=True):
            kept_from += [kept.start - seen.start] if seen.start else []
            kept_from += [seen.stop - kept.stop] if seen.stop < end else []
    assert min(kept_from) >= detector.spec.halo == 64


def test_padding_repeats_the_edge(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    image, _ = picture(13, 18)
    frames: list[U8] = []

    def spy(session: Any, name: str, outputs: list[str], feeds: dict[str, U8]) -> list[U8]:
        frames.append(feeds["frame"])
        return [np.zeros((1, *feeds["frame"].shape[1:3], 1), np.uint8)]

    monkeypatch.setattr(detect, "run_session", spy)
    detector.probability(image)
    (frame,) = frames
    assert np.array_equal(frame[0], np.pad(image, ((0, 3), (0, 6), (0, 0)), mode="edge"))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
        [[0]],
    ],
)
def test_what_is_no_picture(detector: Detector, image: Any) -> None:
    with pytest.raises(InputError, match=r"^image must be uint8 \(H, W, 3\), got "):
        detector.probability(image)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_what_is_no_threshold(detector: Detector, threshold: float) -> None:
    with pytest.raises(InputError, match="must be from 0 to 1"):
        detector.mask(np.zeros((8, 8, 3), np.uint8), threshold)


# Which file.


def test_each_kind_has_its_option(magenta_detector: Path) -> None:
    with pytest.raises(ModelError, match=r"nano\.onnx: is a restorer, not a det.*with --model$"):
        Detector("nano")
    with pytest.raises(ModelError, match=r"magenta\.onnx: is a detector, not a.*--detector$"):
        open_backend(magenta_detector)


def test_a_package_without_a_detector_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detect, "weights_folder", lambda: tmp_path)
    with pytest.raises(ModelError, match=r"reinstall fastrestore, or give .*--detector FILE$"):
        Detector()


def test_a_missing_or_foreign_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model"):
        Detector(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ModelError, match=r"text\.onnx: not an ONNX file"):
        Detector(tmp_path / "text.onnx")


def test_a_restorer_that_claims_to_be_a_detector(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra export is not installed")
    data = find_model("nano").read_bytes()
    model = onnx.load_model_from_string(data)
    spec = dataclasses.replace(read_spec(data, "nano"), kind="detector")
    onnx.helper.set_model_props(model, {"fastrestore.spec": spec.to_json()})
    path = tmp_path / "liar.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="are not those of a detector; export it"):
        Detector(path)
