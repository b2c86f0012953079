from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrestore.degrade import add_noise, make_mask, punch
from fastrestore.errors import InputError
from fastrestore.noise import estimate_sigma

PHOTOS = Path(__file__).resolve().parents[3] / "shared" / "data" / "test"


def textured_image(height: int = 256, width: int = 384) -> np.ndarray:
    """Half sky (a slope), half strong pattern: what fools the mean over the whole picture."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    sky = 90 + 60 * y / height + 20 * x / width
    pattern = 128 + 60 * np.sin(1.9 * x + 0.3 * y) * np.cos(1.3 * y)
    image = np.where(x < width / 2, sky, pattern)
    return np.stack([image, image * 0.9, 255 - image], -1).astype(np.uint8)


def flat_image(value: int = 127, height: int = 200, width: int = 200) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


@pytest.mark.parametrize("sigma", [5, 15, 25, 50])
def test_sigma_of_flat_and_textured_pictures(sigma: int):
    rng = np.random.default_rng(sigma)
    flat = estimate_sigma(add_noise(flat_image(), sigma, rng))
    assert flat == pytest.approx(np.sqrt(sigma**2 - 1.5**2), rel=0.05)
    assert estimate_sigma(add_noise(textured_image(), sigma, rng)) == pytest.approx(sigma, rel=0.1)


def test_clean_texture_is_not_noise():
    assert estimate_sigma(textured_image()) == 0


@pytest.mark.parametrize("sigma", [5, 25])
def test_grey_pictures_read_like_coloured_ones(sigma: int):
    image = textured_image()[..., :1]
    noisy = np.repeat(add_noise(image, sigma, np.random.default_rng(0)), 3, axis=2)
    assert estimate_sigma(noisy) == pytest.approx(sigma, rel=0.1)


def test_clipped_areas_are_skipped():
    image = textured_image()
    image[:160] = 0  # a night sky: half of its noise is cut off
    noisy = add_noise(image, 25, np.random.default_rng(1))
    assert estimate_sigma(noisy) == pytest.approx(25, rel=0.1)
    noisy[:160] = 255  # blown out: no noise left to see
    assert estimate_sigma(noisy) == pytest.approx(25, rel=0.1)


def test_black_and_white_drawings_are_clean():
    rng = np.random.default_rng(2)
    drawing = 255 * np.repeat((rng.random((64, 64, 1)) < 0.1).astype(np.uint8), 3, axis=2)
    assert estimate_sigma(drawing) == 0


@pytest.mark.parametrize("kind", ["freeform", "thin", "grid"])
@pytest.mark.parametrize("sigma", [0, 25])
def test_what_lies_in_the_hole_does_not_matter(kind: str, sigma: int):
    rng = np.random.default_rng(3)
    image = add_noise(textured_image(), sigma, rng)
    mask = make_mask(kind, rng, *image.shape[:2], 0.2)
    black, white = punch(image, mask), punch(image, mask, (255, 0, 200))
    found = estimate_sigma(black, mask)
    assert found == estimate_sigma(white, mask) == estimate_sigma(black, mask * 255)
    assert found == pytest.approx(sigma, rel=0.1)


def test_dotted_mask_leaves_enough():
    noisy = add_noise(flat_image(), 25, np.random.default_rng(4))
    mask = np.zeros(noisy.shape[:2], np.uint8)
    mask[::5, ::5] = 1
    assert estimate_sigma(punch(noisy, mask), mask) == pytest.approx(25, rel=0.2)


def test_all_hole_and_nearly_all_hole():
    noisy = add_noise(flat_image(), 25, np.random.default_rng(5))
    mask = np.ones(noisy.shape[:2], np.uint8)
    assert estimate_sigma(noisy, mask) == 0
    mask[100, 100] = 0  # one known pixel has no known surroundings
    assert estimate_sigma(noisy, mask) == 0


def test_empty_mask_is_no_mask():
    noisy = add_noise(textured_image(), 10, np.random.default_rng(6))
    assert estimate_sigma(noisy, np.zeros(noisy.shape[:2], np.uint8)) == estimate_sigma(noisy)


@pytest.mark.parametrize("value", [0, 1, 127, 255])
def test_flat_pictures_have_none(value: int):
    assert estimate_sigma(flat_image(value)) == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 2), (2, 50)])
def test_pictures_smaller_than_the_operator_have_none(size: tuple[int, int]):
    image = np.random.default_rng(7).integers(0, 256, (*size, 3), np.uint8)
    assert estimate_sigma(image) == 0
    assert estimate_sigma(image, np.zeros(size, np.uint8)) == 0


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    ratio=st.floats(0, 0.95),
)
def test_any_picture_gives_a_sigma_in_range(height: int, width: int, seed: int, ratio: float):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    mask = (rng.random((height, width)) < ratio).astype(np.uint8)
    for found in (estimate_sigma(image), estimate_sigma(image, mask)):
        assert 0 <= found <= 254


def test_strongest_response_is_capped():
    rows, columns = np.mgrid[:64, :64]
    board = np.where((rows + columns) % 2, 253, 2).astype(np.uint8)  # not clipped, all texture
    assert estimate_sigma(np.repeat(board[..., None], 3, axis=2)) == 254


def test_views_are_read_as_they_look():
    noisy = add_noise(textured_image(), 25, np.random.default_rng(8))
    assert estimate_sigma(noisy[::-1, ::-1, ::-1]) == pytest.approx(25, rel=0.1)
    assert estimate_sigma(noisy[:, ::2]) == estimate_sigma(noisy[:, ::2].copy())


def test_wrong_arrays_are_refused():
    image = flat_image()
    for wrong in (image.astype(np.float32), image[..., 0], np.zeros((9, 9, 4), np.uint8)):
        with pytest.raises(InputError, match="uint8"):
            estimate_sigma(wrong)
    with pytest.raises(InputError, match="mask"):
        estimate_sigma(image, np.zeros((3, 3), np.uint8))


def test_a_video_frame_takes_milliseconds():
    import cv2

    noisy = add_noise(flat_image(127, 720, 1280), 20, np.random.default_rng(9))
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        took = []
        for _ in range(5):
            start = time.process_time()
            estimate_sigma(noisy)
            took.append(time.process_time() - start)
    finally:
        cv2.setNumThreads(threads)
    assert min(took) < 0.015  # 4 ms on one core of an EPYC


@pytest.mark.parametrize("name", ["kodak24", "free_photos"])
def test_photographs(name: str):
    import cv2

    paths = sorted((PHOTOS / name).glob("*.webp"))[:6]
    if not paths:
        pytest.skip(f"no photographs in {PHOTOS / name}")
    clean = [np.ascontiguousarray(cv2.imread(str(p))[..., ::-1]) for p in paths]
    assert np.mean([estimate_sigma(image) for image in clean]) < 0.5
    for sigma in (5, 25):
        rng = np.random.default_rng(sigma)
        found = [estimate_sigma(add_noise(image, sigma, rng)) for image in clean]
        assert found == pytest.approx([sigma] * len(found), rel=0.12)
