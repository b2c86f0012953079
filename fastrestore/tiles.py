"""Which parts of a picture a model has to see, so that little is computed and memory is bounded.

The picture is extended by `BORDER_PX` at the top and left, by repeating its edge: the zero padding
of convolutions at the border costs 0.1 dB (24 portraits, 20 % holes). In the extended picture
regions start on the grid of the fill pyramid (multiples of `2 ** levels` px): off that grid the
pyramid's phase changes and a crop differs from the whole picture by up to 11 grey levels. On it,
with a halo of 64 px, both agree within one level for holes up to `WIDE_PX`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastrestore.arrays import U8
from fastrestore.spec import ModelSpec

WIDE_PX = 160  # a wider hole depends on more than a halo: its middle is filled from far away
BORDER_PX = 16
LIMIT_PX = 2**21  # of one run, about 0.8 GB in ONNX Runtime

Rect = tuple[slice, slice]


@dataclass(frozen=True, slots=True)
class Region:
    """One run of the model.

    Attributes:
        seen: Rows and columns given to the model.
        kept: Rows and columns of the picture that take its result; inside `seen`.
        border: Rows above and columns left of `seen` that repeat its edge.
        scale: The seen part is reduced by this factor first; 1 = full size.
    """

    seen: Rect
    kept: Rect
    border: tuple[int, int]
    scale: float = 1.0


def _region(seen: Rect, kept: Rect, scale: float = 1.0) -> Region:
    """Make a region; only one that starts at the picture's edge has a border."""
    top, left = (BORDER_PX if s.start == 0 else 0 for s in seen)
    return Region(seen, kept, (top, left), scale)


def plan(
    height: int, width: int, mask: U8 | None, spec: ModelSpec, limit_px: int = LIMIT_PX
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
        if not _is_wide(mask[hole]):
            seen = _widen(hole, whole, halo, grid)
            # A tile must see the far rim of every hole that it fills a part of.
            tiles = _tiles(seen, hole, grid, halo + WIDE_PX, limit_px)
            regions += [r for r in tiles if mask[r.kept].any()]
            continue
        reach = max(halo, *(s.stop - s.start for s in hole))
        seen = whole if height * width <= limit_px else _widen(hole, whole, reach, grid)
        regions.append(_region(seen, hole, min(1.0, (limit_px / _area(seen)) ** 0.5)))
    return regions


def _is_wide(mask: U8) -> bool:
    """Whether a disc of `WIDE_PX` fits into the hole."""
    if min(mask.shape) < WIDE_PX:
        return False
    import cv2

    padded = np.pad(mask, 1)
    return float(cv2.distanceTransform(padded, cv2.DIST_L2, 3).max()) > WIDE_PX / 2


def _area(rect: Rect) -> int:
    rows, cols = rect
    return int((rows.stop - rows.start) * (cols.stop - cols.start))


def _widen(inner: Rect, whole: Rect, by: int, grid: int) -> Rect:
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
        return [_region(seen, kept)]
    side = max(int(limit_px**0.5) // grid * grid, 2 * (halo + grid))
    out = []
    for rows in _spans(seen[0], kept[0], side, grid, halo):
        for cols in _spans(seen[1], kept[1], side, grid, halo):
            out.append(_region((rows[0], cols[0]), (rows[1], cols[1])))
    return out


def _spans(seen: slice, kept: slice, side: int, grid: int, halo: int) -> list[tuple[slice, slice]]:
    """Cut one axis into (seen, kept) spans: kept parts meet, seen parts add a halo around."""
    step = (side - 2 * halo) // grid * grid
    out = []
    for start in range(_line(kept.start, grid), kept.stop, step):
        core = slice(max(start, kept.start), min(start + step, kept.stop))
        low = max(seen.start, _line(start - halo, grid))
        out.append((slice(low, min(seen.stop, start + step + halo)), core))
    return out
