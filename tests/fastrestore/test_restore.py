from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrestore import restore as restore_module
from fastrestore.arrays import F32, U8
from fastrestore.backend import find_model
from fastrestore.degrade import add_noise, make_mask, punch
from fastrestore.demo import sample_folder
from fastrestore.errors import InputError
from fastrestore.images import read_picture
from fastrestore.masks import grow
from fastrestore.metrics import hole_psnr, psnr
from fastrestore.noise import estimate_sigma
from fastrestore.restore import Restorer
from fastrestore.spec import ModelSpec, read_spec
from fastrestore.tiles import BORDER_PX, plan

TILED_PX = 2**16  # the smallest tiles
SPEC = ModelSpec("fake", "tiny", 16, 64, 6, "free", "none")


@pytest.fixture(scope="module")
def restorer() -> Iterator[Restorer]:
    with Restorer("nano", backend="ort", threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def tiled() -> Iterator[Restorer]:
    with Restorer("nano", backend="ort", threads=1, limit_px=TILED_PX) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def whole(restorer: Restorer) -> Callable[..., U8]:
    """Restores a picture in one run that sees all of it, whatever the mask."""

    def everything(height: int, width: int, _mask: Any, spec: ModelSpec, _limit: int) -> Any:
        return plan(height, width, None, spec, height * width)

    def run(image: U8, mask: U8, sigma: float = 0) -> U8:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(restore_module, "plan", everything)
            return restorer(image, mask, sigma=sigma)

    return run


@pytest.fixture(scope="module")
def scene() -> U8:
    """A photograph, 512x512."""
    return read_picture(sample_folder() / "vegetables.webp").rgb


def enlarged(scene: U8, height: int, width: int) -> U8:
    return np.asarray(cv2.resize(scene, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def part(scene: U8, y: int, x: int, height: int = 96, width: int = 128) -> U8:
    return np.ascontiguousarray(scene[y : y + height, x : x + width])


def with_hole(image: U8, y: int, x: int, h: int, w: int) -> U8:
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[y : y + h, x : x + w] = 1
    return mask


def assert_alike(a: U8, b: U8) -> None:
    """Within one grey level; where two roundings meet, single values are two apart."""
    levels = np.abs(a.astype(int) - b)
    assert (levels > 1).mean() < 0.01, f"{(levels > 1).mean():.2%} of the values differ"
    assert levels.max(initial=0) <= 3


class Negative:
    """A backend that inverts, without a model; keeps the sizes it was asked for."""

    name, spec = "negative", SPEC

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.sigmas: list[float] = []

    def run(self, frame: U8, mask: U8, state: U8, sigma: F32) -> tuple[U8, U8]:
        for array, channels in ((frame, 3), (mask, 1), (state, 4)):
            assert array.dtype == np.uint8
            assert array.shape == (1, *frame.shape[1:3], channels)
            assert array.flags.c_contiguous
        assert frame.shape[1] % SPEC.multiple == frame.shape[2] % SPEC.multiple == 0
        assert (sigma.dtype, sigma.shape) == (np.float32, (1,))
        self.shapes.append(frame.shape)
        self.sigmas.append(float(sigma[0]))
        return 255 - frame, state + np.uint8(1)

    def warm_up(self, shape: tuple[int, int, int]) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def negative(monkeypatch: pytest.MonkeyPatch) -> Negative:
    backend = Negative()
    monkeypatch.setattr(restore_module, "open_backend", lambda *_, **__: backend)
    return backend


# What changes and what does not.


@pytest.mark.parametrize("grow_px", [0, 1, 5])
def test_pixels_outside_the_grown_mask_are_the_inputs_own(
    restorer: Restorer, scene: U8, grow_px: int
) -> None:
    image = part(scene, 200, 100)
    mask = with_hole(image, 30, 40, 20, 30) | with_hole(image, 90, 0, 6, 3)
    out = restorer(image, mask, grow_px=grow_px)
    outside = grow(mask, grow_px) == 0
    assert np.array_equal(out[outside], image[outside])
    assert (out != image)[mask > 0].any()
    if grow_px == 5:
        ring = (mask == 0) & ~outside
        assert (out != image)[ring].any()


@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.integers(1, 70))
def test_untouched_pixels_of_any_picture(seed: int, height: int, width: int) -> None:
    """Odd sizes down to 1x1, every kind of mask."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    mask = (rng.random((height, width)) < rng.choice([0.01, 0.3, 0.9])).astype(np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restore_module, "open_backend", lambda *_, **__: Negative())
        restorer = Restorer("any")
    if mask.all():
        with pytest.raises(InputError, match="covers the whole picture"):
            restorer(image, mask)
        return
    out = restorer(image, mask)
    assert np.array_equal(out[mask == 0], image[mask == 0])
    assert np.array_equal(out[mask > 0], 255 - image[mask > 0])
    everywhere = restorer(image, mask, sigma=3)
    assert np.array_equal(everywhere, 255 - image)


def test_what_lies_under_the_hole_does_not_matter(restorer: Restorer, scene: U8) -> None:
    image = part(scene, 200, 100)
    mask = with_hole(image, 30, 40, 20, 30)
    for sigma in (0.0, 20.0, "auto"):
        outs = [
            restorer(punch(image, mask, colour), mask, sigma=sigma)
            for colour in ((0, 0, 0), (255, 255, 255), (255, 0, 255))
        ]
        assert np.array_equal(outs[0], outs[1])
        assert np.array_equal(outs[0], outs[2])


def test_the_ring_is_blended(negative: Negative) -> None:
    image = np.zeros((48, 48, 3), np.uint8)
    mask = with_hole(image, 10, 10, 20, 4)
    out = Restorer("any")(image, mask, grow_px=3)
    row = out[20, :, 0].astype(int).tolist()
    assert row[10:14] == [255] * 4
    assert row[6:10] == [0, 64, 128, 191]
    assert row[14:18] == [191, 128, 64, 0]


def test_masks_of_one_of_255_and_bool_agree(restorer: Restorer, scene: U8) -> None:
    image = part(scene, 100, 100)
    mask = with_hole(image, 30, 40, 20, 30)
    masks: list[Any] = [mask, mask * np.uint8(255), mask > 0, mask[..., None]]
    first, *others = [restorer(image, m, grow_px=1) for m in masks]
    assert all(np.array_equal(first, other) for other in others)


def test_empty_mask_changes_nothing(negative: Negative, scene: U8) -> None:
    image = part(scene, 0, 0)
    out = Restorer("any")(image, np.zeros(image.shape[:2], np.uint8), grow_px=9)
    assert np.array_equal(out, image)
    assert out is not image
    assert not negative.shapes


def test_input_is_left_alone_whatever_its_memory_is(restorer: Restorer, scene: U8) -> None:
    image = scene[100:292:2, 100:356:2]
    frozen = np.ascontiguousarray(image)
    frozen.flags.writeable = False
    mask = with_hole(frozen, 30, 40, 20, 30)
    mask.flags.writeable = False
    before = frozen.copy()
    outs = [restorer(i, mask, sigma=s) for i in (image, frozen) for s in (0, 10)]
    assert np.array_equal(frozen, before)
    assert np.array_equal(outs[0], outs[2])
    assert np.array_equal(outs[1], outs[3])
    outs[0][:] = 0  # the result is the caller's
    assert np.array_equal(frozen, before)


@pytest.mark.parametrize("mask_too", [False, True])
def test_the_mask_may_not_cover_everything(negative: Negative, mask_too: bool) -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    mask = np.ones((20, 30), np.uint8)
    if mask_too:
        mask[0, 0] = 0  # grown over the last known pixel
    with pytest.raises(InputError, match="nothing is left to restore from"):
        Restorer("any")(image, mask, grow_px=int(mask_too))
    assert not negative.shapes


# Noise.


def test_sigma_is_zero_with_a_mask_and_estimated_without(negative: Negative, scene: U8) -> None:
    noisy = add_noise(part(scene, 200, 100), 20, np.random.default_rng(0))
    mask = with_hole(noisy, 30, 40, 20, 30)
    restorer = Restorer("any")
    estimated = estimate_sigma(noisy)
    assert 15 < estimated < 25
    restorer(noisy, mask)
    restorer(noisy)
    restorer(noisy, sigma="auto")
    restorer(noisy, mask, sigma="auto")
    restorer(noisy, sigma=7)
    restorer(noisy, sigma=np.float32(7))  # type: ignore[arg-type]
    of_known = estimate_sigma(noisy, mask)
    wanted = [0, estimated, estimated, of_known, 7, 7]
    assert negative.sigmas == pytest.approx(wanted, rel=1e-6)


def test_estimate_ignores_the_grown_hole(negative: Negative, scene: U8) -> None:
    noisy = add_noise(part(scene, 200, 100), 20, np.random.default_rng(0))
    mask = with_hole(noisy, 30, 40, 20, 30)
    Restorer("any")(noisy, mask, sigma="auto", grow_px=8)
    assert negative.sigmas == pytest.approx([estimate_sigma(noisy, grow(mask, 8))], rel=1e-6)


def test_without_noise_and_hole_nothing_is_run(negative: Negative, scene: U8) -> None:
    restorer = Restorer("any")
    flat = np.full((40, 50, 3), 99, np.uint8)
    assert np.array_equal(restorer(flat), flat)
    image = part(scene, 0, 0)
    assert np.array_equal(restorer(image, sigma=0), image)
    assert not negative.shapes


@pytest.mark.parametrize("sigma", [15, 25, 50])
def test_noise_is_removed(restorer: Restorer, scene: U8, sigma: float) -> None:
    clean = part(scene, 200, 100, 128, 160)
    noisy = add_noise(clean, sigma, np.random.default_rng(1))
    for told in (sigma, estimate_sigma(noisy)):
        assert psnr(restorer(noisy, sigma=told), clean) > psnr(noisy, clean) + 3


def test_holes_are_filled_better_than_by_one_colour(restorer: Restorer, scene: U8) -> None:
    clean = part(scene, 200, 100, 128, 160)
    mask = with_hole(clean, 30, 40, 12, 60) | with_hole(clean, 80, 30, 30, 8)
    out = restorer(punch(clean, mask), mask)
    flat = clean.copy()
    flat[mask > 0] = clean[mask == 0].mean(0)
    assert hole_psnr(out, clean, mask) > hole_psnr(flat, clean, mask) + 2


# Sizes.


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (17, 5), (63, 65), (97, 131)])
def test_small_and_odd_sizes(restorer: Restorer, scene: U8, size: tuple[int, int]) -> None:
    image = part(scene, 50, 60, *size)
    out = restorer(image, sigma=10)
    assert (out.shape, out.dtype) == (image.shape, np.uint8)
    assert np.abs(out.astype(int) - image).mean() < 40
    mask = with_hole(image, 0, 0, 1, 1)
    if image[..., 0].size == 1:
        with pytest.raises(InputError, match="covers the whole"):
            restorer(image, mask)
        return
    out = restorer(image, mask)
    assert np.array_equal(out[mask == 0], image[mask == 0])


def test_padding_repeats_the_edge(negative: Negative) -> None:
    seen: list[U8] = []
    run = negative.run

    def spy(frame: U8, mask: U8, state: U8, sigma: F32) -> tuple[U8, U8]:
        seen.extend((frame[0], mask[0, ..., 0]))
        return run(frame, mask, state, sigma)

    negative.run = spy  # type: ignore[method-assign]
    image = np.random.default_rng(0).integers(0, 256, (17, 30, 3), np.uint8)
    mask = with_hole(image, 10, 20, 7, 10)
    Restorer("any")(image, mask, sigma=5)
    around = [(BORDER_PX, -(n + BORDER_PX) % SPEC.multiple) for n in (17, 30)]
    assert np.array_equal(seen[0], np.pad(image, (*around, (0, 0)), mode="edge"))
    assert np.array_equal(seen[1], np.pad(mask, around, mode="edge"))


# Crops and tiles against the whole picture.

HOLES = {
    "48": (300, 305, 48, 48),
    "160": (171, 213, 160, 160),
    "110 at the edge": (0, 213, 110, 110),
    "160 at the edge": (0, 213, 160, 160),
    "80 in the corner": (0, 0, 80, 80),
    "160 in the corner": (0, 0, 160, 160),
    "150 in the other corner": (362, 490, 150, 150),
    "band": (200, 0, 130, 640),
    "strip": (0, 301, 512, 40),
}


@pytest.mark.parametrize("hole", HOLES.values(), ids=list(HOLES))
def test_a_crop_agrees_with_the_whole(
    restorer: Restorer, whole: Callable[..., U8], scene: U8, hole: tuple[int, int, int, int]
) -> None:
    image = enlarged(scene, 512, 640)
    mask = with_hole(image, *hole)
    damaged = punch(image, mask)
    assert_alike(restorer(damaged, mask)[mask > 0], whole(damaged, mask)[mask > 0])


@pytest.mark.parametrize("hole", [HOLES["160"], (100, 60, 100, 450)])
def test_tiles_that_cut_a_hole_agree_with_the_whole(
    tiled: Restorer, whole: Callable[..., U8], scene: U8, hole: tuple[int, int, int, int]
) -> None:
    image = enlarged(scene, 512, 640)
    mask = with_hole(image, *hole)
    damaged = punch(image, mask)
    assert_alike(tiled(damaged, mask)[mask > 0], whole(damaged, mask)[mask > 0])


def test_tiles_of_a_noisy_picture_agree_with_the_whole(
    tiled: Restorer, whole: Callable[..., U8], scene: U8
) -> None:
    noisy = add_noise(enlarged(scene, 384, 512), 20, np.random.default_rng(0))
    assert_alike(tiled(noisy, sigma=20), whole(noisy, np.zeros((384, 512), np.uint8), 20))


def test_tiles_of_a_noisy_picture_with_a_hole_agree_with_the_whole(
    tiled: Restorer, whole: Callable[..., U8], scene: U8
) -> None:
    noisy = add_noise(enlarged(scene, 384, 512), 20, np.random.default_rng(0))
    mask = with_hole(noisy, 120, 180, 130, 150)
    damaged = punch(noisy, mask)
    assert_alike(tiled(damaged, mask, sigma=20), whole(damaged, mask, 20))


def test_the_state_of_tiles_is_that_of_the_whole(
    restorer: Restorer, tiled: Restorer, scene: U8
) -> None:
    clean = enlarged(scene, 288, 320)
    rng = np.random.default_rng(0)
    for r in (restorer, tiled):
        r.reset()
    for _ in range(3):
        noisy = add_noise(clean, 20, rng)
        assert_alike(restorer.frame(noisy, sigma=20), tiled.frame(noisy, sigma=20))
    states = [r._state for r in (restorer, tiled)]
    assert states[0] is not None
    assert states[1] is not None
    assert_alike(*states)  # type: ignore[arg-type]
    assert states[0].any()


def test_a_wide_hole_in_a_large_picture(tiled: Restorer, scene: U8) -> None:
    clean = enlarged(scene, 1000, 1200)
    mask = with_hole(clean, 130, 150, 400, 400)
    damaged = punch(clean, mask)
    out = tiled(damaged, mask)
    assert np.array_equal(out[mask == 0], clean[mask == 0])
    flat = clean.copy()
    flat[mask > 0] = clean[mask == 0].mean(0)
    assert hole_psnr(out, clean, mask) > hole_psnr(flat, clean, mask)


def test_around_a_wide_hole_the_noisy_picture_stays_sharp(
    tiled: Restorer, whole: Callable[..., U8], scene: U8
) -> None:
    clean = enlarged(scene, 500, 512)
    mask = with_hole(clean, 130, 150, 230, 230) | with_hole(clean, 465, 480, 8, 8)
    damaged = punch(add_noise(clean, 10, np.random.default_rng(0)), mask)
    out = tiled(damaged, mask, sigma=10)
    flat = clean.copy()
    flat[mask > 0] = clean[mask == 0].mean(0)
    assert hole_psnr(out, clean, mask) > hole_psnr(flat, clean, mask)
    far = grow(mask, 64) == 0
    assert_alike(out[far], whole(damaged, mask, 10)[far])


@pytest.mark.parametrize(
    "hole", [(100, 120, 260, 300), (0, 90, 200, 330), (252, 340, 260, 300), (20, 20, 470, 600)]
)
def test_tiles_of_a_wide_hole_leave_no_seam(
    restorer: Restorer, scene: U8, hole: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Amid, at an edge, in a corner, and nearly everything."""
    clean = enlarged(scene, 512, 640)
    mask = with_hole(clean, *hole)
    damaged = punch(clean, mask)
    at_once = restorer(damaged, mask)
    runs: list[tuple[int, ...]] = []
    monkeypatch.setattr(restorer, "_limit_px", 300 * 300)
    monkeypatch.setattr(
        restorer,
        "_run_padded",
        lambda image, *a: runs.append(image.shape) or Restorer._run_padded(restorer, image, *a),
    )
    assert_alike(restorer(damaged, mask), at_once)
    assert len(runs) > 4
    assert np.array_equal(at_once[mask == 0], clean[mask == 0])


def test_several_wide_holes_are_filled_as_well_as_alone(restorer: Restorer, scene: U8) -> None:
    clean = np.tile(scene, (1, 3, 1))
    left, right = with_hole(clean, 100, 60, 250, 250), with_hole(clean, 120, 1150, 300, 250)
    both = restorer(punch(clean, left | right), left | right)
    for mask in (left, right):
        alone = restorer(punch(clean, mask), mask)
        assert hole_psnr(both, clean, mask) > hole_psnr(alone, clean, mask) - 0.3
        assert hole_psnr(both, alone, mask) > 30


def test_a_wide_hole_is_filled_smoothly(scene: U8, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass of `tiny` leaves a lattice where it knows nothing."""
    mask = with_hole(scene, 106, 106, 300, 300)
    damaged = punch(scene, mask)
    deep = (slice(196, 316), slice(196, 316))

    def roughness(image: U8) -> float:
        part = image[deep].astype(np.float32)
        return float(np.abs(part - cv2.GaussianBlur(part, (0, 0), 8)).mean())

    with Restorer("tiny", backend="ort", threads=1) as tiny:
        scales = tiny(damaged, mask)
        monkeypatch.setattr(restore_module, "wide_holes", lambda *_: None)
        one_pass = tiny(damaged, mask)
    assert roughness(scales) < 0.5 * roughness(one_pass)
    assert hole_psnr(scales, scene, mask) > hole_psnr(one_pass, scene, mask) - 0.5


def test_noise_is_removed_around_a_wide_hole_as_without_it(restorer: Restorer, scene: U8) -> None:
    clean = part(scene, 100, 100, 300, 320)
    mask = with_hole(clean, 0, 0, 200, 190)
    noisy = punch(add_noise(clean, 20, np.random.default_rng(0)), mask)
    out = restorer(noisy, mask, sigma=20)
    known = mask == 0
    assert (
        psnr(out[known][None], clean[known][None])
        > psnr(noisy[known][None], clean[known][None]) + 4
    )
    smooth = cv2.GaussianBlur(out, (0, 0), 2).astype(int)
    assert np.abs(out.astype(int) - smooth)[10:120, 10:120].max() <= 3  # no noise is carried in


@pytest.mark.parametrize("sigma", [0, 10])
@pytest.mark.parametrize(
    "hole", [None, (300, 400, 900, 700), (0, 0, 1499, 1699), (750, 0, 20, 1701)]
)
def test_memory_is_bounded(
    negative: Negative, sigma: float, hole: tuple[int, int, int, int] | None
) -> None:
    """No run is larger than the limit, whatever the hole."""
    image = np.zeros((1501, 1701, 3), np.uint8)
    mask = None if hole is None else with_hole(image, *hole)
    limit_px = 2**19
    Restorer("any", limit_px=limit_px)(image, mask, sigma=sigma)
    assert bool(negative.shapes) == (mask is not None or sigma > 0)
    for _, h, w, _ in negative.shapes:
        assert h * w <= limit_px + (BORDER_PX + SPEC.multiple) * (h + w)  # what is padded


# Video.


def noisy_clip(clean: U8, n: int, sigma: float, seed: int = 0) -> list[U8]:
    rng = np.random.default_rng(seed)
    return [add_noise(clean, sigma, rng) for _ in range(n)]


def test_a_still_is_the_first_frame_of_a_video(restorer: Restorer, scene: U8) -> None:
    image = add_noise(part(scene, 200, 100), 20, np.random.default_rng(0))
    mask = with_hole(image, 30, 40, 20, 30)
    for m, sigma in ((None, None), (mask, None), (mask, 12.0)):
        still = restorer(image, m, sigma=sigma, grow_px=1)
        restorer.reset()
        assert np.array_equal(restorer.frame(image, m, sigma=sigma, grow_px=1), still)
        restorer.reset()
        (frame,) = restorer.video([image], m, sigma=sigma, grow_px=1)
        assert np.array_equal(frame, still)


def test_the_past_helps_a_static_clip(restorer: Restorer, scene: U8) -> None:
    clean = part(scene, 200, 100)
    for sigma in (25.0, "auto"):
        restorer.reset()
        figures = [psnr(f, clean) for f in restorer.video(noisy_clip(clean, 11, 25), sigma=sigma)]
        assert figures[10] > figures[0] + 3
        assert min(figures) > figures[0] - 0.3


def test_the_past_helps_around_a_hole(restorer: Restorer, scene: U8) -> None:
    clean = part(scene, 200, 100)
    mask = with_hole(clean, 30, 40, 20, 30)
    clip = [punch(f, mask) for f in noisy_clip(clean, 11, 25)]
    restorer.reset()
    figures = [psnr(f, clean) for f in restorer.video(clip, mask, sigma=25)]
    assert figures[10] > figures[0] + 0.5


def test_no_drift_over_60_frames(restorer: Restorer, scene: U8) -> None:
    clean = part(scene, 220, 120, 64, 64)
    restorer.reset()
    out = list(restorer.video(noisy_clip(clean, 60, 25), sigma=25))
    figures = [psnr(f, clean) for f in out]
    assert np.mean(figures[50:]) > np.mean(figures[20:30]) - 0.2
    shift = (out[59].astype(int) - out[20]).mean((0, 1))
    assert np.abs(shift).max() < 1


def test_a_static_hole_does_not_flicker_or_drift(restorer: Restorer, scene: U8) -> None:
    clean = part(scene, 200, 100)
    mask = with_hole(clean, 30, 40, 30, 40)
    damaged = punch(clean, mask)
    restorer.reset()
    out = list(restorer.video([damaged] * 30, mask))
    assert max(int(np.abs(f.astype(int) - out[0]).max()) for f in out) <= 2
    assert all(np.array_equal(f[mask == 0], clean[mask == 0]) for f in out)


def test_a_pan_loses_little(restorer: Restorer, scene: U8) -> None:
    rng = np.random.default_rng(0)
    clean = [part(scene, 200, 40 + 3 * t) for t in range(11)]
    noisy = [add_noise(f, 25, rng) for f in clean]
    restorer.reset()
    gains = [
        psnr(f, c) - psnr(restorer(n, sigma=25), c)
        for f, n, c in zip(restorer.video(noisy, sigma=25), noisy, clean, strict=True)
    ]
    assert np.mean(gains) > -0.4  # the gate takes a slow pan for rest here and there
    assert min(gains) > -0.6


def test_a_cut_does_no_harm(restorer: Restorer, scene: U8) -> None:
    before, after = part(scene, 200, 100), part(scene, 20, 300)
    restorer.reset()
    list(restorer.video(noisy_clip(before, 10, 25), sigma=25))
    noisy = add_noise(after, 25, np.random.default_rng(5))
    alone = psnr(restorer(noisy, sigma=25), after)
    assert psnr(restorer.frame(noisy, sigma=25), after) > alone - 0.3


def test_reset_forgets(restorer: Restorer, scene: U8) -> None:
    clip = noisy_clip(part(scene, 200, 100), 4, 25)
    restorer.reset()
    first, *_, last = restorer.video(clip, sigma=25)
    again = restorer.frame(clip[0], sigma=25)
    assert not np.array_equal(again, first)  # the past went on into the next call
    restorer.reset()
    assert np.array_equal(restorer.frame(clip[0], sigma=25), first)
    assert not np.array_equal(restorer(clip[3], sigma=25), last)


def test_another_size_forgets(restorer: Restorer, scene: U8) -> None:
    restorer.reset()
    list(restorer.video(noisy_clip(part(scene, 200, 100), 3, 25), sigma=25))
    other = add_noise(part(scene, 200, 100, 80, 112), 25, np.random.default_rng(9))
    assert np.array_equal(restorer.frame(other, sigma=25), restorer(other, sigma=25))


def test_a_still_in_between_does_not_touch_the_video(restorer: Restorer, scene: U8) -> None:
    clip = noisy_clip(part(scene, 200, 100), 3, 25)
    restorer.reset()
    straight = list(restorer.video(clip, sigma=25))
    restorer.reset()
    mixed = []
    for frame in clip:
        mixed.append(restorer.frame(frame, sigma=25))
        restorer(part(scene, 0, 0), sigma=5)
    assert all(np.array_equal(a, b) for a, b in zip(straight, mixed, strict=True))


def test_video_reads_no_frame_ahead(negative: Negative) -> None:
    read = []

    def frames() -> Iterator[U8]:
        for i in range(5):
            read.append(i)
            yield np.full((16, 16, 3), i, np.uint8)

    out = Restorer("any").video(frames(), sigma=1)
    assert read == []
    next(out)
    assert read == [0]
    assert [int(f[0, 0, 0]) for f in out] == [254, 253, 252, 251]


def test_state_starts_at_zero_and_is_handed_on(negative: Negative) -> None:
    states: list[int] = []
    run = negative.run

    def spy(frame: U8, mask: U8, state: U8, sigma: F32) -> tuple[U8, U8]:
        states.append(int(state.max()))
        assert state.min() == state.max()
        return run(frame, mask, state, sigma)

    negative.run = spy  # type: ignore[method-assign]
    restorer = Restorer("any", limit_px=2**16)
    frame = np.zeros((300, 310, 3), np.uint8)
    list(restorer.video([frame] * 3, sigma=5))
    tiles = len(states) // 3
    assert tiles > 1
    assert states == [0] * tiles + [1] * tiles + [2] * tiles
    restorer.reset()
    restorer.frame(frame, sigma=5)
    assert states[-1] == 0


def test_the_past_is_worth_more_than_a_guess(restorer: Restorer, scene: U8) -> None:
    """What was seen before a wide hole came is kept; what was not is as in a still."""
    clean = part(scene, 100, 100, 300, 320)
    mask = with_hole(clean, 40, 50, 200, 220)
    damaged = punch(clean, mask)
    restorer.reset()
    first = restorer.frame(damaged, mask)
    assert np.array_equal(first, restorer(damaged, mask))
    assert np.array_equal(restorer.frame(damaged, mask), first)  # a guess is not remembered
    restorer.frame(clean, np.zeros_like(mask))
    assert hole_psnr(restorer.frame(damaged, mask), clean, mask) > 40


# Refusals.

IMAGE = np.zeros((20, 30, 3), np.uint8)
MASK = np.zeros((20, 30), np.uint8)


@pytest.mark.parametrize(
    "image",
    [
        IMAGE[..., 0],
        IMAGE.astype(np.float32),
        IMAGE.astype(np.uint16),
        np.zeros((20, 30, 4), np.uint8),
        IMAGE[None],
        IMAGE[:0],
        IMAGE.tolist(),
        None,
    ],
    ids=["grey", "float", "16 bit", "four channels", "batch", "no rows", "list", "none"],
)
def test_what_is_no_picture_is_refused(negative: Negative, image: Any) -> None:
    with pytest.raises(InputError, match=r"^image must be uint8 \(H, W, 3\), got "):
        Restorer("any")(image, sigma=1)


@pytest.mark.parametrize("mask", [MASK[:5], MASK.T, MASK.astype(np.float64), IMAGE])
def test_what_is_no_mask_is_refused(negative: Negative, mask: Any) -> None:
    with pytest.raises(InputError, match=r"^mask is "):
        Restorer("any")(IMAGE, mask)


@pytest.mark.parametrize("sigma", [-1, 255, float("nan"), float("inf"), "loud", "5"])
def test_what_is_no_sigma_is_refused(negative: Negative, sigma: Any) -> None:
    for call in (Restorer("any"), Restorer("any").frame):
        with pytest.raises(InputError, match=r"^sigma must be 'auto' or from 0 to 254, got "):
            call(IMAGE, sigma=sigma)


def test_negative_grow_is_refused(negative: Negative) -> None:
    with pytest.raises(InputError, match="0 px or more"):
        Restorer("any")(IMAGE, MASK, grow_px=-1)


# The object.


def test_it_says_what_runs(restorer: Restorer) -> None:
    assert restorer.backend == "ort"
    shipped = find_model("nano")
    assert restorer.spec == read_spec(shipped.read_bytes(), "nano")


def test_closing_twice_is_no_error(scene: U8) -> None:
    with Restorer("nano", backend="ort", threads=1) as restorer:
        restorer(part(scene, 0, 0, 16, 16), sigma=5)
        restorer.close()
    restorer.close()


def test_a_moving_hole_finds_what_was_seen_before(restorer: Restorer, scene: U8) -> None:
    """Without noise the past of every known pixel is kept, although only holes are run."""
    scene = scene[100:292, 100:324]
    figures = []
    restorer.reset()
    for t in range(6):
        mask = np.zeros(scene.shape[:2], np.uint8)
        mask[60:90, 10 + 35 * t : 40 + 35 * t] = 1
        figures.append(hole_psnr(restorer.frame(punch(scene, mask), mask), scene, mask))
    assert min(figures[1:]) > 40 > figures[0]


def test_tiles_of_the_model_that_sees_farthest_leave_no_seam() -> None:
    """`tiny` depends on more than a crop's halo: tiles that meet in a hole must see enough."""
    image = np.tile(read_picture(sample_folder() / "vegetables.webp").rgb, (2, 3, 1))[:1000, :1400]
    mask = make_mask("freeform", np.random.default_rng(0), 1000, 1400, 0.1)
    with (
        Restorer("tiny", backend="ort", threads=1) as one_run,
        Restorer("tiny", backend="ort", threads=1, limit_px=900 * 900) as tiles,
    ):
        assert len(plan(1000, 1400, mask, tiles.spec, 900 * 900)) > 4
        assert np.abs(one_run(image, mask).astype(int) - tiles(image, mask)).max() <= 1


@pytest.mark.parametrize("side", [48, 160])
def test_a_crop_of_tiny_is_as_good_as_the_whole(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It differs from the whole picture by more than a level, but loses nothing."""
    image = np.tile(read_picture(sample_folder() / "vegetables.webp").rgb, (2, 3, 1))[:1000, :1400]
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[440 : 440 + side, 500 : 500 + side] = 1
    with Restorer("tiny", backend="ort", threads=1) as restorer:
        crop = hole_psnr(restorer(image, mask), image, mask)
        whole_plan = plan(1000, 1400, None, restorer.spec, 10**9)
        monkeypatch.setattr(restore_module, "plan", lambda *_: whole_plan)
        assert crop > hole_psnr(restorer(image, mask), image, mask) - 0.3
