"""Colour of video: YUV to RGB and back by the file's own matrix and range, composite in YUV.

A trip YUV -> RGB -> YUV is never free of loss: chroma is interpolated and everything is rounded.
So a masked clip keeps the planes that were decoded and takes from the restored picture only the
samples under the mask; the rest reaches the encoder bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from fastrestore.arrays import U8
from fastrestore.errors import InputError

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.reformatter import VideoReformatter

Bool = npt.NDArray[np.bool_]
_Sample = TypeVar("_Sample", bound=np.generic)

HD_ROWS = 720  # an untagged clip of at least this height is taken as BT.709, a smaller one as 601
BT709, SMPTE170M, UNSPECIFIED = 1, 6, 2  # codes of ITU-T H.273, as the files store them
LIMITED, FULL = 1, 2
NEUTRAL_CHROMA = 128

# The scaler's flags, as numbers because PyAV 17 does not name them all. Without ACCURATE_RND and
# FULL_CHR_H_INT together it truncates: pictures come out up to two levels too dark.
_BILINEAR, _AREA = 0x2, 0x20
_FULL_CHR_H_INT, _FULL_CHR_H_INP, _ACCURATE_RND = 0x2000, 0x4000, 0x40000
_DECODE = _BILINEAR | _ACCURATE_RND | _FULL_CHR_H_INT
_ENCODE = _AREA | _ACCURATE_RND | _FULL_CHR_H_INT | _FULL_CHR_H_INP

# Matrix code of the file -> code of the scaler, and the name people know.
_MATRICES = {
    1: (1, "BT.709"),
    4: (4, "FCC"),
    5: (5, "BT.601"),
    6: (5, "BT.601"),
    7: (7, "SMPTE 240M"),
    9: (9, "BT.2020"),
}
_FOREIGN = {
    8: "YCgCo",
    10: "BT.2020 constant luminance",
    11: "SMPTE 2085",
    12: "derived from the primaries",
    13: "derived from the primaries",
    14: "ICtCp",
}
_DEEP_GREY = {f"gray{bits}le": bits for bits in (9, 10, 12, 14, 16)}  # scaled too dark
# Planar 8-bit layout by chroma subsampling (down, across).
_PLANAR = {
    (1, 1): "yuv444p",
    (1, 2): "yuv422p",
    (2, 2): "yuv420p",
    (2, 1): "yuv440p",
    (1, 4): "yuv411p",
    (4, 4): "yuv410p",
}


@dataclass(frozen=True, slots=True)
class ColourTags:
    """How the samples of a clip are to be read; written to the output as it stands.

    Attributes:
        matrix: H.273 matrix code; never unspecified.
        full: Luma uses 0-255, else 16-235.
        primaries: H.273 code, 2 = unspecified.
        transfer: H.273 code, 2 = unspecified.
    """

    matrix: int
    full: bool
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED

    def __str__(self) -> str:
        """Return for example `BT.709 limited`."""
        return f"{_MATRICES[self.matrix][1]} {'full' if self.full else 'limited'}"


def colour_tags(frame: VideoFrame) -> ColourTags:
    """Read the tags of a decoded frame and settle what the file leaves open.

    Raises:
        InputError: The matrix is one that the scaler does not know (without the file's name).
    """
    matrix = int(frame.colorspace)
    if matrix in _FOREIGN:
        raise InputError(f"colour matrix {_FOREIGN[matrix]} is not supported; convert to BT.709")
    if matrix not in _MATRICES or frame.format.is_rgb:
        matrix = BT709 if frame.height >= HD_ROWS else SMPTE170M
    full = int(frame.color_range) == FULL or frame.format.name.startswith("yuvj")
    return ColourTags(
        matrix=matrix,
        full=full and not frame.format.is_rgb,
        primaries=_known(int(frame.color_primaries)),
        transfer=_known(int(frame.color_trc)),
    )


def _known(code: int) -> int:
    """Turn the reserved codes 0 and 3, which encoders refuse, into "unspecified"."""
    return UNSPECIFIED if code in (0, 3) else code


@dataclass(frozen=True, slots=True)
class PlaneLayout:
    """Where the samples of an 8-bit frame lie, for one source and one output format.

    Attributes:
        source: Planar 8-bit format of the source's own subsampling, or `"gray"`.
        target: Format that is encoded: `source`, `"yuv444p"`, or for grey `"yuv420p"`.
        block: Luma samples per chroma sample of `source`, (down, across).
        notes: What changes for the reader of the file, in words.
    """

    source: str
    target: str
    block: tuple[int, int]
    notes: tuple[str, ...] = ()


def plane_layout(name: str, height: int, width: int, codec: str) -> PlaneLayout:
    """Choose what is encoded for a source format.

    The subsampling stays, unless the codec cannot hold it. Grey becomes YUV with neutral chroma
    except in FFV1: hardly a player shows monochrome H.264.

    Args:
        name: Pixel format of the decoded frames, for example `"yuv420p"`.
        height: Rows as stored.
        width: Columns as stored.
        codec: Encoder, for example `"libx264"`.
    """
    from av import VideoFormat

    fmt = VideoFormat(name, 16, 16)  # any even size: only the ratios count
    parts = fmt.components
    notes = []
    if max(p.bits for p in parts) > 8 and not fmt.has_palette:
        notes.append(f"{name} is written with 8 bit a sample")
    if any(p.is_alpha for p in parts):
        notes.append("transparency is dropped")
    if fmt.is_rgb or fmt.has_palette:
        notes.append("RGB is written as YUV 4:4:4")
        return PlaneLayout("yuv444p", "yuv444p", (1, 1), tuple(notes))
    grey = sum(not p.is_alpha for p in parts) == 1
    block = (1, 1) if grey else (16 // parts[1].height, 16 // parts[1].width)
    source = "gray" if grey else _PLANAR[block]
    target = source
    if grey:
        target = "gray" if codec == "ffv1" else "yuv420p"
    if codec == "libx264" and (
        (target == "yuv420p" and height % 2) or (target in ("yuv420p", "yuv422p") and width % 2)
    ):
        target = "yuv444p"
        notes.append(
            f"{width}x{height} is odd, which H.264 can hold only as 4:4:4: written so, "
            "some players cannot show it"
        )
    elif not grey and source not in ("yuv420p", "yuv422p", "yuv444p"):
        target = "yuv444p"
        notes.append(f"{name} is written as 4:4:4")
    return PlaneLayout(source, target, block, tuple(notes))


def planes(frame: VideoFrame) -> list[U8]:
    """Views on the planes of a planar 8-bit frame, uint8 (rows, columns), without the padding."""
    return [
        np.frombuffer(memoryview(p), np.uint8).reshape(-1, p.line_size)[: p.height, : p.width]
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


class Converter:
    """Frames of one clip to RGB and back.

    Thread-safety: `to_rgb` and `to_frame` may each run in a thread of its own, but not twice at
    once: each owns a scaler context. `from_rgb` belongs to the thread of `to_frame`.
    """

    def __init__(self, tags: ColourTags, layout: PlaneLayout, mask: U8 | None = None) -> None:
        """Prepare the conversion.

        Args:
            tags: Colour of the clip.
            layout: From `plane_layout`.
            mask: uint8 (H, W) in the orientation of the stored frames, nonzero = may change;
                None: everything may change.
        """
        from av.video.reformatter import ColorRange, VideoReformatter

        self._yuv_range = ColorRange.JPEG if tags.full else ColorRange.MPEG
        self._rgb_range = ColorRange.JPEG
        self._matrix = _MATRICES[tags.matrix][0]
        self._decoder, self._encoder = VideoReformatter(), VideoReformatter()
        self._depth_scaler = VideoReformatter()  # beside _encoder, in its thread
        self.tags, self.layout = tags, layout
        self._keep = None if mask is None else self._kept_samples(mask != 0)

    def to_rgb(self, frame: VideoFrame) -> U8:
        """Convert a decoded frame to uint8 RGB (H, W, 3), as stored (not turned upright)."""
        if self.layout.source == "gray":
            frame = _coloured(planes(self._planar(frame, self._decoder))[0])
            frame.colorspace = self.tags.matrix
        rgb = self._decoder.reformat(
            frame,
            format="rgb24",
            src_colorspace=self._matrix,
            dst_colorspace=self._matrix,
            src_color_range=self._rgb_range if frame.format.is_rgb else self._yuv_range,
            dst_color_range=self._rgb_range,
            interpolation=_DECODE,
            threads=1,
        )
        return np.asarray(rgb.to_ndarray(), np.uint8)

    def to_frame(self, source: VideoFrame, restored: U8, mask: U8 | None = None) -> VideoFrame:
        """Convert a restored picture for the encoder, keeping the source's samples.

        Args:
            source: The decoded frame that `restored` came from.
            restored: uint8 RGB (H, W, 3), as stored.
            mask: As for the Converter, of this frame alone; None: the Converter's.

        Returns:
            A frame in `layout.target`, tagged, with the source's time stamp. Outside the mask
            its samples are those of `source`; a chroma sample under any hole pixel is new.
        """
        frame = self.from_rgb(restored)
        kept = self._keep if mask is None else self._kept_samples(mask != 0)
        if kept is not None:
            for new, old, keep in zip(planes(frame), self._base(source), kept, strict=False):
                np.copyto(new, old, where=keep)
        frame.pts, frame.time_base, frame.duration = source.pts, source.time_base, source.duration
        return frame

    def from_rgb(self, rgb: U8) -> VideoFrame:
        """Convert uint8 RGB (H, W, 3), as stored, to the target format, tagged."""
        from av import VideoFrame
        from av.video.reformatter import ColorRange

        target = "yuv444p" if self.layout.target == "gray" else self.layout.target
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        frame.colorspace = self.tags.matrix  # PyAV 17 knows BT.2020 only from here
        frame = self._encoder.reformat(
            frame,
            # The scaler rounds full-range chroma down, half a level: ask for limited range in
            # 10 bit, which it rounds well, and widen that here.
            format=f"{target}10le" if self.tags.full else target,
            src_colorspace=self._matrix,
            dst_colorspace=self._matrix,
            src_color_range=self._rgb_range,
            dst_color_range=ColorRange.MPEG,
            interpolation=_ENCODE,
            threads=1,
        )
        if self.tags.full:
            frame = _look_up(frame, target, _widening())
        if self.layout.target == "gray":
            luma = planes(frame)[0]
            frame = VideoFrame(luma.shape[1], luma.shape[0], "gray")
            planes(frame)[0][:] = luma
        elif self.layout.source == "gray":
            for plane in planes(frame)[1:]:
                plane[:] = NEUTRAL_CHROMA
        frame.colorspace, frame.color_range = self.tags.matrix, int(self._yuv_range)
        frame.color_primaries, frame.color_trc = self.tags.primaries, self.tags.transfer
        return frame

    def _kept_samples(self, hole: Bool) -> list[Bool]:
        """Per plane of the target, bool: the sample is the source's."""
        if self.layout.source == "gray":
            return [~hole]
        block = self.layout.block
        chroma = chroma_mask(hole, block)
        if self.layout.source != self.layout.target:
            chroma = _spread(chroma, block, hole.shape)
        return [~hole, ~chroma, ~chroma]

    def _planar(self, frame: VideoFrame, scaler: VideoReformatter) -> VideoFrame:
        """Return the source as planar 8 bit of its own subsampling: same samples if it was."""
        if frame.format.name.replace("yuvj", "yuv") == self.layout.source:
            return frame
        if frame.format.name in _DEEP_GREY:
            return _look_up(
                frame, "gray", _grey_table(_DEEP_GREY[frame.format.name], self.tags.full)
            )
        return scaler.reformat(
            frame,
            format=self.layout.source,
            src_colorspace=self._matrix,
            dst_colorspace=self._matrix,
            src_color_range=self._rgb_range if frame.format.is_rgb else self._yuv_range,
            dst_color_range=self._yuv_range,
            interpolation=_ENCODE,
            threads=1,
        )

    def _base(self, source: VideoFrame) -> list[U8]:
        """Planes of the source in the target's subsampling (grey: luma alone)."""
        luma, *chroma = planes(self._planar(source, self._depth_scaler))
        if self.layout.source != self.layout.target:
            chroma = [_spread(c, self.layout.block, luma.shape) for c in chroma]
        return [luma, *chroma]


def _spread(
    samples: npt.NDArray[_Sample], block: tuple[int, int], shape: tuple[int, ...]
) -> npt.NDArray[_Sample]:
    """Repeat chroma samples over their blocks, cut to the luma's (H, W)."""
    full = np.repeat(np.repeat(samples, block[0], axis=0), block[1], axis=1)
    return full[: shape[0], : shape[1]]


def _look_up(frame: VideoFrame, name: str, tables: tuple[U8, ...]) -> VideoFrame:
    """Turn planar samples of more than 8 bit into 8, each plane by its table."""
    from av import VideoFrame

    narrow = VideoFrame(frame.width, frame.height, name)
    for new, p, table in zip(planes(narrow), frame.planes, tables, strict=True):
        wide = np.frombuffer(memoryview(p), np.uint16).reshape(-1, p.line_size // 2)
        np.take(table, wide[: p.height, : p.width], out=new, mode="clip")
    return narrow


@lru_cache(maxsize=1)
def _widening() -> tuple[U8, ...]:
    """Tables from limited range in 10 bit to full range in 8, for luma and both chroma planes."""
    x = np.arange(1024.0)
    luma, chroma = (x - 64) * 255 / 876, NEUTRAL_CHROMA + (x - 512) * 255 / 896
    luma8, chroma8 = (t.round().clip(0, 255).astype(np.uint8) for t in (luma, chroma))
    return luma8, chroma8, chroma8


@lru_cache(maxsize=4)
def _grey_table(bits: int, full: bool) -> tuple[U8, ...]:
    """Table from grey of `bits` to 8 bit."""
    x = np.arange(2.0**bits)
    scale = 255 / (2**bits - 1) if full else 2.0 ** (8 - bits)
    return ((x * scale).round().clip(0, 255).astype(np.uint8),)


def _coloured(luma: U8) -> VideoFrame:
    """Wrap a luma plane as 4:4:4 without colour: the scaler reads plain grey as full range."""
    from av import VideoFrame

    frame = VideoFrame(luma.shape[1], luma.shape[0], "yuv444p")
    y, u, v = planes(frame)
    y[:], u[:], v[:] = luma, NEUTRAL_CHROMA, NEUTRAL_CHROMA
    return frame
