"""Upright RGB pictures out of an open container, with as little delay as the stream allows."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

from fastrestore.arrays import U8
from fastrestore.errors import InputError
from fastrestore.video_probe import (
    DEINTERLACE,
    Orientation,
    choose_stream,
    orientation_of,
    restorable_colour,
)
from fastrestore.yuv import Converter, plane_layout

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

# What is read from streams. Not among them: playlists and session files, which open other places.
FORMATS = (
    "mpegts,matroska,webm,nut,flv,live_flv,mov,mp4,m4a,3gp,3g2,mj2,avi,ogg,mpjpeg,mjpeg,h264,hevc"
)


class Decoder:
    """The video stream of a container that is read once, in order. Not thread-safe.

    Attributes:
        rate: Nominal frames per second; None = unknown.
        damaged: Packets that could not be decoded.
        frames: Pictures drawn so far.
        taken: Bytes of the packets so far.
    """

    def __init__(self, container: InputContainer, name: str, max_pixels: int) -> None:
        """Choose the stream; raises InputError where there is none that can be used."""
        self._container, self._name = container, name
        self._stream = choose_stream(container, name, max_pixels)
        # Frame threads would hold back a frame for each core.
        self._stream.thread_type = "SLICE"
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.rate = Fraction(rate.numerator, rate.denominator) if rate and rate > 0 else None
        self.damaged = self.frames = self.taken = 0
        self._size = (0, 0)
        self._converter: Converter | None = None
        self._orientation = Orientation()

    def __iter__(self) -> Iterator[tuple[U8, Fraction | None]]:
        """Yield pictures, uint8 (H, W, 3), and their stamps in seconds.

        Raises:
            InputError: HDR, interlaced, or of another size than before.
            av.error.FFmpegError: The container cannot be read on.
        """
        import av

        for packet in self._container.demux(self._stream):
            self.taken += packet.size
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                self.damaged += 1
                continue
            for frame in frames:
                yield self._picture(frame), _seconds(frame)

    def _picture(self, frame: VideoFrame) -> U8:
        if self._converter is None:
            colour = restorable_colour(frame, self._stream, self._name)
            layout = plane_layout(frame.format.name, frame.height, frame.width, "ffv1")
            self._converter = Converter(colour, layout)
            self._orientation = orientation_of(frame)
            self._size = frame.width, frame.height
        self.frames += 1
        if (frame.width, frame.height) != self._size:
            old = "{}x{}".format(*self._size)
            raise InputError(
                f"{self._name}: frame {self.frames} is {frame.width}x{frame.height}, the ones "
                f"before {old}; start again for the new size"
            )
        if frame.interlaced_frame:
            raise InputError(f"{self._name}: frame {self.frames} is interlaced; {DEINTERLACE}")
        return self._orientation.upright(self._converter.to_rgb(frame))


def _seconds(frame: VideoFrame) -> Fraction | None:
    if frame.pts is None or not frame.time_base:
        return None
    return frame.pts * Fraction(frame.time_base.numerator, frame.time_base.denominator)
