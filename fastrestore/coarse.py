"""Wide holes, coarse to fine: solved on a reduced picture, which guides the next finer scale.

The picture is halved until no pixel of the hole is farther than `COARSE_PX` from what is known,
and solved there as it is. The result, enlarged by 2, enters the finer pass as trusted state. Near
the rim the finer scale knows more, deep inside it knows nothing: trust grows with the distance to
what is known, and from `RING_PX` on the guess counts as known. So only a ring along the rim is
run: little to compute, and tiles agree within one level, because no fill comes from far away.

Hole PSNR against one plain pass (`tiny`, `benchmarks/results/big-holes.md`): 256 px amid Kodak24
+0.1 dB (-0.1 to +0.3), at its edges and corners +1.0 dB, and no lattice deep inside; 200 to 1500 px
in 12 megapixels +0.9 to +2.5 dB. Free-form strokes gained nothing: what is narrower than `WIDE_PX`
keeps the plain pass.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastrestore.arrays import F32, U8
from fastrestore.errors import InputError
from fastrestore.tiles import WIDE_PX, Rect, distance, within

COARSE_PX = 64
RING_PX = 64
GRID_PX = 64
FILL_FRAMES = 1 / 64  # at sigma 0 a state of so many frames and the graph's own fill weigh the same

Run = Callable[[U8, U8, U8], U8]
"""`(image, mask, state) -> image`: fills holes on one scale; state as in the model's contract."""


def wide_holes(mask: U8, halo: int) -> U8 | None:
    """Return the holes that reach too far for one pass, None where there are none.

    They have a pixel farther than half of `WIDE_PX` from all that is known. Beyond the picture's
    edge nothing is known: a hole in a corner reaches farther than it is wide, and one at an edge
    is wide from 3/4 of the width on.

    Args:
        mask: uint8 `(H, W)`, 1 = hole.
        halo: Holes with less than twice this between them are looked at together, px.

    Returns:
        uint8 `(H, W)`, 1 = wide hole: whole connected holes, diagonals included.
    """
    from fastrestore.masks import components

    wide: U8 | None = None
    for hole in components(mask, 2 * halo):
        part = _wide_part(mask, hole)
        if part is not None:
            wide = np.zeros_like(mask) if wide is None else wide
            wide[hole] = part
    return wide


def _wide_part(mask: U8, hole: Rect) -> U8 | None:
    """Return the wide holes in a rectangle, which no hole of the mask crosses."""
    if max(s.stop - s.start for s in hole) <= WIDE_PX * 3 / 8:
        return None
    import cv2

    (h, w), (rows, cols) = mask.shape, hole
    y, x = max(0, rows.start - 1), max(0, cols.start - 1)
    around = mask[y : rows.stop + 1, x : cols.stop + 1]
    far = distance(around)
    deep = far > WIDE_PX / 2
    at_edge = np.zeros_like(deep)
    at_edge[0], at_edge[-1] = rows.start == 0, rows.stop == h
    at_edge[:, 0] |= cols.start == 0
    at_edge[:, -1] |= cols.stop == w
    deep |= at_edge & (far > WIDE_PX * 3 / 8)
    if not deep.any():
        return None
    labels = np.asarray(cv2.connectedComponents(around)[1])
    part = np.isin(labels, np.unique(labels[deep])).astype(np.uint8)
    return part[within(hole, (slice(y, h), slice(x, w)))]


def around(mask: U8) -> Rect:
    """Return the rectangle of a hole and of as much on each side as it is long, or a little more.

    It starts on a grid: halved in another phase in each frame, a moving hole would flicker.

    Raises:
        InputError: There is no hole.
    """
    from fastrestore.masks import box

    hole = box(mask)
    if hole is None:
        raise InputError("mask: has no hole, so nothing lies around it; use one with a hole")
    by = max(s.stop - s.start for s in hole)
    rows, cols = (
        slice(max(0, s.start - by) // GRID_PX * GRID_PX, min(n, s.stop + by))
        for s, n in zip(hole, mask.shape, strict=True)
    )
    return rows, cols


def solve(image: U8, mask: U8, run: Run) -> U8:
    """Fill holes coarse to fine; known pixels are taken as free of noise.

    Args:
        image: uint8 RGB, `(H, W, 3)`; what it holds in the hole does not matter.
        mask: uint8, `(H, W)`, 1 = hole, not all of it.
        run: Fills holes on one scale.

    Returns:
        uint8 RGB, `(H, W, 3)`; outside the hole it is not to be used.
    """
    far = distance(mask)
    if far.max() <= COARSE_PX:
        return run(image, mask, np.zeros((*mask.shape, 4), np.uint8))
    h, w = mask.shape
    guess = _double(solve(*_halve(image, mask), run))[:h, :w]
    ring = mask & (far < RING_PX)
    state = np.dstack((guess, ring * _confidence(far)))
    filled = np.where(mask[..., None] > 0, guess, image)
    return run(filled, ring, state)


def _confidence(far: F32) -> U8:
    """Return n / (n + 1) in 255ths of the n frames that a guess is worth at a distance."""
    trust = np.minimum(far / RING_PX, 1)  # weight of the guess in the base
    known = trust * FILL_FRAMES
    return np.rint(255 * known / (known + 1 - trust)).astype(np.uint8)


def _halve(image: U8, mask: U8) -> tuple[U8, U8]:
    """Average what is known in cells of 2x2 px; a cell without any is a hole."""
    odd = [(0, n % 2) for n in mask.shape]
    known = np.pad(1 - mask, odd, mode="edge").astype(np.uint16)
    levels = np.pad(image, (*odd, (0, 0)), mode="edge") * known[..., None]
    count, total = (
        a[::2, ::2] + a[::2, 1::2] + a[1::2, ::2] + a[1::2, 1::2] for a in (known, levels)
    )
    share = np.maximum(count, 1)[..., None]
    return ((total + share // 2) // share).astype(np.uint8), (count == 0).astype(np.uint8)


def _double(image: U8) -> U8:
    import cv2

    h, w = image.shape[:2]
    return np.asarray(cv2.resize(image, (2 * w, 2 * h), interpolation=cv2.INTER_LINEAR), np.uint8)
