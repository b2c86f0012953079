"""What every operator says of itself: tests, benchmarks and the ahead-of-time gate read the same.

An operator is a custom op of torch with a plain torch reference. A launch is one compiled form of
one of its Triton kernels: just-in-time, ahead-of-time and plugin use start from the same record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastrestore.errors import InputError
from fastrestore.kernels.shipped import Axis as Axis

Sizes = Mapping[str, int]
Inputs = tuple[Any, ...]
Outputs = tuple[Tensor, ...]

MOST_PROGRAMS = {"x": 2**31 - 1, "y": 65_535, "z": 65_535}  # CUDA's, along the grid's axes


@dataclass(frozen=True, slots=True)
class Launch:
    """One compiled form of one kernel.

    Attributes:
        name: Unique in the package; `pack`, `residual_block_c32_d1`.
        kernel: The `@triton.jit` function. Argument order: inputs, int32 scalars, outputs,
            constants, as TensorRT hands them over.
        arguments: Name and type of every run-time argument, in order: `*u8`, `*fp16`, `i32`.
        constants: Compile-time arguments.
        grid: Axes x, y, z.
        warps: Warps a program.
        stages: Depth of software pipelining.
        divisible: Arguments that the caller promises to be multiples of 16 (pointers: bytes).
        tensor_cores: Whether matrix instructions must be in the machine code.
        wide_copies: Whether 16-byte loads or copies must be.
        plugin: Whether its PTX ships for TensorRT.
    """

    name: str
    kernel: Any
    arguments: Mapping[str, str]
    constants: Mapping[str, Any]
    grid: tuple[Axis, Axis, Axis]
    warps: int = 4
    stages: int = 2
    divisible: tuple[str, ...] = ()
    tensor_cores: bool = False
    wide_copies: bool = True
    plugin: bool = False

    def __call__(self, sizes: Sizes, *arguments: Any) -> None:
        """Run on tensors, just-in-time compiled or interpreted.

        Args:
            sizes: Values of the names in `grid`.
            *arguments: As `arguments` names them.

        Raises:
            InputError: More programs along an axis than CUDA starts.
        """
        grid = tuple(axis.at(sizes) for axis in self.grid)
        for axis, programs, (name, most) in zip(
            self.grid, grid, MOST_PROGRAMS.items(), strict=True
        ):
            if programs > most:
                given = ", ".join(f"{size} = {sizes[size]}" for size in axis.of)
                raise InputError(
                    f"{self.name}: {given} takes {programs} programs along {name}, at most {most} "
                    "work; split the batch or the picture"
                )
        options = {"num_warps": self.warps, "num_stages": self.stages}
        devices = {a.device for a in arguments if isinstance(a, Tensor) and a.is_cuda}
        # Triton launches on the current device, wherever the tensors lie
        with torch.cuda.device(devices.pop()) if devices else nullcontext():
            self.kernel[grid](*arguments, **self.constants, **options)


@dataclass(frozen=True, slots=True)
class Case:
    """One size and variant at which an operator is tested or timed."""

    n: int
    height: int  # px of the picture; operators inside the network derive their own
    width: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return a test's name, `1x37x53 dilation=2`."""
        options = "".join(f" {k}={v}" for k, v in self.options.items())
        return f"{self.n}x{self.height}x{self.width}{options}"


class Traffic(NamedTuple):
    """Least work: every input read once from memory, every output written once."""

    read: int  # bytes
    written: int  # bytes
    flops: int  # a multiply-add counts two


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator.

    Attributes:
        name: `torch.ops.fastrestore.<name>`.
        run: The custom op: kernels on CUDA (and in the interpreter), the reference on a CPU.
        reference: Plain torch, the same arguments and results, on any device. Computes in the
            widest float type among its inputs, at least in float32.
        inputs: Makes seeded inputs for a case on a device; floats as the kernel takes them.
        cases: Small ones for tests, odd sizes first.
        variants: Options of the cases that are timed, at sizes the benchmark chooses.
        traffic: Least work of a case.
        launches: Every compiled form that ships.
        tolerance: Largest error allowed against the reference in float64, per output, absolute.
        differentiable: Which inputs gradients flow to; empty = none.
    """

    name: str
    run: Callable[..., Any]
    reference: Callable[..., Any]
    inputs: Callable[[Case, torch.device, int], Inputs]
    cases: tuple[Case, ...]
    variants: tuple[Mapping[str, Any], ...]
    traffic: Callable[[Case], Traffic]
    launches: Callable[[], Iterable[Launch]]
    tolerance: tuple[float, ...]
    differentiable: tuple[int, ...] = ()
