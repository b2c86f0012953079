"""The hand-over between two stages of a pipeline: bounded, let go when either side has ended."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

_POLL_S = 0.1  # how long a wait lasts in one piece: Ctrl+C is seen between two, on every platform

T = TypeVar("T")


class ClosedError(Exception):
    """The channel was closed while a stage used it: that stage's way out, never seen outside."""


class Channel(Generic[T]):
    """A bounded queue with one writer and one reader, each in a thread of its own.

    It has two manners. Where nothing may be lost (files), the writer waits for room. Where the
    world does not wait (cameras), the newest item wins: the oldest waiting one is dropped and
    counted. For latency such a channel is one item deep: deeper, every frame waits for others.

    Attributes:
        dropped: Items that were replaced before anybody read them.
    """

    def __init__(self, depth: int = 1, *, newest: bool = False) -> None:
        """Open it.

        Args:
            depth: Items that may wait, at least 1.
            newest: A full channel drops its oldest item instead of letting the writer wait.
        """
        self._items: deque[T] = deque()
        self._depth, self._newest = depth, newest
        self._changed = threading.Condition()
        self._finished = self._closed = False
        self.dropped = 0

    def __len__(self) -> int:
        """Return how many items wait."""
        return len(self._items)

    def put(self, item: T) -> None:
        """Hand over an item; raises ClosedError when nobody will take it."""
        with self._changed:
            while not self._closed and len(self._items) >= self._depth:
                if self._newest:
                    self._items.popleft()
                    self.dropped += 1
                else:
                    self._changed.wait(_POLL_S)
            if self._closed:
                raise ClosedError
            self._items.append(item)
            self._changed.notify_all()

    def get(self, timeout: float | None = None) -> T | None:
        """Take the oldest item that waits; None = no more will come.

        Args:
            timeout: Seconds to wait for one; None = without end.

        Raises:
            ClosedError: The channel was closed.
            TimeoutError: Nothing came in time.
        """
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not self._closed and not self._items and not self._finished:
                left = _POLL_S if end is None else min(_POLL_S, end - time.monotonic())
                if left <= 0:
                    raise TimeoutError
                self._changed.wait(left)
            if self._closed:
                raise ClosedError
            item = self._items.popleft() if self._items else None
            self._changed.notify_all()
            return item

    def finish(self) -> None:
        """Say that no more items come; those that wait can still be read."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def close(self) -> None:
        """End it for both sides at once, from any thread; what waits is forgotten."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()
