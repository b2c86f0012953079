"""How the new frame has moved against the state: candidates, and which of them each cell takes.

All of it is measured on lumas of half size, where noise is halved, and compared in cells of
4x4 px averaged over windows of 36 px. A candidate must be clearly better than a simpler one:
otherwise an object would drag the still ground around it along, and noise would move everything.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastrestore.arrays import F32, F64, U8

STILL, SHIFTED, FLOWING = 0, 1, 2
CELL_PX = 4
WINDOW, NEAR = (9, 9), (5, 5)  # cells
SHIFT_GAIN = 0.95  # the error must fall below this share of that of standing still
FLOW_GAIN = 0.8  # likewise, of what was best before
FLOOR = 4.0  # levels^2: errors below it are equally good
SURE = 64  # confidence from which on the past counts in full
LEAST_SHARE = 0.05  # of a window must be comparable
UNKNOWN = np.float32(1e9)  # the error where it is not
WHOLE_PX = 0.2  # a shift this close to whole pixels is one: nothing is interpolated
FAR_PX, NEAR_PX = 6, 0.75  # of half size
FARTHEST = 4  # a shift of more than 1 / FARTHEST of the shorter side is none
REFINEMENTS, EXACT_PX = 2, 0.05
OUTLIER = 2.0  # differences beyond so many times the mean say nothing about the whole picture


@dataclass(frozen=True, slots=True)
class Plan:
    """Where each cell of the new frame takes its past from.

    Attributes:
        chosen: uint8, one value a cell of `CELL_PX`: `STILL`, `SHIFTED` or `FLOWING`.
        shift: What lies at (x, y) now was at (x + dx, y + dy), px; None: nobody takes it.
        flow: The same for every pixel of half size, float32 `(h, w, 2)`, in px of the frame.
    """

    chosen: U8
    shift: tuple[float, float] | None
    flow: F32 | None


@dataclass(frozen=True, slots=True)
class _Half:
    """Both pictures at half size.

    Attributes:
        frame: Luma of the new frame in levels, holes filled, float32.
        past: Luma of the state, likewise.
        known: 1 = no hole, float32; None: no holes.
        have: How far the state has a past here, 0 to 1, float32.
        scale: Pixels of the frame per pixel here, x and y, float32 `(2,)`.
    """

    frame: F32
    past: F32
    known: F32 | None
    have: F32
    scale: F32


def search(state: U8, frame: U8, mask: U8 | None) -> Plan | None:
    """Find the motion; None where nothing moves.

    Args:
        state: uint8 `(H, W, 4)`.
        frame: uint8 RGB, `(H, W, 3)`, at least 32 px a side.
        mask: uint8 `(H, W)`, 1 = hole; None: no hole.
    """
    half = _half(state, frame, mask)
    best = _error(half, half.past, half.have)
    chosen: U8 = np.zeros(best.shape[1:], np.uint8)
    flow = _flow(half)
    found = _global_shift(half, flow)
    shift = _whole(found * half.scale, WHOLE_PX)
    if shift.any():
        best = _take(chosen, SHIFTED, best, _error(half, *_shifted(half, found)), SHIFT_GAIN)
    moved = _error(half, *_carried(half, flow))
    moved[0] /= _known_share(half)
    # Its edges are blurred: beside what moves, a flow must fit what is near as well.
    moved[0, (moved[1] > best[1]) | (best[0] == UNKNOWN)] = UNKNOWN
    _take(chosen, FLOWING, best, moved, FLOW_GAIN)
    if not chosen.any():
        return None
    return Plan(
        chosen,
        (float(shift[0]), float(shift[1])) if (chosen == SHIFTED).any() else None,
        flow * half.scale if (chosen == FLOWING).any() else None,
    )


def spread(values: F32, weight: F32) -> F32:
    """Extend what is known into the rest, smoothly, by a pyramid.

    Args:
        values: float32 `(H, W, C)`.
        weight: float32 `(H, W)`, 1 = known, 0 = not.

    Returns:
        float32 `(H, W, C)`: the values themselves where known; 0 if nothing is.
    """
    import cv2

    levels = [np.dstack((values * weight[..., None], weight))]
    while min(levels[-1].shape[:2]) > 2 and (levels[-1][..., -1] < 1).any():
        reduced = cv2.pyrDown(levels[-1])
        levels.append(reduced / np.maximum(reduced[..., -1:], 0.25))
    top = levels.pop()
    total = top.sum((0, 1))
    filled = top + total / max(total[-1], 1e-3) * (1 - top[..., -1:])
    for level in reversed(levels):
        up = cv2.pyrUp(filled, dstsize=level.shape[1::-1])
        filled = level + up * (1 - level[..., -1:])
    return np.ascontiguousarray(filled[..., :-1])


def _half(state: U8, frame: U8, mask: U8 | None) -> _Half:
    import cv2

    h, w = frame.shape[:2]
    size = (-(-w // 2), -(-h // 2))

    def reduce(image: npt.NDArray[np.uint8]) -> U8:
        return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)

    luma, before = cv2.cvtColor(reduce(frame), cv2.COLOR_RGB2GRAY), reduce(state)
    past = cv2.cvtColor(before, cv2.COLOR_RGBA2GRAY)
    have = np.minimum(before[..., 3], SURE).astype(np.float32) / np.float32(SURE)
    known: F32 | None = None
    if mask is not None and mask.any():
        known = np.equal(reduce(mask * np.uint8(255)), 0).astype(np.float32)
        luma = np.rint(spread(luma[..., None].astype(np.float32), known)[..., 0])
    scale = np.array([w / size[0], h / size[1]], np.float32)
    return _Half(luma.astype(np.float32), past.astype(np.float32), known, have, scale)


def _shifted(half: _Half, shift: F64) -> tuple[F32, F32]:
    """Return the past and how far there is one, moved by a shift in pixels of half size."""
    import cv2

    size = half.past.shape[::-1]
    move = np.array([[1, 0, shift[0]], [0, 1, shift[1]]])
    inverse = cv2.WARP_INVERSE_MAP
    sharp = cv2.INTER_CUBIC | inverse
    past = cv2.warpAffine(half.past, move, size, flags=sharp, borderMode=cv2.BORDER_REPLICATE)
    have = cv2.warpAffine(half.have, move, size, flags=cv2.INTER_NEAREST | inverse)
    return np.asarray(past, np.float32), np.asarray(have, np.float32)


def _carried(half: _Half, flow: F32) -> tuple[F32, F32]:
    """Likewise along a flow."""
    import cv2

    h, w = half.past.shape
    x = flow[..., 0] + np.arange(w, dtype=np.float32)
    y = flow[..., 1] + np.arange(h, dtype=np.float32)[:, None]
    past = cv2.remap(half.past, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    have = cv2.remap(half.have, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)
    return np.asarray(past, np.float32), np.asarray(have, np.float32)


def _error(half: _Half, past: F32, have: F32) -> F32:
    """Return the mean square difference around each cell, in levels^2.

    It is float32 `(2, rows, columns)`: first that of the window, then that of what is near.

    Args:
        half: The new frame.
        past: What is compared with it, `(h, w)`.
        have: How far there is something to compare.
    """
    import cv2

    weight = have if half.known is None else have * half.known
    share = cv2.blur(_cells(weight), WINDOW)
    squares = np.square(_cells((half.frame - past) * weight))
    error = FLOOR + cv2.blur(squares, WINDOW) / np.maximum(share, LEAST_SHARE)
    return np.stack((np.where(share < LEAST_SHARE, UNKNOWN, error), cv2.blur(squares, NEAR)))


def _known_share(half: _Half) -> F32 | float:
    """Return which share of the window around each cell is no hole: on less a guess is vaguer."""
    if half.known is None:
        return 1.0
    import cv2

    share = cv2.blur(_cells(half.known), WINDOW)
    return np.maximum(share, np.float32(LEAST_SHARE))


def _cells(image: F32) -> F32:
    """Average a picture of half size over cells."""
    import cv2

    h, w = image.shape
    size = (-(-w // 2), -(-h // 2))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.float32)


def _take(chosen: U8, candidate: int, best: F32, error: F32, gain: float) -> F32:
    """Note the candidate where it is clearly better; return the errors after that."""
    better = error[0] < gain * best[0]
    chosen[better] = candidate
    return np.where(better, error, best)


def _global_shift(half: _Half, flow: F32) -> F64:
    """Return one shift of the whole picture (dx, dy), in pixels of half size.

    Phase correlation sees far; near by, the middle of the flow is closer. Least squares
    on the gradients make it exact: to be a twentieth of a pixel off costs about 1 dB at sigma 25.
    """
    import cv2

    h, w = half.past.shape
    hann = cv2.createHanningWindow((w, h), cv2.CV_32F)
    # It multiplies its inputs by the window where they lie: they must be copies.
    found, _ = cv2.phaseCorrelate(half.frame.copy(), half.past.copy(), hann)
    farthest = min(h, w) / FARTHEST
    is_far = FAR_PX < max(map(abs, found)) <= farthest
    start = np.array(found) if is_far else _middle(half, flow)
    moves = WHOLE_PX / 2 <= np.abs(start).max() <= farthest
    return _refined(half, start) if moves else np.zeros(2)


def _middle(half: _Half, flow: F32) -> F64:
    """Return the mean of the flow's vectors that lie near their median."""
    some = (slice(3, None, 8),) * 2  # one of each patch
    vectors = flow[some].reshape(-1, 2)
    if half.known is not None and half.known[some].any():
        vectors = vectors[half.known[some].ravel() > 0]
    middle = np.sort(vectors, 0)[len(vectors) // 2]
    away = np.abs(vectors - middle).max(1)
    return np.asarray(vectors[away <= max(NEAR_PX, away.min())].mean(0), np.float64)


def _refined(half: _Half, shift: F64) -> F64:
    """Bring a shift to where the squared difference is least.

    Where the difference is large something else moves: that is left out.
    """
    import cv2

    inner = (slice(2, -2),) * 2
    frame = half.frame[inner]
    known = 1.0 if half.known is None else cv2.erode(half.known, np.ones((3, 3)))[inner]
    for _ in range(REFINEMENTS):
        past, have = _shifted(half, shift)
        left, weight = frame - past[inner], known * have[inner]
        size = np.abs(left)
        weight *= size <= OUTLIER * float((size * weight).sum() / max(weight.sum(), 1.0))
        slopes = [cv2.Sobel(past, cv2.CV_32F, x, 1 - x, scale=1 / 8)[inner] for x in (1, 0)]
        weighted = [weight * s for s in slopes]
        system = np.array([[(a * b).sum() for b in slopes] for a in weighted], np.float64)
        if np.linalg.det(system) <= 1e-6 * np.trace(system) ** 2:
            break  # no gradients, or in one direction only
        right = np.array([(a * left).sum() for a in weighted], np.float64)
        step = np.clip(np.linalg.solve(system, right), -1, 1)
        shift = shift + step
        if np.abs(step).max() < EXACT_PX:
            break
    return shift


def _whole(shift: F64, within: float) -> F64:
    """Round what is close to whole pixels."""
    nearest = np.rint(shift)
    return np.where(np.abs(shift - nearest) < within, nearest, shift)


def _flow(half: _Half) -> F32:
    """Return the dense flow at half size, in its own pixels; extended into holes from around."""
    import cv2

    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)  # unrefined
    dis.setFinestScale(0)  # of half size: that keeps the outline of objects
    dis.setPatchStride(8)  # its patches side by side, which halves the time
    start = np.zeros((*half.past.shape, 2), np.float32)
    now, past = half.frame.astype(np.uint8), half.past.astype(np.uint8)
    flow = np.asarray(dis.calc(now, past, start), np.float32)
    return flow if half.known is None else spread(flow, half.known)
