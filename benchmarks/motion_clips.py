"""Clips of `bench_motion`: known truth, known motion, masks, and noise of several kinds."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from itertools import islice
from typing import Any

import cv2
import numpy as np
from bench_temporal import DATA, SIDE, STILLS, still

from fastrestore.arrays import U8
from fastrestore.degrade import add_noise
from fastrestore.video_io import read_frames

REAL = ("bikes", "nasa_13013", "cockatoo")
# Position of the 192x192 window in a Kodak picture, per frame.
PANS: dict[str, tuple[float, float]] = {
    "static": (0, 0),
    "pan1": (1, 0),
    "pan3": (3, 0),
    "pan7": (7, 0),
    "sub": (1.5, 0.4),
    "slow": (0.3, 0.2),
}
TEXTURES = ("kodim05", "kodim08", "kodim13")
PATCH = slice(72, 120)  # rows and columns where the hidden texture moves


def view(image: U8, x: float, y: float, turn: float = 0.0, zoom: float = 1.0) -> U8:
    """Cut SIDE x SIDE at a position in pixels, turned (radians) and enlarged about its middle."""
    c, s, half = np.cos(turn) / zoom, np.sin(turn) / zoom, SIDE / 2
    move = np.array([[c, s, x + half - half * (c + s)], [-s, c, y + half - half * (c - s)]])
    flags = cv2.INTER_LANCZOS4 | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(image, move, (SIDE, SIDE), flags=flags), np.uint8)


@lru_cache(maxsize=8)
def real(kind: str, n: int, height: int, width: int) -> list[U8]:
    """Return `n` frames of a real clip from its 30th on, cut from the middle."""
    out = []
    for f in islice(read_frames(DATA / "video" / f"{kind}.mp4"), 30, 30 + n):
        y, x = (max(0, (a - b) // 2) for a, b in zip(f.shape, (height, width), strict=False))
        out.append(np.ascontiguousarray(f[y : y + height, x : x + width]))
    return out


def clip(kind: str, i: int, n: int) -> tuple[list[U8], list[U8] | None]:
    """Return `n` clean frames of variant `i`, and what of each is scored apart (1 = that)."""
    if kind in REAL:
        return real(kind, n, 176, SIDE), None
    image, other = still(STILLS[i]), still(STILLS[(i + 1) % len(STILLS)])
    if kind in PANS:
        dx, dy = PANS[kind]
        return [view(image, 10 + dx * t, 100 + dy * t) for t in range(n)], None
    if kind == "cut":
        return [view(image if t < n // 2 else other, 40, 100) for t in range(n)], None
    if kind == "zoom":
        return [view(image, 160, 100, 0.004 * t, 1 + 0.01 * t) for t in range(n)], None
    if kind not in ("object", "object on pan3"):
        raise KeyError(kind)
    frames, scored = [], []
    for t in range(n):
        frame = view(image, 40 if kind == "object" else 20 + 3 * t, 100)
        x = (10 + 4 * t) % (SIDE - 74)
        frame[64:128, x : x + 64] = other[60:124, 200:264]
        where = np.zeros((SIDE, SIDE), np.uint8)
        where[64:128, max(0, x - 8) : x + 64] = 1
        frames.append(frame)
        scored.append(where)
    return frames, scored


def strokes(i: int, n: int, shape: tuple[int, ...], step: int) -> list[U8]:
    """Return `n` masks: strokes over about a fifth, that move `step` px a frame to the left."""
    h, w = shape[:2]
    rng = np.random.default_rng(100 + i)
    wide = np.zeros((h, 3 * w), np.uint8)
    for _ in range(15):
        points = rng.integers(0, [3 * w, h], (4, 2))
        points[1:] = points[0] + np.cumsum(rng.integers(-40, 41, (3, 2)), 0)
        cv2.polylines(wide, [points.astype(np.int32)], False, 1, int(rng.integers(6, 16)))
    starts = ((step * t) % (2 * w) for t in range(n))
    return [np.ascontiguousarray(wide[:, x : x + w]) for x in starts]


def hidden(texture: str, how: str, speed: int, i: int, n: int) -> tuple[list[U8], list[U8]]:
    """Return frames and masks: a texture moves inside a square on still ground, and is hidden.

    Args:
        texture: Kodak picture that moves in the square.
        how: `stays`: a hole covers the square, and 8 px around, from frame 8 on; `passes`: a
            bar of 72 px crosses the picture by 6 px a frame.
        speed: px a frame.
        i: Which still.
        n: Frames.
    """
    ground, moving = still(STILLS[i]), still(texture)
    frames, masks = [], []
    for t in range(n):
        frame, mask = view(ground, 40, 100), np.zeros((SIDE, SIDE), np.uint8)
        frame[PATCH, PATCH] = moving[200:248, 100 + speed * t : 148 + speed * t]
        if how == "stays" and t >= 8:
            mask[64:128, 64:128] = 1
        elif how == "passes":
            x = 6 * t - 64
            mask[56:136, max(0, x) : max(0, x + 72)] = 1
        frames.append(frame)
        masks.append(mask)
    return frames, masks


def white(frames: list[U8], sigma: float, seed: int) -> list[U8]:
    rng = np.random.default_rng(seed)
    return [add_noise(f, sigma, rng) for f in frames]


def demosaiced(frames: list[U8], sigma: float, seed: int) -> list[U8]:
    """Add noise to a Bayer pattern of the frames, and interpolate its colours."""
    out = []
    for f in white(frames, sigma, seed):
        raw = f[..., 1].copy()
        raw[::2, ::2], raw[1::2, 1::2] = f[::2, ::2, 0], f[1::2, 1::2, 2]
        out.append(np.asarray(cv2.cvtColor(raw, cv2.COLOR_BayerRGGB2RGB_EA), np.uint8))
    return out


def compressed(frames: list[U8], sigma: float, seed: int) -> list[U8]:
    """Add noise, and send it through H.264 at crf 28."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as out:
        stream: Any = out.add_stream("libx264", rate=25, options={"crf": "28", "threads": "1"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for f in white(frames, sigma, seed):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(f, format="rgb24")))
        out.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer) as back:
        return [f.to_ndarray(format="rgb24") for f in back.decode(video=0)]


NOISES: dict[str, Callable[[list[U8], float, int], list[U8]]] = {
    "white": white,
    "demosaiced": demosaiced,
    "H.264 crf 28": compressed,
}
