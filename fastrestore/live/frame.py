"""What passes through live video, and the two ends that it passes between."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from fastrestore.arrays import U8
from fastrestore.errors import InputError, OutputError


class SourceLostError(InputError):
    """A source is not there now: the network broke or refused, the camera is not plugged in.

    It may come back, so that whoever reads may open it again; any other InputError is final.
    Opening raises it too: that a camera starts up again looks like that.
    """


class ReaderGoneError(OutputError):
    """Nobody reads the sink any more: a viewer was closed. For a live run that is a normal end."""


@dataclass(frozen=True, slots=True)
class LiveFrame:
    """One frame on its way from a source to a sink.

    Attributes:
        rgb: Upright uint8 RGB, `(H, W, 3)`.
        number: Counts the source's frames from 0; a gap = frames lost before they reached us.
        captured: `time.monotonic()` when the source handed it out.
        pts: Seconds on the source's own clock; None where it has none.
    """

    rgb: U8
    number: int
    captured: float
    pts: Fraction | None


class Source(Protocol):
    """Where frames come from. One thread reads; `close` may be called from any other.

    Attributes:
        name: For messages: the path, the address, `stdin`.
        live: The world does not wait (camera, network): the newest frame wins. False: every frame
            is kept, and reading waits for nobody.
        rate: Nominal frames per second; None = unknown, or (pipe) not before the first frame.
        notes: What the user should know, one sentence each; grows while frames are read.
    """

    name: str
    live: bool
    rate: Fraction | None
    notes: list[str]

    def read(self) -> LiveFrame | None:
        """Wait for the next frame; None = the end.

        Raises:
            SourceLostError: It is gone and may come back.
            InputError: What comes cannot be read.
        """

    def close(self) -> None:
        """Let go of it, and wake a `read` that waits: that returns None. Twice is once."""


class Sink(Protocol):
    """Where restored frames go. Used by one thread, but for `abandon`.

    Attributes:
        name: For messages.
        notes: What the user should know, one sentence each; grows while frames are written.
    """

    name: str
    notes: list[str]

    def write(self, frame: LiveFrame) -> None:
        """Take the next frame; the first one opens the sink, and fixes the size.

        Raises:
            OutputError: It cannot be written, or nobody reads it any more.
        """

    def finish(self) -> None:
        """Complete the file or flush the pipe; raises OutputError as `write` does."""

    def abandon(self) -> None:
        """Let go after an error, from any thread: a `write` that waits raises OutputError.

        Nothing that is not whole is left under the final name. Twice is once.
        """
