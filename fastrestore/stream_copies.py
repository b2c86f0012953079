"""Streams of a clip that are copied: sound and subtitles by packet, covers and fonts whole."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fastrestore.encoders import CONTAINERS
from fastrestore.video_io import VideoReader
from fastrestore.video_probe import MAX_PIXELS, open_video

if TYPE_CHECKING:
    from av.codec import CodecContext
    from av.container import OutputContainer
    from av.packet import Packet
    from av.stream import Stream

MUXERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
HAS_EDIT_LISTS = (".mp4", ".mov")  # these say what is played of the packets, and hold timecodes
_HAS_ATTACHMENTS = ".mkv"
_HAS_COVERS = (".mp4", ".mkv")
_NO_TEXT = b"\0\0"
_COVER_TYPES = {"mjpeg": ("jpg", "jpeg"), "png": ("png", "png")}  # codec -> suffix, MIME subtype


class Copies:
    """The copied streams of one output file. Used by one thread.

    Attributes:
        notes: What the file cannot hold, in words.
    """

    def __init__(self, container: OutputContainer, suffix: str, reader: VideoReader) -> None:
        """Begin; streams are added one by one.

        Args:
            container: Open for writing.
            suffix: Of the file, in lower case.
            reader: The input.
        """
        self.notes: list[str] = []
        self._container, self._suffix, self._reader = container, suffix, reader
        self._copies: dict[int, Stream] = {}
        self._last_dts: dict[int, int] = {}
        self._lead: dict[int, Packet[Stream]] = {}
        self._covers: dict[int, bytes] | None = None
        self._refused: dict[int, int] = {}

    def add(self, stream: Stream) -> None:
        """Add a stream of the input, or note why it is not kept."""
        from av.stream import Disposition

        if stream.id in self._reader.foreign_ids:
            self._drop(stream, "it belongs to another program")
        elif stream.disposition & Disposition.attached_pic:
            self._add_cover(stream)
        elif stream.type == "video":
            self._drop(stream, "only one is kept")
        elif stream.type == "data":
            self._judge_data(stream)
        elif stream.type == "audio" and not getattr(stream.codec_context, "sample_rate", 1):
            self._drop(stream, "it begins too late in the file; cut off what is before")
        elif self._holds(stream, self._suffix):
            copy = self._container.add_stream_from_template(stream)
            copy.metadata.update(stream.metadata)
            copy.disposition = stream.disposition
            self._copies[stream.index] = copy
        else:
            self._drop_unfit(stream)

    def write(self, packet: Packet[Any]) -> None:
        """Copy a packet; one of a stream that is not kept is ignored."""
        index = packet.stream_index
        if index not in self._copies or self._is_gap(packet):
            return
        if packet.is_discard:
            self._lead_in(packet)
            return
        if (lead := self._lead.pop(index, None)) is not None:
            self._mux(lead)
        self._mux(packet)

    def _is_gap(self, packet: Packet[Any]) -> bool:
        """Tell whether it is MP4's "no text now": the muxer writes these itself, by durations."""
        return (
            packet.size == len(_NO_TEXT)
            and packet.stream.type == "subtitle"
            and packet.stream.codec_context.name == "mov_text"
            and bytes(packet) == _NO_TEXT
        )

    def _lead_in(self, packet: Packet[Any]) -> None:
        """Treat a packet that an edit list hides: a decoder of sound may need it to begin.

        A file that can say so keeps all that come first. Elsewhere they would be heard: the last
        one stays, for the decoder. Those in the middle were cut out.
        """
        if packet.stream.type != "audio" or packet.stream_index in self._last_dts:
            return
        if self._suffix in HAS_EDIT_LISTS and (packet.pts or 0) < 0:
            self._container.mux(self._moved(packet))
        else:
            self._lead[packet.stream_index] = packet

    def _mux(self, packet: Packet[Any]) -> None:
        import av

        index = packet.stream_index
        if packet.dts is not None:
            # Broken files stand still or step back, which a muxer refuses: move such a packet on.
            last = self._last_dts.get(index)
            if last is not None and packet.dts <= last:
                packet.dts = last + self._tick(packet)
                packet.pts = max(packet.pts or packet.dts, packet.dts)
            self._last_dts[index] = packet.dts
        try:
            self._container.mux(self._moved(packet))
        except (av.error.InvalidDataError, av.error.PatchWelcomeError):  # damaged sound
            self._refused[index] = self._refused.get(index, 0) + 1

    def refused(self) -> list[str]:
        """Say, after the last packet, how many the file did not take."""
        return [
            f"{count} damaged packets of {self._copies[index].type} #{index} are left out"
            for index, count in self._refused.items()
        ]

    def _tick(self, packet: Packet[Any]) -> int:
        """Return the least step in a packet's ticks that is one in the file's."""
        tick = self._copies[packet.stream_index].time_base
        return max(1, math.ceil(tick / packet.time_base)) if tick and packet.time_base else 1

    def _moved(self, packet: Packet[Any]) -> Packet[Any]:
        packet.stream = self._copies[packet.stream_index]
        return packet

    def _add_cover(self, stream: Stream) -> None:
        """Add a picture that is no video: an attachment in Matroska, a stream elsewhere."""
        name = stream.codec_context.name if stream.codec_context else ""
        if self._suffix == _HAS_ATTACHMENTS and name in _COVER_TYPES:
            if self._covers is None:
                self._covers = _read_covers(self._reader)
            suffix, kind = _COVER_TYPES[name]
            file = stream.metadata.get("filename", f"cover.{suffix}")
            if data := self._covers.get(stream.index):
                self._container.add_attachment(file, f"image/{kind}", data)
            else:
                self._drop(stream, "it is empty")
        elif self._suffix in _HAS_COVERS and name in _COVER_TYPES:
            copy = self._container.add_stream_from_template(stream, opaque=True)
            copy.metadata.update(stream.metadata)
            copy.disposition = stream.disposition
            self._copies[stream.index] = copy
        else:
            self._drop_unfit(stream)

    def _judge_data(self, stream: Stream) -> None:
        """Say what becomes of a stream that is neither picture, sound nor text."""
        chapters = stream.name == "bin_data" and self._reader.container.chapters()
        timecode = self._reader.stream.metadata.get("timecode")
        if timecode and stream.metadata.get("timecode") == timecode:
            if self._suffix not in HAS_EDIT_LISTS:  # those write a track for the video's tag
                self.notes.append(f"timecode {timecode} is kept as a tag of the video")
        elif not chapters:  # MP4 keeps its chapters in such a stream too; they are written anew
            self._drop(stream, "only sound and text are copied")

    def _holds(self, stream: Stream, suffix: str) -> bool:
        """Tell whether a kind of file can hold a stream."""
        if stream.type == "attachment":
            return suffix == _HAS_ATTACHMENTS
        return tried(suffix, lambda c: c.add_stream_from_template(stream)) is not None

    def _drop(self, stream: Stream, why: str) -> None:
        self.notes.append(f"dropped: {stream.type} #{stream.index}, {why}")

    def _drop_unfit(self, stream: Stream) -> None:
        """Note a stream that the container cannot hold, and which could."""
        is_cover = stream.type == "video"
        fits = _HAS_COVERS if is_cover else [s for s in MUXERS if self._holds(stream, s)]
        mend = f"; use {' or '.join(fits)}" if fits else ""
        what = "covers" if is_cover else _codec_name(stream)
        name = CONTAINERS[self._suffix].name
        self._drop(stream, f"{name} cannot hold {what}{mend}")


def tried(suffix: str, add: Callable[[OutputContainer], object]) -> bytes | None:
    """Try in memory whether a container takes a stream: some refuse it in their header only.

    Args:
        suffix: Names the container.
        add: Adds the stream to an empty one.

    Returns:
        The file without packets; None if the stream was refused.
    """
    import av

    file = io.BytesIO()
    container = av.open(file, "w", format=MUXERS[suffix])
    try:
        add(container)
        container.start_encoding()
    except (av.error.FFmpegError, OSError, ValueError):
        return None
    finally:
        with suppress(av.error.FFmpegError, OSError, ValueError):
            container.close()
    return file.getvalue()


def _read_covers(reader: VideoReader) -> dict[int, bytes]:
    """Read the pictures that are no video, by stream; they come ahead of all else."""
    from av.stream import Disposition

    container, _ = open_video(reader.source, MAX_PIXELS)
    with container:
        pictures = [s for s in container.streams.video if s.disposition & Disposition.attached_pic]
        found: dict[int, bytes] = {}
        for packet in container.demux(*pictures):
            if packet.size:
                found[packet.stream.index] = bytes(packet)
            if len(found) == len(pictures):
                break
    return found


def _codec_name(stream: Stream) -> str:
    """Name a codec as people do, for example `SubRip`."""
    if stream.type == "attachment":
        return "attachments"
    context: CodecContext | None = stream.codec_context  # None where FFmpeg cannot decode it
    if context is None:
        return "its codec"
    return re.sub(r" \(.*\)$| subtitles?$", "", context.codec.long_name)
