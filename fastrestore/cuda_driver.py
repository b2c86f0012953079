"""What we ask of CUDA's driver, and what is said when it fails."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Protocol

from fastrestore.arrays import U8
from fastrestore.errors import EngineError

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
ELSE = "or use --backend ort"
_MENDS = {"CUDA_ERROR_OUT_OF_MEMORY": "close other programs that use the GPU"}
_ALWAYS = "`fastrestore doctor` looks at the driver"


class AbsentError(EngineError):
    """There is no driver, or no device behind it."""


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU.

    Attributes:
        index: Among those that CUDA_VISIBLE_DEVICES leaves.
        name: As its driver calls it.
        sm: Compute capability, for example `8.7`.
        is_integrated: Whether it shares the host's memory.
        total_bytes: Of its memory.
    """

    index: int
    name: str
    sm: str
    is_integrated: bool
    total_bytes: int


class Graphs(Protocol):
    """The calls for CUDA graphs; handles are numbers."""

    def begin_capture(self, stream: int) -> None:
        """Record what this thread puts into a stream, instead of running it."""

    def end_capture(self, stream: int) -> int:
        """Return what was recorded, ready to launch."""

    def launch(self, graph: int, stream: int) -> None:
        """Run it again."""

    def destroy_graph(self, graph: int) -> None:
        """Free it."""


class Driver(Protocol):
    """The calls that we need. Handles and device addresses are numbers.

    All but `count`, `describe`, `retain` and `release` need a context that was pushed by this
    thread. Every failure is an EngineError.
    """

    name: str
    graphs: Graphs | None

    def count(self) -> int:
        """Return how many devices are visible."""

    def describe(self, index: int) -> Device:
        """Return what the driver says of a device."""

    def retain(self, index: int) -> int:
        """Return a device's primary context, the one that every library shares."""

    def release(self, index: int, context: int) -> None:
        """Give it back."""

    def push(self, context: int) -> None:
        """Make it this thread's current one."""

    def pop(self) -> None:
        """Make the one before it current again."""

    def memory(self) -> tuple[int, int]:
        """Return the free and the total bytes of the current device."""

    def allocate(self, size: int) -> int:
        """Allocate bytes of the device; return their address."""

    def free(self, pointer: int) -> None:
        """Free them."""

    def allocate_host(self, size: int, mapped: bool) -> U8:
        """Allocate bytes of the host that stay where they are; mapped: the device reads them."""

    def device_pointer(self, host: U8) -> int:
        """Return the device's address of mapped bytes."""

    def free_host(self, host: U8) -> None:
        """Free bytes of the host: the very array that was returned."""

    def make_stream(self) -> int:
        """Make a stream that does not wait for the default one."""

    def destroy_stream(self, stream: int) -> None:
        """Free it."""

    def make_event(self) -> int:
        """Make an event without a clock."""

    def destroy_event(self, event: int) -> None:
        """Free it."""

    def upload(self, pointer: int, host: U8, stream: int) -> None:
        """Start a copy to the device."""

    def download(self, host: U8, pointer: int, stream: int) -> None:
        """Start a copy to the host."""

    def record(self, event: int, stream: int) -> None:
        """Let an event come when all that is in the stream so far is done."""

    def synchronize_event(self, event: int) -> None:
        """Wait for an event."""

    def synchronize(self, stream: int) -> None:
        """Wait until a stream is empty."""


def no_driver(binding: str) -> AbsentError:
    """Return what to say where a binding finds no driver."""
    return AbsentError(
        f"{binding}: is installed, but NVIDIA's driver is not ({LIBRARY}); install the driver, "
        f"in a container run it with `--runtime nvidia`, {ELSE}"
    )


def no_device() -> AbsentError:
    """Return what to say where a driver knows no device."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return AbsentError(f"CUDA: the driver finds no device; see `nvidia-smi`, {ELSE}")
    return AbsentError(
        f"CUDA: no device is visible, CUDA_VISIBLE_DEVICES is {visible!r}; unset it, {ELSE}"
    )


def first_line(e: BaseException) -> str:
    """Return the first line of what another library says, or what kind of error it is."""
    lines = str(e).strip().splitlines()
    return lines[0][:200] if lines else type(e).__name__


def failure(call: str, name: str, text: str) -> EngineError:
    """Return what to say when a call fails.

    Args:
        call: The driver's function.
        name: The error's, as `CUDA_ERROR_OUT_OF_MEMORY`.
        text: What the driver says of it.
    """
    return EngineError(f"CUDA: {call} failed ({text}); {_MENDS.get(name, _ALWAYS)}, {ELSE}")
