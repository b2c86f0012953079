"""Backends of fixed sizes: every hole is filled, and as if the size were free."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrestore import restore as restore_module
from fastrestore.arrays import F32, U8
from fastrestore.backend import Backend, Frames, open_backend
from fastrestore.degrade import add_noise
from fastrestore.demo import sample_folder
from fastrestore.errors import EngineError
from fastrestore.images import read_picture
from fastrestore.metrics import hole_psnr, psnr
from fastrestore.restore import Restorer
from fastrestore.spec import ModelSpec
from fastrestore.tiles import BORDER_PX, SEAM_PX, Region
from fastrestore.windows import fitting, plan_windows

GRID, HALO = 64, 64
SPEC = ModelSpec("t", "tiny", 16, HALO, 6, "free", "none")


def static(*sizes: tuple[int, int]) -> tuple[Frames, ...]:
    return tuple(((1, h, w), (1, h, w)) for h, w in sizes)


LARGE = static((736, 1296))
SEVERAL = static((736, 1296), (592, 592), (1104, 1936))
DYNAMIC: tuple[Frames, ...] = (((1, 64, 64), (4, 1104, 1936)),)


@pytest.mark.parametrize(
    ("size", "shapes", "wanted"),
    [
        ((100, 100), LARGE, (736, 1296)),
        ((736, 1296), LARGE, (736, 1296)),
        ((737, 100), LARGE, None),
        ((100, 1297), LARGE, None),
        ((500, 592), SEVERAL, (592, 592)),
        ((500, 600), SEVERAL, (736, 1296)),
        ((740, 600), SEVERAL, (1104, 1936)),
        ((100, 70), DYNAMIC, (112, 80)),
        ((10, 10), DYNAMIC, (64, 64)),
        ((1104, 1937), DYNAMIC, None),
        ((10, 10), (((2, 64, 64), (2, 64, 64)),), None),
        ((10, 10), (), None),
    ],
)
def test_the_smallest_frame_that_holds_a_region(size: Any, shapes: Any, wanted: Any) -> None:
    assert fitting(*size, shapes, 16) == wanted


def check(regions: list[Region], height: int, width: int, shapes: tuple[Frames, ...]) -> None:
    """What holds for every plan."""
    for r in regions:
        sizes = []
        for seen, kept, border, end in zip(r.seen, r.kept, r.border, (height, width), strict=True):
            assert 0 <= seen.start <= kept.start < kept.stop <= seen.stop <= end
            assert border <= (0 if seen.start else BORDER_PX)
            assert not seen.start or (seen.start + BORDER_PX) % GRID == 0
            assert seen.start <= max(0, kept.start - HALO)
            assert seen.stop >= min(end, kept.stop + HALO)
            sizes.append(border + seen.stop - seen.start)
        frame = fitting(*sizes, shapes, SPEC.multiple)
        assert frame is not None
        for seen, border, room, size in zip(r.seen, r.border, frame, sizes, strict=True):
            assert border == BORDER_PX or seen.start or size == room  # as much as there is room for
        if shapes != DYNAMIC:  # as much of the picture as goes in, but for steps of the grid
            for size, room, end in zip(sizes, frame, (height, width), strict=True):
                assert size > min(room, end) - GRID


@st.composite
def masks(draw: st.DrawFn) -> U8:
    """Odd sizes, a few rectangles of any size, sometimes dust all over."""
    height, width = draw(st.integers(1, 2000)), draw(st.integers(1, 2000))
    mask = np.zeros((height, width), np.uint8)
    for _ in range(draw(st.integers(0, 4))):
        y, x = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        mask[y : y + draw(st.integers(1, 500)), x : x + draw(st.integers(1, 500))] = 1
    if draw(st.booleans()):
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        points = rng.integers(0, (height, width), (30, 2))
        mask[points[:, 0], points[:, 1]] = 1
    return mask


@given(masks(), st.sampled_from([LARGE, SEVERAL, DYNAMIC, static((192, 192))]))
def test_every_hole_pixel_is_kept_exactly_once(mask: U8, shapes: tuple[Frames, ...]) -> None:
    regions = plan_windows(*mask.shape, mask, SPEC, shapes)
    check(regions, *mask.shape, shapes)
    count = np.zeros_like(mask)
    for r in regions:
        count[r.kept] += 1
    assert (count[mask > 0] == 1).all()
    assert all(mask[r.kept].any() for r in regions)


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([LARGE, SEVERAL, DYNAMIC]))
def test_without_a_mask_every_pixel_is_kept_once(
    height: int, width: int, shapes: tuple[Frames, ...]
) -> None:
    regions = plan_windows(height, width, None, SPEC, shapes)
    check(regions, height, width, shapes)
    count = np.zeros((height, width), np.uint8)
    for r in regions:
        count[r.kept] += 1
    assert (count == 1).all()
    if fitting(height + BORDER_PX, width + BORDER_PX, shapes, SPEC.multiple):
        assert len(regions) == 1


@pytest.mark.parametrize(
    ("frame", "border"), [((736, 1296), (16, 16)), ((720, 1280), (0, 0)), ((728, 1296), (8, 16))]
)
def test_a_frame_of_the_pictures_own_size_holds_it(frame: Any, border: tuple[int, int]) -> None:
    scratch = np.zeros((720, 1280), np.uint8)
    scratch[np.arange(1280) * 720 // 1280, np.arange(1280)] = 1
    for mask in (None, scratch):
        (r,) = plan_windows(720, 1280, mask, SPEC, static(frame))
        assert r.seen == (slice(0, 720), slice(0, 1280))
        assert r.border == border


def test_holes_that_lie_together_share_a_window() -> None:
    mask = np.zeros((1080, 1920), np.uint8)
    for y, x in ((20, 20), (300, 500), (600, 1100), (1000, 1900)):
        mask[y : y + 10, x : x + 10] = 1
    regions = plan_windows(1080, 1920, mask, SPEC, LARGE)
    assert len(regions) == 4
    windows = [r.seen for r in regions]
    assert windows[0] == windows[1] == windows[2] != windows[3]


def test_tiles_see_as_far_as_they_can() -> None:
    """A hole that no window holds: SEAM_PX around each part, or what the frame allows."""
    mask = np.zeros((900, 1700), np.uint8)
    mask[440:460, 40:1660] = 1
    for side, least in ((640, SEAM_PX), (320, 128), (192, 64)):
        regions = plan_windows(900, 1700, mask, SPEC, static((side, side)))
        assert len(regions) > 1
        for r in regions:
            x, kx = r.seen[1], r.kept[1]
            assert x.start <= max(0, kx.start - least)
            assert x.stop >= min(1700, kx.stop + least)


def test_frames_too_small_for_tiles_are_named() -> None:
    words = (
        "^t: its engine's frames of 176x160 px are too small to cut a larger picture; "
        "`fastrestore build-engine t --for WxH` of the picture's size, at least 192x192$"
    )
    with pytest.raises(EngineError, match=words):
        plan_windows(500, 500, None, SPEC, static((160, 176)))
    assert len(plan_windows(144, 160, None, SPEC, static((160, 176)))) == 1


def test_engines_for_batches_alone_are_refused() -> None:
    with pytest.raises(EngineError, match=r"take batches alone, .* --batch 1`$"):
        plan_windows(50, 50, None, SPEC, (((2, 64, 64), (4, 64, 64)),))


# With a model.


class Fixed:
    """ONNX Runtime that takes certain sizes alone."""

    name = "fixed"

    def __init__(self, backend: Backend, frames: tuple[Frames, ...]) -> None:
        self._backend, self.frames, self.spec = backend, frames, backend.spec
        self.runs = 0

    def run(self, frame: U8, mask: U8, state: U8, sigma: F32) -> tuple[U8, U8]:
        shape = frame.shape[:3]
        pairs = (zip(low, shape, high, strict=True) for low, high in self.frames)
        assert any(all(a <= n <= b for a, n, b in pair) for pair in pairs), shape
        for array in (frame, mask, state):
            assert array.flags.c_contiguous
            assert array.shape[:3] == shape
        self.runs += 1
        return self._backend.run(frame, mask, state, sigma)

    def warm_up(self, shape: tuple[int, int, int]) -> None: ...

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def ort() -> Iterator[Backend]:
    backend = open_backend("nano", "ort", 1)
    yield backend
    backend.close()


def restorer(backend: Any) -> Restorer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restore_module, "open_backend", lambda *_, **__: backend)
        return Restorer("any")


@pytest.fixture(scope="module")
def free(ort: Backend) -> Restorer:
    return restorer(ort)


@pytest.fixture(scope="module")
def scene() -> U8:
    """A photograph, 512x512."""
    return read_picture(sample_folder() / "vegetables.webp").rgb


def assert_alike(a: U8, b: U8) -> None:
    """Within one grey level; where two roundings meet, single values are two apart."""
    levels = np.abs(a.astype(int) - b)
    assert (levels > 1).mean() < 0.01, f"{(levels > 1).mean():.2%} of the values differ"
    assert levels.max(initial=0) <= 3


def hole(image: U8, *rects: tuple[int, int, int, int]) -> U8:
    mask = np.zeros(image.shape[:2], np.uint8)
    for y, x, h, w in rects:
        mask[y : y + h, x : x + w] = 1
    return mask


def test_without_a_border_the_edge_is_a_little_worse(
    ort: Backend, free: Restorer, scene: U8
) -> None:
    fixed = Fixed(ort, static((512, 512)))
    noisy = add_noise(scene, 15, np.random.default_rng(0))
    ours, other = (r(noisy, sigma=15) for r in (restorer(fixed), free))
    assert fixed.runs == 1
    assert_alike(ours[HALO:, HALO:], other[HALO:, HALO:])
    assert psnr(ours, scene) > psnr(other, scene) - 0.05


FRAMES = [static((528, 528)), static((640, 704)), (((1, 64, 64), (1, 528, 528)),)]


@pytest.mark.parametrize("frames", FRAMES)
@pytest.mark.parametrize("at", [(0, 0), (240, 250), (400, 0)])
def test_a_hole_is_filled_as_on_a_backend_of_any_size(
    ort: Backend, free: Restorer, scene: U8, at: tuple[int, int], frames: tuple[Frames, ...]
) -> None:
    fixed = Fixed(ort, frames)
    mask = hole(scene, (*at, 22, 22))
    ours, other = restorer(fixed)(scene, mask), free(scene, mask)
    assert fixed.runs == 1
    assert np.array_equal(ours[mask == 0], scene[mask == 0])
    assert_alike(ours, other)


@pytest.mark.parametrize("frames", [*FRAMES, static((272, 304))])
def test_noise_is_removed_as_on_a_backend_of_any_size(
    ort: Backend, free: Restorer, scene: U8, frames: tuple[Frames, ...]
) -> None:
    noisy = add_noise(scene, 15, np.random.default_rng(0))
    ours, other = (r(noisy, sigma=15) for r in (restorer(Fixed(ort, frames)), free))
    assert_alike(ours[:-HALO, :-HALO], other[:-HALO, :-HALO])
    assert psnr(ours, scene) > psnr(other, scene) - 0.01


def test_beyond_the_last_row_and_column_more_of_the_edge_does_no_harm(
    ort: Backend, free: Restorer, scene: U8
) -> None:
    """There the results differ: a backend of any size sees nothing, a fixed one the edge again."""
    gains_db = []
    for y, x in ((490, 480), (200, 480), (490, 100), (50, 490), (492, 300), (300, 470)):
        mask = hole(scene, (y, x, 22, 32))
        ours, other = (r(scene, mask) for r in (restorer(Fixed(ort, static((640, 704)))), free))
        gains_db.append(hole_psnr(ours, scene, mask) - hole_psnr(other, scene, mask))
    assert np.mean(gains_db) > -0.1, gains_db


def test_small_pictures_fit_by_repeating_their_edge(
    ort: Backend, free: Restorer, scene: U8
) -> None:
    fixed = Fixed(ort, static((528, 528)))
    for h, w in ((1, 1), (17, 90), (200, 33)):
        part = scene[100 : 100 + h, 100 : 100 + w]
        mask = hole(part, (h // 3, w // 3, h // 4, w // 4))
        ours, other = (r(part, mask, sigma=8) for r in (restorer(fixed), free))
        assert ours.shape == part.shape
        assert np.abs(ours.astype(int) - other).mean() < 0.5


def test_a_video_is_restored_as_on_a_backend_of_any_size(
    ort: Backend, free: Restorer, scene: U8
) -> None:
    frames = [add_noise(scene[:300, :400], 10, np.random.default_rng(i)) for i in range(3)]
    mask = hole(frames[0], (100, 100, 20, 60))
    free.reset()
    other = free.video(frames, mask, sigma=10)
    ours = restorer(Fixed(ort, static((320, 416)))).video(frames, mask, sigma=10)
    for a, b in zip(ours, other, strict=True):
        assert_alike(a, b)


def test_holes_in_one_window_cost_one_run(ort: Backend, free: Restorer, scene: U8) -> None:
    fixed = Fixed(ort, static((528, 528)))
    mask = hole(scene, (20, 20, 20, 20), (400, 60, 20, 20), (250, 440, 20, 20))
    ours, other = restorer(fixed)(scene, mask), free(scene, mask)
    assert fixed.runs == 1
    assert_alike(ours, other)


def test_a_hole_larger_than_a_window_agrees_with_the_whole(
    ort: Backend, free: Restorer, scene: U8
) -> None:
    large = np.asarray(cv2.resize(scene, (1400, 700), interpolation=cv2.INTER_CUBIC), np.uint8)
    mask = hole(large, (300, 40, 12, 1320))
    fixed = Fixed(ort, static((640, 640)))
    ours, other = restorer(fixed)(large, mask), free(large, mask)
    assert fixed.runs > 1
    assert_alike(ours, other)


def test_wide_holes_are_solved_on_it_too(ort: Backend, free: Restorer, scene: U8) -> None:
    mask = hole(scene, (100, 100, 260, 280))
    fixed = Fixed(ort, static((528, 528)))
    ours, other = restorer(fixed)(scene, mask), free(scene, mask)
    assert fixed.runs > 1
    levels = np.abs(ours.astype(int) - other)[mask > 0]
    assert levels.mean() < 1.0  # the mean of all that is seen fills the middle: here it sees more
