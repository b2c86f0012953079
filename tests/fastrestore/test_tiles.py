from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrestore.arrays import U8
from fastrestore.spec import ModelSpec
from fastrestore.tiles import BORDER_PX, LIMIT_PX, SEAM_PX, WIDE_PX, Region, distance, plan

GRID, HALO = 64, 64
SPEC = ModelSpec("t", "tiny", 16, HALO, 6, "free", "none")
SMALLEST_PX = 2**19  # tiles need room for a halo and for a hole of WIDE_PX: no limit is below this


def blank(height: int, width: int) -> U8:
    return np.zeros((height, width), np.uint8)


def with_hole(height: int, width: int, y: int, x: int, h: int, w: int) -> U8:
    mask = blank(height, width)
    mask[y : y + h, x : x + w] = 1
    return mask


def area(r: Region) -> int:
    return (r.seen[0].stop - r.seen[0].start) * (r.seen[1].stop - r.seen[1].start)


def times_kept(regions: list[Region], height: int, width: int) -> U8:
    """How many results each pixel takes."""
    count = blank(height, width)
    for r in regions:
        count[r.kept] += 1
    return count


def check(regions: list[Region], height: int, width: int, limit_px: int) -> None:
    """What holds for every plan."""
    for r in regions:
        for seen, kept, border, size in zip(r.seen, r.kept, r.border, (height, width), strict=True):
            assert 0 <= seen.start <= kept.start < kept.stop <= seen.stop <= size
            assert border == (0 if seen.start else BORDER_PX)
            assert not seen.start or (seen.start + BORDER_PX) % GRID == 0
            assert seen.start <= max(0, kept.start - HALO)
            assert seen.stop >= min(size, kept.stop + HALO)
        assert area(r) <= limit_px


@st.composite
def masks(draw: st.DrawFn) -> U8:
    """Odd sizes, a few rectangles of any size, sometimes dust all over."""
    height, width = draw(st.integers(1, 1500)), draw(st.integers(1, 1500))
    mask = blank(height, width)
    for _ in range(draw(st.integers(0, 4))):
        y, x = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        mask[y : y + draw(st.integers(1, 500)), x : x + draw(st.integers(1, 500))] = 1
    if draw(st.booleans()):
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        points = rng.integers(0, (height, width), (30, 2))
        mask[points[:, 0], points[:, 1]] = 1
    return mask


@given(masks(), st.sampled_from([SMALLEST_PX, 2**20, LIMIT_PX]))
def test_every_hole_pixel_is_kept_exactly_once(mask: U8, limit_px: int) -> None:
    regions = plan(*mask.shape, mask, SPEC, limit_px)
    check(regions, *mask.shape, limit_px)
    count = times_kept(regions, *mask.shape)
    assert (count[mask > 0] == 1).all()
    assert count.max(initial=0) <= 1
    assert all(mask[r.kept].any() for r in regions)  # nothing is run for nothing


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.sampled_from([2**16, 2**17, SMALLEST_PX, LIMIT_PX]),
)
def test_without_a_mask_every_pixel_is_kept_exactly_once(
    height: int, width: int, limit_px: int
) -> None:
    regions = plan(height, width, None, SPEC, limit_px)
    check(regions, height, width, limit_px)
    assert (times_kept(regions, height, width) == 1).all()
    assert len(regions) == 1 or height * width > limit_px


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (333, 517)])
def test_an_empty_mask_needs_nothing(size: tuple[int, int]) -> None:
    assert plan(*size, blank(*size), SPEC) == []


def test_a_small_hole_is_seen_with_its_halo_only() -> None:
    (r,) = plan(1000, 1000, with_hole(1000, 1000, 500, 300, 10, 20), SPEC)
    assert r.kept == (slice(500, 510), slice(300, 320))
    check([r], 1000, 1000, (10 + 4 * HALO) * (20 + 4 * HALO))  # a halo, and out to the grid


def test_distant_holes_are_apart_and_near_ones_together() -> None:
    near = with_hole(1000, 1000, 100, 100, 10, 10) | with_hole(1000, 1000, 100, 200, 10, 10)
    far = with_hole(1000, 1000, 100, 100, 10, 10) | with_hole(1000, 1000, 800, 800, 10, 10)
    assert len(plan(1000, 1000, near, SPEC)) == 1
    assert len(plan(1000, 1000, far, SPEC)) == 2


@pytest.mark.parametrize("at", [(300, 400), (0, 400), (300, 0), (0, 0), (940, 1040)])
def test_a_narrow_hole_is_never_wide(at: tuple[int, int]) -> None:
    mask = with_hole(1000, 1200, *at, 60, WIDE_PX)
    (r,) = plan(1000, 1200, mask, SPEC)
    assert area(r) < mask.size


@pytest.mark.parametrize("at", [(300, 400, 170, 170), (0, 0, 140, 140), (0, 500, 1000, 180)])
def test_a_hole_that_fits_is_seen_with_its_halo_however_wide(at: tuple[int, int, int, int]) -> None:
    (r,) = plan(1000, 1200, with_hole(1000, 1200, *at), SPEC)
    assert r.kept == (slice(at[0], at[0] + at[2]), slice(at[1], at[1] + at[3]))
    check([r], 1000, 1200, (at[2] + 4 * HALO) * (at[3] + 4 * HALO))


def test_thin_holes_are_never_wide_however_long() -> None:
    mask = with_hole(1000, 1200, 500, 0, 40, 1200)
    (r,) = plan(1000, 1200, mask, SPEC)
    assert r.seen[0].stop - r.seen[0].start <= 40 + 4 * HALO


def test_a_ring_is_run_in_tiles_and_its_inside_is_not() -> None:
    mask = with_hole(4000, 5000, 1000, 1000, 1500, 2000)
    mask[1064:2436, 1064:2936] = 0
    regions = plan(4000, 5000, mask, SPEC, 2**20)
    check(regions, 4000, 5000, 2**20)
    kept = times_kept(regions, 4000, 5000)
    assert (kept[mask > 0] == 1).all()
    assert kept[1600:1900, 1700:2200].max() == 0
    for r in regions:  # a tile sees far beyond where it meets the next one
        for seen, k, (start, stop) in zip(
            r.seen, r.kept, ((1000, 2500), (1000, 3000)), strict=True
        ):
            assert k.start == start or seen.start <= k.start - SEAM_PX
            assert k.stop == stop or seen.stop >= min(stop + HALO, k.stop + SEAM_PX)


@pytest.mark.parametrize("y", [300, 1160, 1200, 1270])
def test_tiles_see_the_holes_they_cut_whole(y: int) -> None:
    """Dust joins everything into one group of holes, which is cut into tiles."""
    mask = blank(2100, 2300)
    mask[::100, ::100] = 1
    holes = [(slice(y, y + WIDE_PX), slice(x, x + 140)) for x in range(50, 2000, 330)]
    for hole in holes:
        mask[hole] = 1
    regions = plan(*mask.shape, mask, SPEC)
    assert len(regions) > 1
    check(regions, *mask.shape, LIMIT_PX)
    for r in regions:
        for hole in holes:
            axes = list(zip(r.seen, r.kept, hole, mask.shape, strict=True))
            if all(k.start < h.stop and h.start < k.stop for _, k, h, _ in axes):
                for seen, _, h, size in axes:
                    assert seen.start <= max(0, h.start - HALO)
                    assert seen.stop >= min(size, h.stop + HALO)


def test_distance_counts_nothing_beyond_the_edge_as_known() -> None:
    far = distance(with_hole(100, 90, 0, 0, 30, 40))
    assert far[0, 0] == pytest.approx(30)
    assert far[29, 20] == pytest.approx(1)
    assert not far[30:].any()
