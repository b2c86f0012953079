"""One segment of a restored clip: its packets in a file of its own, their time stamps beside it.

The container is NUT: it keeps every packet byte for byte, whatever the codec, and players know it.
Time stamps it may shift, and decoding times it makes up; the true ones are kept as an array.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fastrestore.atomic import sync
from fastrestore.encoders import Encoding
from fastrestore.environment import PROC
from fastrestore.video_io import VideoReader
from fastrestore.video_write import add_video

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.packet import Packet

Stamps = npt.NDArray[np.int64]


class SegmentWriter:
    """Encodes the frames of one segment, with an encoder of its own."""

    def __init__(self, part: Path, reader: VideoReader, encoding: Encoding) -> None:
        """Create the file.

        Args:
            part: Path to write; an old file there is replaced.
            reader: The clip.
            encoding: From `choose_encoding`.

        Raises:
            av.error.FFmpegError, ValueError: The encoder or the file cannot be opened.
        """
        import av

        self._part, self._time_base = part, reader.time_base
        self._pending: VideoFrame | None = None
        self._stamps: list[int] = []
        part.unlink(missing_ok=True)  # never write through a link left there
        self._container = av.open(os.path.abspath(part), "w", format="nut")
        try:
            self._video = add_video(self._container, reader, encoding, [])
            self._video.options = dict(repeatable(encoding))
        except BaseException:
            self.abandon()
            raise

    def write(self, frame: VideoFrame) -> None:
        """Encode a frame; it is held back until it is known how long it is shown."""
        self._encode_pending(frame.pts or 0)
        self._pending = frame

    def finish(self, end: int) -> Stamps:
        """Complete the file on disk.

        Args:
            end: Where the last frame ends, in ticks of the reader's `time_base`.

        Returns:
            Time stamps of the packets in their order, in the same ticks.
        """
        self._encode_pending(end)
        self._mux(self._video.encode(None))
        self._container.close()
        sync(self._part)
        return np.array(self._stamps, np.int64)

    def abandon(self) -> None:
        """Remove the file; that it cannot be completed is no news."""
        import av

        with suppress(av.error.FFmpegError, OSError, ValueError):
            self._container.close()
        self._part.unlink(missing_ok=True)

    def _encode_pending(self, end: int) -> None:
        if self._pending is not None:
            self._pending.duration = end - (self._pending.pts or 0)
            self._mux(self._video.encode(self._pending))
        self._pending = None

    def _mux(self, packets: Iterable[Packet[VideoStream]]) -> None:
        for packet in packets:
            # The muxer moves it to its own clock.
            ticks = (packet.pts or 0) * (packet.time_base or 0) / self._time_base
            self._stamps.append(round(ticks))
            self._container.mux(packet)


def repeatable(encoding: Encoding) -> dict[str, str]:
    """Return the encoder's options, so that equal frames become equal packets in every run.

    x264 reads memory that it never wrote with AVX-512 where the width is no multiple of 128: six
    results of twelve runs at 320x240, one with AVX2, which takes as long (x264 165, AMD EPYC).
    """
    if encoding.codec != "libx264" or not _has_avx512():
        return encoding.options
    others = encoding.options.get("x264-params")
    return {**encoding.options, "x264-params": f"{others}:asm=avx2" if others else "asm=avx2"}


def _has_avx512() -> bool:
    try:
        return "avx512" in (PROC / "cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no such file: not Linux
        return False
