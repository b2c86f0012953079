from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from fastrestore.classical import (
    DENOISERS,
    INPAINTERS,
    bilateral_float,
    has_patchmatch,
    navier_stokes,
    patchmatch,
    telea,
)
from fastrestore.degrade import add_noise, make_mask, punch
from fastrestore.errors import InputError, MissingExtraError
from fastrestore.metrics import hole_psnr, psnr

NEEDS = {"biharmonic": "skimage.restoration"}
inpainters = pytest.mark.parametrize("name", INPAINTERS)
denoisers = pytest.mark.parametrize("name", DENOISERS)


@pytest.fixture
def inpaint(name: str):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} is not installed")
    return INPAINTERS[name]


def smooth_image(height: int = 64, width: int = 80) -> np.ndarray:
    y, x = np.mgrid[:height, :width].astype(np.float64)
    waves = [120 + 60 * np.sin(x / 15 + c) + 40 * np.cos(y / 11 - c) for c in range(3)]
    return np.stack(waves, -1).astype(np.uint8)


def test_names():
    assert set(INPAINTERS) == {"telea", "navier_stokes", "biharmonic"}
    assert set(DENOISERS) == {"bilateral", "non_local_means"}


@inpainters
def test_hole_is_filled_and_known_pixels_stay(name: str, inpaint):
    image = smooth_image()
    mask = make_mask("freeform", np.random.default_rng(0), 64, 80, 0.15)
    damaged = punch(image, mask)
    before = damaged.copy()
    out = inpaint(damaged, mask)
    assert out.dtype == np.uint8
    assert out.shape == image.shape
    assert (out[mask == 0] == image[mask == 0]).all()
    assert (damaged == before).all()
    assert hole_psnr(out, image, mask) > 25
    assert (out == inpaint(damaged, mask * 255)).all()


@inpainters
def test_channels_are_not_mixed_up(name: str, inpaint):
    image = np.zeros((24, 24, 3), np.uint8)
    image[...] = (200, 100, 20)
    mask = make_mask("center", np.random.default_rng(0), 24, 24, 0)
    out = inpaint(punch(image, mask), mask)
    lost = 2 if name == "telea" else 0  # its weighted mean cuts fractions off
    assert np.abs(out.astype(int) - image).max() <= lost


@inpainters
@pytest.mark.parametrize("kind", ["freeform", "rects", "thin"])
def test_hole_is_never_looked_at(name: str, inpaint, kind: str):
    rng = np.random.default_rng(1)
    image = smooth_image(40, 40)
    mask = make_mask(kind, rng, 40, 40, 0.3)
    mask[:, :3] = mask[-4:] = 1  # up to the picture's edges
    black = inpaint(punch(image, mask), mask)
    for other in (image, punch(image, mask, (255, 9, 77))):
        assert (inpaint(other, mask) == black).all()


@inpainters
def test_empty_mask_returns_a_copy(name: str, inpaint):
    image = smooth_image(16, 16)
    out = inpaint(image, np.zeros((16, 16), np.uint8))
    assert (out == image).all()
    assert out is not image
    assert not np.shares_memory(out, image)


@inpainters
@pytest.mark.parametrize("size", [(1, 2), (1, 9), (9, 1), (2, 2), (3, 5), (33, 17)])
def test_small_pictures(name: str, inpaint, size: tuple[int, int]):
    image = np.full((*size, 3), 50, np.uint8)
    mask = np.zeros(size, np.uint8)
    mask[0, 0] = 1
    out = inpaint(image, mask)
    assert out.shape == image.shape
    assert (out[mask == 0] == 50).all()


@inpainters
def test_what_cannot_be_filled_is_refused(name: str, inpaint):
    image = smooth_image(16, 16)
    with pytest.raises(InputError, match="all hole"):
        inpaint(image, np.ones((16, 16), np.uint8))
    with pytest.raises(InputError, match="mask"):
        inpaint(image, np.zeros((16, 15), np.uint8))
    with pytest.raises(InputError, match="uint8"):
        inpaint(image.astype(np.float32), np.zeros((16, 16), np.uint8))


def test_methods_differ():
    image = add_noise(smooth_image(), 20, np.random.default_rng(2))
    mask = make_mask("center", np.random.default_rng(0), 64, 80, 0)
    assert (telea(image, mask) != navier_stokes(image, mask)).any()


@pytest.mark.parametrize("method", [telea, navier_stokes])
def test_known_pixels_stay_whatever_the_library_does(method, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cv2.inpaint", lambda image, *_: np.full_like(image, 7))
    image = smooth_image(16, 16)
    mask = np.eye(16, dtype=np.uint8)
    out = method(image, mask)
    assert (out[mask == 0] == image[mask == 0]).all()
    assert (out[mask == 1] == 7).all()


def test_missing_scikit_image_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "skimage.restoration", None)
    with pytest.raises(MissingExtraError, match=r"fastrestore\[evaluate\]"):
        INPAINTERS["biharmonic"](smooth_image(8, 8), np.eye(8, dtype=np.uint8))


@denoisers
@pytest.mark.parametrize(("sigma", "gain_db"), [(15, 4), (25, 6), (50, 7)])
def test_noise_goes(name: str, sigma: int, gain_db: float):
    image = smooth_image()
    noisy = add_noise(image, sigma, np.random.default_rng(sigma))
    before = noisy.copy()
    out = DENOISERS[name](noisy, sigma)
    assert out.dtype == np.uint8
    assert out.shape == image.shape
    assert (noisy == before).all()
    assert psnr(out, image) > psnr(noisy, image) + gain_db


@denoisers
def test_colours_stay(name: str):
    image = np.zeros((32, 32, 3), np.uint8)
    image[...] = (200, 100, 20)
    out = DENOISERS[name](add_noise(image, 5, np.random.default_rng(3)), 5)
    assert np.abs(out.reshape(-1, 3).mean(0) - (200, 100, 20)).max() < 2


@denoisers
def test_sigma_zero_returns_a_copy(name: str):
    image = smooth_image(16, 16)
    out = DENOISERS[name](image, 0)
    assert (out == image).all()
    assert not np.shares_memory(out, image)


@denoisers
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (33, 17)])
def test_small_noisy_pictures(name: str, size: tuple[int, int]):
    image = np.full((*size, 3), 50, np.uint8)
    out = DENOISERS[name](image, 25)
    assert out.shape == image.shape
    assert np.abs(out.astype(int) - 50).max() <= 2


@denoisers
@pytest.mark.parametrize("sigma", [-1, 255, float("nan")])
def test_sigma_out_of_range_is_refused(name: str, sigma: float):
    with pytest.raises(InputError, match="sigma"):
        DENOISERS[name](smooth_image(8, 8), sigma)


@denoisers
def test_wrong_pictures_are_refused(name: str):
    with pytest.raises(InputError, match="uint8"):
        DENOISERS[name](smooth_image(8, 8)[..., 0], 5)


# PatchMatch, which a package of its own brings.


def test_patchmatch_fills_and_keeps():
    pytest.importorskip("patchmatch", reason="PyPatchMatch is not installed")
    image = smooth_image()
    mask = make_mask("rects", np.random.default_rng(0), 64, 80, 0.1)
    out = patchmatch(punch(image, mask), mask)
    assert np.array_equal(out[mask == 0], image[mask == 0])
    assert hole_psnr(out, image, mask) > 20
    assert np.array_equal(patchmatch(image, mask), out)  # the hole's content is not looked at
    assert np.array_equal(patchmatch(image, np.zeros_like(mask)), image)


def test_patchmatch_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "patchmatch", None)
    with pytest.raises(MissingExtraError, match=r"patchmatch: .*pip install pypatchmatch"):
        patchmatch(smooth_image(), np.ones((64, 80), np.uint8))
    assert not has_patchmatch()
    monkeypatch.setitem(sys.modules, "patchmatch", SimpleNamespace(patchmatch_available=False))
    with pytest.raises(MissingExtraError, match="no native library"):
        patchmatch(smooth_image(), np.ones((64, 80), np.uint8))


# Float frames.


def test_bilateral_of_whole_numbers_is_that_of_bytes():
    noisy = add_noise(smooth_image(), 25, np.random.default_rng(0))
    a, b = DENOISERS["bilateral"](noisy, 25), bilateral_float(noisy.astype(np.float32), 25)
    assert np.abs(a.astype(int) - b).max() <= 1


def test_bilateral_takes_what_bytes_cannot_hold():
    image = np.full((32, 32, 3), 250, np.float32)
    noisy = image + np.random.default_rng(0).normal(0, 25, image.shape).astype(np.float32)
    clipped = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    float_mean = bilateral_float(noisy, 25).mean()
    assert float_mean == pytest.approx(249, abs=2)
    assert DENOISERS["bilateral"](clipped, 25).mean() < float_mean - 3  # clipping pulls it down


@pytest.mark.parametrize(
    ("image", "sigma", "words"),
    [
        (np.zeros((4, 4, 3), np.uint8), 5, "must be float32"),
        (np.zeros((4, 4), np.float32), 5, "must be float32"),
        (np.zeros((4, 4, 3), np.float32), 0, "sigma 0"),
    ],
)
def test_bad_float_frames(image: np.ndarray, sigma: float, words: str):
    with pytest.raises(InputError, match=words):
        bilateral_float(image, sigma)
