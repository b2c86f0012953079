"""Frames into a pipe: y4m, raw, or a container with time stamps."""

from __future__ import annotations

import sys
import threading

import numpy as np

from fastrestore.arrays import U8
from fastrestore.atomic import disk_reason
from fastrestore.errors import InputError, OutputError
from fastrestore.live import y4m
from fastrestore.live.descriptors import Outlet
from fastrestore.live.encode import SUBSAMPLINGS, Encoding, colour_of, planar
from fastrestore.live.frame import LiveFrame
from fastrestore.live.sink_container import ContainerSink, Rate, check_size, current
from fastrestore.live.timeline import DEFAULT_RATE
from fastrestore.planes import planes
from fastrestore.yuv import Converter

MUXERS = ("matroska", "nut", "mpegts")
PIPE_FORMATS = ("y4m", "rawvideo", *MUXERS)
RAW_FORMATS = ("rgb24", "bgr24", *SUBSAMPLINGS)
# Every frame leaves when it is written; in Matroska when the next one opens a cluster.
_AT_ONCE = {"nut": {}, "mpegts": {}, "matroska": {"cluster_time_limit": "0"}}


class PlainSink:
    """A `Sink` of frames as they are, y4m or raw: no codec, no time stamps, no delay."""

    def __init__(self, outlet: Outlet, form: str, pixel_format: str | None, rate: Rate) -> None:
        """Prepare it; nothing is written before the first frame.

        Args:
            outlet: Where to write.
            form: `"y4m"` or `"rawvideo"`.
            pixel_format: For y4m one of `SUBSAMPLINGS`, None: the first; for raw frames one of
                `RAW_FORMATS`.
            rate: Frames per second that y4m announces, or what tells it at the first frame.

        Raises:
            InputError: The pixel format does not fit.
        """
        fits = SUBSAMPLINGS if form == "y4m" else RAW_FORMATS
        if pixel_format not in (None, *fits):
            raise InputError(
                f"{outlet.name}: no {form} of {pixel_format}; use one of {', '.join(fits)}"
            )
        self.name = outlet.name
        self.notes: list[str] = []
        self._outlet, self._form, self._rate = outlet, form, rate
        self._format = pixel_format or fits[0]
        self._converter: Converter | None = None
        self._size: tuple[int, int] | None = None
        self._writing = threading.Lock()

    def write(self, frame: LiveFrame) -> None:
        """See `Sink.write`."""
        with self._writing:
            if self._size is None:
                self._size = self._start(frame.rgb)
            check_size(frame, self._size, self.name)
            if self._form == "y4m":
                self._outlet.write(y4m.FRAME)
            for part in self._parts(frame.rgb):
                self._outlet.write(np.ascontiguousarray(part).data)

    def finish(self) -> None:
        """See `Sink.finish`; nothing is held back here."""
        self.abandon()

    def abandon(self) -> None:
        """See `Sink.abandon`."""
        self._outlet.close()
        with self._writing:
            self._outlet.release()

    def _start(self, rgb: U8) -> tuple[int, int]:
        height, width = rgb.shape[:2]
        if self._format in SUBSAMPLINGS:
            self._converter = Converter(colour_of(height), planar(self._format))
        if self._form == "y4m":
            rate = current(self._rate) or DEFAULT_RATE
            self._outlet.write(y4m.header(width, height, rate, self._format))
        return width, height

    def _parts(self, rgb: U8) -> list[U8]:
        """Cut a picture into what is written one behind the other."""
        if self._converter is not None:
            return planes(self._converter.from_rgb(rgb))
        return [rgb[..., ::-1] if self._format == "bgr24" else rgb]


def container_sink(outlet: Outlet, encoding: Encoding, rate: Rate) -> ContainerSink:
    """Return a sink that writes a container, one of `MUXERS`, into a pipe."""
    import av

    options = _AT_ONCE[encoding.muxer]
    return ContainerSink(
        outlet.name,
        encoding,
        rate,
        lambda: av.open(outlet, "w", format=encoding.muxer, container_options=options),
        reason=disk_reason,
        outlet=outlet,
    )


def open_stdout() -> Outlet:
    """Take over the process's own stdout.

    Raises:
        OutputError: It is the terminal, or closed.
    """
    if sys.stdout is None or sys.stdout.closed or sys.stdout.isatty():
        raise OutputError(
            "stdout: is closed or a terminal, which takes no video; show it with "
            "`fastrestore live --source 0 --sink - | ffplay -`"
        )
    sys.stdout.flush()
    return Outlet(sys.stdout.fileno(), "stdout")
