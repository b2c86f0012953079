"""Video files out: encode frames, copy the packets of other streams."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from fastrestore.encoders import Encoding
from fastrestore.stream_copies import HAS_EDIT_LISTS, Copies, tried
from fastrestore.video_io import VideoReader
from fastrestore.video_probe import odd_metadata
from fastrestore.yuv import FULL, LIMITED

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.container import OutputContainer
    from av.packet import Packet
    from av.stream import Stream

# Tags that are true of the input file or of its old video track only.
_STALE_TAGS = re.compile(
    r"encoder|major_brand|minor_version|compatible_brands|rotate|vendor_id"
    r"|(bps|duration|number_of_(frames|bytes)|_statistics_\w+)(-\w+)?",
    re.IGNORECASE,
)

_TELLS_SHAPE = ("libx264", "libx265", "h264_nvenc", "hevc_nvenc")  # of its pixels, by itself
_H265 = ("libx265", "hevc_nvenc")


class VideoWriter:
    """One output file: the encoded stream and copies of the others. Used by one thread only.

    Attributes:
        notes: What the file could not keep, in words.
    """

    def __init__(self, part: Path, reader: VideoReader, encoding: Encoding) -> None:
        """Create the file with all its streams, in the order of the input, and its header.

        Args:
            part: Path to write; an old file there is replaced.
            reader: The input: streams, tags, chapters.
            encoding: From `choose_encoding`.

        Raises:
            av.error.FFmpegError: The encoder or the file cannot be opened.
        """
        import av

        self.notes: list[str] = []
        self._reader = reader
        self._suffix = part.suffix.lower()
        self._container = av.open(os.path.abspath(part), "w", **odd_metadata())
        self._container.metadata.update(_lasting(reader.container.metadata))
        self._copies = Copies(self._container, self._suffix, reader)
        self._pending: VideoFrame | None = None
        self._durations: dict[int, int] = {}
        self._first: tuple[int, int] | None = None  # time stamps of the first encoded packet
        for stream in reader.container.streams:
            if stream.index == reader.stream.index:
                self._video = add_video(self._container, reader, encoding, self.notes)
            else:
                self._copies.add(stream)
        self.notes += self._copies.notes
        if chapters := reader.container.chapters():
            self._container.set_chapters(chapters)
        self._container.start_encoding()

    def write_frame(self, frame: VideoFrame) -> None:
        """Encode a frame; its time stamp is later than the one before.

        One frame is held back: how long it is shown is known when the next one comes.
        """
        if self._pending is not None and frame.pts is not None:
            self._pending.duration = frame.pts - (self._pending.pts or 0)
            self._encode(self._pending)
        self._pending = frame

    def write_encoded(self, packet: Packet[VideoStream], end: int | None = None) -> None:
        """Write a packet of the restored stream that an encoder of the same kind has made.

        Args:
            packet: In decoding order; stamps and duration in ticks of the input's `time_base`.
            end: With the very last one: where the clip ends, in the same ticks.
        """
        packet.stream = self._video
        self._mux(packet, end)

    def write_packet(self, packet: Packet[Stream]) -> None:
        """Copy a packet of another stream; one of a dropped stream is ignored."""
        self._copies.write(packet)

    def finish(self) -> None:
        """Encode what is held back and close the file: from here on it plays."""
        last = self._pending
        if last is not None:
            last.duration = self._reader.shown_for(last)
            self._encode(last)
            tail = self._video.encode(None)
            for packet in tail[:-1]:
                self._mux(packet)
            if tail:
                self._mux(tail[-1], end=(last.pts or 0) + last.duration)
        self.notes += self._copies.refused()
        self._container.close()

    def abandon(self) -> None:
        """Close the file after an error; that it cannot be completed is no news."""
        import av

        with suppress(av.error.FFmpegError, OSError, ValueError):
            self._container.close()

    def _encode(self, frame: VideoFrame) -> None:
        self._durations[frame.pts or 0] = frame.duration
        for packet in self._video.encode(frame):
            self._mux(packet)

    def _mux(self, packet: Packet[VideoStream], end: int | None = None) -> None:
        """Write an encoded packet, with its duration: encoders do not hand it on.

        Args:
            packet: Of the restored stream.
            end: For the very last one: where the clip ends, in ticks.
        """
        packet.duration = self._durations.pop(packet.pts or 0, packet.duration or 0)
        if self._first is None:
            self._first = (packet.pts or 0, packet.dts or 0)
        if end is not None and self._suffix in HAS_EDIT_LISTS:
            # These sum up durations in decoding order: the last one there ends the track.
            decoded = (packet.dts or 0) - self._first[1]
            packet.duration = max(end - self._first[0] - decoded, packet.duration)
        self._container.mux(packet)


def add_video(
    container: OutputContainer, reader: VideoReader, encoding: Encoding, notes: list[str]
) -> VideoStream:
    """Add the stream that is encoded, with the input's size, clock, shape and tags.

    Args:
        container: Open for writing.
        reader: The input.
        encoding: From `choose_encoding`.
        notes: Gets what cannot be kept, in words.

    Raises:
        av.error.FFmpegError: There is no such encoder.
    """
    from av.video.stream import VideoStream

    old, info = reader.stream, reader.info
    new = container.add_stream(encoding.codec, rate=reader.rate)
    if not isinstance(new, VideoStream):
        raise TypeError(f"{encoding.codec} is no video encoder")
    new.width, new.height = reader.size
    new.pix_fmt = encoding.pixel_format
    new.options = dict(encoding.options)
    context = new.codec_context
    context.time_base = reader.time_base  # not 1 / fps: the frames keep their own stamps
    context.colorspace = info.colour.matrix
    context.color_range = FULL if info.colour.full else LIMITED
    context.color_primaries, context.color_trc = info.colour.primaries, info.colour.transfer
    is_mp4 = f".{container.format.name}" in HAS_EDIT_LISTS
    if old.sample_aspect_ratio:
        context.sample_aspect_ratio = old.sample_aspect_ratio
        if old.sample_aspect_ratio != 1 and not is_mp4 and encoding.codec not in _TELLS_SHAPE:
            shape = f"{old.sample_aspect_ratio.numerator}:{old.sample_aspect_ratio.denominator}"
            notes.append(f"dropped: pixel shape {shape}; x264 and x265 keep it here, or .mp4")
    if is_mp4 and encoding.codec in _H265:
        context.codec_tag = "hvc1"  # Apple's players know no other name
    if info.orientation.matrix:
        new.set_display_matrix(info.orientation.matrix)
    new.metadata.update(_lasting(old.metadata))
    timecode = {k.lower(): v for k, v in new.metadata.items()}.get("timecode")
    if timecode and is_mp4 and not _takes_timecode(timecode, reader.rate):
        notes.append(f"dropped: timecode {timecode}, it does not fit {reader.rate} frames a second")
    new.disposition = old.disposition
    return new


def _takes_timecode(timecode: str, rate: Fraction) -> bool:
    """Try whether a timecode becomes a track; one that does not fit is left out in silence."""

    def add(container: OutputContainer) -> None:
        stream = container.add_mux_stream("h264", rate=rate, width=64, height=64)
        stream.metadata["timecode"] = timecode

    return b"tmcd" in (tried(".mp4", add) or b"")


def _lasting(tags: dict[str, str]) -> dict[str, str]:
    """The tags that still hold for the restored clip."""
    return {k: v for k, v in tags.items() if not _STALE_TAGS.fullmatch(k)}
