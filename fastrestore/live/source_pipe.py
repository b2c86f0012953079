"""Video that comes through a pipe: y4m, a container that can be streamed, or raw frames."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Generator
from fractions import Fraction
from typing import TYPE_CHECKING

from fastrestore.errors import InputError
from fastrestore.live import y4m
from fastrestore.live.decode import FORMATS, Decoder
from fastrestore.live.descriptors import Inlet
from fastrestore.live.frame import LiveFrame
from fastrestore.video_probe import odd_metadata

if TYPE_CHECKING:
    from av.container import InputContainer

_RAW_RATE = Fraction(25)  # where nobody says it


class PipeSource:
    """A `Source` of the frames that come through a pipe: all of them, each when it comes."""

    live = False

    def __init__(
        self,
        descriptor: int,
        *,
        name: str = "stdin",
        input_size: tuple[int, int] | None = None,
        pixel_format: str = "rgb24",
        rate: Fraction | None = None,
        max_pixels: int,
    ) -> None:
        """Prepare it; nothing is read before the first `read`.

        Args:
            descriptor: Where to read; stays open.
            name: For messages.
            input_size: Width and height of raw frames.
            pixel_format: Of raw frames, FFmpeg's name.
            rate: Of raw frames.
            max_pixels: Largest picture that is accepted.
        """
        self.name, self.rate = name, rate
        self.notes: list[str] = []
        self._pipe = Inlet(descriptor)
        self._raw_size, self._format, self._max_pixels = input_size, pixel_format, max_pixels
        self._overhead = self._per_frame = 0  # bytes of y4m beside the pictures
        self._frames = self._draw()
        self._reading = threading.Lock()
        self._closed = False

    def read(self) -> LiveFrame | None:
        """See `Source.read`."""
        import av

        with self._reading:
            try:
                frame = None if self._closed else next(self._frames, None)
            except (av.error.FFmpegError, OSError, ValueError) as e:
                if self._closed:
                    return None
                if isinstance(e, InputError):
                    raise
                reason = getattr(e, "strerror", None) or e
                raise InputError(f"{self.name}: cannot be read on ({reason}); send it anew") from e
            return None if self._closed else frame

    def close(self) -> None:
        """See `Source.close`."""
        self._closed = True
        self._pipe.close()
        with self._reading:
            self._frames.close()
            self._pipe.release()

    def _draw(self) -> Generator[LiveFrame, None, None]:
        """Recognise the form, then yield its frames."""
        start = self._pipe.peek(len(y4m.MAGIC))
        if not start:
            if not self._closed:
                raise InputError(
                    f"{self.name}: ended before anything came; did the program before it fail?"
                )
            return
        with self._open(is_y4m=start.startswith(y4m.MAGIC)) as container:
            decoder = Decoder(container, self.name, self._max_pixels)
            self.rate = decoder.rate
            for number, (rgb, pts) in enumerate(decoder):
                if self._closed:
                    return
                yield LiveFrame(rgb, number, time.monotonic(), pts)
        self._conclude(decoder)

    def _open(self, *, is_y4m: bool) -> InputContainer:
        import av

        form: str | None = None
        options = {"format_whitelist": FORMATS}
        if is_y4m:
            line, end, _ = self._pipe.peek(y4m.HEADER_BYTES, b"\n").partition(b"\n")
            y4m.check_header(line + end, self.name, self._max_pixels)
            self._overhead, self._per_frame = len(line + end), len(y4m.FRAME)
            form, options = "yuv4mpegpipe", {}
        elif self._raw_size is not None:
            form, options = "rawvideo", self._raw_options(*self._raw_size)
        try:
            container: InputContainer = av.open(
                self._pipe, format=form, options=options, **odd_metadata()
            )
        except (av.error.InvalidDataError, ValueError) as e:
            if form == "rawvideo":
                raise InputError(
                    f"{self.name}: no raw frames of --pixel-format {self._format}; use another"
                ) from e
            known = "y4m of a known colour format" if is_y4m else "y4m, Matroska, MPEG-TS or NUT"
            raise InputError(
                f"{self.name}: what comes is not {known}; for raw frames say --input-size WxH"
            ) from e
        return container

    def _raw_options(self, width: int, height: int) -> dict[str, str]:
        """Check what was said of raw frames, for the demuxer."""
        from av import VideoFormat

        if width < 1 or height < 1 or width * height > self._max_pixels:
            raise InputError(
                f"{self.name}: --input-size {width}x{height} must be from 1x1 to "
                f"{self._max_pixels} pixels; see --max-pixels"
            )
        try:
            VideoFormat(self._format)
        except ValueError as e:
            raise InputError(
                f"{self.name}: --pixel-format {self._format} is unknown; for example rgb24, "
                "bgr24, yuv420p, nv12"
            ) from e
        if self.rate is None:
            self.notes.append(f"{self.name}: no --rate given, taken as {_RAW_RATE} frames a second")
        return {
            "video_size": f"{width}x{height}",
            "pixel_format": self._format,
            "framerate": str(self.rate or _RAW_RATE),
        }

    def _conclude(self, decoder: Decoder) -> None:
        """Say what was wrong at the end of the pipe."""
        if not decoder.frames:
            raise InputError(f"{self.name}: ended before a whole frame came; send it anew")
        whole = decoder.taken + decoder.frames * self._per_frame + self._overhead
        cut = self._per_frame and self._pipe.taken > whole
        if cut or decoder.damaged:
            self.notes.append(
                f"{self.name}: {decoder.damaged or 1} frames were cut off or damaged, and left out"
            )


def open_stdin(
    *, input_size: tuple[int, int] | None, pixel_format: str, rate: Fraction | None, max_pixels: int
) -> PipeSource:
    """Open the process's own stdin; arguments as for `PipeSource`.

    Raises:
        InputError: It is the terminal, or closed.
    """
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise InputError(
            "stdin: no pipe; for example `ffmpeg -i clip.mp4 -f yuv4mpegpipe - | "
            "fastrestore live --source - --sink restored.mkv`"
        )
    return PipeSource(
        sys.stdin.fileno(),
        input_size=input_size,
        pixel_format=pixel_format,
        rate=rate,
        max_pixels=max_pixels,
    )
