from __future__ import annotations

import numpy as np
import pytest

from fastrestore import coarse
from fastrestore.arrays import U8
from fastrestore.coarse import COARSE_PX, RING_PX, around, solve, wide_holes
from fastrestore.errors import InputError
from fastrestore.tiles import WIDE_PX, distance

HALO = 64


def with_hole(height: int, width: int, y: int, x: int, h: int, w: int) -> U8:
    mask = np.zeros((height, width), np.uint8)
    mask[y : y + h, x : x + w] = 1
    return mask


def slope(height: int, width: int) -> U8:
    """A smooth picture: every scale of it is known from its rim."""
    y, x = np.mgrid[:height, :width]
    planes = [255 * x / max(1, width - 1), 255 * y / max(1, height - 1), x * 0 + 90]
    return np.rint(np.stack(planes, -1)).astype(np.uint8)


class Truth:
    """Stands for the model: copies a noisy truth of each scale into the hole; keeps its calls."""

    def __init__(self, image: U8) -> None:
        self.truth = {image.shape[:2]: image}
        self.calls: list[tuple[U8, U8, U8]] = []
        while max(image.shape[:2]) > 1:
            image, _ = coarse._halve(image, np.zeros(image.shape[:2], np.uint8))
            self.truth[image.shape[:2]] = image

    def __call__(self, image: U8, mask: U8, state: U8) -> U8:
        assert image.dtype == mask.dtype == state.dtype == np.uint8
        assert state.shape == (*mask.shape, 4)
        self.calls.append((image, mask, state))
        return np.where(mask[..., None] > 0, self.truth[mask.shape], image)


# Which holes.


@pytest.mark.parametrize("at", [(300, 400), (0, 400), (300, 0), (0, 0), (940, 1040)])
def test_a_narrow_hole_is_never_wide(at: tuple[int, int]) -> None:
    assert wide_holes(with_hole(1000, 1200, *at, 60, WIDE_PX), HALO) is None


@pytest.mark.parametrize(
    "at",
    [
        pytest.param((300, 400, 170, 170), id="amid"),
        pytest.param((0, 0, 140, 140), id="corner: known pixels on two sides only"),
        pytest.param((860, 1060, 140, 140), id="the other corner"),
        pytest.param((0, 300, 140, 500), id="edge"),
        pytest.param((0, 500, 1000, 180), id="band"),
        pytest.param((0, 0, 1000, 1199), id="nearly all"),
    ],
)
def test_a_hole_that_reaches_far_is_wide(at: tuple[int, int, int, int]) -> None:
    mask = with_hole(1000, 1200, *at)
    assert np.array_equal(wide_holes(mask, HALO), mask)


def test_long_thin_holes_and_dust_are_not_wide() -> None:
    assert wide_holes(with_hole(1000, 1200, 500, 0, 40, 1200), HALO) is None
    assert wide_holes(np.zeros((70, 80), np.uint8), HALO) is None
    dust = np.zeros((1000, 1200), np.uint8)
    dust[::20, ::20] = 1
    assert wide_holes(dust, HALO) is None


def test_wide_holes_are_told_from_their_neighbours() -> None:
    first, second = with_hole(900, 900, 50, 50, 200, 200), with_hole(900, 900, 600, 500, 180, 300)
    tail = with_hole(900, 900, 250, 250, 3, 300)  # touches at a corner
    dust = np.zeros((900, 900), np.uint8)
    dust[300:600:20, ::20] = 1
    wide = wide_holes(first | second | tail | dust, HALO)
    assert np.array_equal(wide, first | second | tail)


def test_around_is_as_much_as_the_hole_is_long_or_more() -> None:
    """It starts on a grid, so that a hole that moves is not halved in another phase each time."""
    assert around(with_hole(1000, 1200, 100, 500, 300, 200)) == (slice(0, 700), slice(192, 1000))
    assert around(with_hole(1000, 1200, 399, 503, 300, 200)) == (slice(64, 999), slice(192, 1003))
    with pytest.raises(InputError, match="has no hole"):
        around(np.zeros((5, 5), np.uint8))


# The scales.


@pytest.mark.parametrize(
    ("size", "hole", "scales"),
    [
        ((300, 300), (100, 100, 90, 90), 1),
        ((600, 701), (150, 200, 180, 180), 2),
        ((601, 700), (0, 0, 300, 300), 4),
        ((900, 901), (30, 30, 840, 840), 4),
    ],
)
def test_a_hole_is_halved_until_it_is_narrow(
    size: tuple[int, int], hole: tuple[int, int, int, int], scales: int
) -> None:
    clean, mask = slope(*size), with_hole(*size, *hole)
    model = Truth(clean)
    damaged = np.where(mask[..., None] > 0, np.uint8(255), clean)
    out = solve(damaged, mask, model)
    assert len(model.calls) == scales
    _, coarsest, empty = model.calls[0]
    assert distance(coarsest).max() <= COARSE_PX
    assert not empty.any()
    assert model.calls[-1][1].shape == size
    assert np.abs(out.astype(int) - clean)[mask > 0].max() <= 6  # the slope is bent at the edges
    assert np.array_equal(out[mask == 0], clean[mask == 0])


def test_only_a_ring_is_run_and_its_inside_is_the_enlarged_guess() -> None:
    clean, mask = slope(800, 801), with_hole(800, 801, 100, 120, 500, 400)
    model = Truth(clean)
    out = solve(clean, mask, model)
    far = distance(mask)
    image, ring, state = model.calls[-1]
    assert np.array_equal(ring, mask & (far < RING_PX))
    assert distance(ring).max() < 0.6 * RING_PX  # so that no tile's fill comes from far away
    inside = (mask > 0) & (ring == 0)
    assert np.array_equal(out[inside], image[inside])
    assert np.array_equal(state[..., :3][ring > 0], image[ring > 0])
    assert not state[..., 3][ring == 0].any()


def test_trust_grows_from_the_rim_on() -> None:
    far = np.array([[0, 1, RING_PX / 2, RING_PX - 1, RING_PX, 9 * RING_PX]], np.float32)
    n = coarse._confidence(far)[0] / 255.0
    frames = n[:4] / (1 - n[:4])
    share = frames / (frames + coarse.FILL_FRAMES)  # as the graph weighs it at sigma 0
    assert share == pytest.approx([0, 1 / RING_PX, 0.5, 1 - 1 / RING_PX], abs=0.02)
    assert coarse._confidence(far)[0, 4:].tolist() == [255, 255]


def test_what_lies_under_the_hole_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    mask = with_hole(400, 500, 0, 100, 300, 300)
    clean = rng.integers(0, 256, (400, 500, 3), np.uint8)
    other = np.where(mask[..., None] > 0, np.uint8(7), clean)
    first, second = (Truth(clean) for _ in range(2))
    solve(clean, mask, first)
    solve(other, mask, second)
    for (a, m, s), (b, n, t) in zip(first.calls, second.calls, strict=True):
        assert np.array_equal(m, n)
        assert np.array_equal(s, t)
        assert np.array_equal(a[m == 0], b[n == 0])


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (299, 301), (64, 65)])
def test_one_known_pixel_is_never_lost(size: tuple[int, int]) -> None:
    mask = np.ones(size, np.uint8)
    mask[-1, -1] = 0
    image = np.full((*size, 3), 77, np.uint8)
    model = Truth(image)
    out = solve(np.where(mask[..., None] > 0, np.uint8(0), image), mask, model)
    assert np.array_equal(out, image)
    for seen, hole, _ in model.calls:
        assert (hole == 0).any()
        assert (seen[hole == 0] == 77).all()


def test_halving_averages_what_is_known() -> None:
    image = np.arange(15, dtype=np.uint8).reshape(3, 5, 1).repeat(3, 2) * np.uint8(10)
    mask = np.zeros((3, 5), np.uint8)
    mask[0, 0] = mask[2, 2] = mask[2, 3] = 1
    small, hole = coarse._halve(image, mask)
    assert hole.tolist() == [[0, 0, 0], [0, 1, 0]]
    assert small[..., 0].tolist()[0] == [(10 + 50 + 60) // 3, (20 + 30 + 70 + 80) // 4, 65]
    assert small[1, ::2, 0].tolist() == [105, 140]
