"""A CUDA driver without a device: it keeps CUDA's rules, counts, and fails when it is told to.

What is put into a stream happens when somebody waits for it, not before. Load it with
`runpy.run_path`: tests are no package.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from fastrestore.arrays import U8
from fastrestore.cuda_driver import Device, failure

GPU = Device(0, "Stand-in", "8.9", False, 8 << 30)
Work = Callable[[], object]


class StandIn:
    """See `cuda_driver.Driver`.

    Attributes:
        live: What was not given back: handle to kind.
        calls: How often each call was made.
        log: Names of the calls in their order, while it is a list.
        fail_at: The how-manieth call fails; None = none.
        broken: Calls that always fail.
        is_gone: Every call fails from now on; memory is lost with the device.
    """

    name = "stand-in"

    def __init__(self, *devices: Device, has_graphs: bool = True) -> None:
        self.devices = devices
        self.graphs: Any = self if has_graphs else None
        self.live: dict[int, str] = {}
        self.calls: Counter[str] = Counter()
        self.log: list[str] | None = None
        self.n = 0
        self.fail_at: int | None = None
        self.broken: set[str] = set()
        self.is_gone = False
        self.bytes: dict[int, U8] = {}
        self.queues: dict[int, list[Work]] = {}
        self.captured: dict[int, list[Work]] = {}
        self._capturing: dict[int, tuple[int, list[Work]]] = {}
        self._marks: dict[int, Work] = {}
        self._contexts = threading.local()
        self._lock = threading.RLock()
        self._next = 4096

    # What every call does first.

    def call(self, name: str, needs_context: bool = True) -> None:
        if needs_context and not self.is_gone:
            assert self.stack, f"{name}: no context is current in this thread"
        with self._lock:
            self.n += 1
            self.calls[name] += 1
            if self.log is not None:
                self.log.append(name)
            fails = self.n == self.fail_at or name in self.broken or self.is_gone
            self.is_gone |= fails and name == "push"  # nothing else can be wrong with a context
        if fails:
            kind = "CUDA_ERROR_OUT_OF_MEMORY" if "allocate" in name else "CUDA_ERROR_LAUNCH_FAILED"
            text = "out of memory" if "allocate" in name else "unspecified launch failure"
            raise failure(name, kind, text)

    @property
    def stack(self) -> list[int]:
        if not hasattr(self._contexts, "stack"):
            self._contexts.stack = []
        return self._contexts.stack  # type: ignore[no-any-return]

    def _make(self, call: str, kind: str) -> int:
        self.call(call)
        return self._keep(kind)

    def _keep(self, kind: str) -> int:
        with self._lock:
            self._next += 4096
            self.live[self._next] = kind
            return self._next

    def _drop(self, call: str, handle: int, kind: str) -> None:
        """Free; a call that fails frees as well: its device is broken."""
        assert self.live.pop(handle, None) == kind, f"{call}: {handle} is no {kind} that lives"
        self.call(call)

    def count_live(self, *but: str) -> int:
        return sum(kind not in but for kind in self.live.values())

    # Devices.

    def count(self) -> int:
        self.call("count", needs_context=False)
        return len(self.devices)

    def describe(self, index: int) -> Device:
        self.call("describe", needs_context=False)
        return self.devices[index]

    def retain(self, index: int) -> int:
        self.call("retain", needs_context=False)
        return self._keep(f"context {index}")

    def release(self, index: int, context: int) -> None:
        assert self.live.pop(context) == f"context {index}"
        self.call("release", needs_context=False)

    def push(self, context: int) -> None:
        self.call("push", needs_context=False)
        assert self.live[context].startswith("context")
        self.stack.append(context)

    def pop(self) -> None:
        self.stack.pop()
        self.call("pop", needs_context=False)

    def memory(self) -> tuple[int, int]:
        self.call("memory")
        return 6 << 30, 8 << 30

    # Memory.

    def allocate(self, size: int) -> int:
        pointer = self._make("allocate", "device")
        self.bytes[pointer] = np.full(size, 0xCD, np.uint8)
        return pointer

    def free(self, pointer: int) -> None:
        self.bytes.pop(pointer)
        self._drop("free", pointer, "device")

    def allocate_host(self, size: int, mapped: bool) -> U8:
        self.call("allocate_host")
        host = np.full(size, 0xCD, np.uint8)
        self.live[host.ctypes.data] = "mapped" if mapped else "pinned"
        return host

    def device_pointer(self, host: U8) -> int:
        self.call("device_pointer")
        assert self.live[host.ctypes.data] == "mapped"
        self.bytes[host.ctypes.data] = host
        return host.ctypes.data

    def free_host(self, host: U8) -> None:
        pointer = host.ctypes.data
        self.bytes.pop(pointer, None)
        self._drop("free_host", pointer, self.live[pointer])

    # Streams.

    def make_stream(self) -> int:
        stream = self._make("make_stream", "stream")
        self.queues[stream] = []
        return stream

    def destroy_stream(self, stream: int) -> None:
        assert stream not in self._capturing
        assert self.is_gone or not self.queues[stream], "work still uses memory that goes"
        del self.queues[stream]
        self._drop("destroy_stream", stream, "stream")

    def enqueue(self, stream: int, work: Work) -> None:
        """Put work into a stream, or into what is being captured of it."""
        if stream in self._capturing:
            thread, works = self._capturing[stream]
            assert thread == threading.get_ident()
            works.append(work)
        else:
            self.queues[stream].append(work)

    def upload(self, pointer: int, host: U8, stream: int) -> None:
        self.call("upload")
        assert any(self.live.get(host.ctypes.data, "") == kind for kind in ("pinned", "mapped"))
        device = self.bytes[pointer]
        self.enqueue(stream, lambda: np.copyto(device[: host.size], host))

    def download(self, host: U8, pointer: int, stream: int) -> None:
        self.call("download")
        device = self.bytes[pointer]
        self.enqueue(stream, lambda: np.copyto(host, device[: host.size]))

    def synchronize(self, stream: int) -> None:
        assert stream in self.live
        try:
            self.call("synchronize")
        except Exception:
            self.queues[stream].clear()  # what failed is over
            raise
        assert stream not in self._capturing, "a capturing stream cannot be waited for"
        while self.queues[stream]:
            self.queues[stream].pop(0)()

    # Events.

    def make_event(self) -> int:
        return self._make("make_event", "event")

    def destroy_event(self, event: int) -> None:
        self._drop("destroy_event", event, "event")

    def record(self, event: int, stream: int) -> None:
        self.call("record")
        assert event in self.live
        self._marks[event] = mark = lambda: None
        self.queues[stream].append(mark)

    def synchronize_event(self, event: int) -> None:
        self.call("synchronize_event")
        mark = self._marks[event]
        for queue in self.queues.values():
            while mark in queue:
                queue.pop(0)()

    # Graphs.

    def begin_capture(self, stream: int) -> None:
        self.call("begin_capture")
        assert stream in self.live
        self._capturing[stream] = threading.get_ident(), []

    def end_capture(self, stream: int) -> int:
        thread, works = self._capturing.pop(stream)
        assert thread == threading.get_ident()
        graph = self._make("end_capture", "graph")
        self.captured[graph] = works
        return graph

    def launch(self, graph: int, stream: int) -> None:
        self.call("launch")
        for work in self.captured[graph]:
            self.enqueue(stream, work)

    def destroy_graph(self, graph: int) -> None:
        del self.captured[graph]
        self._drop("destroy_graph", graph, "graph")


def one_line(error: Exception) -> str:
    """Return an error's text, which must be one line with exit code 4."""
    text = str(error)
    assert text.isprintable(), text
    assert len(text) < 400, text
    assert getattr(error, "exit_code", None) == 4
    return text
