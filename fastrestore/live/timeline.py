"""When a written frame is shown, so that the speed is right although frames were dropped."""

from __future__ import annotations

from fractions import Fraction

from fastrestore.live.frame import LiveFrame

TICKS_HZ = 90_000  # of the time stamps: MPEG's clock
DEFAULT_RATE = Fraction(30)  # where no one knows it: spacing of frames that carry no time at all
SLOWEST, FASTEST = Fraction(1, 1000), Fraction(10_000)  # a nominal rate beyond is no rate


class Timeline:
    """Time stamps that rise from 0, by the source's clock, or else by when frames were captured."""

    def __init__(self, rate: Fraction | None) -> None:
        """Start it.

        Args:
            rate: Nominal frames per second, for steps that neither clock tells.
        """
        self._step = 1 / (rate or DEFAULT_RATE)
        self._now = Fraction(0)
        self._ticks = -1
        self._last: tuple[Fraction | None, float] | None = None

    def ticks(self, frame: LiveFrame) -> int:
        """Return the time of the next frame, in ticks."""
        if self._last is not None:
            pts, captured = self._last
            step = Fraction(0)
            if frame.pts is not None and pts is not None:
                step = frame.pts - pts
            if step <= 0:  # no clock, or it was set back
                step = Fraction(frame.captured - captured)
            self._now += step if step > 0 else self._step
        self._last = frame.pts, frame.captured
        self._ticks = max(self._ticks + 1, round(self._now * TICKS_HZ))
        return self._ticks
