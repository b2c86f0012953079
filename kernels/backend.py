"""A model on a CUDA device: our kernels around the generator, one set of buffers for each shape.

    frame, mask, state, sigma -> pull_push -> pack -> network -> unpack -> restored
                                                  -> state, which travels while the network runs

Pictures cross the bus as bytes, from and to pinned memory. A shape's first run launches kernel by
kernel, which compiles them; from its second run on two CUDA graphs replay the same launches, up to
`pack` and from the network on. No kernel is compiled for a height or width, so that a new size in
the middle of a video compiles nothing; but the residual block, where it is our kernel, has two
tiles for each width, for small pictures and for large ones.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastrestore.arrays import F32, U8
from fastrestore.backend import blank_batch, has_state
from fastrestore.errors import FastRestoreError, InputError, ModelError
from fastrestore.kernels.machine import Compute, Machine, open_machine
from fastrestore.kernels.network import Blocks, Network
from fastrestore.kernels.pack import pack
from fastrestore.kernels.pull_push import pull_push
from fastrestore.kernels.unpack import unpack
from fastrestore.kernels.weights import read_weights
from fastrestore.spec import ModelSpec

if TYPE_CHECKING:
    from fastrestore.bench.device_time import Marks

KEPT_SHAPES = 4
CHANNELS = {"frame": 3, "mask": 1, "state": 4}

Shape = tuple[int, int, int]  # N, H, W


class Stage:
    """Part of the way: computed plainly the first time, captured at the second, then repeated.

    A crop's size that never comes back is not worth a capture. Inputs must be the same tensors
    from the second call on.
    """

    def __init__(self, machine: Machine, compute: Compute) -> None:
        self._machine, self._compute = machine, compute
        self._is_warm, self._is_captured = False, False

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Compute."""
        if self._is_warm and not self._is_captured:
            self._compute = self._machine.capture(self._compute, *inputs)
            self._is_captured = True
        self._is_warm = True
        return self._compute(*inputs)


class Slot:
    """The buffers of one shape, on both sides of the bus, and the stages that run on them."""

    def __init__(self, machine: Machine, network: Network, shape: Shape) -> None:
        self._machine = machine
        sizes: dict[str, tuple[int, ...]] = {k: (*shape, c) for k, c in CHANNELS.items()}
        results = {"restored": sizes["frame"], "state_out": sizes["state"]}
        bytes_ = {k: machine.host(size, torch.uint8) for k, size in {**sizes, **results}.items()}
        self._host = {**bytes_, "sigma": machine.host(shape[:1], torch.float32)}
        self._arrays: dict[str, Any] = {k: x.numpy() for k, x in self._host.items()}
        self._inputs = {
            k: torch.zeros_like(self._host[k], device=machine.device) for k in (*sizes, "sigma")
        }
        # Without a past the kernels do not read the state: they are compiled without it.
        self._stages = {
            past: (
                Stage(machine, partial(_base, past=past)),
                Stage(machine, partial(_picture, network)),
            )
            for past in (False, True)
        }

    def run(self, frame: U8, mask: U8, state: U8 | None, sigma: F32) -> tuple[U8, U8]:
        """Restore a batch of this shape; `state` None = no history."""
        given = {"frame": frame, "mask": mask, "state": state, "sigma": sigma}
        base, picture = self._stages[state is not None]
        for name, array in given.items():
            if array is not None:  # the copy of one to the device overlaps the next to the buffer
                np.copyto(self._arrays[name], array)
                self._machine.upload(self._host[name], self._inputs[name])
        x = self._inputs
        packed, after = base(x["frame"], x["mask"], x["state"], x["sigma"])
        state_is_there = self._machine.download(after, self._host["state_out"])
        (restored,) = picture(packed, x["frame"], x["mask"])
        picture_is_there = self._machine.download(restored, self._host["restored"])
        state_is_there()
        next_state: U8 = self._arrays["state_out"].copy()  # while the network runs
        picture_is_there()
        return self._arrays["restored"].copy(), next_state

    def timed(self, marks: Marks, past: bool) -> None:
        """Run again what is in the buffers, all on one stream, with marks between the steps."""
        (base, picture), x, stream = self._stages[past], self._inputs, self._machine.stream()
        marks.mark(stream)
        for name in x if past else x.keys() - {"state"}:
            self._machine.upload(self._host[name], x[name])
        marks.mark(stream)
        packed, after = base(x["frame"], x["mask"], x["state"], x["sigma"])
        (restored,) = picture(packed, x["frame"], x["mask"])
        marks.mark(stream)
        for name, result in (("state_out", after), ("restored", restored)):
            self._host[name].copy_(result, non_blocking=True)
        marks.mark(stream)
        self._machine.download(x["sigma"], self._host["sigma"])()  # waits for all before it
        marks.read()


def _base(
    frame: Tensor, mask: Tensor, state: Tensor, sigma: Tensor, *, past: bool
) -> tuple[Tensor, ...]:
    """Return the network's input and the next state."""
    fill, motion = pull_push(frame, mask, state, sigma, past)
    packed, after = pack(frame, mask, state, sigma, fill, motion, past)
    return packed, after


def _picture(network: Network, packed: Tensor, frame: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """Return the restored picture, not composited."""
    head = network(packed).to(packed.dtype)
    return (unpack(head, packed, frame, mask, False),)


class TritonBackend:
    """The model on a CUDA device in float16. Calls from several threads wait for each other.

    Single values differ from ONNX Runtime's by up to two grey levels. The buffers of the four
    shapes used last are kept. The state crosses the bus both ways each time: callers may change
    what they were given, and the Restorer crops it.
    """

    name = "triton"

    def __init__(
        self,
        model: bytes,
        spec: ModelSpec,
        threads: int | None = None,
        *,
        device: str = "cuda",
        blocks: Blocks = "auto",
    ) -> None:
        """Load a model.

        Args:
            model: Bytes of an ONNX file.
            spec: What it says of itself.
            threads: Without effect: the host only copies.
            device: `cuda`, `cuda:1` or, for tests, `cpu`: plain torch in float32, or Triton's
                interpreter where it is on.
            blocks: What computes the residual blocks, see `Network`.

        Raises:
            ModelError: There is no such device, or the model is broken or no restorer.
            InputError: No such choice of blocks.
            MissingExtraError: The package `onnx` is not installed.
        """
        self.spec = spec
        self._machine = open_machine(device, spec.name)
        file = read_weights(model, spec.preset, spec.name, "kernels")
        self._has_state = has_state(spec.name, file.inputs, file.outputs)
        self._slots: dict[Shape, Slot] = {}
        self._one_at_a_time = threading.Lock()
        self._network: Network | None = None
        with self._failures("while loading"):
            self._network = Network(file, self._machine.device, self._machine.dtype, blocks)

    def run(self, frame: U8, mask: U8, state: U8, sigma: F32) -> tuple[U8, U8]:
        """See `Backend.run`.

        Raises:
            InputError: An array of another shape or dtype than the protocol says.
            ModelError: The backend is closed, memory is short, or the device failed.
        """
        self._check(frame, mask, state, sigma)
        n, h, w, _ = frame.shape
        past = state if self._has_state and _has_past(state) else None
        with self._one_at_a_time, self._failures(f"at {w}x{h} px, batch of {n}"):
            restored, after = self._slot((n, h, w)).run(frame, mask, past, sigma)
        return restored, after if self._has_state else np.zeros_like(state)

    def timed(self, shape: Shape, marks: Marks) -> None:
        """Run once more what `run` ran last at this shape, with marks.

        Raises:
            ModelError: As `run` does.
        """
        n, h, w = shape
        with self._one_at_a_time, self._failures(f"at {w}x{h} px, batch of {n}"):
            self._slot(shape).timed(marks, self._has_state)

    def warm_up(self, shape: Shape) -> None:
        """See `Backend.warm_up`; captures the graphs with and without a past."""
        frame, mask, state, sigma = blank_batch(shape)
        for past in (state, np.ones_like(state)):
            for _ in range(2):
                self.run(frame, mask, past, sigma)

    def close(self) -> None:
        """See `Backend.close`."""
        with self._one_at_a_time:
            self._slots.clear()
            self._network = None
            self._machine.free()

    def _slot(self, shape: Shape) -> Slot:
        """Return the buffers of a shape; those that were used longest ago make room."""
        if self._network is None:
            raise ModelError(f"{self.spec.name}: the backend is closed; open the model again")
        slot = self._slots.pop(shape, None)
        if slot is None:
            while len(self._slots) >= KEPT_SHAPES:
                del self._slots[next(iter(self._slots))]
            slot = Slot(self._machine, self._network, shape)
        self._slots[shape] = slot
        return slot

    @contextmanager
    def _failures(self, when: str) -> Iterator[None]:
        """Compute on the machine; what goes wrong there becomes one line."""
        try:
            with self._machine.active():
                yield
        except torch.OutOfMemoryError as e:
            self._slots.clear()
            self._machine.free()
            raise ModelError(
                f"{self.spec.name}: out of GPU memory {when}; close other programs that use the "
                "GPU, restore smaller pictures, or use --backend ort"
            ) from e
        except FastRestoreError:
            raise
        except Exception as e:  # CUDA's and cuDNN's; Triton's and its C compiler's have no one base
            self._slots.clear()  # a buffer may be half written, a graph half captured
            raise ModelError(f"{self.spec.name}: failed {when} ({_first_line(e)})") from e

    def _check(self, frame: U8, mask: U8, state: U8, sigma: F32) -> None:
        """Refuse what the protocol does not allow: kernels would read beyond the arrays."""
        m = self.spec.multiple
        shape = frame.shape[:3]
        if len(shape) != 3 or min(shape) < 1 or shape[1] % m or shape[2] % m:
            raise InputError(
                f"{self.spec.name}: frame must be (N, H, W, 3) with H and W multiples of {m}, "
                f"got {frame.shape}"
            )
        given = {"frame": frame, "mask": mask, "state": state}
        wanted: list[tuple[str, Any, tuple[int, ...], str]] = [
            (k, x, (*shape, CHANNELS[k]), "uint8") for k, x in given.items()
        ]
        wanted.append(("sigma", sigma, shape[:1], "float32"))
        for name, x, size, dtype in wanted:
            if x.shape != size or x.dtype != dtype:
                raise InputError(
                    f"{self.spec.name}: {name} must be {dtype} {size}, got {x.dtype} {x.shape}"
                )


def _has_past(state: U8) -> bool:
    """Return whether any byte is set; four at a time, 0.3 ms instead of 2.5 ms at 1080p."""
    return bool(np.ascontiguousarray(state).view(np.uint32).any())


def _first_line(e: Exception) -> str:
    """Return what failed; the type says more than the text of a KeyError or a CompilationError."""
    text, name = str(e).strip(), type(e).__name__
    if not text:
        return name
    line = text.splitlines()[0][:200]
    return line if isinstance(e, RuntimeError) else f"{name}: {line}"
