"""A source that blocks for good (camera, network), read by a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from fractions import Fraction

from fastrestore.arrays import U8
from fastrestore.channel import Channel, ClosedError
from fastrestore.live.frame import LiveFrame

Pictures = Generator[tuple[U8, Fraction | None], None, None]


class Feed:
    """A `Source` over a generator of upright pictures and their time stamps.

    Libraries that wait for a device cannot be woken from outside. So a thread waits in them, and
    `read` waits for the thread: it can be woken at once. The generator opens nothing: it takes
    over what is open, and lets go of it when it is closed.
    """

    def __init__(
        self,
        name: str,
        pictures: Pictures,
        *,
        live: bool,
        rate: Fraction | None,
        notes: list[str],
        patience: float,
    ) -> None:
        """Start to read.

        Args:
            name: See `Source`.
            pictures: Every `next` ends within `patience`, with a picture or an error.
            live: See `Source`; False: the thread waits until its picture is taken.
            rate: See `Source`.
            notes: See `Source`; the generator may add to it.
            patience: Seconds, the longest that `close` has to wait.
        """
        self.name, self.live, self.rate, self.notes = name, live, rate, notes
        self._pictures, self._patience = pictures, patience
        self._channel: Channel[LiveFrame] = Channel(1, newest=live)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._draw, name=f"reads {name}", daemon=True)
        self._thread.start()

    def read(self) -> LiveFrame | None:
        """See `Source.read`."""
        try:
            frame = self._channel.get()
        except ClosedError:
            return None
        if frame is None and self._error is not None:
            raise self._error
        return frame

    def close(self) -> None:
        """See `Source.close`; the thread has ended when it returns."""
        self._channel.close()
        if threading.current_thread() is not self._thread:
            self._thread.join(self._patience + 1)

    def _draw(self) -> None:
        """Work of the thread."""
        try:
            for number, (rgb, pts) in enumerate(self._pictures):
                self._channel.put(LiveFrame(rgb, number, time.monotonic(), pts))
        except ClosedError:
            pass  # nobody wants more
        except BaseException as e:  # raised again where it is read
            self._error = e
        finally:
            self._pictures.close()
            self._channel.finish()
