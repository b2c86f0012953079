"""One stream of an engine: its context, its buffers on both sides of the bus, its CUDA graph.

    host arrays -> pinned -> device -> engine -> device -> pinned -> new arrays

Everything is allocated once, for the engine's largest frame. While one input is copied to the
device the next is copied into pinned memory, and while `restored` travels back the state is copied
out. There is no more to overlap for a caller that needs one result before it can ask for the next,
and a video's state makes every caller one of that kind: a second set of buffers would only wait.
Callers in several threads overlap, each on a lane of its own.

On a device that shares the host's memory nothing crosses a bus: the engine reads and writes mapped
memory of the host.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastrestore.arrays import F32, U8
from fastrestore.backends.engine_load import CHANNELS, LoadedEngine
from fastrestore.cuda import Cuda, Graph, Host
from fastrestore.errors import EngineError

if TYPE_CHECKING:
    from fastrestore.bench.device_time import Marks

logger = logging.getLogger(__name__)

Shape = tuple[int, int, int]  # N, H, W


class Lane:
    """Runs one batch at a time. Made, used and closed inside an active context."""

    def __init__(self, cuda: Cuda, engine: LoadedEngine, mapped: bool) -> None:
        """Allocate everything.

        Raises:
            EngineError: Memory is short; nothing stays allocated.
        """
        self._engine = engine
        self._hosts: dict[str, Host] = {}
        self._pointers: dict[str, int] = {}
        self._mapped = mapped
        self._captures = engine.captures and cuda.has_graphs
        self._shape: Shape | None = None
        self._profile = 0  # that of a new context
        self._is_warm = False
        self._graph: Graph | None = None
        with ExitStack() as held:
            self._stream = cuda.stream()
            held.callback(self._stream.close)
            self._state_is_there = cuda.event()
            held.callback(self._state_is_there.close)
            for name, dtype in engine.dtypes.items():
                shapes = [high for _, high in engine.frames]
                size = max(_bytes(name, shape, dtype) for shape in shapes)
                host = self._hosts[name] = cuda.host(size, mapped)
                held.callback(host.close)
                if host.pointer is None:
                    buffer = cuda.buffer(size)
                    held.callback(buffer.close)
                    self._pointers[name] = buffer.pointer
                else:
                    self._pointers[name] = host.pointer
            self._context: Any = engine.new_context()
            self._held = held.pop_all()

    def run(self, frame: U8, mask: U8, state: U8, sigma: F32) -> tuple[U8, U8]:
        """Restore a batch that one of the profiles takes; see `Backend.run`.

        Raises:
            EngineError: The device or the runtime failed; the lane must be closed.
        """
        n, h, w, _ = frame.shape
        is_new = self._shape != (n, h, w)
        if is_new:
            self._take_shape((n, h, w))
        given: dict[str, npt.NDArray[Any]] = {
            "frame": frame,
            "mask": mask,
            "state": state,
            "sigma": sigma,
        }
        for name in self._engine.inputs:
            np.copyto(self._arrays[name], given[name], casting="same_kind")
            if not self._mapped:
                self._stream.upload(self._bytes[name], self._pointers[name])
        self._enqueue()
        if self._mapped:
            self._stream.synchronize()
        elif self._engine.has_state:
            self._download("state_out")
            self._stream.record(self._state_is_there)
            self._download("restored")
            self._state_is_there.synchronize()
        else:
            self._download("restored")
        after: U8 = (
            self._arrays["state_out"].copy() if self._engine.has_state else np.zeros_like(state)
        )
        if not self._mapped:
            self._stream.synchronize()
        if is_new:
            self._engine.keep_compiled()
        return self._arrays["restored"].copy(), after

    def timed(self, marks: Marks) -> None:
        """Run once more what `run` ran last, one step after the other, with marks between them.

        Raises:
            EngineError: The device or the runtime failed; the lane must be closed.
        """
        marks.mark(self._stream.handle)
        for name in () if self._mapped else self._engine.inputs:
            self._stream.upload(self._bytes[name], self._pointers[name])
        marks.mark(self._stream.handle)
        self._enqueue()
        marks.mark(self._stream.handle)
        for name in () if self._mapped else self._engine.outputs:
            self._download(name)
        marks.mark(self._stream.handle)
        self._stream.synchronize()
        marks.read()

    def close(self) -> None:
        """Free everything, whatever state the device is in.

        Raises:
            EngineError: The device failed; all was tried.
        """
        with ExitStack() as held:
            held.push(self._held.pop_all())
            held.callback(self._drop_graph)
            with suppress(EngineError):  # what is freed below is the last thing to use the device
                self._stream.synchronize()
            self._context = None  # before the memory that it was told of

    def _download(self, name: str) -> None:
        self._stream.download(self._pointers[name], self._bytes[name])

    def _take_shape(self, shape: Shape) -> None:
        """Tell the context of another size; the graph of the last one goes.

        Graphs of several shapes are not kept: a context may change what they point to.
        """
        self._drop_graph()
        self._shape, self._is_warm = None, False
        profile = self._engine.profile_of(shape)
        size = f"{shape[2]}x{shape[1]} px, batch of {shape[0]}:"
        if profile != self._profile:
            if not self._context.set_optimization_profile_async(profile, self._stream.handle):
                raise self._engine.failure(f"{size} profile {profile} is refused by")
            self._profile = profile
        self._bytes: dict[str, U8] = {}
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        for name, dtype in self._engine.dtypes.items():
            dims = _dims(name, shape)
            self._bytes[name] = self._hosts[name].array[: _bytes(name, shape, dtype)]
            self._arrays[name] = self._bytes[name].view(dtype).reshape(dims)
            if name in self._engine.inputs and not self._context.set_input_shape(name, dims):
                raise self._engine.failure(f"{size} {name} is refused by")
        for name, pointer in self._pointers.items():
            if not self._context.set_tensor_address(name, pointer):
                raise self._engine.failure(f"{size} the memory of {name} is refused by")
        self._shape = shape

    def _enqueue(self) -> None:
        """Start the engine: plainly the first time, then as a graph where there are graphs."""
        if self._captures and self._is_warm and self._graph is None:
            try:
                self._graph = self._stream.capture(self._execute)
            except EngineError as e:
                logger.warning(
                    "%s; it runs without a CUDA graph", str(e)
                )  # e would keep the context
                self._captures = False
        if self._graph is not None:
            self._graph.launch()
            return
        self._execute()
        self._is_warm = True

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise self._engine.failure("cannot be run by")

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.close()


def _dims(name: str, shape: Shape) -> tuple[int, ...]:
    return (*shape, CHANNELS[name]) if name in CHANNELS else shape[:1]


def _bytes(name: str, shape: Shape, dtype: npt.DTypeLike) -> int:
    return int(np.prod(_dims(name, shape))) * np.dtype(dtype).itemsize
