"""Damage of exact ratio and strength, seeded.

One set of functions for training, evaluation, demo and tests, so that all see the same bytes.

A mask is uint8 `(H, W)`, 1 = hole. Every function takes its random generator; `seed_for` gives
the one that belongs to a picture's name and a ratio.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from fastrestore.arrays import F64, U8
from fastrestore.errors import InputError

Holes = Literal["freeform", "rects", "center", "grid", "thin"]
Noise = Literal["gaussian", "poisson"]
_Draw = Callable[[U8, np.random.Generator, float, float], None]
TOLERANCE = 0.01  # of the achieved hole ratio; `grid` is exact to one cell, `center` is fixed


def seed_for(name: str, ratio: float) -> np.random.Generator:
    """Return the generator of one picture's damage: crc32 of the name, xor the ratio in percent."""
    return np.random.default_rng(
        zlib.crc32(name.encode(errors="surrogateescape")) ^ round(100 * ratio)
    )


def make_mask(
    kind: str, rng: np.random.Generator, height: int, width: int, ratio: float, cell_px: int = 16
) -> U8:
    """Draw a hole mask.

    Args:
        kind: `freeform` strokes, `rects`, one `center` square of 3/8 of the shorter side (the
            ratio is not used), `grid` cells as lost by a block codec, or `thin` strokes of
            1-5 px (scratches).
        rng: Source of randomness.
        height: px.
        width: px.
        ratio: Hole pixels over all pixels, 0 to 0.95.
        cell_px: Side of a `grid` cell.

    Returns:
        uint8 `(H, W)`, 1 = hole; the ratio is met within `TOLERANCE` where the picture is large
        enough for the kind's strokes (from about 32 px a side).

    Raises:
        InputError: Unknown kind, or a ratio or size out of range.
    """
    if kind not in get_args(Holes):
        raise InputError(f"holes {kind}: not known; choose one of {', '.join(get_args(Holes))}")
    if not 0 <= ratio <= 0.95:
        raise InputError(f"ratio {ratio}: must be from 0 to 0.95")
    if height < 1 or width < 1 or cell_px < 1:
        raise InputError(f"size {width}x{height}, cell {cell_px}: must be at least 1 px")
    if kind == "center":
        return _center(height, width)
    if kind == "grid":
        return _grid(rng, height, width, ratio, cell_px)
    if kind == "rects":
        return _top_up(_rectangle, rng, height, width, ratio)
    return _top_up(_thin_stroke if kind == "thin" else _stroke, rng, height, width, ratio)


def add_noise(image: U8, sigma: float, rng: np.random.Generator, kind: str = "gaussian") -> U8:
    """Add noise, clip to 0-255 and round, as a camera would store it.

    Args:
        image: uint8, any shape.
        sigma: Standard deviation on the 0-255 scale; for `poisson` the one at mid grey (127.5).
        rng: Source of randomness.
        kind: `gaussian`, or `poisson` (variance proportional to the signal).

    Raises:
        InputError: Unknown kind or a sigma outside 0 to 254.
    """
    if kind not in get_args(Noise):
        raise InputError(f"noise {kind}: not known; choose one of {', '.join(get_args(Noise))}")
    if not 0 <= sigma < 255:
        raise InputError(f"sigma {sigma}: must be from 0 to 254")
    if sigma < 0.05:  # cannot change a rounded value
        return image.copy()
    x: F64 = image.astype(np.float64)
    if kind == "gaussian":
        x += rng.normal(0, sigma, image.shape)
    else:
        gain = sigma**2 / 127.5  # grey levels per photon
        x[...] = rng.poisson(x / gain) * gain
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def punch(image: U8, mask: U8, colour: tuple[int, int, int] = (0, 0, 0)) -> U8:
    """Return a copy of the picture with the hole painted over.

    Raises:
        InputError: The mask is of another size.
    """
    if mask.shape != image.shape[:2]:
        raise InputError(f"mask {mask.shape}: image is {image.shape[:2]}; give a mask of that size")
    out = image.copy()
    out[mask > 0] = colour
    return out


def _center(h: int, w: int) -> U8:
    side = max(1, round(0.375 * min(h, w)))
    mask = np.zeros((h, w), np.uint8)
    mask[(h - side) // 2 :, (w - side) // 2 :][:side, :side] = 1
    return mask


def _grid(rng: np.random.Generator, h: int, w: int, ratio: float, cell: int) -> U8:
    rows, cols = -(-h // cell), -(-w // cell)
    cells = np.zeros(rows * cols, np.uint8)
    cells[rng.permutation(rows * cols)[: round(ratio * rows * cols)]] = 1
    big = np.kron(cells.reshape(rows, cols), np.ones((cell, cell), np.uint8))
    return np.ascontiguousarray(big[:h, :w])


def _top_up(draw: _Draw, rng: np.random.Generator, h: int, w: int, ratio: float) -> U8:
    """Draw shapes until the ratio is met; a shape that overshoots is undone and drawn smaller."""
    mask, scale = np.zeros((h, w), np.uint8), 1.0
    for _ in range(2000):
        now = float(mask.mean())
        if now >= ratio - min(TOLERANCE, ratio) / 2:
            break
        tried = mask.copy()
        draw(tried, rng, ratio, min(1.0, scale))
        if tried.mean() > ratio + TOLERANCE / 2:
            scale *= 0.7
        else:
            mask, scale = tried, min(1.0, scale * 1.3)
    return mask


def _rectangle(mask: U8, rng: np.random.Generator, ratio: float, scale: float) -> None:
    h, w = mask.shape
    area = ratio * h * w * rng.uniform(0.3, 1.0) * scale**2
    aspect = np.exp(rng.uniform(-0.5, 0.5))
    bh, bw = (
        int(np.clip(v, 1, s)) for v, s in ((np.sqrt(area * aspect), h), (np.sqrt(area / aspect), w))
    )
    y, x = rng.integers(0, h - bh + 1), rng.integers(0, w - bw + 1)
    mask[y : y + bh, x : x + bw] = 1


def _stroke(mask: U8, rng: np.random.Generator, ratio: float, scale: float) -> None:
    side = min(mask.shape)
    thick = rng.uniform(0.04, 0.12) * side * (0.5 + ratio) * scale
    _walk(mask, rng, max(1, round(thick)), 0.05 * side, 0.25 * side * scale, scale)


def _thin_stroke(mask: U8, rng: np.random.Generator, ratio: float, scale: float) -> None:
    side = min(mask.shape)
    _walk(mask, rng, int(rng.integers(1, 5)), 0.1 * side, 0.5 * side * scale, scale)


def _walk(
    mask: U8, rng: np.random.Generator, thick: int, shortest: float, longest: float, scale: float
) -> None:
    """One bent stroke with round joints: 2-8 segments, heading changes of up to 1.2 rad."""
    import cv2

    h, w = mask.shape
    x, y, heading = rng.uniform(0, w), rng.uniform(0, h), rng.uniform(0, 2 * np.pi)
    points = [(x, y)]
    for _ in range(max(1, round(rng.integers(2, 9) * scale))):
        heading += rng.uniform(-1.2, 1.2)
        length = rng.uniform(min(shortest, longest), max(shortest, longest))
        x = float(np.clip(x + length * np.cos(heading), 0, w - 1))
        y = float(np.clip(y + length * np.sin(heading), 0, h - 1))
        points.append((x, y))
    line = np.rint(points).astype(np.int32)
    cv2.polylines(mask, [line], False, 1, thick)
    for px, py in line[1:-1]:
        cv2.circle(mask, (int(px), int(py)), thick // 2, 1, -1)
