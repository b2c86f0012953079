"""Restored frames through an encoder into a container: what files, pipes and streams share."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from fastrestore.arrays import U8
from fastrestore.encoders import ENCODERS, check_wishes
from fastrestore.errors import InputError, OutputError
from fastrestore.live.frame import LiveFrame
from fastrestore.live.timeline import DEFAULT_RATE, TICKS_HZ, Timeline
from fastrestore.yuv import (
    BT709,
    HD_ROWS,
    LIMITED,
    SMPTE170M,
    ColourTags,
    Converter,
    PlaneLayout,
    plane_layout,
)

if TYPE_CHECKING:
    from av import VideoStream
    from av.container import OutputContainer

KEYFRAME_S = 2  # a viewer who joins waits so long at most; a file that is cut off loses so much
SUBSAMPLINGS = ("yuv420p", "yuv422p", "yuv444p")
# Muxer -> encoders that it can hold; the first is the usual one.
_HOLDS = {
    "matroska": ("x264", "x265", "vp9", "svt-av1", "ffv1", "nvenc"),
    "nut": ("x264", "x265", "vp9", "ffv1", "nvenc"),
    "mp4": ("x264", "x265", "svt-av1", "nvenc"),
    "mov": ("x264", "x265", "nvenc"),
    "webm": ("vp9", "svt-av1"),
    "mpegts": ("x264", "x265", "nvenc"),
    "flv": ("x264", "nvenc"),
    "rtsp": ("x264", "x265", "nvenc"),
}


@dataclass(frozen=True, slots=True)
class Encoding:
    """How frames are encoded.

    Attributes:
        muxer: FFmpeg's name of the container format.
        codec: FFmpeg's name of the encoder.
        pixel_format: What is encoded; a codec that cannot hold an odd size so takes another.
        options: Of the encoder.
        least: Smallest side of a picture that it takes, px.
    """

    muxer: str
    codec: str
    pixel_format: str
    options: dict[str, str]
    least: int = 1


def choose_encoding(
    muxer: str,
    *,
    name: str,
    encoder: str | None = None,
    crf: int | None = None,
    pixel_format: str | None = None,
) -> Encoding:
    """Check the wishes against what a container can hold.

    Args:
        muxer: Of the container.
        name: Of the sink, for messages.
        encoder: `x264` or FFmpeg's `libx264`, and so on; None: the usual one.
        crf: Quality, 0 = best; None: 20.
        pixel_format: One of `SUBSAMPLINGS`; None: yuv420p, lossless yuv444p.

    Raises:
        InputError: One does not fit.
    """
    holds = _HOLDS[muxer]
    short = {known.codec: alias for alias, known in ENCODERS.items()}
    wish = short.get(encoder, encoder) if encoder not in (None, "auto") else holds[0]
    if wish not in holds:
        raise InputError(
            f"{name}: --encoder {encoder} does not go with it; use one of {', '.join(holds)}"
        )
    check_wishes(wish, crf)
    codec = ENCODERS[wish].codec
    chosen = pixel_format or ("yuv444p" if codec == "ffv1" else "yuv420p")
    options = _options(codec, str(20 if crf is None else crf))
    return Encoding(muxer, codec, chosen, options, ENCODERS[wish].least)


def _options(codec: str, crf: str) -> dict[str, str]:
    """Options of an encoder.

    Fast, because the model needs the processor too; a frame leaves before the next one comes.
    """
    if codec == "libx264":
        return {"preset": "veryfast", "crf": crf, "tune": "zerolatency"}
    if codec == "libx265":
        quiet = {"x265-params": "log-level=none"}
        return {"preset": "ultrafast", "crf": crf, "tune": "zerolatency", **quiet}
    if codec == "libvpx-vp9":
        speed = {"deadline": "realtime", "cpu-used": "8", "row-mt": "1"}
        return {"crf": crf, "b": "0", "lag-in-frames": "0", **speed}
    if codec == "libsvtav1":
        return {"crf": crf, "preset": "10", "svtav1-params": "pred-struct=1"}
    if codec == "h264_nvenc":
        return {"rc": "constqp", "qp": crf, "tune": "ull", "zerolatency": "1"}
    return {"level": "3", "slicecrc": "1"}


def colour_of(height: int) -> ColourTags:
    """Return the colour that players take for granted at a height, tagged or not."""
    matrix = BT709 if height >= HD_ROWS else SMPTE170M
    return ColourTags(matrix, full=False, primaries=matrix, transfer=matrix)


def planar(pixel_format: str) -> PlaneLayout:
    """Return the layout for a converter that only makes frames of one planar format."""
    return PlaneLayout(pixel_format, pixel_format, (1, 1))


class Encoder:
    """A container that is being written. Used by one thread.

    Attributes:
        size: Width and height of its frames.
        notes: What the reader of it will meet, in words.
    """

    def __init__(
        self, container: OutputContainer, encoding: Encoding, rgb: U8, rate: Fraction | None
    ) -> None:
        """Add the stream and write the header.

        Args:
            container: Open for writing.
            encoding: From `choose_encoding`.
            rgb: The first frame.
            rate: Nominal, a hint for the encoder.

        Raises:
            OutputError: The encoder does not start on this machine, or takes no picture so small.
            av.error.FFmpegError: The container cannot be written.
        """
        height, width = rgb.shape[:2]
        self.size = width, height
        if min(self.size) < encoding.least:
            raise OutputError(
                f"the encoder {encoding.codec} takes pictures from {encoding.least} px a side; "
                "use --encoder x264, or another"
            )
        wish = plane_layout(encoding.pixel_format, height, width, encoding.codec)
        self.notes = list(wish.notes)
        tags = colour_of(height)
        self._converter = Converter(tags, planar(wish.target))
        self._timeline = Timeline(rate)
        self._keyframe: int | None = None
        self._container = container
        self._stream = self._add(encoding, wish.target, tags, rate or DEFAULT_RATE)
        self._start(encoding.codec)
        container.start_encoding()

    def _add(
        self, encoding: Encoding, pixel_format: str, tags: ColourTags, rate: Fraction
    ) -> VideoStream:
        from av.video.stream import VideoStream

        stream = self._container.add_stream(encoding.codec, rate=rate)
        if not isinstance(stream, VideoStream):
            raise TypeError(f"{encoding.codec} is no video encoder")
        stream.width, stream.height = self.size
        stream.pix_fmt = pixel_format
        stream.options = dict(encoding.options)
        context = stream.codec_context
        context.time_base = Fraction(1, TICKS_HZ)
        # Keyframes are set by time, below; this is for frames that come faster than announced.
        context.gop_size = math.ceil(2 * KEYFRAME_S * rate)
        context.colorspace, context.color_range = tags.matrix, LIMITED
        context.color_primaries, context.color_trc = tags.primaries, tags.transfer
        return stream

    def _start(self, codec: str) -> None:
        """Open the encoder apart from the container, to know which of the two fails."""
        import av

        # SVT-AV1 prints a page about itself to stderr, unless it is told before it starts.
        os.environ.setdefault("SVT_LOG", "1")
        try:
            self._stream.codec_context.open()
        except (av.error.FFmpegError, OSError, ValueError) as e:
            raise OutputError(
                f"the encoder {codec} does not start here ({getattr(e, 'strerror', e)}); use "
                "--encoder x264, or another"
            ) from e

    def write(self, frame: LiveFrame) -> None:
        """Encode a frame; raises FFmpegError or OSError where the container cannot be written."""
        from av.video.frame import PictureType

        picture = self._converter.from_rgb(frame.rgb)
        picture.pts, picture.time_base = self._timeline.ticks(frame), Fraction(1, TICKS_HZ)
        if self._keyframe is None or picture.pts - self._keyframe >= KEYFRAME_S * TICKS_HZ:
            picture.pict_type, self._keyframe = PictureType.I, picture.pts
        self._container.mux(self._stream.encode(picture))

    def finish(self) -> None:
        """Write what the encoder holds back and close the container."""
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def abandon(self) -> None:
        """Close the container after an error; that it cannot be completed is no news."""
        import av

        with suppress(av.error.FFmpegError, OSError, ValueError):
            self._container.close()
