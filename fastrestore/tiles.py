"""Which parts of a picture a model has to see, so that little is computed and memory is bounded.

The picture is extended by `BORDER_PX` at the top and left, by repeating its edge: the zero padding
of convolutions at the border costs 0.1 dB (24 portraits, 20 % holes). In the extended picture
regions start on the grid of the fill pyramid (multiples of `2 ** levels` px): off that grid the
pyramid's phase changes.

A hole is seen with the spec's halo of 64 px: what lies beyond changes the result (`tiny`: up to 20
levels, `nano`: 1) but does not better it (eight cases: hole PSNR without it -0.12 to +0.24 dB), and
costs twice the time. Where tiles meet inside one hole such a difference would be a seam: they see
`SEAM_PX` around, or a halo beyond the hole's far rim, and agree within one level. Wider holes than
`WIDE_PX` come from `coarse`, as rings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastrestore.arrays import F32, U8
from fastrestore.spec import ModelSpec

WIDE_PX = 160  # the middle of a wider hole is filled from farther away than a tile sees
BORDER_PX = 16
SEAM_PX = 192
LIMIT_PX = 2**21  # of one run, about 0.8 GB in ONNX Runtime

Rect = tuple[slice, slice]


@dataclass(frozen=True, slots=True)
class Region:
    """One run of the model.

    Attributes:
        seen: Rows and columns given to the model.
        kept: Rows and columns of the picture that take its result; inside `seen`.
        border: Rows above and columns left of `seen` that repeat its edge.
    """

    seen: Rect
    kept: Rect
    border: tuple[int, int]


def region(seen: Rect, kept: Rect) -> Region:
    """Make a region; only one that starts at the picture's edge has a border."""
    top, left = (BORDER_PX if s.start == 0 else 0 for s in seen)
    return Region(seen, kept, (top, left))


def plan(
    height: int,
    width: int,
    mask: U8 | None,
    spec: ModelSpec,
    limit_px: int = LIMIT_PX,
) -> list[Region]:
    """Choose the regions that cover what must change.

    Args:
        height: px.
        width: px.
        mask: uint8 `(H, W)`, 1 = hole: only holes and their surroundings are run. None: all.
        spec: Halo and grid of the model.
        limit_px: Largest number of pixels in one run.

    Returns:
        Regions whose `kept` parts hold every hole pixel. Empty for an empty mask.
    """
    whole = (slice(0, height), slice(0, width))
    grid, halo = 2**spec.levels, spec.halo
    if mask is None:
        return _tiles(whole, whole, grid, halo, limit_px)
    from fastrestore.masks import components

    regions: list[Region] = []
    for hole in components(mask, 2 * halo):
        seen = widen(hole, whole, halo, grid)
        if _area(seen) <= limit_px:
            regions.append(region(seen, hole))
            continue
        # A tile must see the far rim of every hole that it fills a part of.
        reach = max(SEAM_PX, halo + 2 * radius(mask, hole))
        tiles = _tiles(seen, hole, grid, -(-reach // grid) * grid, limit_px)
        regions += [r for r in tiles if mask[r.kept].any()]
    return regions


def distance(mask: U8) -> F32:
    """Return each pixel's distance to the nearest known one, px; 0 where it is known itself."""
    import cv2

    return np.asarray(cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)


def radius(mask: U8, hole: Rect) -> int:
    """Return the distance to what is known, at most, from any pixel of the holes in a rectangle."""
    rows, cols = (slice(max(0, s.start - 1), s.stop + 1) for s in hole)  # one px of what is known
    return min(int(distance(mask[rows, cols]).max()) + 1, WIDE_PX // 2)


def within(inner: Rect, outer: Rect) -> Rect:
    """Return a rectangle in the coordinates of one that holds it."""
    rows, cols = (
        slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True)
    )
    return rows, cols


def _area(rect: Rect) -> int:
    rows, cols = rect
    return int((rows.stop - rows.start) * (cols.stop - cols.start))


def widen(inner: Rect, whole: Rect, by: int, grid: int) -> Rect:
    """Grow a rectangle by `by` px within the picture, its ends out to the grid."""
    rows, cols = (
        slice(max(0, _line(s.start - by, grid)), min(w.stop, _line(s.stop + by - 1, grid) + grid))
        for s, w in zip(inner, whole, strict=True)
    )
    return rows, cols


def _line(at: int, grid: int) -> int:
    """Return the last grid line at or before a row or column; the first lies in the border."""
    return (at + BORDER_PX) // grid * grid - BORDER_PX


def _tiles(seen: Rect, kept: Rect, grid: int, halo: int, limit_px: int) -> list[Region]:
    """Split one rectangle into equal tiles of at most `limit_px`, halos overlapping."""
    if _area(seen) <= limit_px:
        return [region(seen, kept)]
    side = max(int(limit_px**0.5) // grid * grid, 2 * (halo + grid))
    out = []
    for rows in spans(seen[0], kept[0], side, grid, halo):
        for cols in spans(seen[1], kept[1], side, grid, halo):
            out.append(region((rows[0], cols[0]), (rows[1], cols[1])))
    return out


def spans(seen: slice, kept: slice, side: int, grid: int, halo: int) -> list[tuple[slice, slice]]:
    """Cut one axis into (seen, kept) spans: kept parts meet, seen parts add a halo around."""
    step = (side - 2 * halo) // grid * grid
    out = []
    for start in range(_line(kept.start, grid), kept.stop, step):
        core = slice(max(start, kept.start), min(start + step, kept.stop))
        low = max(seen.start, _line(start - halo, grid))
        out.append((slice(low, min(seen.stop, start + step + halo)), core))
    return out
