"""The samples of planar frames as arrays, without the padding of their rows."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from fastrestore.arrays import U8

if TYPE_CHECKING:
    from av import VideoFrame

Bool = npt.NDArray[np.bool_]
Samples = npt.NDArray[Any]  # uint8, or uint16 where a sample has more than 8 bit
_Sample = TypeVar("_Sample", bound=np.generic)

NEUTRAL_CHROMA = 128  # of 8 bit


def planes(frame: VideoFrame) -> list[Samples]:
    """Views on the planes of a planar frame, (rows, columns), uint8 or little-endian uint16."""
    dtype = np.dtype(np.uint8 if frame.format.components[0].bits == 8 else "<u2")
    return [
        np.frombuffer(memoryview(p), dtype).reshape(-1, p.line_size // dtype.itemsize)[
            : p.height, : p.width
        ]
        for p in frame.planes
    ]


def chroma_mask(mask: Bool, block: tuple[int, int]) -> Bool:
    """Mark each chroma sample that lies under any hole pixel.

    Args:
        mask: bool (H, W).
        block: Luma samples per chroma sample, (down, across).

    Returns:
        bool (ceil(H / down), ceil(W / across)).
    """
    down, across = block
    h, w = mask.shape
    padded = np.pad(mask, ((0, -h % down), (0, -w % across)))
    cells = padded.reshape(padded.shape[0] // down, down, padded.shape[1] // across, across)
    return np.asarray(cells.any((1, 3)), np.bool_)


def spread(
    samples: npt.NDArray[_Sample], block: tuple[int, int], shape: tuple[int, ...]
) -> npt.NDArray[_Sample]:
    """Repeat chroma samples over their blocks, cut to the luma's (H, W)."""
    full = np.repeat(np.repeat(samples, block[0], axis=0), block[1], axis=1)
    return full[: shape[0], : shape[1]]


def look_up(frame: VideoFrame, name: str, tables: tuple[Samples, ...]) -> VideoFrame:
    """Turn planar samples of more than 8 bit into others, each plane by its table.

    Args:
        frame: Planar, of more than 8 bit.
        name: Format of the result, planar of the same subsampling.
        tables: One a plane, of the result's dtype.
    """
    from av import VideoFrame

    new = VideoFrame(frame.width, frame.height, name)
    for out, old, table in zip(planes(new), planes(frame), tables, strict=True):
        np.take(table, old, out=out, mode="clip")
    return new


@lru_cache(maxsize=1)
def widening() -> tuple[U8, ...]:
    """Tables from limited range in 10 bit to full range in 8, for luma and both chroma planes."""
    x = np.arange(1024.0)
    luma, chroma = (x - 64) * 255 / 876, NEUTRAL_CHROMA + (x - 512) * 255 / 896
    luma8, chroma8 = (t.round().clip(0, 255).astype(np.uint8) for t in (luma, chroma))
    return luma8, chroma8, chroma8


@lru_cache(maxsize=8)
def grey_table(bits: int, depth: int, full: bool) -> Samples:
    """Table from grey of `bits` to grey of `depth` bit, uint8 or uint16."""
    x = np.arange(2.0**bits)
    most = 2**depth - 1
    scale = most / (2**bits - 1) if full else 2.0 ** (depth - bits)
    return (x * scale).round().clip(0, most).astype(np.uint8 if depth == 8 else np.uint16)


def coloured(luma: U8) -> VideoFrame:
    """Wrap a luma plane as 4:4:4 without colour: the scaler reads plain grey as full range."""
    from av import VideoFrame

    frame = VideoFrame(luma.shape[1], luma.shape[0], "yuv444p")
    y, u, v = planes(frame)
    y[:], u[:], v[:] = luma, NEUTRAL_CHROMA, NEUTRAL_CHROMA
    return frame
