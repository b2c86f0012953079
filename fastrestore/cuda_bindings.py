"""CUDA's driver through NVIDIA's cuda-bindings. Never run on a GPU yet.

What is verified is that versions 12.9 and 13.5 take and return what is written here, over a
library that knows the driver's functions and no device.
"""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

import numpy as np

from fastrestore.arrays import U8
from fastrestore.cuda_driver import (
    AbsentError,
    Device,
    Graphs,
    failure,
    first_line,
    no_device,
    no_driver,
)
from fastrestore.errors import EngineError


class CudaBindings:
    """The driver through NVIDIA's cuda-bindings, 12.6 or newer."""

    name = "cuda-bindings"

    def __init__(self) -> None:
        cuda: Any = importlib.import_module("cuda.bindings.driver")
        self._cuda = cuda
        self.graphs: Graphs | None = self
        try:
            (error,) = cuda.cuInit(0)
        except RuntimeError as e:  # where the library itself is absent
            raise no_driver(self.name) from e
        if error == cuda.CUresult.CUDA_ERROR_NO_DEVICE:
            raise no_device()
        if error:
            raise AbsentError(str(self._failure("cuInit", error)))

    def _ask(self, call: str, *args: Any) -> Any:
        """Call the driver; return what it returns besides its verdict."""
        try:
            error, *values = getattr(self._cuda, call)(*args)
        except RuntimeError as e:  # a driver older than the call
            raise failure(call, "", first_line(e)) from e
        if error:
            raise self._failure(call, error)
        return values[0] if len(values) == 1 else tuple(values)

    def _failure(self, call: str, error: Any) -> EngineError:
        _, text = self._cuda.cuGetErrorString(error)
        return failure(call, error.name, text.decode() if text else error.name)

    def count(self) -> int:
        """See `Driver`."""
        return int(self._ask("cuDeviceGetCount"))

    def describe(self, index: int) -> Device:
        """See `Driver`."""
        device = self._ask("cuDeviceGet", index)
        kinds = self._cuda.CUdevice_attribute
        names = ("COMPUTE_CAPABILITY_MAJOR", "COMPUTE_CAPABILITY_MINOR", "INTEGRATED")
        major, minor, integrated = (
            self._ask("cuDeviceGetAttribute", getattr(kinds, f"CU_DEVICE_ATTRIBUTE_{n}"), device)
            for n in names
        )
        title = self._ask("cuDeviceGetName", 256, device).split(b"\0")[0].decode()
        total = int(self._ask("cuDeviceTotalMem", device))
        return Device(index, title, f"{major}.{minor}", bool(integrated), total)

    def retain(self, index: int) -> int:
        """See `Driver`."""
        return int(self._ask("cuDevicePrimaryCtxRetain", self._ask("cuDeviceGet", index)))

    def release(self, index: int, context: int) -> None:
        """See `Driver`."""
        self._ask("cuDevicePrimaryCtxRelease", self._ask("cuDeviceGet", index))

    def push(self, context: int) -> None:
        """See `Driver`."""
        self._ask("cuCtxPushCurrent", context)

    def pop(self) -> None:
        """See `Driver`."""
        self._ask("cuCtxPopCurrent")

    def memory(self) -> tuple[int, int]:
        """See `Driver`."""
        free, total = self._ask("cuMemGetInfo")
        return int(free), int(total)

    def allocate(self, size: int) -> int:
        """See `Driver`."""
        return int(self._ask("cuMemAlloc", size))

    def free(self, pointer: int) -> None:
        """See `Driver`."""
        self._ask("cuMemFree", pointer)

    def allocate_host(self, size: int, mapped: bool) -> U8:
        """See `Driver`."""
        flags = int(self._cuda.CU_MEMHOSTALLOC_DEVICEMAP) if mapped else 0
        address = int(self._ask("cuMemHostAlloc", size, flags))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def device_pointer(self, host: U8) -> int:
        """See `Driver`."""
        return int(self._ask("cuMemHostGetDevicePointer", host.ctypes.data, 0))

    def free_host(self, host: U8) -> None:
        """See `Driver`."""
        self._ask("cuMemFreeHost", host.ctypes.data)

    def make_stream(self) -> int:
        """See `Driver`."""
        flags = int(self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)
        return int(self._ask("cuStreamCreate", flags))

    def destroy_stream(self, stream: int) -> None:
        """See `Driver`."""
        self._ask("cuStreamDestroy", stream)

    def make_event(self) -> int:
        """See `Driver`."""
        flags = int(self._cuda.CUevent_flags.CU_EVENT_DISABLE_TIMING)
        return int(self._ask("cuEventCreate", flags))

    def destroy_event(self, event: int) -> None:
        """See `Driver`."""
        self._ask("cuEventDestroy", event)

    def upload(self, pointer: int, host: U8, stream: int) -> None:
        """See `Driver`."""
        self._ask("cuMemcpyHtoDAsync", pointer, host.ctypes.data, host.nbytes, stream)

    def download(self, host: U8, pointer: int, stream: int) -> None:
        """See `Driver`."""
        self._ask("cuMemcpyDtoHAsync", host.ctypes.data, pointer, host.nbytes, stream)

    def record(self, event: int, stream: int) -> None:
        """See `Driver`."""
        self._ask("cuEventRecord", event, stream)

    def synchronize_event(self, event: int) -> None:
        """See `Driver`."""
        self._ask("cuEventSynchronize", event)

    def synchronize(self, stream: int) -> None:
        """See `Driver`."""
        self._ask("cuStreamSynchronize", stream)

    def begin_capture(self, stream: int) -> None:
        """See `Graphs`. Other threads may use the default stream meanwhile."""
        mode = self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._ask("cuStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> int:
        """See `Graphs`."""
        graph = self._ask("cuStreamEndCapture", stream)
        try:
            return int(self._ask("cuGraphInstantiate", graph, 0))
        finally:
            self._ask("cuGraphDestroy", graph)

    def launch(self, graph: int, stream: int) -> None:
        """See `Graphs`."""
        self._ask("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        """See `Graphs`."""
        self._ask("cuGraphExecDestroy", graph)
