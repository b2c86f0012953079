from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrestore.degrade import TOLERANCE, add_noise, make_mask, punch, seed_for
from fastrestore.errors import InputError

KINDS = ("freeform", "rects", "center", "grid", "thin")
# crc32 of 256x256 masks of `a.png`. A change here changes every published figure.
PINNED = {
    ("freeform", 0.1): 2009390957,
    ("freeform", 0.4): 1245556372,
    ("rects", 0.2): 1081631881,
    ("center", 0.2): 2355016698,
    ("grid", 0.25): 1760827218,
    ("thin", 0.05): 3138432127,
}
PINNED_NOISE = {"gaussian": 67517896, "poisson": 1387917107}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("kind", "ratios"),
    [
        ("freeform", (0.05, 0.1, 0.2, 0.4, 0.6, 0.95)),
        ("rects", (0.05, 0.1, 0.2, 0.4, 0.6, 0.95)),
        ("thin", (0.02, 0.05, 0.1, 0.2)),
    ],
)
def test_ratio_is_met(kind: str, ratios: tuple[float, ...]):
    for ratio in ratios:
        for seed in range(8):
            mask = make_mask(kind, rng(seed), 256, 256, ratio)
            assert abs(mask.mean() - ratio) <= TOLERANCE, (kind, ratio, seed)


@pytest.mark.parametrize("size", [(32, 32), (64, 400), (400, 64), (360, 640)])
@pytest.mark.parametrize("kind", ["freeform", "rects", "thin"])
def test_ratio_is_met_at_other_sizes(kind: str, size: tuple[int, int]):
    for seed in range(3):
        assert abs(make_mask(kind, rng(seed), *size, 0.2).mean() - 0.2) <= TOLERANCE


@pytest.mark.parametrize("cell_px", [8, 16, 32])
@pytest.mark.parametrize("ratio", [0, 0.1, 0.25, 0.333, 0.95])
def test_grid_is_exact_to_a_cell(ratio: float, cell_px: int):
    mask = make_mask("grid", rng(), 256, 256, ratio, cell_px)
    side = 256 // cell_px
    cells = mask.reshape(side, cell_px, side, cell_px).mean((1, 3))
    assert set(np.unique(cells)) <= {0, 1}  # whole cells only
    assert cells.sum() == round(ratio * side**2)


def test_grid_cuts_cells_at_the_edge():
    mask = make_mask("grid", rng(), 20, 33, 0.5)
    assert mask.shape == (20, 33)
    whole = make_mask("grid", rng(), 32, 48, 0.5)
    assert (mask == whole[:20, :33]).all()


def test_center_is_one_square():
    mask = make_mask("center", rng(), 256, 384, 0.5)
    assert mask[80:176, 144:240].all()
    assert mask.sum() == 96**2


def test_thin_strokes_are_thinner_than_freeform():
    def core(kind: str) -> int:
        """Pixels whose 9x9 surroundings are all hole."""
        mask = make_mask(kind, rng(3), 256, 256, 0.1)
        windows = np.lib.stride_tricks.sliding_window_view(mask, (9, 9))
        return int(windows.all((2, 3)).sum())

    assert core("thin") < 20 < 200 < core("freeform")


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_zero_and_one_and_seeded(kind: str):
    mask = make_mask(kind, rng(1), 64, 96, 0.3)
    assert mask.dtype == np.uint8
    assert mask.shape == (64, 96)
    assert set(np.unique(mask)) == {0, 1}
    assert (mask == make_mask(kind, rng(1), 64, 96, 0.3)).all()
    if kind != "center":
        assert (mask != make_mask(kind, rng(2), 64, 96, 0.3)).any()


@pytest.mark.parametrize(("kind", "ratio"), PINNED)
def test_masks_stay_the_same_bytes(kind: str, ratio: float):
    mask = make_mask(kind, seed_for("a.png", ratio), 256, 256, ratio)
    assert zlib.crc32(mask.tobytes()) == PINNED[kind, ratio]


@pytest.mark.parametrize("kind", PINNED_NOISE)
def test_noise_stays_the_same_bytes(kind: str):
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    noisy = add_noise(image, 25, seed_for("a.png", 0.2), kind)
    assert zlib.crc32(noisy.tobytes()) == PINNED_NOISE[kind]


def test_seed_is_of_name_and_percent():
    def first(name: str, ratio: float) -> int:
        return int(seed_for(name, ratio).integers(2**62))

    expected = np.random.default_rng(zlib.crc32(b"a.png") ^ 20).integers(2**62)
    assert first("a.png", 0.2) == expected
    assert len({first("a.png", 0.2), first("a.png", 0.21), first("b.png", 0.2)}) == 3
    assert first("a.png", 0.1 + 0.2) == first("a.png", 0.3)
    assert first("a.png", 0.29) != first("a.png", 0.28)  # 100 * 0.29 is just below 29
    assert first("ä.png", 0.2) == first("ä.png", 0.2)


@pytest.mark.parametrize("kind", ["freeform", "rects", "grid", "thin"])
def test_ratio_zero_is_an_empty_mask(kind: str):
    assert not make_mask(kind, rng(), 64, 64, 0).any()


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    size=st.sampled_from([(1, 1), (1, 300), (300, 1), (2, 2), (33, 257), (17, 5)]),
    ratio=st.floats(0, 0.95),
    cell_px=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_odd_sizes_never_raise(
    kind: str, size: tuple[int, int], ratio: float, cell_px: int, seed: int
):
    mask = make_mask(kind, rng(seed), *size, ratio, cell_px)
    assert mask.shape == size
    assert mask.dtype == np.uint8
    assert mask.max() <= 1
    if kind in ("freeform", "rects", "thin"):
        assert mask.mean() <= ratio + TOLERANCE  # short where one px is too much, never over


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("blobs", 8, 8, 0.1), "choose one of freeform"),
        (("grid", 8, 8, -0.1), "ratio"),
        (("grid", 8, 8, 0.96), "ratio"),
        (("center", 8, 8, float("nan")), "ratio"),
        (("grid", 0, 8, 0.1), "size"),
        (("grid", 8, -1, 0.1), "size"),
        (("grid", 8, 8, 0.1, 0), "cell"),
    ],
)
def test_masks_out_of_range_are_refused(arguments: tuple, message: str):
    kind, *rest = arguments
    with pytest.raises(InputError, match=message):
        make_mask(kind, rng(), *rest)


@pytest.mark.parametrize("sigma", [2, 10, 25])
def test_gaussian_noise_at_mid_grey(sigma: float):
    image = np.full((300, 300, 3), 127, np.uint8)
    error = add_noise(image, sigma, rng()).astype(float) - image
    assert error.std() == pytest.approx(np.sqrt(sigma**2 + 1 / 12), rel=0.01)  # + rounding
    assert abs(error.mean()) < 0.02 * sigma
    planes = error.reshape(-1, 3)
    assert np.abs(np.corrcoef(planes.T) - np.eye(3)).max() < 0.02  # channels are independent
    assert abs((error[:, 1:] * error[:, :-1]).mean()) < 0.02 * sigma**2  # and so are pixels


def test_gaussian_noise_is_clipped():
    dark = add_noise(np.zeros((200, 200), np.uint8), 50, rng())
    assert (dark == 0).mean() == pytest.approx(0.5, abs=0.02)
    bright = add_noise(np.full((200, 200), 255, np.uint8), 50, rng())
    assert (bright == 255).mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("sigma", [3, 10, 20])
def test_poisson_variance_is_proportional_to_the_signal(sigma: float):
    for value in (48, 96, 127, 160):
        image = np.full((300, 300, 3), value, np.uint8)
        error = add_noise(image, sigma, rng(value), "poisson").astype(float) - image
        assert error.var() == pytest.approx(sigma**2 * value / 127.5 + 1 / 12, rel=0.03)
        assert abs(error.mean()) < 0.02 * sigma


def test_poisson_leaves_black_alone():
    assert not add_noise(np.zeros((50, 50), np.uint8), 25, rng(), "poisson").any()


@pytest.mark.parametrize("kind", ["gaussian", "poisson"])
def test_noise_is_seeded_and_leaves_its_input(kind: str):
    image = rng().integers(0, 256, (1, 7, 3), np.uint8)
    before = image.copy()
    noisy = add_noise(image, 25, rng(1), kind)
    assert noisy.dtype == np.uint8
    assert (noisy == add_noise(image, 25, rng(1), kind)).all()
    assert (noisy != add_noise(image, 25, rng(2), kind)).any()
    assert (image == before).all()
    clean = add_noise(image, 0, rng(1), kind)
    assert (clean == image).all()
    assert not np.shares_memory(clean, image)


@pytest.mark.parametrize("sigma", [-1, 255, float("nan"), float("inf")])
def test_sigma_out_of_range_is_refused(sigma: float):
    with pytest.raises(InputError, match="sigma"):
        add_noise(np.zeros((2, 2), np.uint8), sigma, rng())


def test_unknown_noise_is_refused():
    with pytest.raises(InputError, match="choose one of gaussian"):
        add_noise(np.zeros((2, 2), np.uint8), 5, rng(), "salt")


def test_punch_paints_the_hole_of_a_copy():
    image = np.full((4, 5, 3), 9, np.uint8)
    mask = np.zeros((4, 5), np.uint8)
    mask[1, 2] = 1
    mask[3, 4] = 255
    out = punch(image, mask, (1, 2, 3))
    assert (image == 9).all()
    assert out[1, 2].tolist() == out[3, 4].tolist() == [1, 2, 3]
    assert (out[mask == 0] == 9).all()
    assert not punch(image, mask)[1, 2].any()
