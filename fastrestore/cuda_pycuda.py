"""CUDA's driver through pycuda, which knows no graphs. Never run on a GPU yet.

Version 2026.1 ran over a library that knows the driver's functions and no device.

Its objects free themselves when nothing holds them: they are kept here under their addresses.
`pycuda.autoinit` is not imported: it makes a context of its own, and then TensorRT and others would
not see our memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastrestore.arrays import U8
from fastrestore.cuda_driver import AbsentError, Device, Graphs, failure, first_line, no_device
from fastrestore.errors import EngineError

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING; pycuda has no name for it


class PyCuda:
    """The driver through pycuda, 2022.1 or newer."""

    name = "pycuda"
    graphs: Graphs | None = None

    def __init__(self) -> None:
        import pycuda.driver as cuda

        self._cuda: Any = cuda
        self._kept: dict[int, Any] = {}
        try:
            with self._asking("cuInit"):
                cuda.init()
        except EngineError as e:
            if "no CUDA-capable device" in str(e):
                raise no_device() from e
            raise AbsentError(str(e)) from e

    @contextmanager
    def _asking(self, call: str) -> Iterator[None]:
        """Turn pycuda's errors into ours."""
        try:
            yield
        except self._cuda.Error as e:
            is_full = isinstance(e, self._cuda.MemoryError)
            said, found, text = first_line(e).partition(" failed: ")  # which call, and why
            name = "CUDA_ERROR_OUT_OF_MEMORY" if is_full else ""
            raise failure(said if found else call, name, text or said) from e

    def count(self) -> int:
        """See `Driver`."""
        with self._asking("cuDeviceGetCount"):
            return int(self._cuda.Device.count())

    def describe(self, index: int) -> Device:
        """See `Driver`."""
        with self._asking("cuDeviceGetAttribute"):
            device = self._cuda.Device(index)
            major, minor = device.compute_capability()
            integrated = device.get_attribute(self._cuda.device_attribute.INTEGRATED)
            total = int(device.total_memory())
            return Device(index, device.name(), f"{major}.{minor}", bool(integrated), total)

    def retain(self, index: int) -> int:
        """See `Driver`."""
        with self._asking("cuDevicePrimaryCtxRetain"):
            context = self._cuda.Device(index).retain_primary_context()
            self._kept[int(context.handle)] = context
            return int(context.handle)

    def release(self, index: int, context: int) -> None:
        """See `Driver`."""
        with self._asking("cuDevicePrimaryCtxRelease"):
            self._kept.pop(context).detach()

    def push(self, context: int) -> None:
        """See `Driver`."""
        with self._asking("cuCtxPushCurrent"):
            self._kept[context].push()

    def pop(self) -> None:
        """See `Driver`."""
        with self._asking("cuCtxPopCurrent"):
            self._cuda.Context.pop()

    def memory(self) -> tuple[int, int]:
        """See `Driver`."""
        with self._asking("cuMemGetInfo"):
            free, total = self._cuda.mem_get_info()
            return int(free), int(total)

    def allocate(self, size: int) -> int:
        """See `Driver`."""
        with self._asking("cuMemAlloc"):
            memory = self._cuda.mem_alloc(size)
            self._kept[int(memory)] = memory
            return int(memory)

    def free(self, pointer: int) -> None:
        """See `Driver`."""
        with self._asking("cuMemFree"):
            self._kept.pop(pointer).free()

    def allocate_host(self, size: int, mapped: bool) -> U8:
        """See `Driver`."""
        flags = int(self._cuda.host_alloc_flags.DEVICEMAP) if mapped else 0
        with self._asking("cuMemHostAlloc"):
            host: U8 = self._cuda.pagelocked_empty(size, np.uint8, mem_flags=flags)
            return host

    def device_pointer(self, host: U8) -> int:
        """See `Driver`."""
        memory: Any = host.base
        with self._asking("cuMemHostGetDevicePointer"):
            return int(memory.get_device_pointer())

    def free_host(self, host: U8) -> None:
        """See `Driver`."""
        memory: Any = host.base
        with self._asking("cuMemFreeHost"):
            memory.free()

    def make_stream(self) -> int:
        """See `Driver`."""
        with self._asking("cuStreamCreate"):
            stream = self._cuda.Stream(NON_BLOCKING)
            self._kept[int(stream.handle)] = stream
            return int(stream.handle)

    def destroy_stream(self, stream: int) -> None:
        """See `Driver`."""
        del self._kept[stream]

    def make_event(self) -> int:
        """See `Driver`."""
        with self._asking("cuEventCreate"):
            event = self._cuda.Event(int(self._cuda.event_flags.DISABLE_TIMING))
            self._kept[id(event)] = event
            return id(event)

    def destroy_event(self, event: int) -> None:
        """See `Driver`."""
        del self._kept[event]

    def upload(self, pointer: int, host: U8, stream: int) -> None:
        """See `Driver`."""
        with self._asking("cuMemcpyHtoDAsync"):
            self._cuda.memcpy_htod_async(pointer, host, self._kept[stream])

    def download(self, host: U8, pointer: int, stream: int) -> None:
        """See `Driver`."""
        with self._asking("cuMemcpyDtoHAsync"):
            self._cuda.memcpy_dtoh_async(host, pointer, self._kept[stream])

    def record(self, event: int, stream: int) -> None:
        """See `Driver`."""
        with self._asking("cuEventRecord"):
            self._kept[event].record(self._kept[stream])

    def synchronize_event(self, event: int) -> None:
        """See `Driver`."""
        with self._asking("cuEventSynchronize"):
            self._kept[event].synchronize()

    def synchronize(self, stream: int) -> None:
        """See `Driver`."""
        with self._asking("cuStreamSynchronize"):
            self._kept[stream].synchronize()
