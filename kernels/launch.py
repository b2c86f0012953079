"""How kernels are reached: registration with torch, checks of arguments, memory for results."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastrestore.errors import InputError

# Triton reads the variable when it is first imported: one process, one mode.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
MOST_ELEMENTS = 2**31 - 1  # offsets inside kernels are int32


def define(
    name: str,
    schema: str,
    run: Callable[..., Any],
    reference: Callable[..., Any],
    fake: Callable[..., Any],
) -> Any:
    """Register a custom op: one node for `torch.compile` and `torch.export`.

    Args:
        name: `torch.ops.fastrestore.<name>`.
        schema: As of `torch.library.custom_op`: `(Tensor x, int dilation) -> Tensor`.
        run: Launches the kernels; on CUDA, and on a CPU when Triton interprets.
        reference: Plain torch, used on a CPU otherwise.
        fake: Returns empty results of the right shape and type.
    """
    op = torch.library.custom_op(
        f"fastrestore::{name}", run, mutates_args=(), device_types="cuda", schema=schema
    )

    def on_cpu(*arguments: Any) -> Any:
        return (run if INTERPRETED else reference)(*arguments)

    op.register_kernel("cpu")(on_cpu)
    op.register_fake(fake)
    return op


def allocate(shape: Sequence[int], dtype: torch.dtype, like: Tensor) -> Tensor:
    """Return memory for a result, contents undefined; tests poison it here."""
    return torch.empty(shape, dtype=dtype, device=like.device)


def check(
    operator: str,
    argument: str,
    x: object,
    dtypes: torch.dtype | Sequence[torch.dtype],
    shape: Sequence[int | None],
    like: Tensor | None = None,
) -> None:
    """Refuse a tensor that a kernel would read wrongly.

    Args:
        operator: Name in the message.
        argument: Name in the message.
        x: The tensor.
        dtypes: What it may be.
        shape: What it must be; None = any size above zero.
        like: Must be on the same device.

    Raises:
        InputError: One line that names the operator and the argument.
    """
    if not isinstance(x, Tensor):
        raise InputError(f"{operator}: {argument} must be a tensor, got {type(x).__name__}")
    allowed = [dtypes] if isinstance(dtypes, torch.dtype) else list(dtypes)
    wanted = ", ".join("any" if s is None else str(s) for s in shape)
    names = " or ".join(str(d).removeprefix("torch.") for d in allowed)
    fits = x.dim() == len(shape) and all(
        have > 0 if want is None else have == want
        for have, want in zip(x.shape, shape, strict=False)
    )
    if not fits or x.dtype not in allowed:
        got = f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"
        raise InputError(f"{operator}: {argument} must be {names} ({wanted}), got {got}")
    if not x.is_contiguous():
        raise InputError(f"{operator}: {argument} is not contiguous; call .contiguous() on it")
    if like is not None and x.device != like.device:
        raise InputError(f"{operator}: {argument} is on {x.device}, the others on {like.device}")
    if x.numel() > MOST_ELEMENTS:
        raise InputError(f"{operator}: {argument} has {x.numel()} elements, at most 2^31 - 1 work")


def check_flag(operator: str, argument: str, value: object) -> None:
    """Refuse what is not a bool: kernels are compiled for either value.

    Raises:
        InputError: One line that names the operator and the argument.
    """
    if not isinstance(value, bool):
        raise InputError(f"{operator}: {argument} must be a bool, got {type(value).__name__}")
