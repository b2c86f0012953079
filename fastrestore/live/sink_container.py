"""Frames through an encoder to wherever a container can be written."""

from __future__ import annotations

import threading
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING

from fastrestore.errors import OutputError
from fastrestore.live.descriptors import Outlet
from fastrestore.live.encode import Encoder, Encoding
from fastrestore.live.frame import LiveFrame
from fastrestore.live.timeline import FASTEST, SLOWEST

if TYPE_CHECKING:
    from av.container import OutputContainer

Rate = Fraction | Callable[[], Fraction | None] | None


class ContainerSink:
    """A `Sink` that encodes, into a container which is opened at the first frame."""

    def __init__(
        self,
        name: str,
        encoding: Encoding,
        rate: Rate,
        opening: Callable[[], OutputContainer],
        *,
        reason: Callable[[Exception], str],
        outlet: Outlet | None = None,
    ) -> None:
        """Prepare it; nothing is opened yet.

        Args:
            name: For messages.
            encoding: From `choose_encoding`.
            rate: Nominal frames per second, or what tells it at the first frame.
            opening: Opens the container.
            reason: Puts an error of FFmpeg into words, with a mend.
            outlet: Where the container goes, if a write may wait there for ever.
        """
        self.name = name
        self.notes: list[str] = []
        self._encoding, self._rate, self._opening = encoding, rate, opening
        self._reason, self._outlet = reason, outlet
        self._encoder: Encoder | None = None
        self._writing = threading.Lock()  # FFmpeg must not be closed while it writes
        self._done = False

    @property
    def started(self) -> bool:
        """Whether a frame has come."""
        return self._encoder is not None

    def write(self, frame: LiveFrame) -> None:
        """See `Sink.write`."""
        with self._writing:
            if self._done:
                raise OutputError(f"{self.name}: was closed")
            if self._encoder is None:
                self._guarded(lambda: self._open(frame))
            encoder = self._encoder
            if encoder is not None:
                check_size(frame, encoder.size, self.name)
                self._guarded(lambda: encoder.write(frame))

    def finish(self) -> None:
        """See `Sink.finish`."""
        with self._writing:
            if not self._done and self._encoder is not None:
                self._guarded(self._encoder.finish)
            self._conclude()

    def abandon(self) -> None:
        """See `Sink.abandon`."""
        if self._outlet is not None:
            self._outlet.close()
        with self._writing:
            if not self._done and self._encoder is not None:
                self._encoder.abandon()
            self._conclude()

    def _conclude(self) -> None:
        self._done = True
        if self._outlet is not None:
            self._outlet.release()

    def _open(self, frame: LiveFrame) -> None:
        container = self._opening()
        try:
            self._encoder = Encoder(container, self._encoding, frame.rgb, current(self._rate))
        except BaseException:
            container.close()
            raise
        self.notes += [f"{self.name}: {note}" for note in self._encoder.notes]

    def _guarded(self, step: Callable[[], None]) -> None:
        """Do a step; what FFmpeg cannot do becomes an OutputError."""
        import av

        try:
            step()
            return
        except OutputError:
            raise
        except (av.error.FFmpegError, OSError, ValueError) as e:
            words = self._reason(e)
        # Outside the handler: FFmpeg's own error may hold an address with its password.
        raise OutputError(f"{self.name}: {words}")


def current(rate: Rate) -> Fraction | None:
    """Return the rate that is known by now; None, too, where it is no rate.

    Containers say such things as one frame in 30 years: FFmpeg's writer of MP4 crashes on it.
    """
    known = rate() if callable(rate) else rate
    return known if known is not None and SLOWEST <= known <= FASTEST else None


def check_size(frame: LiveFrame, size: tuple[int, int], name: str) -> None:
    """Refuse a frame of another size than the first; raises OutputError."""
    height, width = frame.rgb.shape[:2]
    if (width, height) != size:
        old = "{}x{}".format(*size)
        raise OutputError(f"{name}: a frame is {width}x{height}, the first was {old}; start anew")
