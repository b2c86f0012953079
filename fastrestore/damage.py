"""Synthetic damage with its truth: what a detector learns to find in a picture without a mask.

Every kind is painted as an opacity map over a layer, so that edges can be soft. The truth marks
the pixels that can be seen to have changed: opacity of at least `SEEN_ALPHA`, near a change of
at least `SEEN_LEVELS`; a black block on a black sky is no damage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fastrestore.arrays import F32, U8
from fastrestore.degrade import make_mask
from fastrestore.errors import InputError

SEEN_ALPHA = 0.25
SEEN_LEVELS = 6  # of the channel that changed most
NEAR_PX = 4  # a pixel of a hole that equals the original by chance still belongs to the hole
_FINE_BITS = 4  # lines and specks are placed to 1/16 px


class _Paint(NamedTuple):
    """One coat: `picture + alpha * (layer - picture)`."""

    alpha: F32  # (H, W), 0-1
    layer: U8  # (H, W, 3), or (3,) for one colour


def draw_damage(
    clean: U8,
    rng: np.random.Generator,
    kinds: Sequence[str] | None = None,
    foreign: U8 | None = None,
) -> tuple[U8, U8]:
    """Damage a picture.

    Args:
        clean: uint8 `(H, W, 3)`, at least 16 px a side; not changed.
        rng: Source of randomness.
        kinds: Names out of `KINDS`, painted in this order; None draws one to three of them.
        foreign: uint8 `(H, W, 3)` of any size: texture that may cover free-form holes. Without
            it the picture's own, turned round, is used.

    Returns:
        The damaged picture, and its mask: uint8 `(H, W)`, 1 = damage.

    Raises:
        InputError: A kind is not known, or the picture is too small.
    """
    import cv2

    if min(clean.shape[:2]) < 16:
        h, w = clean.shape[:2]
        raise InputError(f"size {w}x{h}: damage needs at least 16 px a side; use a larger picture")
    if kinds is None:
        kinds = rng.choice(
            KINDS, rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15]), replace=False
        ).tolist()
    for kind in kinds:
        if kind not in _PAINTERS:
            raise InputError(f"damage {kind}: not known; choose one of {', '.join(KINDS)}")
    image, mask = clean.copy(), np.zeros(clean.shape[:2], np.uint8)
    square = np.ones((2 * NEAR_PX + 1,) * 2, np.uint8)
    for kind in kinds:
        coat = _PAINTERS[kind](image, rng, foreign)
        before = image.astype(np.float32)
        after = before + coat.alpha[..., None] * (coat.layer - before)
        painted = np.rint(after).astype(np.uint8)
        change = cv2.dilate(cv2.absdiff(painted, image), square).max(2)
        mask |= (coat.alpha >= SEEN_ALPHA) & (change >= SEEN_LEVELS)
        image = painted
    return image, mask


def _solid(image: U8, rng: np.random.Generator, _: U8 | None) -> _Paint:
    return _Paint(_blocks(image, rng), _colour(image, rng))


def _noisy(image: U8, rng: np.random.Generator, _: U8 | None) -> _Paint:
    return _Paint(_blocks(image, rng), _noise(image, rng))


def _blurred(image: U8, rng: np.random.Generator, _: U8 | None) -> _Paint:
    """Blocks that a codec concealed: smooth, or a mosaic of coarse cells."""
    import cv2

    h, w = image.shape[:2]
    if rng.random() < 0.7:
        layer = cv2.GaussianBlur(image, (0, 0), rng.uniform(2, 8))
    else:
        cell = int(rng.choice([4, 8, 16]))
        small = cv2.resize(image, (-(-w // cell), -(-h // cell)), interpolation=cv2.INTER_AREA)
        size = (small.shape[1] * cell, small.shape[0] * cell)
        layer = cv2.resize(small, size, interpolation=cv2.INTER_NEAREST)[:h, :w]
    return _Paint(_blocks(image, rng), np.asarray(layer, np.uint8))


def _freeform(image: U8, rng: np.random.Generator, foreign: U8 | None) -> _Paint:
    """Strokes and blots that cover the picture; edges hard, or soft over about 2 px."""
    import cv2

    h, w = image.shape[:2]
    alpha = _enlarged(make_mask("freeform", rng, h, w, rng.uniform(0.02, 0.35)), rng)
    if rng.random() < 0.4:
        alpha = np.asarray(cv2.GaussianBlur(alpha, (0, 0), rng.uniform(0.5, 1.2)), np.float32)
    fill = rng.choice(3, p=[0.5, 0.2, 0.3])
    if fill == 2:
        return _Paint(alpha, _texture(image, rng, foreign))
    return _Paint(alpha, _noise(image, rng) if fill else _colour(image, rng))


def _scratches(image: U8, rng: np.random.Generator, _: U8 | None) -> _Paint:
    """Thin long lines: upright as film leaves them, or in any direction; partly transparent."""
    h, w = image.shape[:2]
    alpha = np.zeros((h, w), np.float32)
    upright = rng.random() < 0.6
    for _i in range(rng.integers(1, 6)):
        length = rng.uniform(0.4, 1.6) * max(h, w)
        angle = rng.normal(np.pi / 2, 0.03) if upright else rng.uniform(0, np.pi)
        line = _curve(rng, h, w, length, angle, 0.02 if upright else 0.15)
        coat = _stroke((h, w), line, int(rng.integers(1, 4)), rng.choice([0, 0.5, 0.8]))
        np.maximum(alpha, coat * rng.uniform(0.5, 1), out=alpha)
    if rng.random() < 0.3:  # worn: the line comes and goes
        alpha *= _patches(rng, h, w)
    return _Paint(alpha, _contrast(image, alpha, rng))


def _dead(image: U8, rng: np.random.Generator, _: U8 | None) -> _Paint:
    """Single pixels and small clusters stuck at black, white or a colour."""
    h, w = image.shape[:2]
    n = max(1, round(h * w * 10 ** rng.uniform(-3.7, -2.2)))
    alpha, layer = np.zeros((h, w), np.float32), image.copy()
    y, x = rng.integers(0, h, n), rng.integers(0, w, n)
    stuck = (rng.random((n, 3)) < 0.5).astype(np.uint8) * np.uint8(255)
    grey = rng.random(n) < 0.6
    stuck[grey] = stuck[grey, :1]
    close = np.abs(stuck.astype(np.int16) - image[y, x]).max(1) < 64
    stuck[close] = 255 - stuck[close]  # what cannot be seen is no damage
    cluster = rng.choice([1, 2, 3], (n, 2), p=[0.75, 0.2, 0.05])
    for dy in range(3):
        for dx in range(3):
            hit = (cluster[:, 0] > dy) & (cluster[:, 1] > dx) & (y + dy < h) & (x + dx < w)
            layer[y[hit] + dy, x[hit] + dx] = stuck[hit]
            alpha[y[hit] + dy, x[hit] + dx] = 1
    return _Paint(alpha, layer)


def _dust(image: U8, rng: np.random.Generator, _: U8 | None) -> _Paint:
    """Soft specks of 1-6 px, and hairs."""
    h, w = image.shape[:2]
    alpha = np.zeros((h, w), np.float32)
    for _i in range(rng.integers(2, 16)):
        hair = rng.random() < 0.15
        length = rng.uniform(15, 60) if hair else rng.uniform(0, 4)
        line = _curve(rng, h, w, length, rng.uniform(0, np.pi), 0.5)
        thick = 1 if hair else int(rng.integers(1, 7))
        _stamp(alpha, line, thick, rng.uniform(0.4, 1), rng.uniform(0.6, 1))
    return _Paint(alpha, _contrast(image, alpha, rng))


_PAINTERS: dict[str, Callable[[U8, np.random.Generator, U8 | None], _Paint]] = {
    "solid": _solid,
    "noise": _noisy,
    "blur": _blurred,
    "freeform": _freeform,
    "scratches": _scratches,
    "dead": _dead,
    "dust": _dust,
}
KINDS = tuple(_PAINTERS)  # of block: solid, noise, blur


def _blocks(image: U8, rng: np.random.Generator) -> F32:
    """Cells of a codec's grid or free rectangles, 2-40 % of the picture."""
    h, w = image.shape[:2]
    ratio = 0.02 * 20 ** rng.random()
    if rng.random() < 0.5:
        cell = int(rng.choice([s for s in (8, 16, 32) if s < min(h, w)]))
        mask = make_mask("grid", rng, h, w, max(ratio, 1.5 * cell * cell / (h * w)), cell)
    else:
        mask = make_mask("rects", rng, h, w, ratio)
    return mask.astype(np.float32)


def _enlarged(mask: U8, rng: np.random.Generator) -> F32:
    """Enlarge half of the masks, up to 2.5 times, so that strokes also run out of the picture."""
    import cv2

    h, w = mask.shape
    zoom = max(1.0, rng.uniform(-0.5, 2.5))
    ph, pw = int(h / zoom), int(w / zoom)
    y, x = rng.integers(0, h - ph + 1), rng.integers(0, w - pw + 1)
    part = mask[y : y + ph, x : x + pw].astype(np.float32)
    if not part.any() or part.all():
        return mask.astype(np.float32)
    whole = cv2.resize(part, (w, h), interpolation=cv2.INTER_LINEAR)
    return (np.asarray(whole) > 0.5).astype(np.float32)


def _colour(image: U8, rng: np.random.Generator) -> U8:
    """Black, white, grey, magenta, the picture's mean or any colour."""
    choice = rng.choice(6, p=[0.25, 0.15, 0.15, 0.05, 0.1, 0.3])
    if choice == 4:
        return np.asarray(image.mean((0, 1)), np.uint8)
    if choice == 5:
        return rng.integers(0, 256, 3, dtype=np.uint8)
    grey = int(rng.integers(1, 255))
    return np.array([(0,) * 3, (255,) * 3, (grey,) * 3, (255, 0, 255)][choice], np.uint8)


def _contrast(image: U8, alpha: F32, rng: np.random.Generator) -> U8:
    """Return a colour for thin damage that stands out from what it lies on: bright or dark."""
    seen = image[alpha >= SEEN_ALPHA]
    under = float(seen.mean()) if len(seen) else 127.0
    tint = rng.integers(0, 256, 3) if rng.random() < 0.25 else np.zeros(3, np.int64)
    bright = rng.random() < 0.6
    if abs((220 if bright else 30) - under) < 70:
        bright = not bright
    level = rng.integers(190, 256) if bright else rng.integers(0, 60)
    return np.clip(level + (tint - 128) / 2 * (tint.any()), 0, 255).astype(np.uint8)


def _noise(image: U8, rng: np.random.Generator) -> U8:
    """Noise instead of a picture: uniform or normal, coloured or grey, in cells of 1-4 px."""
    import cv2

    h, w = image.shape[:2]
    cell = int(rng.choice([1, 2, 4], p=[0.7, 0.15, 0.15]))
    shape = (-(-h // cell), -(-w // cell), int(rng.choice([1, 3])))
    if rng.random() < 0.5:
        noise = rng.integers(0, 256, shape, dtype=np.uint8)
    else:
        wide = rng.standard_normal(shape, np.float32) * rng.uniform(40, 90)
        noise = np.clip(wide + _colour(image, rng)[: shape[2]], 0, 255).astype(np.uint8)
    noise = np.broadcast_to(noise, (*shape[:2], 3))
    size = (shape[1] * cell, shape[0] * cell)
    whole = cv2.resize(np.ascontiguousarray(noise), size, interpolation=cv2.INTER_NEAREST)
    return np.asarray(whole[:h, :w], np.uint8)


def _texture(image: U8, rng: np.random.Generator, foreign: U8 | None) -> U8:
    """Cut a piece of another picture, or turn this one round."""
    import cv2

    h, w = image.shape[:2]
    if foreign is None:
        return np.roll(image[::-1, ::-1], tuple(rng.integers(0, (h, w))), (0, 1))
    fh, fw = foreign.shape[:2]
    if fh < h or fw < w:
        foreign = np.asarray(cv2.resize(foreign, (max(w, fw), max(h, fh))), np.uint8)
        fh, fw = foreign.shape[:2]
    y, x = rng.integers(0, fh - h + 1), rng.integers(0, fw - w + 1)
    return foreign[y : y + h, x : x + w]


def _curve(
    rng: np.random.Generator, h: int, w: int, length: float, angle: float, bend: float
) -> F32:
    """Return points `(n, 2)` of x, y in px along a gently bent line through the picture."""
    n = max(2, min(24, round(length / 6)))
    turns = angle + np.cumsum(rng.normal(0, bend, n)) - 0.5 * rng.normal(0, bend)
    step = length / n * np.stack([np.cos(turns), np.sin(turns)], 1)
    points = np.cumsum(step, 0)
    middle = rng.uniform(0, (w, h))
    return np.asarray(points - points[n // 2] + middle, np.float32)


def _stroke(shape: tuple[int, int], line: F32, thick: int, soft: float) -> F32:
    """Opacity 0-1 of one line of `thick` px, blurred by `soft` px."""
    import cv2

    canvas = np.zeros(shape, np.uint8)
    at = np.rint(line * (1 << _FINE_BITS)).astype(np.int32)
    cv2.polylines(canvas, [at], False, 255, thick, cv2.LINE_AA, _FINE_BITS)
    alpha = canvas.astype(np.float32) / 255
    if soft:
        alpha = np.asarray(cv2.GaussianBlur(alpha, (0, 0), soft), alpha.dtype)
        alpha /= max(float(alpha.max()), 0.5)
    return np.asarray(alpha, np.float32)


def _stamp(alpha: F32, line: F32, thick: int, soft: float, strength: float) -> None:
    """Add a small stroke to an opacity map, working on its neighbourhood alone."""
    margin = thick + 4
    x0, y0 = np.maximum(np.floor(line.min(0)).astype(int) - margin, 0)
    x1, y1 = np.ceil(line.max(0)).astype(int) + margin
    part = alpha[y0 : max(y1, 0), x0 : max(x1, 0)]
    if part.size:
        corner = np.array([x0, y0], np.float32)
        coat = _stroke((part.shape[0], part.shape[1]), line - corner, thick, soft)
        np.maximum(part, coat * strength, out=part)


def _patches(rng: np.random.Generator, h: int, w: int) -> F32:
    """Smooth map of 0-1 with about a third of it near zero."""
    import cv2

    coarse = rng.uniform(-1, 2, (8, 8)).astype(np.float32)
    smooth = cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.clip(smooth, 0, 1), np.float32)
