from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastrestore.errors import InputError
from fastrestore.images import Picture, decode_picture
from fastrestore.masks import (
    as_mask,
    box,
    components,
    feather,
    grow,
    mask_from_alpha,
    mask_from_colour,
    parse_colour,
    read_mask,
)

SIZE = (24, 32)
HOLE = np.zeros(SIZE, np.uint8)
HOLE[8:16, 4:20] = 1


def blank(height: int, width: int, *holes: tuple[int, int, int, int]) -> Any:
    """A mask with holes given as top, bottom, left, right."""
    mask = np.zeros((height, width), np.uint8)
    for top, bottom, left, right in holes:
        mask[top:bottom, left:right] = 1
    return mask


def masks_as_files() -> dict[str, Any]:
    white = Image.fromarray(HOLE * 255)
    palette = Image.fromarray(1 - HOLE).convert("P")  # index 0 shows white, 1 black
    palette.putpalette([255, 255, 255, 0, 0, 0])
    strokes = np.zeros((*SIZE, 4), np.uint8)
    strokes[HOLE == 1] = 255
    black_strokes = np.zeros((*SIZE, 4), np.uint8)
    black_strokes[..., 3] = HOLE * 255
    red_strokes = black_strokes.copy()
    red_strokes[..., 0] = 255
    hidden = np.full((*SIZE, 4), 255, np.uint8)  # white everywhere, painted in the hole
    hidden[..., 3] = HOLE * 255
    return {
        "gray": white,
        "1 bit": white.convert("1"),
        "RGB": white.convert("RGB"),
        "palette": palette,
        "opaque RGBA": white.convert("RGBA"),
        "white strokes on nothing": Image.fromarray(strokes),
        "black strokes on nothing": Image.fromarray(black_strokes),
        "red strokes on nothing": Image.fromarray(red_strokes),
        "alpha only": Image.fromarray(hidden),
        "16 bits": Image.fromarray(HOLE.astype(np.uint16) * 65535),
    }


@pytest.mark.parametrize("kind", masks_as_files())
def test_white_is_the_hole_in_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    masks_as_files()[kind].save(path)
    assert np.array_equal(read_mask(path, SIZE), HOLE)
    assert np.array_equal(read_mask(path, SIZE, invert=True), 1 - HOLE)


def test_jpeg_mask(tmp_path: Path) -> None:
    path = tmp_path / "mask.jpg"
    Image.fromarray(HOLE * 255).save(path, quality=75)
    mask = read_mask(path, SIZE)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    assert (mask != HOLE).mean() < 0.01


def test_threshold_is_half_of_the_luma(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(np.array([[127, 128]], np.uint8)).save(path)
    assert read_mask(path, (1, 2)).tolist() == [[0, 1]]
    Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0]]], np.uint8)).save(path)  # 76, 150
    assert read_mask(path, (1, 2)).tolist() == [[0, 1]]


def test_mask_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "mask.png"
    Image.fromarray(np.rot90(HOLE * 255)).save(path, exif=exif)
    assert np.array_equal(read_mask(path, SIZE), HOLE)


def test_empty_mask_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(HOLE * 0).save(path)
    assert not read_mask(path, SIZE).any()
    Image.fromarray(np.zeros((*SIZE, 4), np.uint8)).save(path)  # transparent throughout
    assert not read_mask(path, SIZE).any()


def test_bad_mask_files(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(HOLE).save(path)
    with pytest.raises(InputError, match=r"mask\.png: the mask is 32x24, .* 30x20; resize"):
        read_mask(path, (20, 30))
    with pytest.raises(InputError, match="over the limit"):
        read_mask(path, SIZE, max_pixels=100)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        read_mask(path, SIZE)


def test_transparent_pixels_are_the_hole() -> None:
    rgb = np.zeros((1, 4, 3), np.uint8)
    alpha = np.array([[0, 127, 128, 255]], np.uint8)
    assert mask_from_alpha(Picture(rgb, alpha)).tolist() == [[1, 1, 0, 0]]
    assert mask_from_alpha(Picture(rgb, alpha.astype(np.uint16) * 257)).tolist() == [[1, 1, 0, 0]]
    edge = np.array([[32895, 32896]], np.uint16)  # 128 of 255 in 16 bits is 32896
    assert mask_from_alpha(Picture(rgb[:, :2], edge)).tolist() == [[1, 0]]
    with pytest.raises(InputError, match="no alpha channel"):
        mask_from_alpha(Picture(rgb))


def test_palette_transparency_is_a_hole() -> None:
    image = Image.fromarray(HOLE).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    file = io.BytesIO()
    image.save(file, "PNG", transparency=1)
    file.seek(0)
    assert np.array_equal(mask_from_alpha(decode_picture(file, "x")), HOLE)


def test_colours() -> None:
    assert parse_colour("#ff00FF") == parse_colour("ff00ff") == (255, 0, 255)
    rgb = np.array([[[255, 0, 255], [250, 4, 255], [0, 0, 0]]], np.uint8)
    assert mask_from_colour(rgb, "#ff00ff").tolist() == [[1, 0, 0]]
    assert mask_from_colour(rgb, "#ff00ff", 4).tolist() == [[1, 0, 0]]
    assert mask_from_colour(rgb, "#ff00ff", 5).tolist() == [[1, 1, 0]]
    assert mask_from_colour(rgb, "#000000", 255).all()
    for bad in ("", "#fff", "magenta", "#gg0000", "##ff00ff", "#ff00ff\n"):
        with pytest.raises(InputError, match="six hexadecimal digits"):
            mask_from_colour(rgb, bad)
    for tolerance in (-1, 256):
        with pytest.raises(InputError, match="tolerance"):
            mask_from_colour(rgb, "#ff00ff", tolerance)


@pytest.mark.parametrize("given_mask", [HOLE, HOLE * 255, HOLE > 0, HOLE[..., None] * 7])
def test_as_mask_takes_what_callers_have(given_mask: Any) -> None:
    mask = as_mask(given_mask, (*SIZE, 3))
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, HOLE)
    assert not np.shares_memory(mask, given_mask)


@pytest.mark.parametrize(
    "wrong", [HOLE.astype(np.float32), HOLE.astype(int), HOLE.T, HOLE[..., None, None], HOLE[0]]
)
def test_as_mask_refuses_the_rest(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"^mask is .*; "):
        as_mask(wrong, SIZE)


@pytest.mark.parametrize("px", [0, 1, 2, 5, 12])
def test_grow_is_a_disc(px: int) -> None:
    mask = blank(40, 50, (20, 21, 25, 26), (0, 1, 0, 1))
    y, x = np.mgrid[:40, :50]
    disc = ((y - 20) ** 2 + (x - 25) ** 2 <= px**2) | (y**2 + x**2 <= px**2)
    grown = grow(mask, px)
    assert grown.dtype == np.uint8
    assert np.array_equal(grown, disc)
    assert mask.sum() == 2


def test_grow_agrees_with_the_distance_of_random_holes() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    rng = np.random.default_rng(0)
    for px in (1, 3, 7):
        mask = (rng.random((60, 70)) < 0.01).astype(np.uint8)
        expected = ndimage.distance_transform_edt(mask == 0) <= px
        assert np.array_equal(grow(mask, px), expected)


def test_grow_edges() -> None:
    empty = np.zeros((5, 6), np.uint8)
    assert not grow(empty, 3).any()
    assert grow(blank(5, 6, (2, 3, 2, 3)), 100).all()
    assert grow(blank(1, 1, (0, 1, 0, 1)), 2).tolist() == [[1]]
    with pytest.raises(InputError, match="0 px or more"):
        grow(empty, -1)


@pytest.mark.parametrize("px", [1, 2, 4])
def test_feather_falls_linearly(px: int) -> None:
    mask = blank(60, 80, (0, 60, 30, 50))
    weights = feather(mask, grow(mask, px))
    ring = [(px - i) / (px + 1) for i in range(px)]  # next to the hole first
    expected = [1.0, *ring, 0.0]
    assert weights.dtype == np.float32
    for y, x in itertools.product((0, 30, 59), (0,)):
        assert weights[y, 49 : 49 + px + 2] == pytest.approx(expected, abs=1e-6)
        assert weights[y, 30 - px - 1 : 31][::-1] == pytest.approx(expected, abs=1e-6)
        assert weights[y, x] == 0


@given(st.integers(0, 2**32 - 1), st.integers(0, 6))
def test_feather_is_one_inside_and_zero_outside(seed: int, px: int) -> None:
    mask = (np.random.default_rng(seed).random((20, 30)) < 0.02).astype(np.uint8)
    grown = grow(mask, px)
    weights = feather(mask, grown)
    assert (weights[mask == 1] == 1).all()
    assert (weights[grown == 0] == 0).all()
    ring = weights[(grown == 1) & (mask == 0)]
    assert ((ring > 0) & (ring < 1)).all()


def test_feather_edges() -> None:
    mask = blank(5, 6, (2, 3, 2, 3))
    everything = np.ones((5, 6), np.uint8)
    weights = feather(mask, everything)  # there is no outside to fall towards
    assert np.isfinite(weights).all()
    assert weights.min() > 0.9
    assert not feather(mask * 0, mask * 0).any()
    with pytest.raises(InputError, match="must be equal"):
        feather(mask, everything[:4])


def test_box() -> None:
    assert box(np.zeros((4, 5), np.uint8)) is None
    assert box(blank(9, 9, (2, 3, 4, 6), (7, 9, 0, 1))) == (slice(2, 9), slice(0, 6))
    assert box(np.ones((1, 1), np.uint8)) == (slice(0, 1), slice(0, 1))
    assert box(blank(9, 12, (2, 3, 4, 6))[:, ::2]) == (slice(2, 3), slice(2, 3))


def test_box_of_narrow_masks() -> None:
    rng = np.random.default_rng(0)
    for width in (1, 2, 3, 17):
        for _ in range(50):
            mask = (rng.random((17, width)) < 0.1).astype(np.uint8)
            y, x = np.nonzero(mask)
            expected = (
                (slice(y.min(), y.max() + 1), slice(x.min(), x.max() + 1)) if y.size else None
            )
            assert box(mask) == expected


@pytest.mark.parametrize("gap_px", [0, 1, 2, 5, 16, 128])
@pytest.mark.parametrize("diagonal", [False, True])
def test_components_join_what_is_closer_than_the_gap(gap_px: int, diagonal: bool) -> None:
    def boxes(clean: int) -> int:
        mask = blank(500, 600, (10, 20, 10, 30))
        y, x = (20 + clean if diagonal else 12), 30 + clean
        mask[y : y + 8, x : x + 8] = 1
        return len(components(mask, gap_px))

    assert boxes(max(0, gap_px - 1)) == 1
    assert boxes(gap_px + max(1, gap_px // 8)) == 2


def test_components_merge_boxes_that_overlap() -> None:
    ring = blank(200, 200, (20, 22, 20, 180), (20, 180, 20, 22), (178, 180, 20, 180))
    ring[100:102, 100:102] = 1  # far from the strokes, inside their box
    ring[100:102, 190:192] = 1  # outside
    boxes = components(ring, 4)
    assert boxes == [(slice(20, 180), slice(20, 180)), (slice(100, 102), slice(190, 192))]


def test_components_of_nothing_and_of_all() -> None:
    assert components(np.zeros((8, 8), np.uint8), 4) == []
    assert components(np.ones((8, 9), np.uint8), 4) == [(slice(0, 8), slice(0, 9))]
    with pytest.raises(InputError, match="gap"):
        components(np.ones((8, 9), np.uint8), -1)


@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.sampled_from([0.0005, 0.003, 0.02]))
def test_components_hold_every_hole_and_keep_apart(seed: int, gap_px: int, density: float) -> None:
    mask = (np.random.default_rng(seed).random((90, 110)) < density).astype(np.uint8)
    boxes = components(mask, gap_px)
    covered = np.zeros_like(mask)
    for rows, columns in boxes:
        covered[rows, columns] += 1
        inner = box(mask[rows, columns])
        assert inner == (slice(0, rows.stop - rows.start), slice(0, columns.stop - columns.start))
    assert not mask[covered == 0].any()
    assert covered.max(initial=0) <= 1
    for (rows, columns), (other_rows, other_columns) in itertools.combinations(boxes, 2):
        clean = [
            max(a.start, b.start) - min(a.stop, b.stop)
            for a, b in ((rows, other_rows), (columns, other_columns))
        ]
        assert max(clean) >= gap_px
