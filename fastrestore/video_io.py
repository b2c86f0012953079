"""Video files in: inspect a clip, read its frames and the packets of its other streams.

FFmpeg itself is silent here: PyAV drops its log lines unless a program asks for them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fastrestore.arrays import U8
from fastrestore.errors import InputError
from fastrestore.yuv import (
    BT709,
    LIMITED,
    ColourTags,
    Converter,
    Orientation,
    colour_tags,
    plane_layout,
)

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".ts", ".m2ts")
MAX_PIXELS = 100_000_000
# Playlists and concat lists open other files, whatever they are named: only these are parsed.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_HDR = {16: "PQ", 18: "HLG"}
_INTERLACED_ORDERS = (2, 3, 4, 5)  # of the container: top or bottom field first
_DEINTERLACE = "deinterlace it first, for example with ffmpeg -vf bwdif"
_CUT_OFF_S = 0.5  # a file that ends this much before its own duration is called cut off


def is_video(path: str | Path) -> bool:
    """Tell by its suffix whether a path is taken as video."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


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
    notes: tuple[str, ...]


def probe(source: str | Path, max_pixels: int = MAX_PIXELS) -> VideoInfo:
    """Inspect a clip: open it, decode its first frame, refuse what cannot be restored.

    Args:
        source: Path of the file.
        max_pixels: Largest picture that is accepted.

    Raises:
        InputError: No readable video, too large, HDR, interlaced; one line with the mend.
    """
    container, stream = _open(source, max_pixels)
    with container:
        frame = _first_frame(container, stream, source)
        colour = _restorable(frame, stream, source)
        orientation = _orientation(frame)
        height, width = (frame.height, frame.width)
        if orientation.upright(np.empty((height, width), np.uint8)).shape != (height, width):
            height, width = width, height
        duration = container.duration / 1e6 if container.duration else None
        fps = float(stream.average_rate) if stream.average_rate else None
        frames = stream.frames or (round(duration * fps) if duration and fps else None)
        notes: tuple[str, ...] = ()
        if len(videos := _videos(container)) > 1:
            notes = (
                f"{len(videos)} video streams: #{stream.index} ({width}x{height}) is restored",
            )
        return VideoInfo(
            width, height, frames, fps, duration, frame.format.name, colour, orientation,
            stream.index, notes,
        )  # fmt: skip


def _open(source: str | Path, max_pixels: int) -> tuple[InputContainer, VideoStream]:
    """Open a file and choose its video stream; the caller closes the container."""
    import av

    path = Path(source)
    if "://" in str(source) or (_ADDRESS.match(str(source)) and not path.exists()):
        raise InputError(f"{source}: addresses are not opened; download the file first")
    if not path.is_file():
        what = "is not a file" if path.exists() else "no such file"
        raise InputError(f"{source}: {what}; give the path of a video")
    if path.stat().st_size == 0:
        raise InputError(f"{source}: the file is empty; copy it again")
    try:
        # An absolute path: FFmpeg reads "name:" at the start of a relative one as a protocol.
        container = av.open(
            os.path.abspath(path), options={"format_whitelist": _FORMATS}, **odd_metadata()
        )
    except PermissionError as e:
        raise InputError(f"{source}: no permission to read it") from e
    except (av.error.FFmpegError, OSError, ValueError) as e:
        raise InputError(
            f"{source}: not a video (mp4, mov, mkv, webm, avi, ts), or cut off before its index; "
            "copy it again or repair it"
        ) from e
    try:
        return container, _choose_stream(container, source, max_pixels)
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


def _choose_stream(container: InputContainer, source: str | Path, max_pixels: int) -> VideoStream:
    """Choose the stream marked as default, then the largest, then the first."""
    from av.stream import Disposition

    def rank(s: VideoStream) -> tuple[bool, int]:
        decodes = s.codec_context is not None
        return bool(s.disposition & Disposition.default), s.width * s.height if decodes else 0

    videos = _videos(container)
    if not videos:
        raise InputError(f"{source}: it has no video stream; give a file that has one")
    stream = max(videos, key=rank)
    if stream.codec_context is None or not stream.width or not stream.height:
        raise InputError(f"{source}: its video cannot be decoded; convert it to H.264 first")
    if stream.width * stream.height > max_pixels:
        raise InputError(
            f"{source}: {stream.width}x{stream.height} is more than {max_pixels} pixels; "
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
        raise InputError(f"{source}: no frame can be decoded ({e.strerror}); copy it again") from e
    raise InputError(f"{source}: no frame of its video can be decoded; copy it again")


def _restorable(frame: VideoFrame, stream: VideoStream, source: str | Path) -> ColourTags:
    """Return the colour of a frame, or say why its clip cannot be kept as it is."""
    if hdr := _HDR.get(int(frame.color_trc)):
        raise InputError(
            f"{source}: {hdr} HDR video; tone-map it to SDR first (ffmpeg -vf zscale and tonemap)"
        )
    if frame.interlaced_frame or stream.codec_context.field_order in _INTERLACED_ORDERS:
        raise InputError(f"{source}: interlaced video; {_DEINTERLACE}")
    try:
        return colour_tags(frame)
    except InputError as e:
        raise InputError(f"{source}: {e}") from e


def _orientation(frame: VideoFrame) -> Orientation:
    """Read the display matrix that comes with a decoded frame."""
    from av.sidedata.sidedata import Type

    # The stubs know only one kind of side data, by its name.
    data: Any = cast("Mapping[Any, Any]", frame.side_data).get(Type.DISPLAYMATRIX)
    return Orientation(tuple(np.frombuffer(data, np.int32).tolist()) if data else None)


class VideoReader:
    """The frames of the restored stream and the packets of all others, in the file's order.

    Not thread-safe; a context manager. Frames and packets stay valid after `close`.

    Attributes:
        info: From `probe`.
        time_base: Seconds per tick of the frames' time stamps.
        rate: Nominal frames per second: a hint for rate control, never a clock.
        damaged_packets: Video packets that could not be decoded so far.
        notes: Filled in when the end is reached.
    """

    def __init__(self, source: str | Path, max_pixels: int = MAX_PIXELS) -> None:
        """Inspect and open the file; raises InputError as `probe` does."""
        self.source, self.info = source, probe(source, max_pixels)
        self.container, self.stream = _open(source, max_pixels)
        tb = self.stream.time_base
        self.time_base = Fraction(tb.numerator, tb.denominator) if tb else Fraction(1, 1000)
        rate = self.stream.guessed_rate
        self.rate = Fraction(rate.numerator, rate.denominator) if rate else Fraction(25)
        self.size = self.stream.width, self.stream.height
        # The clock of a transport stream starts anywhere, often hours in; all others start at 0.
        broadcast = self.container.format.name == "mpegts"
        self._start = Fraction(self.container.start_time or 0, 10**6)
        self._shift = self._start if broadcast else Fraction(0)
        length = self.stream.duration
        self._length = length and (self.stream.start_time or 0) + length
        self._end = Fraction(0)
        self._frames, self._last, self._step = 0, -1, 1
        self.damaged_packets = self._nudged = self._corrupt = 0
        self.notes: list[str] = []

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.container.close()

    def __iter__(self) -> Iterator[VideoFrame | Packet[Stream]]:
        """Yield frames with time stamps that rise, and packets of other streams.

        Raises:
            InputError: A frame of another size or an interlaced one; names the frame.
        """
        import av

        try:
            for packet in self.container.demux():
                self._note_time(packet)
                # Not packet.stream_index: it is 0 in the empty packets that flush the decoders.
                if packet.stream.index == self.stream.index:
                    yield from self._decode(packet)
                elif packet.size:  # not "dts is not None": Matroska has packets without
                    yield packet
        except av.error.FFmpegError as e:  # the rest of the file cannot be read: keep what came
            self.notes.append(f"reading stopped early: {e.strerror}")
        if not self._frames:
            raise InputError(f"{self.source}: no frame of its video can be decoded; copy it again")
        self._conclude()

    def shown_for(self, last: VideoFrame) -> int:
        """Tell how long the clip's last frame is shown, in ticks of `time_base`.

        A decoded frame's own duration is wrong where the container counts in decoding order
        (MP4 with B-frames); the length of the stream is right, if all of it was read.
        """
        if last.pts is None or self._length is None or self._frames != self.stream.frames:
            return last.duration
        return max(self._length - last.pts, last.duration)

    def _note_time(self, packet: Packet[Any]) -> None:
        """Shift a packet's stamps to this job's clock and remember where the file ends."""
        tb = packet.time_base
        if packet.pts is None or not tb:
            return
        tick = Fraction(tb.numerator, tb.denominator)
        self._end = max(self._end, (packet.pts + (packet.duration or 0)) * tick)
        if self._shift:
            packet.pts -= round(self._shift / tick)
            if packet.dts is not None:
                packet.dts -= round(self._shift / tick)

    def _decode(self, packet: Packet[Any]) -> Iterator[VideoFrame]:
        """Decode one packet; a damaged one is counted and left out."""
        import av

        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            self.damaged_packets += 1
            return
        for frame in frames:
            self._check(frame)
            self._stamp(frame)
            self._corrupt += frame.is_corrupt
            self._frames += 1
            yield frame

    def _check(self, frame: VideoFrame) -> None:
        """Refuse a frame that does not go on with the clip."""
        where = f"{self.source}: frame {self._frames + 1}"
        if (frame.width, frame.height) != self.size:
            old = "{}x{}".format(*self.size)
            raise InputError(
                f"{where} is {frame.width}x{frame.height}, the ones before {old}; "
                "split the clip there or scale it to one size"
            )
        if frame.interlaced_frame:
            raise InputError(f"{where} is interlaced; {_DEINTERLACE}")

    def _stamp(self, frame: VideoFrame) -> None:
        """Give a frame without a usable time stamp the next one that can be."""
        pts = frame.pts if frame.pts is not None else self._last + self._step
        if self._frames and pts <= self._last:
            pts = self._last + 1
        if pts != frame.pts:
            self._nudged += 1
        if self._frames:
            self._step = pts - self._last
        frame.pts = self._last = pts
        frame.time_base = self.time_base

    def _conclude(self) -> None:
        """Put into words what was wrong with the file."""
        if self.damaged_packets:
            self.notes.append(f"{self.damaged_packets} damaged packets skipped")
        if self._corrupt:
            self.notes.append(f"{self._corrupt} frames are damaged by errors in the file")
        if self._nudged:
            self.notes.append(f"{self._nudged} frames had no usable time stamp and got the next")
        length, seen = self.info.duration, float(self._end - self._start)
        if length and seen < length - _CUT_OFF_S:
            self.notes.append(f"cut off: ends at {seen:.1f} s, its header says {length:.1f} s")


def read_frames(source: str | Path, max_pixels: int = MAX_PIXELS) -> Iterator[U8]:
    """Decode a clip: upright uint8 RGB frames (H, W, 3), in order.

    Raises:
        InputError: As `probe` and `VideoReader`.
    """
    from av import VideoFrame

    with VideoReader(source, max_pixels) as reader:
        info, (width, height) = reader.info, reader.size
        converter = Converter(info.colour, plane_layout(info.pixel_format, height, width, "ffv1"))
        for item in reader:
            if isinstance(item, VideoFrame):
                yield info.orientation.upright(converter.to_rgb(item))


def write_frames(target: str | Path, frames: Iterable[U8], *, fps: int, codec: str) -> None:
    """Write pictures as a clip without sound, 4:4:4 so that their colours stay as sharp.

    Args:
        target: Path; its suffix names the container.
        frames: uint8 RGB (H, W, 3), all of one size.
        fps: Frames per second.
        codec: Encoder, for example `"ffv1"`.
    """
    import av
    from av.video.stream import VideoStream

    with av.open(os.path.abspath(target), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        if not isinstance(stream, VideoStream):
            raise InputError(f"{codec} does not encode video; use ffv1 or libx264")
        stream.pix_fmt = "yuv444p"
        tags = ColourTags(BT709, full=False, primaries=BT709, transfer=BT709)
        converter = Converter(tags, plane_layout("rgb24", 0, 0, codec))
        stream.codec_context.colorspace, stream.codec_context.color_range = BT709, LIMITED
        for i, rgb in enumerate(frames):
            stream.height, stream.width = rgb.shape[:2]
            frame = converter.from_rgb(rgb)
            frame.pts, frame.time_base = i, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
