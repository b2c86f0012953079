"""Colour of video: YUV to RGB and back by the file's own matrix and range, composite in YUV.

A trip YUV -> RGB -> YUV is never free of loss: chroma is interpolated and everything is rounded.
So a masked clip keeps the planes that were decoded and takes from the restored picture only the
samples under the mask; the rest reaches the encoder bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from fastrestore.arrays import U8
from fastrestore.errors import InputError
from fastrestore.planes import (
    NEUTRAL_CHROMA,
    Bool,
    Samples,
    chroma_mask,
    coloured,
    grey_table,
    look_up,
    planes,
    spread,
    widening,
)

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.reformatter import VideoReformatter

HD_ROWS = 720  # an untagged clip of at least this height is taken as BT.709, a smaller one as 601
BT709, SMPTE170M, UNSPECIFIED = 1, 6, 2  # codes of ITU-T H.273, as the files store them
LIMITED, FULL = 1, 2

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
_EVEN = {  # encoders that hold subsampled chroma in whole samples only -> the codec's name
    "libx264": "H.264",
    "libx265": "H.265",
    "h264_nvenc": "H.264",
    "hevc_nvenc": "H.265",
}
_WRITTEN = ("yuv420p", "yuv422p", "yuv444p", "gray")  # the scaler knows these in every depth
SAME_SAMPLES = {"yuv420p10le": "p010le"}  # planar format -> one that an encoder takes in its place
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


def scaler_matrix(tags: ColourTags) -> int:
    """Return the scaler's code of a matrix; those that are one in all but name have one."""
    return _MATRICES[tags.matrix][0]


def _known(code: int) -> int:
    """Turn the reserved codes 0 and 3, which encoders refuse, into "unspecified"."""
    return UNSPECIFIED if code in (0, 3) else code


@dataclass(frozen=True, slots=True)
class PlaneLayout:
    """Where the samples of a frame lie, for one source and one output format.

    Attributes:
        source: Planar format of the source's own subsampling, in the depth that is written.
        target: Format that is encoded: `source`, or 4:4:4, or for grey YUV.
        block: Luma samples per chroma sample of `source`, (down, across).
        depth: Bits a sample, in both.
        notes: What changes for the reader of the file, in words.
    """

    source: str
    target: str
    block: tuple[int, int]
    depth: int = 8
    notes: tuple[str, ...] = ()


def plane_layout(name: str, height: int, width: int, codec: str) -> PlaneLayout:
    """Choose what is encoded for a source format.

    Subsampling and depth stay, unless the codec cannot hold them. Grey becomes YUV with neutral
    chroma except in FFV1: hardly a player shows monochrome H.264.

    Args:
        name: Pixel format of the decoded frames, for example `"yuv420p"`.
        height: Rows as stored.
        width: Columns as stored.
        codec: Encoder, for example `"libx264"`.

    Raises:
        InputError: The codec cannot hold the clip's chroma (without the file's name).
    """
    from av import VideoFormat

    fmt = VideoFormat(name, 16, 16)  # any even size: only the ratios count
    parts = fmt.components
    is_rgb = fmt.is_rgb or fmt.has_palette
    is_grey = not is_rgb and sum(not p.is_alpha for p in parts) == 1
    plain = is_rgb or is_grey
    block = (1, 1) if plain else (16 // parts[1].height, 16 // parts[1].width)
    bits = 8 if fmt.has_palette else max(p.bits for p in parts)
    planar = "gray" if is_grey else _PLANAR[block]
    wish = "yuv420p" if is_grey and codec != "ffv1" else planar
    is_odd = codec in _EVEN and _is_odd(wish, height, width)
    wishes = ["yuv444p"] if is_odd or wish not in _WRITTEN else [wish, "yuv444p"]
    held = pixel_formats(codec)
    deepest = {w: depth for w in wishes if (depth := _depth(w, bits, held))}
    if not deepest:
        raise InputError(f"{name}: {codec} holds no such chroma; choose another --encoder")
    target, depth = next(iter(deepest.items()))
    notes = _layout_notes(name, bits, depth, codec)
    if any(p.is_alpha for p in parts):
        notes.append("transparency is dropped")
    if is_rgb:
        notes.append("RGB is written as YUV 4:4:4")
    elif is_odd:
        notes.append(
            f"{width}x{height} is odd, which {_EVEN[codec]} can hold only as 4:4:4: written so, "
            "some players cannot show it"
        )
    elif target != wish:
        notes.append(f"{name} is written as 4:4:4")
    return PlaneLayout(_named(planar, depth), _named(target, depth), block, depth, tuple(notes))


def _is_odd(planar: str, height: int, width: int) -> bool:
    """Tell whether a subsampled format does not go up in whole chroma samples."""
    return bool(
        (planar == "yuv420p" and height % 2) or (planar in ("yuv420p", "yuv422p") and width % 2)
    )


def _layout_notes(name: str, bits: int, depth: int, codec: str) -> list[str]:
    notes = []
    if depth < bits:
        notes.append(f"{name} is written with {depth} bit a sample, {codec} holds no more")
    if depth > 8:
        notes.append(f"{depth} bit a sample are kept; what is restored has the precision of 8")
    return notes


def _named(planar: str, depth: int) -> str:
    return planar if depth == 8 else f"{planar}{depth}le"


def _depth(planar: str, bits: int, held: tuple[str, ...]) -> int:
    """Return the most bits a sample, up to those of the source, that are held; 0 = none."""
    if not held:  # the encoder is absent or does not tell
        return 8
    for depth in range(min(bits, 16), 7, -1):
        name = _named(planar, depth)
        if name in held or SAME_SAMPLES.get(name) in held:
            return depth
    return 0


@lru_cache(maxsize=32)
def pixel_formats(codec: str) -> tuple[str, ...]:
    """Return the pixel formats that an encoder takes; none if it is absent or does not tell."""
    import av

    try:
        formats = av.Codec(codec, "w").video_formats
    except ValueError:
        return ()
    return tuple(f.name for f in formats or ())


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
        self._matrix = scaler_matrix(tags)
        self._decoder, self._encoder = VideoReformatter(), VideoReformatter()
        self._depth_scaler = VideoReformatter()  # beside _encoder, in its thread
        self.tags, self.layout = tags, layout
        self._is_grey = layout.source.startswith("gray")
        self._keep = None if mask is None else self._kept_samples(mask != 0)

    def to_rgb(self, frame: VideoFrame) -> U8:
        """Convert a decoded frame to uint8 RGB (H, W, 3), as stored (not turned upright)."""
        return self._to_rgb(frame, self._decoder)

    def _to_rgb(self, frame: VideoFrame, scaler: VideoReformatter) -> U8:
        if self._is_grey:
            frame = coloured(self._grey(frame, scaler))
            frame.colorspace = self.tags.matrix
        rgb = scaler.reformat(
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
            its samples are those of `source`; a chroma sample under any hole pixel is new. Where
            everything may change, what 8 bit cannot tell of a deeper source is added.
        """
        frame = self.from_rgb(restored)
        kept = self._keep if mask is None else self._kept_samples(mask != 0)
        if kept is not None:
            for new, old, keep in zip(planes(frame), self._base(source), kept, strict=False):
                np.copyto(new, old, where=keep)
        elif self.layout.depth > 8:
            self._refine(frame, source)
        frame.pts, frame.time_base, frame.duration = source.pts, source.time_base, source.duration
        return frame

    def from_rgb(self, rgb: U8) -> VideoFrame:
        """Convert uint8 RGB (H, W, 3), as stored, to the target format, tagged."""
        from av import VideoFrame
        from av.video.reformatter import ColorRange

        layout = self.layout
        stays_grey = layout.target.startswith("gray")
        target = _named("yuv444p", layout.depth) if stays_grey else layout.target
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        frame.colorspace = self.tags.matrix  # PyAV 17 knows BT.2020 only from here
        # The scaler rounds full-range chroma down, half a level, which counts in 8 bit: ask for
        # limited range in 10 bit, which it rounds well, and widen that here.
        is_widened = self.tags.full and layout.depth == 8
        frame = self._encoder.reformat(
            frame,
            format=f"{target}10le" if is_widened else target,
            src_colorspace=self._matrix,
            dst_colorspace=self._matrix,
            src_color_range=self._rgb_range,
            dst_color_range=ColorRange.MPEG if is_widened else self._yuv_range,
            interpolation=_ENCODE,
            threads=1,
        )
        if is_widened:
            frame = look_up(frame, target, widening())
        if stays_grey:
            luma = planes(frame)[0]
            frame = VideoFrame(luma.shape[1], luma.shape[0], layout.target)
            planes(frame)[0][:] = luma
        elif self._is_grey:
            for plane in planes(frame)[1:]:
                plane[:] = NEUTRAL_CHROMA << (layout.depth - 8)
        frame.colorspace, frame.color_range = self.tags.matrix, int(self._yuv_range)
        frame.color_primaries, frame.color_trc = self.tags.primaries, self.tags.transfer
        return frame

    def _kept_samples(self, hole: Bool) -> list[Bool]:
        """Per plane of the target, bool: the sample is the source's."""
        if self._is_grey:
            return [~hole]
        block = self.layout.block
        chroma = chroma_mask(hole, block)
        if self.layout.source != self.layout.target:
            chroma = spread(chroma, block, hole.shape)
        return [~hole, ~chroma, ~chroma]

    def _planar(self, frame: VideoFrame, scaler: VideoReformatter) -> VideoFrame:
        """Return the source in the layout's own planar format: same samples if it was."""
        name, depth = frame.format.name.replace("yuvj", "yuv"), self.layout.depth
        if name == self.layout.source:
            return frame
        if name in _DEEP_GREY:
            table = grey_table(_DEEP_GREY[name], depth, self.tags.full)
            return look_up(frame, self.layout.source, (table,))
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

    def _refine(self, frame: VideoFrame, source: VideoFrame) -> None:
        """Add to a frame made of 8 bit what the source has beyond them: at most a level of 8."""
        coarse = planes(self.from_rgb(self._to_rgb(source, self._depth_scaler)))
        level = 1 << (self.layout.depth - 8)
        for new, old, known in zip(planes(frame), self._base(source), coarse, strict=False):
            fine = (old.astype(np.int32) - known).clip(-level, level)
            new[:] = (new + fine).clip(0, 256 * level - 1)

    def _grey(self, frame: VideoFrame, scaler: VideoReformatter) -> U8:
        """Return the luma of a grey frame in 8 bit."""
        luma: U8 = planes(self._planar(frame, scaler))[0]
        depth = self.layout.depth
        return luma if depth == 8 else np.take(grey_table(depth, 8, self.tags.full), luma)

    def _base(self, source: VideoFrame) -> list[Samples]:
        """Planes of the source in the target's subsampling (grey: luma alone)."""
        luma, *chroma = planes(self._planar(source, self._depth_scaler))
        if self.layout.source != self.layout.target:
            chroma = [spread(c, self.layout.block, luma.shape) for c in chroma]
        return [luma, *chroma]
