"""One stream of a live run: a thread that reads its source, and one that writes its sink."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from fastrestore.arrays import U8
from fastrestore.channel import Channel, ClosedError
from fastrestore.errors import FastRestoreError
from fastrestore.frame_masks import FrameMask
from fastrestore.live.frame import LiveFrame, Sink, Source
from fastrestore.live.stats import StreamStats

KEPT = 4  # frames that may wait on either side where every one is kept

# A jump of the numbers by more forgets the past. Fewer lost frames are no reason to: with one frame
# in 2 to 16 left the past was worth 0.1 to 6 dB at sigma 25, and to age it by the gap won 0.2 dB at
# most and lost up to 3.7 (benchmarks/results/live-gaps.md). Longer gaps were not measured.
LONG_GAP = 16

OpenMasks = Callable[[tuple[int, int]], FrameMask | None]
"""Opens the masks of frames of a height and width, px."""

_READER_S = 5.0  # for a reader that waits for its source: it cannot be ended from here
_POLL_S = 0.1


class Stream:
    """A source, its sink, and what lies between: two channels, the past, the figures.

    All methods are for the one thread that restores. Where the newest frame wins, frames are
    dropped before they are restored, never after: while the sink is busy none is taken.

    Attributes:
        name: For messages.
        newest: The newest frame wins; else every frame is kept.
        past: State before the next frame; see `Restorer.past`.
        stats: Its figures.
        skipped: Frames left out since the last one that was restored.
        warm: The model has run at its size.
        error: Why it ended early.
    """

    def __init__(
        self,
        source: Source,
        sink: Sink,
        *,
        newest: bool | None = None,
        open_masks: OpenMasks | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare it; nothing is read yet.

        Args:
            source: Open.
            sink: Opens itself.
            newest: None = as the source says.
            open_masks: Opens what tells the damage of frames of a size; None: there is no mask.
            clock: Seconds, as the frames are stamped.
        """
        self.name = f"{source.name} -> {sink.name}"
        self.newest = source.live if newest is None else newest
        self.past: U8 | None = None
        self.stats = StreamStats(clock)
        self.skipped = 0
        self.warm = False
        self.error: FastRestoreError | None = None
        self._crash: BaseException | None = None  # no deliberate error
        self._source, self._sink, self._clock = source, sink, clock
        self._depth = 1 if self.newest else KEPT
        self._input: Channel[LiveFrame] = Channel(self._depth, newest=self.newest)
        self._output: Channel[LiveFrame] = Channel(self._depth)
        self._open_masks = open_masks
        self._masks: FrameMask | None = None
        self._masked_size: tuple[int, ...] | None = None
        self._stopped = False
        self._drained = False
        self._end_notes: list[str] = []
        self._previous: tuple[int, tuple[int, ...]] | None = None  # number and shape
        self._wake: Callable[[], None] = lambda: None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._writer = threading.Thread(target=self._write, daemon=True)

    def start(self, wake: Callable[[], None]) -> None:
        """Start both threads.

        Args:
            wake: Called by them when there may be something to do.
        """
        self._wake = wake
        self._reader.start()
        self._writer.start()

    def take(self) -> LiveFrame | None:
        """Return the next frame to restore; None where there is none now, or no room for it.

        Forgets the past where the frame does not go on from it: another size, or a long gap.
        """
        self.stats.dropped, self.stats.queue = self._input.dropped, len(self._input)
        if self._drained or len(self._output) >= self._depth:
            return None
        try:
            frame = self._input.get(timeout=0)
        except TimeoutError:
            return None
        except ClosedError:
            frame = None
        if frame is None:
            self._drained = True
            self._output.finish()
            return None
        if self._previous is not None:
            number, shape = self._previous
            if frame.number - number > LONG_GAP or frame.rgb.shape != shape:
                self.past = None
        self._previous = frame.number, frame.rgb.shape
        return frame

    def mask(self, frame: LiveFrame) -> U8 | None:
        """Return what is damaged in a frame, uint8 `(H, W)`, 1 = hole; None: there is no mask.

        Raises:
            InputError: See `frame_masks.open_masks` and `FrameMask`.
        """
        height, width = frame.rgb.shape[:2]
        if self._open_masks is None:
            return None
        if self._masked_size != (height, width):
            if self._masks is not None:
                self._masks.close()
            self._masks = self._open_masks((height, width))
            self._masked_size = height, width
        return None if self._masks is None else self._masks(frame.rgb, frame.number)

    def begin(self) -> None:
        """Count from here on: the model is warm."""
        self.warm = True
        self.stats.dropped = self._input.dropped
        self.stats.begin()

    def skip(self) -> None:
        """Count a frame that is not restored."""
        self.skipped += 1
        self.stats.skipped += 1

    def give(self, frame: LiveFrame) -> None:
        """Hand a restored frame to the sink; one that has failed takes it no more."""
        self.skipped = 0
        with suppress(ClosedError):
            self._output.put(frame)

    def stop(self, error: FastRestoreError | None = None) -> None:
        """Read no more; what was restored is still written.

        Args:
            error: Why, if that is not wanted.
        """
        self.error = self.error or error
        self._stopped = self._drained = True
        self.stats.dropped, self.stats.queue = self._input.dropped, 0
        self._source.close()
        self._input.close()
        self._output.finish()

    @property
    def ended(self) -> bool:
        """Whether nothing more happens: the sink is complete, or has failed."""
        return not self._writer.is_alive()

    def said(self) -> list[str]:
        """Return what source and sink noted since the last call; at the end the mask, too."""
        new: list[str] = []
        for notes in (self._source.notes, self._sink.notes, self._end_notes):
            while notes:  # taken out: a stream that breaks for weeks must not fill the memory
                new.append(notes.pop(0))
        return new

    def abandon(self) -> None:
        """Let the sink go, complete or not."""
        self._sink.abandon()

    def join(self) -> None:
        """Wait until the sink is complete; raises what is no deliberate error of the threads."""
        while self._writer.is_alive():
            self._writer.join(_POLL_S)
        self._reader.join(_READER_S)
        if self._masks is not None:
            self._end_notes += self._masks.notes()
            self._masks.close()
            self._masks = None
        if self._crash is not None:
            raise self._crash

    def _read(self) -> None:
        """The reading thread."""
        last = None
        try:
            while (frame := self._source.read()) is not None:
                if last is not None:
                    self.stats.lost += max(0, frame.number - last - 1)
                last = frame.number
                self._input.put(frame)
                self._wake()
        except ClosedError:
            pass
        except FastRestoreError as e:
            if not self._stopped:
                self.error = self.error or e
        except BaseException as e:
            self._crash = e
        finally:
            self._input.finish()
            self._source.close()
            self._wake()

    def _write(self) -> None:
        """The writing thread."""
        wrote = False
        try:
            while (frame := self._output.get()) is not None:
                self._sink.write(frame)
                wrote = True
                self.stats.written(frame, self._clock())
                self._wake()
            if wrote or self.error is None:
                self._sink.finish()
            else:
                self._sink.abandon()  # the error says enough
            self.stats.finish()
        except BaseException as e:
            if isinstance(e, FastRestoreError):
                self.error = self.error or e
            else:
                self._crash = e
            self._output.close()
            self._source.close()
            self._input.close()
            self._sink.abandon()
        finally:
            self._wake()
