"""Device time by CUDA events, in the words of TensorRT's own timing tool. Never run on a GPU yet.

Events are asked of the driver itself: they take the streams of TensorRT and of torch alike. What
is timed differs from that tool in one thing: the next batch is not put into the queue before the
last one is done, so `Throughput` is that of one caller.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from fastrestore.arrays import F64
from fastrestore.backend import Shape
from fastrestore.cuda_driver import LIBRARY, failure
from fastrestore.errors import EngineError

COMPUTE = "GPU Compute Time"
ENQUEUE = "Enqueue Time"
WORDS = ("Latency", ENQUEUE, "H2D Latency", COMPUTE, "D2H Latency")
MARKS = 4  # before the copy to the device, after it, after the model, after the copy back


class Marks(Protocol):
    """What a backend calls while it runs: `mark` at the four points, `read` when all is done."""

    def mark(self, stream: int) -> None:
        """Mark what has been put into a stream so far."""

    def read(self) -> None:
        """Take the times; the device is idle, its context is current."""


class Timed(Protocol):
    """A backend that can be asked for device time."""

    def timed(self, shape: Shape, marks: Marks) -> None:
        """Run once more what `run` ran last at this shape, one at a time, with marks."""


class Events(Protocol):
    """The driver's clock."""

    def record(self, event: int, stream: int) -> None:
        """Let an event come once all that is in the stream so far is done."""

    def elapsed_ms(self, first: int, last: int) -> float:
        """Return the time between two events that have come."""

    def close(self) -> None:
        """Free them."""


class CudaEvents:
    """Events with a clock; made and used inside an active context."""

    def __init__(self, n: int = MARKS, library: Any = None) -> None:
        """Make them.

        Args:
            n: How many.
            library: Stands in for the driver in tests.

        Raises:
            EngineError: There is no driver, or it refuses.
        """
        try:
            self._cuda: Any = ctypes.CDLL(LIBRARY) if library is None else library
        except OSError as e:
            raise EngineError(f"{LIBRARY}: cannot be loaded ({e}); install the driver") from e
        self._events: list[ctypes.c_void_p] = []
        for _ in range(n):
            event = ctypes.c_void_p()
            self._ask("cuEventCreate", ctypes.byref(event), ctypes.c_uint(0))
            self._events.append(event)

    def record(self, event: int, stream: int) -> None:
        """See `Events`.

        Raises:
            EngineError: The device failed.
        """
        self._ask("cuEventRecord", self._events[event], ctypes.c_void_p(stream))

    def elapsed_ms(self, first: int, last: int) -> float:
        """See `Events`.

        Raises:
            EngineError: The device failed, or an event has not come.
        """
        ms = ctypes.c_float()
        pair = (self._events[first], self._events[last])
        self._ask("cuEventElapsedTime", ctypes.byref(ms), *pair)
        return ms.value

    def close(self) -> None:
        """See `Events`; a device that is gone took them with it."""
        while self._events:
            self._cuda.cuEventDestroy_v2(self._events.pop())

    def _ask(self, call: str, *arguments: Any) -> None:
        code = getattr(self._cuda, call)(*arguments)
        if code:
            raise failure(call, f"CUDA_ERROR_{code}", f"code {code}")


class DeviceTimes:
    """The parts of every call, in buffers that are there before the first one."""

    def __init__(
        self,
        capacity: int,
        make: Callable[[], Events] = CudaEvents,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Prepare; events are made at the first mark, where a context is current.

        Args:
            capacity: Calls that are kept.
            make: Makes the events.
            clock: Of the host, in seconds.
        """
        self._make, self._clock = make, clock
        self._events: Events | None = None
        self._kept = np.zeros((capacity, len(WORDS)))
        self._now = np.zeros(len(WORDS))
        self._marks, self._began_s = 0, 0.0

    def mark(self, stream: int) -> None:
        """See `Marks`."""
        if self._events is None:
            self._events = self._make()
        if self._marks == 0:
            self._began_s = self._clock()
        self._events.record(self._marks, stream)
        self._marks += 1
        if self._marks == MARKS:
            self._now[1] = 1e3 * (self._clock() - self._began_s)

    def read(self) -> None:
        """See `Marks`.

        Raises:
            EngineError: The backend did not mark all four points.
        """
        if self._events is None or self._marks != MARKS:
            raise EngineError(f"device time: {self._marks} marks instead of {MARKS}; report a bug")
        self._marks = 0
        for i in range(MARKS - 1):
            self._now[2 + i] = self._events.elapsed_ms(i, i + 1)
        self._now[0] = self._now[2:].sum()

    def keep(self, n: int) -> None:
        """Keep what was read last as that of call `n`."""
        self._kept[n] = self._now

    def of(self, word: str, n: int) -> F64:
        """Return the times of the first `n` calls in ms; `word` is one of `WORDS`."""
        return self._kept[:n, WORDS.index(word)].copy()

    def close(self) -> None:
        """Free the events."""
        if self._events is not None:
            self._events.close()
            self._events = None
