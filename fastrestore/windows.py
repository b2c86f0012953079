"""Which parts of a picture a model sees on a backend that takes certain sizes alone.

As `tiles`, but every run is one whole frame of the backend, a window. It costs the same however
much of it is needed, so windows are filled with the picture around a hole, holes that lie together
share one, and a picture is cut only where no window holds it. Where the picture ends before the
window does, its edge is repeated: at the last rows and columns that is worth 0.1 dB over the zeros
that a backend of any size sees there, 16 px of it as much as 384 (`nano`, ten crops of 256x240 px,
holes at the edges, and sigma 15). A frame of just the picture's size leaves no room for a border:
then there is less or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fastrestore.arrays import U8
from fastrestore.backend import Frames
from fastrestore.engine_fit import BUILD
from fastrestore.errors import EngineError
from fastrestore.spec import ModelSpec
from fastrestore.tiles import (
    BORDER_PX,
    SEAM_PX,
    Rect,
    Region,
    radius,
    region,
    spans,
    widen,
)

Size = tuple[int, int]  # height, width


def fitting(height: int, width: int, shapes: Sequence[Frames], multiple: int) -> Size | None:
    """Return the smallest frame of one picture that holds a region and its border.

    Args:
        height: Of both, px.
        width: Likewise.
        shapes: What the backend takes.
        multiple: Of the model.

    Returns:
        Height and width that the backend takes, None if there are none.
    """
    found = []
    for (n, low_h, low_w), (_, high_h, high_w) in shapes:
        h, w = (
            max(low, -(-size // multiple) * multiple)
            for low, size in ((low_h, height), (low_w, width))
        )
        if n == 1 and h <= high_h and w <= high_w:
            found.append((h, w))
    return min(found, key=lambda size: size[0] * size[1], default=None)


def plan_windows(
    height: int, width: int, mask: U8 | None, spec: ModelSpec, shapes: Sequence[Frames]
) -> list[Region]:
    """Choose the windows that cover what must change.

    Args:
        height: px.
        width: px.
        mask: uint8 `(H, W)`, 1 = hole: only holes and their surroundings are run. None: all.
        spec: Halo, grid and multiple of the model.
        shapes: What the backend takes.

    Returns:
        Regions whose `kept` parts hold every hole pixel; those that see the same follow each other.
        Empty for an empty mask.

    Raises:
        EngineError: The backend takes no single pictures, or its frames are too small for tiles.
    """
    whole = (slice(0, height), slice(0, width))
    grid, halo = 2**spec.levels, spec.halo
    if mask is None:
        return [_filled(r, whole, spec, shapes) for r in _cut(whole, whole, halo, spec, shapes)]
    from fastrestore.masks import components

    windows: list[list[Region]] = []
    for hole in components(mask, 2 * halo):
        seen = widen(hole, whole, halo, grid)
        shared = next((w for w in windows if _holds(w[0].seen, seen)), None)
        if shared is not None:
            shared.append(replace(shared[0], kept=hole))
            continue
        # A tile must see the far rim of every hole that it fills a part of.
        reach = max(SEAM_PX, halo + 2 * radius(mask, hole))
        for r in _cut(seen, hole, reach, spec, shapes):
            if mask[r.kept].any():
                windows.append([_filled(r, whole, spec, shapes)])
    return [r for window in windows for r in window]


def _cut(
    seen: Rect, kept: Rect, halo: int, spec: ModelSpec, shapes: Sequence[Frames]
) -> list[Region]:
    """Return a rectangle as one region if a frame holds it, else as tiles of the largest frame."""
    only = region(seen, kept)
    if fitting(*_size(only), shapes, spec.multiple) is not None:
        return [only]
    bare = replace(only, border=(0, 0))
    frame = fitting(*_size(bare), shapes, spec.multiple)
    if frame is not None:
        top, left = (
            min(b, room - n) for b, room, n in zip(only.border, frame, _size(bare), strict=True)
        )
        return [replace(only, border=(top, left))]
    grid = 2**spec.levels
    sides = _largest(spec, shapes)
    axes = []
    for size, side, s, k in zip(_size(only), sides, seen, kept, strict=True):
        if size <= side:
            axes.append([(s, k)])
            continue
        # Small frames see less around a tile than they should: up to a step of one grid.
        around = min(-(-halo // grid), (side // grid - 1) // 2) * grid
        if around < spec.halo:
            least = 2 * -(-spec.halo // grid) * grid + grid
            raise EngineError(
                f"{spec.name}: its engine's frames of {sides[1]}x{sides[0]} px are too small to "
                f"cut a larger picture; `{BUILD} {spec.name} --for WxH` of the picture's size, at "
                f"least {least}x{least}"
            )
        axes.append(spans(s, k, side, grid, around))
    return [region((r[0], c[0]), (r[1], c[1])) for r in axes[0] for c in axes[1]]


def _largest(spec: ModelSpec, shapes: Sequence[Frames]) -> Size:
    sizes = [(h, w) for (n, _, _), (_, h, w) in shapes if n == 1]
    if not sizes:
        raise EngineError(
            f"{spec.name}: its engines take batches alone, not single pictures; "
            f"`{BUILD} {spec.name} --batch 1`"
        )
    return max(sizes, key=lambda size: size[0] * size[1])


def _filled(r: Region, whole: Rect, spec: ModelSpec, shapes: Sequence[Frames]) -> Region:
    """Let a region see as much of the picture as the frame holds that it is run in."""
    frame = fitting(*_size(r), shapes, spec.multiple) or _largest(spec, shapes)
    rows, cols = (
        _stretched(s, b, n.stop, room, 2**spec.levels)
        for s, b, n, room in zip(r.seen, r.border, whole, frame, strict=True)
    )
    return Region((rows[0], cols[0]), r.kept, (rows[1], cols[1]))


def _stretched(seen: slice, border: int, end: int, room: int, grid: int) -> tuple[slice, int]:
    """Lengthen a span and its border up to `room` px: first its end, then by whole grid steps."""
    start = seen.start
    while start > 0 and end - start < room:  # the picture ends inside: begin earlier
        earlier = max(0, start - grid)
        before = BORDER_PX if earlier == 0 else 0
        if before + end - earlier > room:
            break
        start, border = earlier, before
    return slice(start, min(end, start + room - border)), border


def _holds(outer: Rect, inner: Rect) -> bool:
    return all(o.start <= i.start and i.stop <= o.stop for o, i in zip(outer, inner, strict=True))


def _size(r: Region) -> Size:
    h, w = (b + s.stop - s.start for b, s in zip(r.border, r.seen, strict=True))
    return h, w
