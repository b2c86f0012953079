"""What `bench_motion` compares the motion step with: parts of it, a block search, bare flow."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import cv2
import numpy as np

from fastrestore import motion_search
from fastrestore.arrays import F32, U8
from fastrestore.motion import carry

Mover = Callable[[U8, U8, U8 | None, float], U8]
BLOCK_PX, REACH_PX = 16, 8
FOR_ZERO = 0.5  # levels by which another vector must be better than none


def shift_only(state: U8, frame: U8, mask: U8 | None, sigma: float) -> U8:
    """The motion step without its flow."""
    with patch.object(motion_search, "FLOW_GAIN", 0.0):
        return carry(state, frame, mask, sigma)


def flow_only(state: U8, frame: U8, mask: U8 | None, sigma: float) -> U8:
    """The motion step without its shift: OpenCV's DIS with our acceptance."""
    with patch.object(motion_search, "SHIFT_GAIN", 0.0):
        return carry(state, frame, mask, sigma)


def bare_flow(state: U8, frame: U8, mask: U8 | None, sigma: float) -> U8:
    """OpenCV's DIS as it comes (preset fast, full size), cubic, accepted everywhere."""
    now, past = _lumas(state, frame, mask)
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    flow = dis.calc(now, past, np.zeros((*now.shape, 2), np.float32))
    return _warp(state, np.asarray(flow, np.float32), cv2.INTER_CUBIC)


def blocks(state: U8, frame: U8, mask: U8 | None, sigma: float) -> U8:
    """Whole-pixel vectors of 16x16 blocks by absolute differences over 48 px.

    Full search of +-8 px at half size, then +-1 px at full size.
    """
    now, past = (x.astype(np.float32) for x in _lumas(state, frame, None))
    have = np.minimum(state[..., 3], 1).astype(np.float32)
    known = np.ones_like(have) if mask is None else (1 - mask).astype(np.float32)
    small = [cv2.resize(x, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for x in (now, past)]
    some = [x[: 2 * small[0].shape[0] : 2, : 2 * small[0].shape[1] : 2] for x in (known, have)]
    reach = range(-REACH_PX // 2, REACH_PX // 2 + 1)
    best = _sad(small[0], small[1], some[0], some[1], BLOCK_PX // 2) - FOR_ZERO
    vector = np.zeros((*best.shape, 2), np.float32)
    for dy in reach:
        for dx in reach:
            moved, there = (_roll(x, dx, dy) for x in (small[1], some[1]))
            cost = _sad(small[0], moved, some[0], there, BLOCK_PX // 2)
            vector[cost < best] = 2 * dx, 2 * dy
            best = np.minimum(best, cost)
    lowest, refined = np.full(best.shape, np.inf, np.float32), vector
    for dy, dx in [(0, 0), *((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if x or y)]:
        tried = vector + np.float32((dx, dy))
        field = _spread(tried, frame.shape)
        cost = _sad(now, _at(past, field), known, _at(have, field), BLOCK_PX)
        cost -= FOR_ZERO * ((dx, dy) == (0, 0))
        refined = np.where((cost < lowest)[..., None], tried, refined)
        lowest = np.minimum(lowest, cost)
    return _warp(state, _spread(refined, frame.shape), cv2.INTER_NEAREST)


MOVERS: dict[str, Mover] = {
    "shift": shift_only,
    "blocks": blocks,
    "flow": flow_only,
    "DIS bare": bare_flow,
}


def _lumas(state: U8, frame: U8, mask: U8 | None) -> tuple[U8, U8]:
    now = np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)
    if mask is not None and mask.any():
        known = (1 - mask).astype(np.float32)
        filled = motion_search.spread(now[..., None].astype(np.float32), known)[..., 0]
        now = np.rint(filled).astype(np.uint8)
    return now, np.asarray(cv2.cvtColor(state, cv2.COLOR_RGBA2GRAY), np.uint8)


def _sad(now: F32, past: F32, known: F32, have: F32, block: int) -> F32:
    """Mean absolute difference of each block and half a block around it."""
    weight = known * have
    rows, columns = -(-now.shape[0] // block), -(-now.shape[1] // block)
    window = (2 * block + 1, 2 * block + 1)
    total, share = (cv2.blur(x, window) for x in (np.abs(now - past) * weight, weight))
    pick = np.ix_(
        np.minimum(np.arange(rows) * block + block // 2, now.shape[0] - 1),
        np.minimum(np.arange(columns) * block + block // 2, now.shape[1] - 1),
    )
    mean = total[pick] / np.maximum(share[pick], 1e-3)
    return np.where(share[pick] > 0.05, mean, np.float32(255))


def _roll(image: F32, dx: int, dy: int) -> F32:
    """Return what lies (dx, dy) away; zeros enter."""
    move = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(image, move, image.shape[::-1], flags=flags), np.float32)


def _spread(vectors: F32, shape: tuple[int, ...]) -> F32:
    field = np.kron(vectors, np.ones((BLOCK_PX, BLOCK_PX, 1), np.float32))
    return np.ascontiguousarray(field[: shape[0], : shape[1]])


def _maps(field: F32) -> tuple[F32, F32]:
    h, w = field.shape[:2]
    x = field[..., 0] + np.arange(w, dtype=np.float32)
    return x, field[..., 1] + np.arange(h, dtype=np.float32)[:, None]


def _at(image: F32, field: F32) -> F32:
    x, y = _maps(field)
    return np.asarray(cv2.remap(image, x, y, cv2.INTER_NEAREST), np.float32)


def _warp(state: U8, field: F32, how: int) -> U8:
    x, y = _maps(field)
    out = np.asarray(cv2.remap(state, x, y, how, borderMode=cv2.BORDER_REPLICATE), np.uint8)
    out[..., 3] = cv2.remap(state[..., 3], x, y, cv2.INTER_NEAREST)
    return out
