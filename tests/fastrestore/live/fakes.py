"""Sources, sinks, a clock and a restorer whose every move is known."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastrestore.arrays import U8
from fastrestore.errors import InputError
from fastrestore.live.frame import LiveFrame

H, W = 4, 6


def picture(value: int, shape: tuple[int, int] = (H, W)) -> U8:
    return np.full((*shape, 3), value, np.uint8)


def frame(number: int, captured: float = 0.0, shape: tuple[int, int] = (H, W)) -> LiveFrame:
    return LiveFrame(picture(number % 256, shape), number, captured, Fraction(number, 25))


class Clock:
    """Time that stands still unless it is told to go on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class ListSource:
    """Hands out what it is given: frames, errors to raise, functions to call."""

    rate: Fraction | None = Fraction(25)

    def __init__(
        self,
        items: Iterable[LiveFrame | Exception | Callable[[], object]],
        *,
        live: bool = False,
        name: str = "in",
        waits: bool = False,
    ) -> None:
        self.name, self.live, self.notes = name, live, ["one note of the source"]
        self._items, self._waits = iter(items), waits
        self.closed = threading.Event()

    def read(self) -> LiveFrame | None:
        for item in self._items:
            if self.closed.is_set():
                return None
            if isinstance(item, Exception):
                raise item
            if isinstance(item, LiveFrame):
                return item
            item()
        if self._waits:
            self.closed.wait()
        return None

    def close(self) -> None:
        self.closed.set()


class ListSink:
    """Keeps what it is given."""

    def __init__(self, name: str = "out", fails_at: int = -1, error: Exception | None = None):
        self.name, self.notes = name, ["one note of the sink"]
        self.frames: list[LiveFrame] = []
        self.ended = ""
        self._fails_at, self._error = fails_at, error

    @property
    def numbers(self) -> list[int]:
        return [f.number for f in self.frames]

    def write(self, item: LiveFrame) -> None:
        if self._error is not None and len(self.frames) == self._fails_at:
            raise self._error
        self.frames.append(item)

    def finish(self) -> None:
        assert not self.ended
        self.ended = "finished"

    def abandon(self) -> None:
        self.ended = self.ended or "abandoned"


class FakeRestorer:
    """Adds 100 to a frame; the state counts the frames of a past. Refuses the value 66."""

    backend = "fake"

    def __init__(self, work: Callable[[], object] = lambda: None, name: str = "tiny") -> None:
        self.spec: Any = SimpleNamespace(name=name, preset=name)
        self.past: U8 | None = None
        self.calls: list[tuple[int, int, Any]] = []  # value, age of the past, sigma
        self.warmed = 0
        self._work = work

    def __call__(self, image: U8, mask: U8 | None = None, **how: Any) -> U8:
        self.warmed += 1
        return image

    def frame(self, image: U8, mask: U8 | None = None, **how: Any) -> U8:
        if image[0, 0, 0] == 66:
            raise InputError("66: does not fit")
        age = 0 if self.past is None else int(self.past[0, 0, 0])
        self.calls.append((int(image[0, 0, 0]), age, how["sigma"]))
        self.past = np.full((*image.shape[:2], 4), age + 1, np.uint8)
        self._work()
        return image + np.uint8(100)


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for what another thread does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come to pass"
        time.sleep(0.001)
