"""Frames of another size, shape, depth or colour become like the first; the first stay as is."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from fastrestore.planes import planes
from fastrestore.video_fit import Fit
from fastrestore.video_probe import Orientation, VideoInfo
from fastrestore.yuv import ColourTags

W, H = 128, 96


def fit(pixel_format: str = "yuv420p", shape: Fraction | int = 1, full: bool = False) -> Fit:
    colour = ColourTags(1, full)
    info = VideoInfo(
        W, H, None, 25.0, None, pixel_format, colour, Orientation(), 0, None, ()
    )  # fmt: skip
    return Fit(info, shape)


def frame(
    width: int = W,
    height: int = H,
    name: str = "yuv420p",
    values: Any = (120, 90, 160),
    **tags: int,
) -> av.VideoFrame:
    f = av.VideoFrame(width, height, name)
    for p, value in zip(planes(f), values, strict=True):
        p[:] = value
    f.pts, f.time_base, f.duration = 7, Fraction(1, 25), 1
    f.colorspace, f.color_range = tags.get("matrix", 1), tags.get("range", 1)
    return f


def test_a_frame_like_the_first_is_itself() -> None:
    same = frame()
    assert fit()(same, None) is same
    assert fit(shape=Fraction(16, 11))(same, Fraction(12, 11)) is same  # its shape alone is said
    named = frame(name="yuvj420p", range=2)
    assert fit(full=True)(named, None) is named


@pytest.mark.parametrize("size", [(64, 48), (256, 192), (132, 98)])
def test_another_size_of_the_same_shape_fills_the_frame(size: tuple[int, int]) -> None:
    out = fit()(frame(*size), None)
    assert (out.width, out.height, out.format.name) == (W, H, "yuv420p")
    assert (out.pts, out.time_base, out.duration) == (7, Fraction(1, 25), 1)
    for p, value in zip(planes(out), (120, 90, 160), strict=True):
        assert np.abs(p.astype(int) - value).max() <= 1


@pytest.mark.parametrize(
    ("size", "shape", "first", "rows", "columns"),
    [
        ((128, 72), None, 1, slice(12, 84), slice(0, W)),  # wider: bars above and below
        ((96, 96), None, 1, slice(0, H), slice(16, 112)),  # narrower: at the sides
        ((96, 96), Fraction(4, 3), 1, slice(0, H), slice(0, W)),  # its pixels make up for it
        ((128, 72), Fraction(3, 4), Fraction(1), slice(0, H), slice(0, W)),
        ((64, 96), None, Fraction(1, 2), slice(0, H), slice(0, W)),
    ],
)
def test_another_shape_gets_black_bars(
    size: tuple[int, int], shape: Any, first: Any, rows: slice, columns: slice
) -> None:
    out = fit(shape=first)(frame(*size), shape)
    luma, *chroma = (p.astype(int) for p in planes(out))
    inside = np.zeros((H, W), bool)
    inside[rows, columns] = True
    assert np.abs(luma[inside] - 120).max() <= 1
    assert (luma[~inside] == 16).all()
    for p, value in zip(chroma, (90, 160), strict=True):
        assert np.abs(p[inside[::2, ::2]] - value).max() <= 1
        assert (p[~inside[::2, ::2]] == 128).all()


def test_bars_of_deep_and_of_full_range() -> None:
    deep = frame(128, 72, "yuv420p10le", (480, 360, 640))
    luma, u, _ = planes(fit("yuv420p10le")(deep, None))
    assert (luma[0] == 64).all()
    assert (u[0] == 512).all()
    assert np.abs(luma[48].astype(int) - 480).max() <= 1
    assert (planes(fit(full=True)(frame(128, 72, range=2), None))[0][0] == 0).all()


def test_colour_and_depth_are_converted() -> None:
    # Red by BT.601, limited range, must be red by BT.709, full range.
    red = frame(values=(82, 90, 240), matrix=6)
    luma, u, v = (float(p.mean()) for p in planes(fit(full=True)(red, None)))
    assert (luma, u, v) == pytest.approx((54, 99, 255), abs=2.5)
    eight = fit("yuv420p10le")(frame(), None)
    assert eight.format.name == "yuv420p10le"
    assert abs(float(planes(eight)[0].mean()) - 480) < 1
