"""Inspect a clip: what it is, which stream is meant, and why it may not be restored.

FFmpeg itself is silent here: PyAV drops its log lines unless a program asks for them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fastrestore.arrays import U8
from fastrestore.atomic import label
from fastrestore.errors import InputError
from fastrestore.video_clock import raw_rate, told_rate
from fastrestore.yuv import ColourTags, colour_tags

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.container import InputContainer

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mts", ".m2t",
    ".mpg", ".mpeg", ".vob", ".h264", ".264", ".hevc", ".h265", ".265", ".ivf", ".y4m",
)  # fmt: skip
MAX_PIXELS = 100_000_000
# Playlists and concat lists open other files, whatever they are named: only these are parsed.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,h264,hevc,ivf,yuv4mpegpipe"
_COUNTS_FRAMES = ("mov,mp4,m4a,3gp,3g2,mj2", "avi")  # in the header, that can be relied on
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_HDR = {16: "PQ", 18: "HLG"}
_INTERLACED_ORDERS = (2, 3, 4, 5)  # of the container: top or bottom field first
DEINTERLACE = "deinterlace it first, for example with ffmpeg -vf bwdif"


def is_video(path: str | Path) -> bool:
    """Tell by its suffix whether a path is taken as video."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a player turns the stored picture, by the nine entries of the display matrix.

    Attributes:
        matrix: 16.16 fixed point, row by row as in the file; None: as stored.
    """

    matrix: tuple[int, ...] | None = None

    @property
    def sideways(self) -> bool:
        """Whether height and width change places."""
        return self._turn()[0]

    def _turn(self) -> tuple[bool, bool, bool]:
        """(transpose, flip rows, flip columns); an angle between the right ones: nothing."""
        if self.matrix is None:
            return False, False, False
        a, b, c, d = (self.matrix[i] for i in (0, 1, 3, 4))
        if a == d == 0:
            return True, b < 0, c < 0
        return (False, d < 0, a < 0) if b == c == 0 else (False, False, False)

    def upright(self, stored: U8) -> U8:
        """Turn a stored picture or mask, (H, W) or (H, W, 3), as a player shows it."""
        transpose, rows, columns = self._turn()
        turned = stored.swapaxes(0, 1) if transpose else stored
        return np.ascontiguousarray(turned[:: -1 if rows else 1, :: -1 if columns else 1])

    def stored(self, upright: U8) -> U8:
        """Undo `upright`."""
        transpose, rows, columns = self._turn()
        turned = upright[:: -1 if rows else 1, :: -1 if columns else 1]
        return np.ascontiguousarray(turned.swapaxes(0, 1) if transpose else turned)


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What is known of a clip before it is restored.

    Attributes:
        width: Of the upright picture, px.
        height: Of the upright picture, px.
        frames: Estimate; None = unknown.
        fps: Average; None = unknown.
        duration: Of the file, seconds; None = unknown.
        pixel_format: FFmpeg's name, for example `"yuv420p"`.
        colour: Matrix, range, primaries and transfer.
        orientation: From the stored picture to the upright one.
        stream: Index of the video stream that is meant.
        raw_rate: Frames per second of a stream without time stamps; None: it has them.
        notes: What the user should know: for example which of several streams it is.
    """

    width: int
    height: int
    frames: int | None
    fps: float | None
    duration: float | None
    pixel_format: str
    colour: ColourTags
    orientation: Orientation
    stream: int
    raw_rate: Fraction | None
    notes: tuple[str, ...]

    @property
    def depth(self) -> int:
        """Bits a sample."""
        from av import VideoFormat

        return max(part.bits for part in VideoFormat(self.pixel_format, 16, 16).components)

    @property
    def stored_size(self) -> tuple[int, int]:
        """Width and height as stored, px."""
        size = self.width, self.height
        return size[::-1] if self.orientation.sideways else size


def probe(
    source: str | Path, max_pixels: int = MAX_PIXELS, rate: Fraction | None = None
) -> VideoInfo:
    """Inspect a clip: open it, decode its first frame, refuse what cannot be restored.

    Args:
        source: Path of the file.
        max_pixels: Largest picture that is accepted.
        rate: Frames per second of a raw stream; None: what it says, else 25.

    Raises:
        InputError: No readable video, too large, HDR, interlaced; one line with the mend.
    """
    container, stream = open_video(source, max_pixels)
    with container:
        frame = _first_frame(container, stream, source)
        colour = restorable_colour(frame, stream, source)
        orientation = orientation_of(frame)
        size = frame.width, frame.height
        width, height = size[::-1] if orientation.sideways else size
        duration = container.duration / 1e6 if container.duration else None
        raw = raw_rate(container, stream, rate)
        if rate and not raw:
            raise InputError(f"{label(source)}: has time stamps of its own; leave --rate away")
        average = raw or stream.average_rate
        fps = float(average) if average else None
        counted = stream.frames if container.format.name in _COUNTS_FRAMES else 0
        frames = counted or (round(duration * fps) if duration and fps else None)
        notes = []
        if len(videos := _videos(container)) > 1:
            notes.append(
                f"{len(videos)} video streams: #{stream.index} ({width}x{height}) is restored"
            )
        if raw and not (rate or told_rate(stream)):
            notes.append(f"no time stamps, no frame rate: {raw} a second taken; or give --rate")
        return VideoInfo(
            width, height, frames, fps, duration, frame.format.name, colour, orientation,
            stream.index, raw, tuple(notes),
        )  # fmt: skip


def open_video(source: str | Path, max_pixels: int) -> tuple[InputContainer, VideoStream]:
    """Open a file and choose its video stream; the caller closes the container."""
    import av

    path = Path(source)
    if "://" in str(source) or (_ADDRESS.match(str(source)) and not path.exists()):
        raise InputError(f"{label(source)}: addresses are not opened; download the file first")
    if not path.is_file():
        what = "is not a file" if path.exists() else "no such file"
        raise InputError(f"{label(source)}: {what}; give the path of a video")
    if path.stat().st_size == 0:
        raise InputError(f"{label(source)}: the file is empty; copy it again")
    try:
        # An absolute path: FFmpeg reads "name:" at the start of a relative one as a protocol.
        container = av.open(
            os.path.abspath(path), options={"format_whitelist": _FORMATS}, **odd_metadata()
        )
    except PermissionError as e:
        raise InputError(f"{label(source)}: no permission to read it") from e
    except (av.error.FFmpegError, OSError, ValueError) as e:
        raise InputError(
            f"{label(source)}: not a video (mp4, mov, mkv, webm, avi, ts, mpg; raw h264, hevc, "
            "ivf, y4m), or cut off before its index; copy it again or repair it"
        ) from e
    try:
        return container, choose_stream(container, source, max_pixels)
    except InputError:
        container.close()
        raise


def odd_metadata() -> dict[str, Any]:
    """Keyword arguments that keep tags which are not UTF-8; since PyAV 19 that is the rule."""
    import av

    old = int(av.__version__.split(".")[0]) < 19
    return {"metadata_errors": "surrogateescape"} if old else {}


def _videos(container: InputContainer) -> list[VideoStream]:
    """The streams that move: not the cover pictures."""
    from av.stream import Disposition

    return [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]


def choose_stream(container: InputContainer, source: str | Path, max_pixels: int) -> VideoStream:
    """Choose the stream marked as default, then the largest, then the first."""
    from av.stream import Disposition

    def rank(s: VideoStream) -> tuple[bool, int]:
        decodes = s.codec_context is not None
        return bool(s.disposition & Disposition.default), s.width * s.height if decodes else 0

    videos = _videos(container)
    if not videos:
        raise InputError(f"{label(source)}: no video stream in it, or cut off before its index")
    stream = max(videos, key=rank)
    if stream.codec_context is None or not stream.width or not stream.height:
        raise InputError(
            f"{label(source)}: its video cannot be decoded: cut off, or an unknown codec; "
            "copy it again or convert it to H.264"
        )
    if stream.width * stream.height > max_pixels:
        raise InputError(
            f"{label(source)}: {stream.width}x{stream.height} is more than {max_pixels} pixels; "
            "raise --max-pixels if the file is meant to be so large"
        )
    stream.codec_context.options = {"max_pixels": str(max_pixels)}  # the stream may lie
    stream.thread_type = "AUTO"
    return stream


def _first_frame(container: InputContainer, stream: VideoStream, source: str | Path) -> VideoFrame:
    """Decode until a frame comes, over damaged packets if need be."""
    import av

    try:
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                continue
            if frames:
                return frames[0]
    except av.error.FFmpegError as e:
        raise InputError(
            f"{label(source)}: no frame can be decoded ({e.strerror}); copy it again"
        ) from e
    raise InputError(f"{label(source)}: no frame of its video can be decoded; copy it again")


def restorable_colour(frame: VideoFrame, stream: VideoStream, source: str | Path) -> ColourTags:
    """Return the colour of a frame, or say why its clip cannot be kept as it is."""
    if hdr := _HDR.get(int(frame.color_trc)):
        raise InputError(
            f"{label(source)}: {hdr} HDR video; tone-map it to SDR first "
            "(ffmpeg -vf zscale and tonemap)"
        )
    order = getattr(stream.codec_context, "field_order", 0)  # since PyAV 18
    if frame.interlaced_frame or order in _INTERLACED_ORDERS:
        raise InputError(f"{label(source)}: interlaced video; {DEINTERLACE}")
    try:
        return colour_tags(frame)
    except InputError as e:
        raise InputError(f"{label(source)}: {e}") from e


def has_captions(frame: VideoFrame) -> bool:
    """Tell whether closed captions lie in a frame: no encoder is told of them."""
    from av.sidedata.sidedata import Type

    return cast("Mapping[Any, Any]", frame.side_data).get(Type.A53_CC) is not None


def orientation_of(frame: VideoFrame) -> Orientation:
    """Read the display matrix that comes with a decoded frame."""
    from av.sidedata.sidedata import Type

    # The stubs know only one kind of side data, by its name.
    data: Any = cast("Mapping[Any, Any]", frame.side_data).get(Type.DISPLAYMATRIX)
    return Orientation(tuple(np.frombuffer(data, np.int32).tolist()) if data else None)
