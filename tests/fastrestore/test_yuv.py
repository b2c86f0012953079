"""Colour against exact arithmetic, and the composite plane by plane."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from fastrestore.errors import InputError
from fastrestore.yuv import (
    ColourTags,
    Converter,
    chroma_mask,
    colour_tags,
    plane_layout,
    planes,
)

LUMA = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
PATCHES = [(200, 40, 40), (30, 180, 60), (40, 60, 210), (230, 220, 30), (128, 128, 128), (9, 9, 9)]


def exact_yuv(rgb: Any, matrix: int, full: bool) -> Any:
    kr, kb = LUMA[matrix]
    r, g, b = (rgb[..., i] / 255.0 for i in range(3))
    y = kr * r + (1 - kr - kb) * g + kb * b
    u, v = (b - y) / (2 * (1 - kb)), (r - y) / (2 * (1 - kr))
    if full:
        return np.stack([255 * y, 128 + 255 * u, 128 + 255 * v])
    return np.stack([16 + 219 * y, 128 + 224 * u, 128 + 224 * v])


def exact_rgb(yuv: Any, matrix: int, full: bool) -> Any:
    kr, kb = LUMA[matrix]
    y, u, v = yuv.astype(float)
    y, u, v = (y / 255, (u - 128) / 255, (v - 128) / 255) if full else (
        (y - 16) / 219, (u - 128) / 224, (v - 128) / 224)  # fmt: skip
    r, b = y + 2 * (1 - kr) * v, y + 2 * (1 - kb) * u
    g = (y - kr * r - kb * b) / (1 - kr - kb)
    return 255 * np.stack([r, g, b], -1).clip(0, 1)


def flat_frame(pix_fmt: str, yuv: Any, height: int = 48, width: int = 64) -> av.VideoFrame:
    """One colour, given as 8-bit samples."""
    f = av.VideoFrame(width, height, pix_fmt)
    f.pts, f.time_base = 7, Fraction(1, 90000)
    y, u, v = (round(float(x)) for x in yuv)
    if pix_fmt == "nv12":
        np.frombuffer(memoryview(f.planes[0]), np.uint8)[:] = y
        np.frombuffer(memoryview(f.planes[1]), np.uint8)[:] = np.resize(
            [u, v], f.planes[1].buffer_size
        )
        return f
    for p, value in zip(f.planes, (y, u, v), strict=False):
        if "10le" in pix_fmt:
            np.frombuffer(memoryview(p), np.uint16)[:] = value * 4
        else:
            np.frombuffer(memoryview(p), np.uint8)[:] = value
    return f


def converter(
    pix_fmt: str,
    matrix: int = 1,
    full: bool = False,
    mask: Any = None,
    codec: str = "ffv1",
    size: tuple[int, int] = (48, 64),
) -> Converter:
    return Converter(ColourTags(matrix, full), plane_layout(pix_fmt, *size, codec), mask)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", LUMA)
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv444p", "nv12", "yuv420p10le"])
def test_patches_to_rgb_and_back(pix_fmt: str, matrix: int, full: bool) -> None:
    c = converter(pix_fmt, matrix, full)
    for patch in PATCHES:
        yuv = exact_yuv(np.array(patch, float), matrix, full).round()
        frame = flat_frame(pix_fmt, yuv)
        frame.colorspace = matrix
        rgb = c.to_rgb(frame)
        assert np.abs(rgb - exact_rgb(yuv, matrix, full)).mean() < 0.6
        back = c.to_frame(frame, rgb)
        assert (back.format.name, back.pts, back.time_base) == (c.layout.target, 7, frame.time_base)
        assert (int(back.colorspace), int(back.color_range)) == (matrix, 2 if full else 1)
        for plane, value in zip(planes(back), exact_yuv(rgb[0, 0], matrix, full), strict=True):
            assert abs(plane.mean() - value) < 0.7


@pytest.mark.parametrize("full", [False, True])
def test_encoding_has_no_bias(full: bool) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    rgb = np.repeat(np.repeat(colours, 16, 0), 16, 1)
    frame = converter("yuv444p", full=full, size=(256, 256)).from_rgb(rgb)
    for plane, exact in zip(planes(frame), exact_yuv(colours.astype(float), 1, full), strict=True):
        error = plane[8::16, 8::16] - exact.clip(0, 255)
        assert np.abs(error).max() < 0.7
        assert abs(error.mean()) < 0.1


@pytest.mark.parametrize("full", [False, True])
def test_grey_ramp_has_no_bias(full: bool) -> None:
    ramp = np.linspace(0 if full else 16, 255 if full else 235, 256)
    f = flat_frame("yuv420p", (0, 128, 128), 16, 256)
    planes(f)[0][:] = ramp.round().astype(np.uint8)
    rgb = converter("yuv420p", full=full).to_rgb(f)
    assert abs(float((rgb - np.arange(256)[None, :, None]).mean())) < 0.1


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("pix_fmt", "codec", "target"), [
    ("gray", "ffv1", "gray"), ("gray", "libx264", "yuv420p"), ("gray10le", "ffv1", "gray"),
])  # fmt: skip
def test_grey_follows_its_range_and_stays_colourless(
    pix_fmt: str, codec: str, target: str, full: bool
) -> None:
    c = converter(pix_fmt, full=full, codec=codec)
    f = flat_frame(pix_fmt, (100, 0, 0))
    rgb = c.to_rgb(f)
    assert np.abs(rgb - (100 if full else (100 - 16) / 219 * 255)).max() < 1
    out = c.to_frame(f, np.full_like(rgb, (200, 30, 90)))
    assert out.format.name == target
    for plane in planes(out)[1:]:
        assert (plane == 128).all()
    assert np.abs(planes(c.to_frame(f, rgb))[0].astype(int) - 100).max() <= 1


@pytest.mark.parametrize(
    ("pix_fmt", "size", "codec", "source", "target", "note"),
    [
        ("yuv420p", (48, 64), "libx264", "yuv420p", "yuv420p", ""),
        ("yuvj422p", (48, 64), "libx264", "yuv422p", "yuv422p", ""),
        ("nv12", (48, 64), "libx264", "yuv420p", "yuv420p", ""),
        ("yuv444p", (47, 63), "libx264", "yuv444p", "yuv444p", ""),
        ("yuv420p", (47, 64), "libx264", "yuv420p", "yuv444p", "odd"),
        ("yuv422p", (47, 64), "libx264", "yuv422p", "yuv422p", ""),
        ("yuv422p", (48, 63), "libx264", "yuv422p", "yuv444p", "odd"),
        ("gray", (48, 63), "libx264", "gray", "yuv444p", "odd"),
        ("yuv420p", (47, 63), "libvpx-vp9", "yuv420p", "yuv420p", ""),
        ("yuv422p10le", (48, 64), "ffv1", "yuv422p", "yuv422p", "8 bit"),
        ("yuva420p", (48, 64), "libx264", "yuv420p", "yuv420p", "transparency"),
        ("yuv411p", (48, 64), "libx264", "yuv411p", "yuv444p", "4:4:4"),
        ("rgb24", (48, 64), "libx264", "yuv444p", "yuv444p", "RGB"),
        ("gbrp", (48, 64), "ffv1", "yuv444p", "yuv444p", "RGB"),
    ],
)
def test_layouts(
    pix_fmt: str, size: tuple[int, int], codec: str, source: str, target: str, note: str
) -> None:
    layout = plane_layout(pix_fmt, *size, codec)
    assert (layout.source, layout.target) == (source, target)
    assert len(layout.notes) == bool(note)
    assert note in "".join(layout.notes)


@pytest.mark.parametrize("pix_fmt", ["nv12", "yuv411p", "yuv440p", "yuvj420p", "yuv420p"])
def test_composite_keeps_samples_through_a_change_of_layout(pix_fmt: str) -> None:
    size = (49, 67)
    rng = np.random.default_rng(3)
    f = flat_frame(pix_fmt, (0, 0, 0), *size)
    for p in f.planes:
        np.frombuffer(memoryview(p), np.uint8)[:] = rng.integers(16, 236, p.buffer_size)
    mask = np.zeros(size, np.uint8)
    mask[13:20, 11:30] = 1
    c = converter(pix_fmt, mask=mask, codec="libx264", size=size)
    out = c.to_frame(f, 255 - c.to_rgb(f))
    luma = np.frombuffer(memoryview(f.planes[0]), np.uint8).reshape(size[0], -1)[:, : size[1]]
    assert np.array_equal(planes(out)[0][mask == 0], luma[mask == 0])
    far = np.ones(size, bool)
    far[12:20, 8:32] = False  # the hole, widened to whole chroma samples of every format here
    if out.format.name == "yuv444p" and pix_fmt != "nv12":
        fy, fx = c.layout.block
        for k in (1, 2):
            up = np.repeat(np.repeat(planes(f)[k], fy, 0), fx, 1)[: size[0], : size[1]]
            assert np.array_equal(planes(out)[k][far], up[far])
            assert (planes(out)[k][mask == 1] != up[mask == 1]).mean() > 0.5


def test_decoders_frame_is_never_written_to() -> None:
    f = flat_frame("yuv420p", (90, 100, 150))
    c = converter("yuv420p", mask=np.ones((48, 64), np.uint8))
    before = [p.copy() for p in planes(f)]
    out = c.to_frame(f, np.full((48, 64, 3), 250, np.uint8))
    assert all(np.array_equal(a, b) for a, b in zip(before, planes(f), strict=True))
    assert planes(out)[0].min() > 200


def test_chroma_mask_marks_any_touched_block() -> None:
    mask = np.zeros((5, 7), bool)
    mask[1, 1] = mask[4, 6] = True
    assert np.argwhere(chroma_mask(mask, (2, 2))).tolist() == [[0, 0], [2, 3]]
    assert chroma_mask(mask, (1, 2)).shape == (5, 4)
    assert np.array_equal(chroma_mask(mask, (1, 1)), mask)


def test_reserved_tags_become_unspecified() -> None:
    f = flat_frame("yuv420p", (90, 100, 150))
    f.colorspace, f.color_range, f.color_primaries, f.color_trc = 5, 1, 0, 3
    assert colour_tags(f) == ColourTags(5, False, 2, 2)
    f.colorspace = 14
    with pytest.raises(InputError, match="ICtCp"):
        colour_tags(f)


def test_full_range_by_tag_or_by_format() -> None:
    assert colour_tags(flat_frame("yuvj420p", (90, 100, 150))).full
    assert not colour_tags(flat_frame("yuv420p", (90, 100, 150))).full
