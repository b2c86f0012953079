"""The loop of live video: frames of several streams, one model, fair turns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from fastrestore.errors import InputError
from fastrestore.live.frame import LiveFrame
from fastrestore.live.policy import Ladder
from fastrestore.live.repair import Repair
from fastrestore.live.status import Status
from fastrestore.live.stream import Stream

_POLL_S = 0.1  # Ctrl+C and the status line are looked after between two waits


class Live:
    """Restores streams until they end. Every stream has two threads; the caller's restores.

    Streams that have a frame waiting are served in turn: a fast one takes the turns that the
    others leave, never theirs.

    Attributes:
        stopped: `stop` was called.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        repair: Repair,
        status: Status,
        *,
        ladder: Ladder | None = None,
        seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare it; nothing is read yet.

        Args:
            streams: At least one.
            repair: What restores.
            status: Told how it goes.
            ladder: What gives way when frames are late; None: nothing but frames, where the
                newest wins.
            seconds: End this long after the first frame was restored.
            clock: Seconds, as the frames are stamped.
        """
        self._streams, self._repair, self._status = list(streams), repair, status
        self._ladder, self._seconds, self._clock = ladder, seconds, clock
        self._end: float | None = None
        self._turn = 0
        self._wake = threading.Event()
        self.stopped = False
        self._closed: set[int] = set()  # streams whose end was seen

    def stop(self) -> None:
        """End it within a moment; what was restored is still written.

        From anywhere, a signal handler too: that must not wait for a lock that it interrupts.
        """
        self.stopped = True

    def run(self) -> None:
        """Run to the end. Why a stream ended early stands in its `error`.

        Raises:
            ModelError: The model failed.
            KeyboardInterrupt: Ctrl+C that nobody turned into `stop`. What was restored is written,
                unless it comes once more.
        """
        for stream in self._streams:
            stream.start(self._wake.set)
        try:
            self._restore()
        finally:
            self._finish()

    def _restore(self) -> None:
        while not self.stopped and (self._end is None or self._clock() < self._end):
            self._wake.clear()  # before looking: what comes from here on is not missed
            served = self._serve_next()
            self._tell()
            if not served:
                if len(self._closed) == len(self._streams):
                    return
                self._wake.wait(_POLL_S)

    def _serve_next(self) -> bool:
        """Restore a frame of the next stream that has one; return whether any had."""
        n = len(self._streams)
        for turn in range(self._turn, self._turn + n):
            stream = self._streams[turn % n]
            frame = stream.take()
            if frame is not None:
                self._turn = (turn + 1) % n
                self._serve(stream, frame)
                return True
        return False

    def _serve(self, stream: Stream, frame: LiveFrame) -> None:
        taken = self._clock()
        age = taken - frame.captured if stream.newest else 0.0  # else waiting is nobody's fault
        ladder = self._ladder
        if ladder and stream.newest and ladder.skips(age, stream.skipped):
            stream.skip()
            return
        try:
            mask = stream.mask(frame)
            if not stream.warm:
                self._repair.warm_up(frame.rgb, mask)
                stream.begin()
                taken = self._clock()
                if self._end is None and self._seconds is not None:
                    self._end = taken + self._seconds
            steps = ladder.taken if ladder else ()
            restored, stream.past = self._repair(frame.rgb, mask, stream.past, steps)
        except InputError as e:
            stream.stop(e)
            return
        now = self._clock()
        counted = stream.stats.restored(frame, taken, now)
        stream.give(replace(frame, rgb=restored))
        if ladder and counted and (said := ladder.record(age, now - taken)):
            self._status.note(said)

    def _tell(self) -> None:
        """Say what happened, and show the line when it is time."""
        for i, stream in enumerate(self._streams):
            for text in stream.said():
                self._status.note(text)
            if stream.ended and i not in self._closed:
                stream.join()
                self._closed.add(i)
                if stream.error is not None and len(self._streams) > 1:
                    self._status.error(stream.error)
        if self._status.due():
            self._status.show([(s.name, s.stats.recent()) for s in self._streams], self._runs())

    def _runs(self) -> str:
        steps = self._ladder.taken if self._ladder else ()
        return self._repair.runs + (f", gave way: {' '.join(steps)}" if steps else "")

    def _finish(self) -> None:
        """End every stream, wait until its sink is complete, and sum up."""
        try:
            for stream in self._streams:
                stream.stop()
            for stream in self._streams:
                stream.join()
        except KeyboardInterrupt:
            for stream in self._streams:
                stream.abandon()
            raise
        self._tell()
        rows = [(s.name, s.stats.figures(), s.error) for s in self._streams]
        self._status.summary(rows, self._runs())
