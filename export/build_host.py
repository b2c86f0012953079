"""What an engine is built on: the device, its memory, and what a sidecar says of the machine."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastrestore.engine_record import DeviceRecord
from fastrestore.environment import memory_mb
from fastrestore.errors import EngineError, MissingExtraError

SHARE = 2  # of free memory, at most one half goes to a layer's workspace


@dataclass(frozen=True, slots=True)
class Host:
    """The device that builds, if there is one.

    Attributes:
        device: None = no device, or none that we can reach.
        why: Why there is none, one line; empty if there is one.
        index: Of the device.
        is_integrated: Whether it shares the system's memory.
    """

    device: DeviceRecord | None
    why: str = ""
    index: int = 0
    is_integrated: bool = False

    @property
    def name(self) -> str:
        """The device's name."""
        return self.device.name if self.device else "no device"

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make the device this thread's current one; nothing to do without one."""
        if self.device is None:
            yield
            return
        cuda = _cuda().Cuda(self.index)
        try:
            with cuda.active():
                yield
        finally:
            cuda.close()

    def free_bytes(self) -> int | None:
        """Return what memory is free for a build; None if that is not known."""
        if self.device is None:
            return None
        if self.is_integrated:
            available = memory_mb()["available"]
            return None if available is None else available << 20
        cuda = _cuda().Cuda(self.index)
        try:
            with cuda.active():
                return int(cuda.free_bytes())
        finally:
            cuda.close()

    def workspace_bytes(self, wanted_mb: int | None, say: Callable[[str], None]) -> int | None:
        """Return how much scratch memory a layer may take: what is wanted, at most half of free.

        A build that takes more is killed by the system on a board with shared memory, and swap
        does not help there.
        """
        free = self.free_bytes()
        if free is None:
            return None if wanted_mb is None else wanted_mb << 20
        most = free // SHARE
        if wanted_mb is None:
            return most
        if wanted_mb << 20 > most:
            say(f"workspace: {wanted_mb} MB is more than half of what is free, {most >> 20} MB set")
        return min(wanted_mb << 20, most)


def look(index: int | None, is_needed: bool) -> Host:
    """Find the device.

    Args:
        index: Among those that CUDA_VISIBLE_DEVICES leaves; None = the first.
        is_needed: Whether to do without is impossible.

    Raises:
        MissingExtraError: No CUDA binding, and the device is needed or named.
        EngineError: No such device, likewise.
    """
    try:
        found: Any = _cuda().device_at(index or 0)
    except (MissingExtraError, EngineError) as e:
        if is_needed or index is not None:
            raise
        return Host(None, str(e))
    return Host(DeviceRecord(found.name, found.sm), "", found.index, found.is_integrated)


def _cuda() -> Any:
    return importlib.import_module("fastrestore.cuda")
