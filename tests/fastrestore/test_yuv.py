"""Colour against exact arithmetic, and the composite plane by plane."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from fastrestore.errors import InputError
from fastrestore.planes import chroma_mask, planes
from fastrestore.yuv import ColourTags, Converter, colour_tags, plane_layout

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


def deepened(yuv: Any, bits: int, full: bool) -> Any:
    """Exact samples of 8 bit in the scale of more."""
    if not full:
        return yuv * 2.0 ** (bits - 8)
    middle = np.array([0, 128, 128.0]).reshape(3, *[1] * (np.ndim(yuv) - 1))
    return middle * 2.0 ** (bits - 8) + (yuv - middle) * (2**bits - 1) / 255


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
    bits = f.format.components[0].bits
    for p, value in zip(f.planes, (y, u, v), strict=False):
        if bits > 8:
            np.frombuffer(memoryview(p), np.uint16)[:] = value << (bits - 8)
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
        exact = deepened(exact_yuv(rgb[0, 0], matrix, full), c.layout.depth, full)
        made = back if c.layout.depth == 8 else c.from_rgb(rgb)
        for plane, value in zip(planes(made), exact, strict=True):
            assert abs(plane.mean() - value) < (0.7 if c.layout.depth == 8 else 1.1)


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
    ("gray", "ffv1", "gray"), ("gray", "libx264", "yuv420p"), ("gray10le", "ffv1", "gray10le"),
    ("gray10le", "libx265", "yuv420p10le"), ("gray16le", "libx265", "yuv420p12le"),
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
    scale = 2 ** (c.layout.depth - 8)
    for plane in planes(out)[1:]:
        assert (plane == 128 * scale).all()
    assert np.abs(planes(c.to_frame(f, rgb))[0] / scale - 100).max() <= 1


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
        ("yuv422p10le", (48, 64), "ffv1", "yuv422p10le", "yuv422p10le", "10 bit a sample are kept"),
        ("p010le", (48, 64), "libx264", "yuv420p10le", "yuv420p10le", "10 bit"),
        ("yuv420p12le", (48, 64), "libx265", "yuv420p12le", "yuv420p12le", "12 bit"),
        ("yuv420p10le", (48, 64), "libvpx-vp9", "yuv420p", "yuv420p", "libvpx-vp9 holds no more"),
        ("yuv420p10le", (47, 64), "ffv1", "yuv420p10le", "yuv420p10le", "10 bit"),
        ("gbrp10le", (48, 64), "libx265", "yuv444p10le", "yuv444p10le", "RGB"),
        ("yuv420p", (47, 64), "libx265", "yuv420p", "yuv444p", "H.265"),
        ("yuv411p", (48, 64), "ffv1", "yuv411p", "yuv444p", "4:4:4"),
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
    assert bool(layout.notes) == bool(note)
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


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("pix_fmt", "codec", "size"),
    [
        ("yuv420p10le", "ffv1", (48, 64)),
        ("p010le", "libx265", (48, 64)),
        ("yuv422p12le", "libx265", (48, 64)),
        ("yuv420p10le", "libx264", (49, 67)),  # becomes 4:4:4
        ("gray16le", "ffv1", (48, 64)),
    ],
)
def test_deep_samples_stay_and_new_ones_use_the_depth(
    pix_fmt: str, codec: str, size: tuple[int, int], full: bool
) -> None:
    rng = np.random.default_rng(3)
    mask = np.zeros(size, np.uint8)
    mask[13:20, 11:30] = 1
    c = converter(pix_fmt, full=full, mask=mask, codec=codec, size=size)
    f = av.VideoFrame(size[1], size[0], c.layout.source)
    top = 2**c.layout.depth
    for p in planes(f):
        p[:] = rng.integers(0, top, p.shape)
    given = f.reformat(format=pix_fmt) if pix_fmt == "p010le" else f
    given.pts, given.time_base = 0, Fraction(1, 25)
    patch = (200, 40, 40)
    out = c.to_frame(given, np.full((*size, 3), patch, np.uint8))
    assert out.format.name == c.layout.target
    exact = deepened(exact_yuv(np.array(patch, float), 1, full), c.layout.depth, full)
    block = c.layout.block
    for k, (new, old) in enumerate(zip(planes(out), planes(f), strict=True)):
        far, hole = np.ones(size, bool), mask > 0
        far[12:20, 10:30] = False
        if k and block != (1, 1):
            if new.shape == old.shape:
                step = (slice(None, None, block[0]), slice(None, None, block[1]))
                far, hole = far[step], chroma_mask(hole, block) & ~far[step]
            else:
                old = np.repeat(np.repeat(old, block[0], 0), block[1], 1)[: size[0], : size[1]]
        assert np.array_equal(new[far], old[far])
        if not pix_fmt.startswith("gray"):
            assert np.abs(new[hole] - exact[k]).max() <= 1.1


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("pix_fmt", ["yuv444p10le", "yuv420p10le", "gray12le"])
def test_without_a_mask_the_fine_part_of_a_deep_source_stays(pix_fmt: str, full: bool) -> None:
    """A ramp finer than 8 bit, lifted by ten levels by the network: no steps come of it."""
    c = converter(pix_fmt, full=full, size=(16, 512))
    f = flat_frame(c.layout.source, (0, 128, 128), 16, 512)
    scale = 2 ** (c.layout.depth - 8)
    ramp = np.linspace(60 * scale, 120 * scale, 512).round().astype(np.uint16)
    planes(f)[0][:] = ramp
    rgb = c.to_rgb(f)
    same, lifted = (planes(c.to_frame(f, a))[0][8].astype(int) for a in (rgb, rgb + np.uint8(10)))
    assert np.array_equal(same, ramp)
    step = lifted - ramp
    assert np.abs(step - (10 if full else 10 * 219 / 255) * scale).max() <= 0.7 * scale
    assert np.abs(np.diff(lifted)).max() <= 1.2 * scale
    over = flat_frame(c.layout.source, (250, 128, 128), 16, 512)  # brighter than white, if limited
    black = planes(c.to_frame(over, np.zeros_like(rgb)))[0]
    assert abs(float(black.mean()) - (0 if full else 16 * scale)) <= scale


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
