"""One CUDA device: streams, events, pinned and mapped memory, graphs. No torch, no arrays on it.

A device is used through its primary context alone, the one that TensorRT, torch and Triton use as
well. What is made here must be closed by hand; closing twice is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from fastrestore.arrays import U8
from fastrestore.cuda_driver import (
    ELSE,
    AbsentError,
    Device,
    Driver,
    first_line,
    no_device,
    no_driver,
)
from fastrestore.errors import EngineError, MissingExtraError

__all__ = [
    "AbsentError",
    "Buffer",
    "Cuda",
    "Device",
    "Driver",
    "Event",
    "Graph",
    "Host",
    "Stream",
    "device_at",
    "find_device",
    "open_driver",
]


def open_driver() -> Driver:
    """Return the driver through cuda-bindings, else through pycuda.

    Raises:
        MissingExtraError: Neither is installed.
        AbsentError: One is, but there is no driver, or it refuses to start.
        EngineError: One is installed, but broken.
    """
    from fastrestore.cuda_bindings import CudaBindings
    from fastrestore.cuda_pycuda import PyCuda

    broken = ""
    kinds: tuple[tuple[str, Callable[[], Driver]], ...] = (
        ("cuda-bindings", CudaBindings),
        ("pycuda", PyCuda),
    )
    for name, kind in kinds:
        try:
            return kind()
        except ImportError as e:
            if e.name in ("cuda", "cuda.bindings", "pycuda"):
                continue
            if "libcuda" in str(e) or "nvcuda" in str(e):
                raise no_driver(name) from e
            broken = broken or f"{name}: is installed but cannot be loaded ({first_line(e)})"
    if broken:
        raise EngineError(f"{broken}; reinstall it, {ELSE}")
    raise MissingExtraError(
        "no CUDA binding is installed: pip install cuda-bindings ('cuda-bindings<13' for CUDA 12), "
        f"or pycuda, {ELSE}"
    )


def device_at(index: int = 0, driver: Driver | None = None) -> Device:
    """Describe a device; no context is made.

    Args:
        index: Among those that CUDA_VISIBLE_DEVICES leaves.
        driver: None = the first that `open_driver` finds.

    Raises:
        MissingExtraError, EngineError: See `open_driver`.
        AbsentError: There is no device at all.
        EngineError: None of that index.
    """
    asked = driver or open_driver()
    n = asked.count()
    if n == 0:
        raise no_device()
    if not 0 <= index < n:
        known = "only device 0 is" if n == 1 else f"devices 0 to {n - 1} are"
        raise EngineError(
            f"device {index}: {known} visible here; choose another --device, or set "
            f"CUDA_VISIBLE_DEVICES"
        )
    return asked.describe(index)


def find_device(index: int = 0, driver: Driver | None = None) -> Device | None:
    """Describe a device, None where there is no driver or no device.

    Raises:
        MissingExtraError: No CUDA binding is installed.
        EngineError: See `device_at`.
    """
    try:
        return device_at(index, driver)
    except AbsentError:
        return None


class _Held:
    """Something of the driver's that must be given back once."""

    def __init__(self, free: Callable[[], None]) -> None:
        self._free: Callable[[], None] | None = free

    def close(self) -> None:
        """Give it back; it cannot be used afterwards.

        Raises:
            EngineError: The device failed.
        """
        free, self._free = self._free, None
        if free is not None:
            free()


class Buffer(_Held):
    """Memory of the device, from its address `pointer` on."""

    def __init__(self, driver: Driver, size: int) -> None:
        self.pointer = driver.allocate(size)
        super().__init__(lambda: driver.free(self.pointer))


class Host(_Held):
    """Memory of the host that stays where it is, so that copies need not wait for it.

    Attributes:
        array: uint8, `(size,)`.
        pointer: Where the device reads and writes it without a copy; None if it cannot.
    """

    def __init__(self, driver: Driver, size: int, mapped: bool) -> None:
        self.array: U8 = driver.allocate_host(size, mapped)
        super().__init__(lambda: driver.free_host(self.array))
        try:
            self.pointer = driver.device_pointer(self.array) if mapped else None
        except EngineError:
            self.close()
            raise


class Event(_Held):
    """A point in a stream that can be waited for."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.handle = driver.make_event()
        super().__init__(lambda: driver.destroy_event(self.handle))

    def synchronize(self) -> None:
        """Wait until it has come.

        Raises:
            EngineError: The device failed.
        """
        self._driver.synchronize_event(self.handle)


class Graph(_Held):
    """Work of a stream that was recorded once and can be launched again and again."""

    def __init__(self, free: Callable[[], None], launch: Callable[[], None]) -> None:
        super().__init__(free)
        self.launch = launch


class Stream(_Held):
    """A queue of work that does not wait for the default stream."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.handle = driver.make_stream()
        super().__init__(lambda: driver.destroy_stream(self.handle))

    def upload(self, host: U8, pointer: int) -> None:
        """Start a copy to the device.

        Args:
            host: uint8, `(size,)`, of a `Host`.
            pointer: Of a `Buffer`.

        Raises:
            EngineError: The device failed.
        """
        self._driver.upload(pointer, host, self.handle)

    def download(self, pointer: int, host: U8) -> None:
        """Start a copy to the host; see `upload`."""
        self._driver.download(host, pointer, self.handle)

    def record(self, event: Event) -> None:
        """Let an event come once all that is in the stream so far is done."""
        self._driver.record(event.handle, self.handle)

    def synchronize(self) -> None:
        """Wait until all is done.

        Raises:
            EngineError: The device failed, now or in earlier work.
        """
        self._driver.synchronize(self.handle)

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what `work` puts into the stream; nothing runs.

        Raises:
            EngineError: The binding knows no graphs, or the work cannot be recorded. The stream is
                as it was.
        """
        graphs, stream = self._driver.graphs, self.handle
        if graphs is None:
            raise EngineError(
                f"{self._driver.name}: knows no CUDA graphs; pip install cuda-bindings"
            )
        graphs.begin_capture(stream)
        try:
            work()
        except BaseException:
            with suppress(EngineError):  # a capture that failed ends with an error
                graphs.destroy_graph(graphs.end_capture(stream))
            raise
        graph = graphs.end_capture(stream)
        return Graph(lambda: graphs.destroy_graph(graph), lambda: graphs.launch(graph, stream))


class Cuda:
    """A device and its primary context.

    What the methods return is made and used inside `active`, in any thread.
    """

    def __init__(self, index: int = 0, driver: Driver | None = None) -> None:
        """Retain the context of a device.

        Args:
            index: Among those that CUDA_VISIBLE_DEVICES leaves.
            driver: None = the first that `open_driver` finds.

        Raises:
            MissingExtraError, EngineError: See `device_at`.
        """
        self._driver = driver or open_driver()
        self.device = device_at(index, self._driver)
        self._context: int | None = self._driver.retain(index)

    @property
    def has_graphs(self) -> bool:
        """Whether streams can be captured."""
        return self._driver.graphs is not None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make the context this thread's current one.

        Raises:
            EngineError: It is closed, or the device failed.
        """
        if self._context is None:
            raise EngineError(f"{self.device.name}: the device is closed; open it again")
        self._driver.push(self._context)
        try:
            yield
        finally:
            self._driver.pop()

    def free_bytes(self) -> int:
        """Return how much memory of the device is free."""
        return self._driver.memory()[0]

    def buffer(self, size: int) -> Buffer:
        """Allocate bytes of the device."""
        return Buffer(self._driver, size)

    def host(self, size: int, mapped: bool = False) -> Host:
        """Allocate bytes of the host for copies, or mapped: for the device to use in place."""
        return Host(self._driver, size, mapped)

    def stream(self) -> Stream:
        """Make a stream."""
        return Stream(self._driver)

    def event(self) -> Event:
        """Make an event."""
        return Event(self._driver)

    def close(self) -> None:
        """Give the context back. What was made on it must be closed already.

        Raises:
            EngineError: The device failed.
        """
        context, self._context = self._context, None
        if context is not None:
            self._driver.release(self.device.index, context)
