"""Where the Triton backend computes: a CUDA device, or for tests the CPU."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from fastrestore.errors import ModelError
from fastrestore.kernels import launch

Compute = Callable[..., tuple[Tensor, ...]]
_CAPTURING = threading.Lock()  # torch allows one capture at a time in a process


class Machine(Protocol):
    """Where a backend computes: what differs between a CUDA device and a CPU."""

    device: torch.device
    dtype: torch.dtype  # of the network

    def active(self) -> AbstractContextManager[None]:
        """Make its stream the current one; everything below is called inside."""

    def host(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocate memory of the host that copies to the device may use."""

    def upload(self, host: Tensor, device: Tensor) -> None:
        """Start a copy to the device; what is launched later sees it."""

    def download(self, device: Tensor, host: Tensor) -> Callable[[], None]:
        """Start a copy of what has been launched so far; return what waits for it."""

    def capture(self, compute: Compute, *inputs: Tensor) -> Compute:
        """Return what repeats `compute` on the same inputs; its results are the same tensors."""

    def stream(self) -> int:
        """Return the handle of the stream that computes."""

    def free(self) -> None:
        """Give memory back that nothing uses."""


class Cpu:
    """Computes at once, by the references or in Triton's interpreter. For tests."""

    device = torch.device("cpu")
    dtype = torch.float32

    @contextmanager
    def active(self) -> Iterator[None]:
        """See `Machine`."""
        with torch.no_grad():
            yield

    def host(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Machine`."""
        return torch.empty(tuple(shape), dtype=dtype)

    def upload(self, host: Tensor, device: Tensor) -> None:
        """See `Machine`."""
        device.copy_(host)

    def download(self, device: Tensor, host: Tensor) -> Callable[[], None]:
        """See `Machine`."""
        host.copy_(device)
        return lambda: None

    def capture(self, compute: Compute, *inputs: Tensor) -> Compute:
        """See `Machine`."""
        return compute

    def stream(self) -> int:
        """See `Machine`."""
        return 0

    def free(self) -> None:
        """See `Machine`."""


class Cuda:
    """A CUDA device with two streams: one computes, one brings results back.

    cuDNN may not time its algorithms: the choice would differ from run to run, and results with it.
    """

    dtype = torch.float16

    def __init__(self, device: torch.device) -> None:
        self.device = device
        make: Any = torch.cuda.Stream  # untyped in torch
        self._stream, self._copies = make(device), make(device)

    @contextmanager
    def active(self) -> Iterator[None]:
        """See `Machine`."""
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
        with (
            torch.no_grad(),
            torch.cuda.device(self.device),
            torch.cuda.stream(self._stream),
            exact,
        ):
            yield

    def host(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Machine`."""
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)

    def upload(self, host: Tensor, device: Tensor) -> None:
        """See `Machine`."""
        device.copy_(host, non_blocking=True)

    def download(self, device: Tensor, host: Tensor) -> Callable[[], None]:
        """See `Machine`."""
        self._copies.wait_stream(self._stream)
        with torch.cuda.stream(self._copies):
            host.copy_(device, non_blocking=True)
            done = self._copies.record_event()

        def wait() -> None:
            done.synchronize()

        return wait

    def capture(self, compute: Compute, *inputs: Tensor) -> Compute:
        """See `Machine`."""
        graph = torch.cuda.CUDAGraph()
        # Other threads of the program may use the device meanwhile.
        mode = "thread_local"
        with _CAPTURING, torch.cuda.graph(graph, stream=self._stream, capture_error_mode=mode):
            results = compute(*inputs)

        def replay(*_: Tensor) -> tuple[Tensor, ...]:
            graph.replay()
            return results

        return replay

    def stream(self) -> int:
        """See `Machine`."""
        return int(self._stream.cuda_stream)

    def free(self) -> None:
        """See `Machine`."""
        torch.cuda.empty_cache()


def open_machine(device: str, model: str) -> Machine:
    """Return the machine of a torch device's name.

    Args:
        device: `cuda`, `cuda:1` or `cpu`.
        model: What messages begin with.

    Raises:
        ModelError: There is no such device, or Triton interprets.
    """
    if device == "cpu":
        return Cpu()
    # torch.device takes cuda:300 for cuda:44
    number = re.fullmatch(r"cuda(?::(0|[1-9][0-9]{0,2}))?", device)
    if not number:
        raise ModelError(f"{model}: device {device!r} is not known; use cuda, cuda:0 or cpu")
    if not torch.cuda.is_available():
        raise ModelError(
            f"{model}: the backend triton needs a CUDA device, and torch finds none; "
            "use --backend ort"
        )
    if launch.INTERPRETED:
        raise ModelError(
            f"{model}: Triton's interpreter is on, and kernels would not reach the GPU; "
            "unset TRITON_INTERPRET"
        )
    count = torch.cuda.device_count()
    if number[1] and int(number[1]) >= count:
        raise ModelError(f"{model}: no device {device}, torch finds {count}; use cuda:{count - 1}")
    return Cuda(torch.device(device))
