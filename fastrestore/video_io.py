"""Video files in and out: frames of the restored stream, packets of all others, plain clips."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrestore.arrays import U8
from fastrestore.errors import InputError, OutputError
from fastrestore.video_probe import (
    DEINTERLACE,
    MAX_PIXELS,
    open_video,
    probe,
)
from fastrestore.yuv import BT709, LIMITED, ColourTags, Converter, plane_layout

if TYPE_CHECKING:
    from av import VideoFrame
    from av.packet import Packet
    from av.stream import Stream

_CUT_OFF_S = 0.5  # a file that ends this much before its own duration is called cut off


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
        self.container, self.stream = open_video(source, max_pixels)
        tb = self.stream.time_base
        self.time_base = Fraction(tb.numerator, tb.denominator) if tb else Fraction(1, 1000)
        rate = self.stream.guessed_rate
        self.rate = Fraction(rate.numerator, rate.denominator) if rate else Fraction(25)
        self.size = self.info.stored_size  # the header's may be that of a later part
        # The clock of a transport stream starts anywhere, often hours in; all others start at 0.
        broadcast = self.container.format.name == "mpegts"
        self._start = Fraction(self.container.start_time or 0, 10**6)
        self._shift = self._start if broadcast else Fraction(0)
        length = self.stream.duration
        self._length = length and (self.stream.start_time or 0) + length
        self._total = self.stream.frames
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
        if last.pts is None or self._length is None or self._frames != self._total:
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
            raise InputError(f"{where} is interlaced; {DEINTERLACE}")

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

    Raises:
        OutputError: The file cannot be written.
    """
    try:
        _encode(target, frames, fps, codec)
    except OSError as e:  # PyAV's errors of files are these
        raise OutputError(f"{target}: cannot be written ({e.strerror}); choose another") from e


def _encode(target: str | Path, frames: Iterable[U8], fps: int, codec: str) -> None:
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
            if i == 0:
                stream.height, stream.width = rgb.shape[:2]
            frame = converter.from_rgb(rgb)
            frame.pts, frame.time_base = i, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
