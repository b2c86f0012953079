"""Video files out: choose the encoder, encode frames, copy the packets of other streams."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastrestore.errors import InputError
from fastrestore.video_io import VideoReader
from fastrestore.video_probe import odd_metadata
from fastrestore.yuv import PlaneLayout

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.codec import CodecContext
    from av.packet import Packet
    from av.stream import Stream

_PRESETS = (
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow",
)  # fmt: skip
_MAX_CRF = {"libx264": 51, "libvpx-vp9": 63, "ffv1": 63}
# Suffix -> name for messages, encoders it can hold (the first is the default).
_CONTAINERS = {
    ".mp4": ("MP4", ("libx264",)),
    ".mov": ("MOV", ("libx264",)),
    ".mkv": ("Matroska", ("libx264", "ffv1", "libvpx-vp9")),
    ".webm": ("WebM", ("libvpx-vp9",)),
}
OUTPUT_SUFFIXES = tuple(_CONTAINERS)
# Tags that are true of the input file or of its old video track only.
_STALE_TAGS = re.compile(
    r"encoder|major_brand|minor_version|compatible_brands|rotate|vendor_id"
    r"|(bps|duration|number_of_(frames|bytes)|_statistics_\w+)(-\w+)?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the restored stream is encoded.

    Attributes:
        codec: FFmpeg's name of the encoder.
        crf: Quality, 0 = best; FFV1 is lossless and ignores it.
        preset: Speed against size, for libx264.
    """

    codec: str
    crf: int
    preset: str

    @property
    def options(self) -> dict[str, str]:
        """The encoder's options."""
        if self.codec == "libx264":
            return {"crf": str(self.crf), "preset": self.preset}
        if self.codec == "libvpx-vp9":
            return {"crf": str(self.crf), "deadline": "good", "cpu-used": "4", "row-mt": "1"}
        return {"level": "3", "slicecrc": "1"}


def choose_encoding(target: Path, codec: str | None, crf: int, preset: str) -> Encoding:
    """Check the wishes against the container that the target's suffix names.

    Raises:
        InputError: Unknown suffix, a codec it cannot hold, crf or preset out of range.
    """
    suffix = target.suffix.lower()
    if suffix not in _CONTAINERS:
        raise InputError(
            f"{target}: video is not written as {suffix or 'a file without suffix'}; "
            f"use one of {', '.join(_CONTAINERS)}"
        )
    name, codecs = _CONTAINERS[suffix]
    chosen = codec or codecs[0]
    if chosen not in codecs:
        fits = [s for s, (_, held) in _CONTAINERS.items() if chosen in held]
        mend = f"use {' or '.join(fits)} for it, or " if fits else ""
        raise InputError(
            f"{target}: {name} is not written with {chosen}; {mend}choose from {', '.join(codecs)}"
        )
    if not 0 <= crf <= _MAX_CRF[chosen]:
        raise InputError(f"crf {crf} is out of range; use 0 to {_MAX_CRF[chosen]} for {chosen}")
    if preset not in _PRESETS:
        raise InputError(f"preset {preset} is unknown; use one of {', '.join(_PRESETS)}")
    return Encoding(chosen, crf, preset)


class VideoWriter:
    """One output file: the encoded stream and copies of the others. Used by one thread only.

    Attributes:
        notes: What the file could not keep, in words.
    """

    def __init__(
        self, part: Path, reader: VideoReader, layout: PlaneLayout, encoding: Encoding
    ) -> None:
        """Create the file with all its streams, in the order of the input, and its header.

        Args:
            part: Path to write; an old file there is replaced.
            reader: The input: streams, tags, chapters.
            layout: What the frames will be.
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
        self._copies: dict[int, Stream] = {}
        self._last_dts: dict[int, int] = {}
        self._pending: VideoFrame | None = None
        self._durations: dict[int, int] = {}
        self._first: tuple[int, int] | None = None  # time stamps of the first encoded packet
        for stream in reader.container.streams:
            if stream.index == reader.stream.index:
                self._video = self._add_video(reader, layout, encoding)
            else:
                self._add_copy(stream, reader)
        if chapters := reader.container.chapters():
            self._container.set_chapters(chapters)
        self._container.start_encoding()

    def _add_video(
        self, reader: VideoReader, layout: PlaneLayout, encoding: Encoding
    ) -> VideoStream:
        """Add the stream that is encoded, with the input's size, clock, shape and tags."""
        from av.video.stream import VideoStream

        old, info = reader.stream, reader.info
        new = self._container.add_stream(encoding.codec, rate=reader.rate)
        if not isinstance(new, VideoStream):
            raise TypeError(f"{encoding.codec} is no video encoder")
        new.width, new.height = reader.size
        new.pix_fmt = layout.target
        new.options = dict(encoding.options)
        context = new.codec_context
        context.time_base = reader.time_base  # not 1 / fps: the frames keep their own stamps
        context.colorspace = info.colour.matrix
        context.color_range = 2 if info.colour.full else 1
        context.color_primaries, context.color_trc = info.colour.primaries, info.colour.transfer
        if old.sample_aspect_ratio:
            context.sample_aspect_ratio = old.sample_aspect_ratio
            if old.sample_aspect_ratio != 1 and encoding.codec != "libx264":
                shape = f"{old.sample_aspect_ratio.numerator}:{old.sample_aspect_ratio.denominator}"
                self.notes.append(f"dropped: pixel shape {shape}, only libx264 keeps it here")
        if info.orientation.matrix:
            new.set_display_matrix(info.orientation.matrix)
        new.metadata.update(_lasting(old.metadata))
        new.disposition = old.disposition
        return new

    def _add_copy(self, stream: Stream, reader: VideoReader) -> None:
        """Add a stream whose packets are copied, or note why it is dropped."""
        if stream.type == "data":
            # MP4 keeps its chapters in such a stream too; those are written anew.
            if not (stream.name == "bin_data" and reader.container.chapters()):
                self.notes.append(f"dropped: data #{stream.index}, only sound and text are copied")
            return
        if stream.type == "video":
            self.notes.append(f"dropped: video #{stream.index}, only one is kept")
            return
        try:
            if stream.type == "attachment" and self._suffix != ".mkv":
                raise ValueError("attachments are a thing of Matroska")
            copy = self._container.add_stream_from_template(stream)
        except ValueError:
            mend = ".mp4" if self._suffix == ".mkv" else ".mkv"
            self.notes.append(
                f"dropped: {stream.type} #{stream.index}, {_CONTAINERS[self._suffix][0]} "
                f"cannot hold {_codec_name(stream)}; use {mend}"
            )
            return
        copy.metadata.update(stream.metadata)
        copy.disposition = stream.disposition
        self._copies[stream.index] = copy

    def write_frame(self, frame: VideoFrame) -> None:
        """Encode a frame; its time stamp is later than the one before.

        One frame is held back: how long it is shown is known when the next one comes.
        """
        if self._pending is not None and frame.pts is not None:
            self._pending.duration = frame.pts - (self._pending.pts or 0)
            self._encode(self._pending)
        self._pending = frame

    def write_packet(self, packet: Packet[Stream]) -> None:
        """Copy a packet of another stream; one of a dropped stream is ignored."""
        index = packet.stream_index
        if index not in self._copies:
            return
        if packet.dts is not None:
            # Broken files step back in time, which a muxer refuses: move such a packet on.
            if packet.dts < self._last_dts.get(index, packet.dts):
                packet.dts = self._last_dts[index]
                packet.pts = max(packet.pts or packet.dts, packet.dts)
            self._last_dts[index] = packet.dts
        packet.stream = self._copies[index]
        self._container.mux(packet)

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
        self._container.close()

    def abandon(self) -> None:
        """Close the file after an error; that it cannot be completed is no news."""
        import av

        try:
            self._container.close()
        except (av.error.FFmpegError, OSError, ValueError):
            return

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
        if end is not None and self._suffix in (".mp4", ".mov"):
            # These sum up durations in decoding order: the last one there ends the track.
            decoded = (packet.dts or 0) - self._first[1]
            packet.duration = max(end - self._first[0] - decoded, packet.duration)
        self._container.mux(packet)


def _lasting(tags: dict[str, str]) -> dict[str, str]:
    """The tags that still hold for the restored clip."""
    return {k: v for k, v in tags.items() if not _STALE_TAGS.fullmatch(k)}


def _codec_name(stream: Stream) -> str:
    """Name a codec as people do, for example `SubRip`."""
    context: CodecContext | None = stream.codec_context  # None where FFmpeg cannot decode it
    if context is None:
        return "its codec"
    return re.sub(r" \(.*\)$| subtitles?$", "", context.codec.long_name)
