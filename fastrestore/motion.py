"""What moves between frames: the state is carried to where its content lies in the new frame.

The graph averages the new frame with the state pixel by pixel, so only what stands still gains.
Here three candidates are compared around each cell: to stand still, one shift of the whole picture,
and a dense flow. The state holds the frames before, and it is measured against the new frame
itself: what one step misses, the next one sees, so no remainder is kept beside the state.

A move costs confidence, because the gate in the graph looks at low frequencies alone: it does not
see what interpolation blurs, nor that the noise is weaker than it was said to be. And without noise
the state is all that a hole has of the past: there, what changed before it was hidden is trusted
less (`doubt`).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fastrestore.arrays import U8
from fastrestore.motion_search import FLOWING, SHIFTED, STILL, search
from fastrestore.motion_warp import aged, between, follow, shifted
from fastrestore.tiles import Rect

LEAST_PX = 32  # a side shorter than this says nothing about motion
MOST_PX = 2**15 - 2  # OpenCV's limit for a warp
SHIFT_COST = 0.1  # share of the frames remembered, half a pixel between samples: 8 taps
FLOW_COST = 0.4  # likewise, wherever it lies: bilinear
CALM = 0.2  # of the change that noise explains; a frame that changes less is less noisy than said
STILL_VARIANCE = 9.0  # levels^2 of what stands still: TAU of the graph, squared
CHANGE_PX = 8  # changes are averaged over cells of this size, and one around them
STEP_PX = 4  # one pixel in so many rows and columns tells enough of a change
NOISE_STEP_PX = 8  # likewise, of the noise of a whole picture
LEAST_CONFIDENCE = 23  # of 0.1 frames, in 255ths


def carry(state: U8, frame: U8, mask: U8 | None, sigma: float) -> U8:
    """Return the state as it lies in the new frame.

    Args:
        state: uint8 `(H, W, 4)`: fused base of the past and confidence.
        frame: uint8 RGB, `(H, W, 3)`; what it holds in the hole does not matter.
        mask: uint8 `(H, W)`, 1 = hole; None: there is no hole.
        sigma: Noise of the frame on the 0-255 scale.

    Returns:
        uint8 `(H, W, 4)`: the state itself if nothing moved; confidence 0 where content enters.
    """
    size = frame.shape[1::-1]
    if min(size) < LEAST_PX or max(size) > MOST_PX:
        return state
    plan = search(state, frame, mask)
    if plan is None:
        return state
    import cv2

    chosen = cv2.resize(plan.chosen, size, interpolation=cv2.INTER_NEAREST)
    moved, kept = state.copy(), {}
    if plan.shift is not None:
        cv2.copyTo(shifted(state, plan.shift), cv2.inRange(chosen, SHIFTED, SHIFTED), moved)
        kept[SHIFTED] = 1 - SHIFT_COST * between(plan.shift)
    if plan.flow is not None:
        cv2.copyTo(follow(state, plan.flow), cv2.inRange(chosen, FLOWING, FLOWING), moved)
        kept[FLOWING] = 1 - FLOW_COST
    if sigma > 0:
        vouched = _vouched(moved, frame, mask, sigma)
        kept = {how: share * vouched for how, share in kept.items()}
        # What stands still is trusted less as well, the more of the picture moves.
        moving = float(np.count_nonzero(plan.chosen)) / plan.chosen.size
        kept[STILL] = 1 - moving * (1 - vouched)
    confidence = np.ascontiguousarray(moved[..., 3])
    for how, share in kept.items():
        if share < 1:
            cv2.copyTo(cv2.LUT(confidence, aged(share)), cv2.inRange(chosen, how, how), confidence)
    moved[..., 3] = confidence
    return moved


def carry_within(state: U8, frame: U8, mask: U8, rects: Iterable[Rect]) -> U8:
    """Carry the state in some rectangles only, each by its own motion; for frames without noise.

    Args:
        state: As of `carry`.
        frame: As of `carry`.
        mask: As of `carry`.
        rects: Those; they may overlap.
    """
    moved = state.copy()
    for r in rects:
        moved[r] = carry(state[r], frame[r], mask[r], 0.0)
    return moved


def doubt(state: U8, before: U8, mask: U8 | None) -> None:
    """Trust what is known now less where it has changed: a hole may hide it in the next frame.

    A change of variance v adds to the state's own: one frame becomes 1 / (1 + v / 9) of one.

    Args:
        state: uint8 `(H, W, 4)`, after a frame without noise; its confidence is lowered in place.
        before: The state before that frame, carried.
        mask: The frame's hole; None: none.
    """
    import cv2

    h, w = state.shape[:2]
    if min(h, w) < LEAST_PX:
        return
    known = before[..., 3] > 0
    if mask is not None:
        known &= mask == 0
    some = (slice(1, None, STEP_PX),) * 2
    change = cv2.absdiff(state[some], before[some])
    change[..., 3] = 0
    squares = cv2.multiply(change, change, dtype=cv2.CV_16U) * known[some][..., None]
    cells = (-(-w // CHANGE_PX), -(-h // CHANGE_PX))
    total, share = (
        cv2.blur(cv2.resize(x, cells, interpolation=cv2.INTER_AREA), (3, 3))
        for x in (squares, known[some].astype(np.float32))
    )
    variance = total.sum(2, dtype=np.float32) / (3 * np.maximum(share, 1e-3))
    n = STILL_VARIANCE / (STILL_VARIANCE + variance)  # known pixels were worth one frame
    confidence = np.maximum(np.rint(255 * n / (n + 1)), 1).astype(np.uint8)
    confidence = cv2.resize(confidence, (w, h), interpolation=cv2.INTER_NEAREST)
    np.copyto(state[..., 3], confidence, where=known)


def _vouched(moved: U8, frame: U8, mask: U8 | None, sigma: float) -> float:
    """Return the trust, 0 to 1, that the noise seen deserves for being as strong as was said."""
    some = (slice(1, None, NOISE_STEP_PX),) * 2
    now, past = frame[some].astype(np.float32), moved[some].astype(np.float32)
    confidence = past[..., 3]
    weight = np.minimum(confidence, 1)
    if mask is not None:
        weight *= 1 - mask[some]
    seen = np.square(now - past[..., :3]).sum(2)
    # n / (n + 1) of what is expected is the frame's own.
    expected = 3 * 255 * sigma**2 / np.maximum(confidence, LEAST_CONFIDENCE)
    share = float((weight * seen).sum()) / max(CALM * float((weight * expected).sum()), 1e-3)
    return min(share, 1.0) ** 2
