"""A live source that is opened again when it was lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from fastrestore.live.frame import LiveFrame, Source, SourceLostError
from fastrestore.live.stream import LONG_GAP

FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 30.0  # before a try; doubled after each that failed


class ReturningSource:
    """A source that goes on with the one that `reopen` gives after it was lost; see `Source`.

    Numbers and time stamps go on too, past the outage: its frames count as lost, and as more than
    `LONG_GAP`.
    """

    def __init__(
        self,
        source: Source,
        reopen: Callable[[], Source],
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ) -> None:
        """Take over an open source.

        Args:
            source: Open, live.
            reopen: Opens it again; raises SourceLostError while it is away.
            clock: Seconds, as the frames are stamped.
            wait: Waits for an event so many seconds; tells whether it came.
        """
        self.name, self.live = source.name, source.live
        self.rate = source.rate
        self.notes: list[str] = []
        self._source, self._reopen, self._clock, self._wait = source, reopen, clock, wait
        self._closed, self._lock = threading.Event(), threading.Lock()
        self._delay = FIRST_DELAY_S
        self._last: LiveFrame | None = None  # without its pixels
        self._lost_at: float | None = None
        self._number_offset, self._pts_offset = 0, Fraction(0)

    def read(self) -> LiveFrame | None:
        """See `Source.read`; a loss is waited out."""
        while not self._closed.is_set():
            try:
                frame = self._source.read()
                self._hear()
            except SourceLostError as e:
                self._hear()
                if self._lost_at is None:
                    self._lost_at = self._clock()
                    self.notes.append(f"{e}; opening it again until it is back")
                self._open_again()
                continue
            self.rate = self._source.rate
            return None if frame is None else self._continued(frame)
        return None

    def close(self) -> None:
        """See `Source.close`."""
        with self._lock:
            self._closed.set()
            source = self._source
        source.close()

    def _hear(self) -> None:
        """Take over what the source noted; reading it once keeps the list short."""
        while self._source.notes:
            self.notes.append(self._source.notes.pop(0))

    def _open_again(self) -> None:
        """Try it, after ever longer waits, until it works or `close` was called."""
        self._source.close()
        while not self._wait(self._closed, self._delay):
            self._delay = min(2 * self._delay, LONGEST_DELAY_S)
            try:
                source = self._reopen()
            except SourceLostError:
                continue
            with self._lock:
                self._source = source
                closed = self._closed.is_set()
            if closed:
                source.close()
            return

    def _continued(self, frame: LiveFrame) -> LiveFrame:
        """Number and stamp a frame so that it goes on from the last one."""
        if self._lost_at is not None:
            self.notes.append(f"{self.name}: back after {self._clock() - self._lost_at:.1f} s")
            self._lost_at, self._delay = None, FIRST_DELAY_S
            self._set_offsets(frame)
        pts = None if frame.pts is None else frame.pts + self._pts_offset
        frame = replace(frame, number=frame.number + self._number_offset, pts=pts)
        self._last = replace(frame, rgb=frame.rgb[:0, :0].copy())
        return frame

    def _set_offsets(self, frame: LiveFrame) -> None:
        """Place the first frame after an outage as far behind the last one as it is in time."""
        last = self._last
        if last is None:
            return
        away = frame.captured - last.captured
        missed = round(away * float(self.rate)) if self.rate else 0
        self._number_offset = last.number + max(missed, LONG_GAP + 1) - frame.number
        if frame.pts is not None and last.pts is not None:
            elapsed = Fraction(away).limit_denominator(1000)
            self._pts_offset = last.pts + elapsed - frame.pts
