"""The whole model in one contest: the Triton backend against torch.compile of the same network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from kernel_device import Device, Run
from kernel_roofs import MODEL
from kernel_subjects import Compute, Contest, Goal, Outputs, Subject, fastest
from torch import Tensor

from fastrestore.arrays import F32, U8
from fastrestore.backend import find_model, open_backend
from fastrestore.kernels import fusion, unpack
from fastrestore.kernels.backend import TritonBackend
from fastrestore.kernels.machine import Machine, open_machine
from fastrestore.kernels.network import Blocks, Network
from fastrestore.kernels.pack import pack, space_to_depth
from fastrestore.kernels.pull_push import pull_push
from fastrestore.kernels.weights import read_weights
from fastrestore.spec import read_spec

BLOCKS: tuple[Blocks, ...] = ("kernel", "native")
OURS = 2.0  # levels to ONNX Runtime
RIVAL = 4.0  # its pyramid is float16, too

Batch = tuple[U8, U8, U8, F32]


def network_contest(n: int, height: int, width: int, device: Device) -> Contest:
    """Return who takes part for a batch of pictures with a past."""
    name = str(device.torch_device)
    data = find_model(MODEL).read_bytes()
    spec = read_spec(data, MODEL)
    file = read_weights(data, spec.preset, MODEL, "kernels")
    machine = open_machine(name, MODEL)
    batch = pictures(n, height, width)
    given = [torch.from_numpy(x).to(device.torch_device) for x in batch]
    networks = {
        blocks: Network(file, device.torch_device, machine.dtype, blocks) for blocks in BLOCKS
    }
    goals = tuple(
        Goal(torch.from_numpy(x).to(device.torch_device), OURS) for x in _onnx_runtime(batch)
    )
    rival = _Compiled(networks["native"], device)
    backends: list[TritonBackend] = []

    def host(names: Iterable[str]) -> Mapping[str, Run]:
        calls: dict[str, Run] = {}
        for blocks in BLOCKS:
            backend = TritonBackend(data, spec, device=name, blocks=blocks)
            backends.append(backend)
            for _ in range(2):
                backend.run(*batch)
            calls[blocks] = lambda backend=backend: backend.run(*batch)
        if rival.function is not None and "compiled" in names:
            calls["compiled"] = Hosted(machine, rival.function, batch)
        return calls

    def close() -> None:
        for backend in backends:
            backend.close()

    return Contest(
        goals,
        {b: Subject(lambda b=b: _ours(networks[b], given)) for b in BLOCKS},
        {"compiled": Subject(lambda: rival.make(given), RIVAL / OURS, compiled=True)},
        host,
        close,
    )


def pictures(n: int, height: int, width: int) -> Batch:
    """Return smooth pictures with noise, a hole each, and a past that has moved."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    clean = np.stack([100 + 60 * np.sin(x / 9 + c) + 40 * np.cos(y / 7 - c) for c in range(3)], 2)
    sigma = np.linspace(5, 25, n).astype(np.float32)
    noise = rng.standard_normal((n, height, width, 3), np.float32)
    frame = (clean + sigma[:, None, None, None] * noise).round().clip(0, 255).astype(np.uint8)
    mask = np.zeros((n, height, width, 1), np.uint8)
    mask[:, height // 4 : height // 2, width // 4 : width // 2] = 1
    frame[mask[..., 0] > 0] = 0
    state = np.empty((n, height, width, 4), np.uint8)
    state[..., :3] = np.roll(clean, 1, 1).round().clip(0, 255)
    state[..., 3] = rng.integers(0, 240, (n, height, width))
    return frame, mask, state, sigma


def _onnx_runtime(batch: Batch) -> tuple[U8, U8]:
    """Return picture and state as the default backend computes them, one picture at a time."""
    backend = open_backend(MODEL, "ort", None)
    parts = [backend.run(*(x[i : i + 1] for x in batch)) for i in range(len(batch[0]))]
    backend.close()
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _ours(network: Network, given: list[Tensor]) -> Compute:
    """Return the launches of the backend, as one sequence."""
    frame, mask, state, sigma = given

    def run() -> Outputs:
        flags = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
        with torch.no_grad(), flags:  # as the backend's
            fill, motion = pull_push(frame, mask, state, sigma, True)
            packed, after = pack(frame, mask, state, sigma, fill, motion, True)
            head = network(packed).to(packed.dtype)
            return unpack.unpack(head, packed, frame, mask, False), after

    return run


class _Compiled:
    """The same network with `fusion.fuse` around it, in float16, for the compiler.

    Attributes:
        function: What the compiler returned; None before.
    """

    def __init__(self, network: Network, device: Device) -> None:
        self._network, self._device = network, device
        self.function: Callable[..., Outputs] | None = None

    def make(self, given: list[Tensor]) -> Compute:
        """Compile it, at the first run."""
        function = self.function = self._device.compile(self.whole)

        def run() -> Outputs:
            with torch.no_grad(), fastest():
                return function(*given)

        return run

    def whole(self, frame: Tensor, mask: Tensor, state: Tensor, sigma: Tensor) -> Outputs:
        """Return the restored picture and the next state."""

        def planes(x: Tensor) -> Tensor:
            return x.permute(0, 3, 1, 2).half()

        fused = fusion.fuse(
            planes(frame), planes(mask != 0), planes(state), sigma.half().view(-1, 1, 1, 1)
        )
        packed = space_to_depth(fused.packed)
        head = self._network(packed)
        restored = unpack.reference(head, packed, frame, mask, False)
        after = fused.state.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        return restored, after.contiguous()


class Hosted:
    """The compiled rival from host memory to host memory, as the backend does it.

    Pinned buffers, copies that overlap, a CUDA graph.
    """

    def __init__(self, machine: Machine, function: Callable[..., Outputs], batch: Batch) -> None:
        self._machine, self._batch = machine, batch
        given = [torch.from_numpy(x) for x in batch]
        self._hosts = [machine.host(x.shape, x.dtype) for x in given]
        self._inputs = [torch.zeros_like(x, device=machine.device) for x in given]
        with machine.active(), fastest():
            results = function(*self._inputs)
            self._replay = machine.capture(function, *self._inputs)
        self._results = [machine.host(x.shape, x.dtype) for x in results]

    def __call__(self) -> tuple[U8, ...]:
        """Restore the batch."""
        with self._machine.active():
            for array, host, x in zip(self._batch, self._hosts, self._inputs, strict=True):
                np.copyto(host.numpy(), array)
                self._machine.upload(host, x)
            results = self._replay(*self._inputs)
            pairs = zip(results, self._results, strict=True)
            for wait in [self._machine.download(x, host) for x, host in pairs]:
                wait()
        return tuple(host.numpy().copy() for host in self._results)
