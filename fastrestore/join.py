"""Segments become one file: their packets, and those of the input's other streams, copied."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastrestore.atomic import label
from fastrestore.errors import InputError
from fastrestore.segment_file import Stamps
from fastrestore.video_io import VideoReader
from fastrestore.video_write import VideoWriter

if TYPE_CHECKING:
    from av import VideoStream
    from av.packet import Packet

Segment = tuple[Path, Stamps]


def join(
    segments: list[Segment],
    end: int,
    reader: VideoReader,
    writer: VideoWriter,
    stop: threading.Event,
) -> None:
    """Fill a file with the segments and the other streams of the input, in the order of time.

    Args:
        segments: Their files and time stamps.
        end: Where the clip ends, in ticks of the reader's `time_base`.
        reader: The input, nothing read yet.
        writer: The file, nothing written yet. It is completed.
        stop: Ends it as Ctrl+C does.

    Raises:
        InputError: A segment is damaged.
        KeyboardInterrupt: `stop` was set.
    """
    video = _Video(segments, end, reader, writer, stop)
    for packet in reader.others():
        stamp = packet.pts if packet.dts is None else packet.dts
        if stamp is not None and packet.time_base:
            video.write_until(stamp * packet.time_base)
        writer.write_packet(packet)
    video.write_until(None)
    writer.finish()


class _Video:
    """The packets of all segments, one behind the other."""

    def __init__(
        self,
        segments: list[Segment],
        end: int,
        reader: VideoReader,
        writer: VideoWriter,
        stop: threading.Event,
    ) -> None:
        self._writer, self._end, self._time_base, self._stop = writer, end, reader.time_base, stop
        pts = np.concatenate([stamps for _, stamps in segments])
        step = max(1, round(1 / (reader.rate * reader.time_base)))
        self._dts = decoding_times(pts, step)
        self._durations = durations(pts, end)
        self._packets = self._read(segments)
        self._next = next(self._packets, None)

    def write_until(self, time: Fraction | None) -> None:
        """Write what is decoded before a time in seconds; None = all."""
        while (packet := self._next) is not None:
            if time is not None and (packet.dts or 0) * self._time_base > time:
                return
            if self._stop.is_set():
                raise KeyboardInterrupt
            self._next = next(self._packets, None)
            is_last = self._next is None
            self._writer.write_encoded(packet, self._end if is_last else None)

    def _read(self, segments: list[Segment]) -> Iterator[Packet[VideoStream]]:
        import av

        done = 0
        for path, stamps in segments:
            found = 0
            with av.open(os.path.abspath(path), format="nut") as container:
                for packet in container.demux(video=0):
                    if not packet.size:
                        continue
                    if found < len(stamps):
                        packet.pts, packet.dts = int(stamps[found]), int(self._dts[done + found])
                        packet.duration = int(self._durations[done + found])
                        packet.time_base = self._time_base
                        yield packet
                    found += 1
            if found != len(stamps):
                raise InputError(
                    f"{label(path)}: is damaged ({found} packets instead of {len(stamps)}); "
                    "begin anew with --overwrite"
                )
            done += found


def decoding_times(pts: Stamps, step: int) -> Stamps:
    """Return when each packet is decoded: as late as the order of the packets allows.

    Every segment comes from an encoder of its own, whose decoding times may lie before the last
    ones of the segment ahead. A packet is never decoded after it is shown, and times rise.

    Args:
        pts: When packets are shown, in decoding order, all different.
        step: Ticks between the first packets, where the clip offers none.
    """
    shown = np.sort(pts)
    delay = int((np.arange(len(pts)) - np.searchsorted(shown, pts)).max(initial=0))
    ahead = shown[:1] - step * np.arange(delay, 0, -1)
    return np.concatenate([ahead, shown[: len(shown) - delay]])


def durations(pts: Stamps, end: int) -> Stamps:
    """Return how long each packet is shown.

    Args:
        pts: When packets are shown, in any order, all different.
        end: When the last one ends.
    """
    shown = np.sort(pts)
    return np.diff(np.append(shown, end))[np.searchsorted(shown, pts)]
