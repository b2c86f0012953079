"""Video files in and out: frames of the restored stream, packets of all others, plain clips."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrestore.arrays import U8
from fastrestore.atomic import label
from fastrestore.errors import InputError, OutputError
from fastrestore.ts_programs import read_programs
from fastrestore.video_clock import DEFAULT_RATE, Clock
from fastrestore.video_fit import Fit
from fastrestore.video_probe import (
    MAX_PIXELS,
    VideoInfo,
    has_captions,
    open_video,
    probe,
    restorable_colour,
)
from fastrestore.yuv import BT709, LIMITED, ColourTags, Converter, plane_layout

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream

_FASTEST = 1000  # frames per second that are believed
_CUT_OFF_S = 0.5  # a file that ends this much before its own duration is called cut off


@dataclass(slots=True)
class Tally:
    """What a reader has seen so far: all that a place in a clip depends on.

    Attributes:
        frames: Frames decoded.
        last: Time stamp of the last one, in ticks of the reader's `time_base`.
        step: From the one before to it.
        damaged: Video packets that could not be decoded.
        corrupt: Frames that the decoder calls damaged.
        nudged: Frames whose own time stamp was of no use.
        fitted: Frames that were made like the first.
        captions: Frames that carry closed captions.
        stretched: Frames that players show in another shape than the first, though of its size.
    """

    frames: int = 0
    last: int = -1
    step: int = 1
    damaged: int = 0
    corrupt: int = 0
    nudged: int = 0
    fitted: int = 0
    captions: int = 0
    stretched: int = 0


class VideoReader:
    """The frames of the restored stream and the packets of all others, in the file's order.

    Not thread-safe; a context manager. Frames and packets stay valid after `close`.

    Attributes:
        info: From `probe`.
        time_base: Seconds per tick of the frames' time stamps.
        rate: Nominal frames per second: a hint for rate control, never a clock.
        foreign_ids: Identifiers of streams that belong to other programs.
        tally: What has been seen so far.
        stopped: The error that ended reading early.
        notes: Filled in when the end is reached.
    """

    def __init__(
        self, source: str | Path, max_pixels: int = MAX_PIXELS, rate: Fraction | None = None
    ) -> None:
        """Inspect and open the file; arguments and errors are those of `probe`."""
        self.source, self.info = source, probe(source, max_pixels, rate)
        self.container, self.stream = open_video(source, max_pixels)
        self._clock = Clock(self.container, self.stream, self.info.raw_rate)
        self.time_base = self._clock.time_base
        hint = self.info.raw_rate or self.stream.guessed_rate
        told = Fraction(hint.numerator, hint.denominator) if hint else DEFAULT_RATE
        self.rate = told if told <= _FASTEST else DEFAULT_RATE  # ticks of a clock, not frames
        self.size = self.info.stored_size  # the header's may be that of a later part
        self._shape = self.stream.sample_aspect_ratio or 1
        self._fit = Fit(self.info, self._shape)
        # What the codec says, often nothing, is not what the container says.
        self._told_shape = self.stream.codec_context.sample_aspect_ratio or 1
        # Of a broadcast it is a guess, on another clock.
        length = None if self._clock.is_broadcast else self.stream.duration
        self._length = length and (self.stream.start_time or 0) + length
        self._total = self.stream.frames
        self.foreign_ids = _of_other_programs(Path(source), self.stream.id, self.container)
        self.tally = Tally()
        self.stopped: Exception | None = None
        self.notes: list[str] = []

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.container.close()

    @property
    def damaged_packets(self) -> int:
        """Video packets that could not be decoded so far."""
        return self.tally.damaged

    @property
    def finds_frames(self) -> bool:
        """Whether the last frame's time stamp finds it in the file."""
        return self._clock.finds_frames and not self.tally.nudged

    def __iter__(self) -> Iterator[VideoFrame | Packet[Stream]]:
        """Yield frames with time stamps that rise, and packets of other streams.

        Raises:
            InputError: An interlaced frame or one in HDR; names the frame.
        """
        for packet in self._packets():
            # Not packet.stream_index: it is 0 in the empty packets that flush the decoders.
            if packet.stream.index == self.stream.index:
                yield from map(self.take, self.decode(packet))
            elif packet.size:  # not "dts is not None": Matroska has packets without
                yield packet
        self.conclude()
        self.notes += self.cut_off()

    def pictures(self) -> Iterator[VideoFrame]:
        """Yield the frames alone, as they are decoded.

        Each that is used goes through `take`; `conclude` comes behind the last.
        """
        for packet in self._packets(self.stream):
            yield from self.decode(packet)

    def seek(self, pts: int) -> None:
        """Go to a keyframe at or before a time; raises FFmpegError where a file has no index.

        Args:
            pts: In ticks of `time_base`.
        """
        ticks = pts + round(self._clock.origin / self.time_base)
        self.container.seek(ticks, stream=self.stream)

    def others(self) -> Iterator[Packet[Stream]]:
        """Yield the packets of the other streams alone; nothing is decoded."""
        for packet in self._packets():
            if packet.stream.index != self.stream.index and packet.size:
                yield packet

    def _packets(self, *streams: Stream) -> Iterator[Packet[Any]]:
        """Yield packets; where the rest of the file cannot be read, what came is kept."""
        import av

        try:
            for packet in self.container.demux(*streams):
                self._clock.move(packet)
                yield packet
        except av.error.FFmpegError as e:
            self.stopped = e
            self.notes.append(f"reading stopped early: {e.strerror}")

    def shown_for(self, last: VideoFrame) -> int:
        """Tell how long the clip's last frame is shown, in ticks of `time_base`.

        A decoded frame's own duration is wrong where the container counts in decoding order
        (MP4 with B-frames); the length of the stream is right, if all of it was read.
        """
        pace = self.tally.step if self.tally.frames > 1 else round(1 / (self.rate * self.time_base))
        own = last.duration or pace
        if last.pts is None or self._length is None:
            return own
        left = self._length - last.pts
        # An edit list may hide frames of a file that is whole: then less than a frame is left.
        is_whole = self.tally.frames == self._total or left < 2 * own
        return left if is_whole and left > 0 else own

    def decode(self, packet: Packet[Any]) -> list[VideoFrame]:
        """Decode one packet; a damaged one is counted and left out."""
        import av

        # Half a packet at the end of a file that was cut off: with frame threads it would take
        # whole frames with it. In a broadcast the flag says less, and pictures come of it.
        if packet.is_corrupt and not self._clock.is_broadcast:
            self.tally.damaged += 1
            return []
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            self.tally.damaged += 1
            return []
        self._clock.sent(packet)
        return frames

    def take(self, frame: VideoFrame) -> VideoFrame:
        """Check, stamp and count the next frame; return it, or one made like the clip's first."""
        where = f"{label(self.source)}: frame {self.tally.frames + 1}"
        restorable_colour(frame, self.stream, where)
        self._stamp(frame)
        shape = self.stream.codec_context.sample_aspect_ratio
        fitted = self._fit(frame, shape)
        self.tally.fitted += fitted is not frame
        self.tally.stretched += fitted is frame and (shape or 1) != self._told_shape
        self.tally.captions += has_captions(frame)
        self.tally.corrupt += frame.is_corrupt
        self.tally.frames += 1
        return fitted

    def _stamp(self, frame: VideoFrame) -> None:
        """Give a frame without a usable time stamp the next one that can be."""
        tally = self.tally
        own = self._clock.time_of(frame, tally.frames)
        pts = own if own is not None else tally.last + tally.step
        if tally.frames and pts <= tally.last:
            pts = tally.last + 1
        if pts != own:
            tally.nudged += 1
        if tally.frames:
            tally.step = pts - tally.last
        frame.pts = tally.last = pts
        frame.time_base = self.time_base

    def conclude(self) -> None:
        """Put into words what was wrong with the video.

        Raises:
            InputError: There was no frame.
        """
        tally = self.tally
        if not tally.frames:
            raise InputError(
                f"{label(self.source)}: no frame of its video can be decoded; copy it again"
            )
        if tally.damaged:
            self.notes.append(f"{tally.damaged} damaged packets skipped")
        if tally.corrupt:
            self.notes.append(f"{tally.corrupt} frames are damaged by errors in the file")
        if tally.nudged:
            self.notes.append(f"{tally.nudged} frames had no usable time stamp and got the next")
        if self._clock.jumps:
            self.notes.append(f"time stamps jumped {self._clock.jumps} times: the gaps are closed")
        if tally.fitted:
            size = "{}x{}".format(*self.size)
            self.notes.append(
                f"{tally.fitted} frames of another size or colour were made like the first: {size}"
            )
        if tally.stretched:
            self.notes.append(
                f"about {tally.stretched} frames have another pixel shape than the first and will "
                "look stretched; split the clip there"
            )
        if tally.captions:
            self.notes.append("dropped: closed captions inside the video; ccextractor saves them")

    def cut_off(self) -> list[str]:
        """Say, after the last packet of all streams, whether the file ends before its time."""
        # The header counts from 0, also where the first packet comes later.
        start = min(Fraction(self.container.start_time or 0, 10**6), Fraction(0))
        length, seen = self.info.duration, float(self._clock.end - start)
        if self._clock.is_broadcast or not length or seen >= length - _CUT_OFF_S:
            return []
        return [f"cut off: ends at {seen:.1f} s, its header says {length:.1f} s"]


def _of_other_programs(path: Path, video: int, container: InputContainer) -> frozenset[int]:
    """Return the identifiers of streams that are in other programs than the video, and only so."""
    if container.format.name != "mpegts":
        return frozenset()
    programs = read_programs(path)
    kept = [pids for pids in programs.values() if video in pids]
    return frozenset().union(*programs.values()).difference(*kept) if kept else frozenset()


def to_upright(info: VideoInfo) -> Callable[[VideoFrame], U8]:
    """Return what turns a clip's frames into upright uint8 RGB, `(H, W, 3)`; for one thread."""
    width, height = info.stored_size
    converter = Converter(info.colour, plane_layout(info.pixel_format, height, width, "ffv1"))
    return lambda frame: info.orientation.upright(converter.to_rgb(frame))


def read_frames(source: str | Path, max_pixels: int = MAX_PIXELS) -> Iterator[U8]:
    """Decode a clip: upright uint8 RGB frames (H, W, 3), in order.

    Raises:
        InputError: As `probe` and `VideoReader`.
    """
    from av import VideoFrame

    with VideoReader(source, max_pixels) as reader:
        upright = to_upright(reader.info)
        for item in reader:
            if isinstance(item, VideoFrame):
                yield upright(item)


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
        raise OutputError(
            f"{label(target)}: cannot be written ({e.strerror}); choose another"
        ) from e


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
