"""Sobel gradients and their magnitude of a picture, in one pass.

Tile: a program owns 128 columns of 8 rows of one picture, one column a thread. It walks down and
keeps three columns (left, here, right) of the last two rows in registers, so that a pixel costs
three loads, not nine. The border is replicated by clamped indices. Rows are subtracted before
they are smoothed: what is equal cancels to an exact zero, and the rounding is that of the
difference, not of the values.

Bytes a pixel: the input once, the result once; uint8 RGB to its magnitude 3 + 2.

Source: Sobel's kernels 1-2-1 by -1-0-1 over 8; luma of ITU-R BT.601.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastrestore.errors import InputError
from fastrestore.kernels import fusion, launch
from fastrestore.kernels.operator import Axis, Case, Inputs, Launch, Operator, Traffic

BLOCK, ROWS = 128, 8
DTYPES = {"u8": torch.uint8, "fp16": torch.float16, "fp32": torch.float32}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@triton.jit
def _level(x_ptr: tl.tensor, at: tl.tensor, channels: tl.constexpr) -> Any:
    """Load pixels in float32: the channel, or the luma of three."""
    value = tl.load(x_ptr + at * channels).to(tl.float32)
    if channels == 3:
        green = tl.load(x_ptr + at * channels + 1).to(tl.float32)
        blue = tl.load(x_ptr + at * channels + 2).to(tl.float32)
        value = 0.299 * value + 0.587 * green + 0.114 * blue
    return value


@triton.jit
def _row(
    x_ptr: tl.tensor,
    y: tl.tensor,
    x: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    channels: tl.constexpr,
) -> Any:
    """Load three columns of row y; beyond the border the outermost row and columns."""
    row = tl.minimum(tl.maximum(y, 0), height - 1) * width
    here = tl.minimum(x, width - 1)
    a = _level(x_ptr, row + tl.maximum(here - 1, 0), channels)
    b = _level(x_ptr, row + here, channels)
    c = _level(x_ptr, row + tl.minimum(here + 1, width - 1), channels)
    return a, b, c


@triton.jit(do_not_specialize=["height"])  # a picture one row higher needs no new compilation
def sobel_kernel(
    x_ptr: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    out_ptr: tl.tensor,
    channels: tl.constexpr,
    gradients: tl.constexpr,
    block: tl.constexpr,
    rows: tl.constexpr,
) -> None:
    """Compute one strip; `reference` is its plain form."""
    image = tl.program_id(0) * height * width
    x = tl.program_id(1) * block + tl.arange(0, block)
    top = tl.program_id(2) * rows
    x_ptr += image * channels
    a0, b0, c0 = _row(x_ptr, top - 1, x, height, width, channels)
    a1, b1, c1 = _row(x_ptr, top, x, height, width, channels)
    for r in tl.static_range(rows):
        y = top + r
        a2, b2, c2 = _row(x_ptr, y + 1, x, height, width, channels)
        gx = ((c0 - a0) + 2 * (c1 - a1) + (c2 - a2)) * 0.125
        gy = ((a2 - a0) + 2 * (b2 - b0) + (c2 - c0)) * 0.125
        inside = (x < width) & (y + 0 * x < height)
        at = image + y * width + x
        if gradients:
            pairs = tl.join(gx, gy).to(out_ptr.dtype.element_ty)
            of = tl.arange(0, 2)
            tl.store(out_ptr + (2 * at)[:, None] + of[None, :], pairs, mask=inside[:, None])
        else:
            magnitude = tl.sqrt(gx * gx + gy * gy)
            tl.store(out_ptr + at, magnitude.to(out_ptr.dtype.element_ty), mask=inside)
        a0, b0, c0 = a1, b1, c1
        a1, b1, c1 = a2, b2, c2


def _form(dtype: str, channels: int, gradients: bool) -> Launch:
    """Return the compiled form of one kind of input and result."""
    return Launch(
        name=f"sobel_{dtype}_c{channels}" + ("_gradients" if gradients else ""),
        kernel=sobel_kernel,
        arguments={
            "x_ptr": f"*{dtype}",
            "height": "i32",
            "width": "i32",
            "out_ptr": "*fp32" if dtype == "fp32" else "*fp16",
        },
        constants={"channels": channels, "gradients": gradients, "block": BLOCK, "rows": ROWS},
        grid=(Axis(("n",)), Axis(("width",), BLOCK), Axis(("height",), ROWS)),
        divisible=("x_ptr", "out_ptr"),
        wide_copies=False,  # a column a thread: neighbours are never 16 bytes of one thread
    )


_FORMS = {
    (DTYPES[dtype], channels, gradients): _form(dtype, channels, gradients)
    for dtype in DTYPES
    for channels in (3, 1)
    for gradients in (False, True)
}


def launches() -> Iterable[Launch]:
    """Return every compiled form."""
    return _FORMS.values()


def _result_dtype(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.float32, torch.float64) else torch.float16


def run(x: Tensor, gradients: bool) -> Tensor:
    """Launch the kernel; arguments as of `sobel`, already checked."""
    n, height, width, channels = x.shape
    shape = (n, height, width, 2 if gradients else 1)
    out = launch.allocate(shape, _result_dtype(x.dtype), x)
    form = _FORMS[x.dtype, channels, gradients]
    form({"n": n, "height": height, "width": width}, x, height, width, out)
    return out


def reference(x: Tensor, gradients: bool = False) -> Tensor:
    """Compute the same in plain torch; float64 stays float64, the rest is computed in float32."""
    wide = x.to(x.dtype if x.dtype == torch.float64 else torch.float32).permute(0, 3, 1, 2)
    if x.shape[-1] == 3:
        wide = (wide * fusion.LUMA.to(wide)).sum(1, keepdim=True)
    found = torch.cat(fusion.gradients(wide), 1) if gradients else fusion.sobel(wide)
    return found.permute(0, 2, 3, 1).to(_result_dtype(x.dtype)).contiguous()


def _fake(x: Tensor, gradients: bool) -> Tensor:
    return x.new_empty((*x.shape[:3], 2 if gradients else 1), dtype=_result_dtype(x.dtype))


_op = launch.define("sobel", "(Tensor x, bool gradients) -> Tensor", run, reference, _fake)


def sobel(x: Tensor, gradients: bool = False) -> Tensor:
    """Return the Sobel gradient of a picture: kernels / 8, replicate border.

    A ramp of one unit a pixel has magnitude 1. No gradient flows back; `edge_loss` is the form to
    train with.

    Args:
        x: uint8, float16 or float32, `(N, H, W, C)`, contiguous. C = 3: of the BT.601 luma of
            R, G, B; C = 1: of the channel itself.
        gradients: Both gradients, x before y, instead of their magnitude.

    Returns:
        `(N, H, W, 1)`, or `(N, H, W, 2)` with `gradients`, in the units of `x` (uint8: levels);
        float32 for float32, else float16.

    Raises:
        InputError: Type, shape, layout or size that the kernel would read wrongly.
    """
    channels = 1 if isinstance(x, Tensor) and x.shape[-1:] == (1,) else 3
    launch.check("sobel", "x", x, tuple(DTYPES.values()), (None, None, None, channels))
    launch.check_flag("sobel", "gradients", gradients)
    pixels = x.numel() // channels
    if gradients and 2 * pixels > launch.MOST_ELEMENTS:
        raise InputError(
            f"sobel: x has {pixels} pixels, the gradients would have more than "
            "2^31 - 1 elements; split the batch"
        )
    result: Tensor = _op(x, gradients)
    return result


def inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Return noise: levels for uint8, 0-1 for floats."""
    rng = torch.Generator().manual_seed(seed)
    dtype, channels = DTYPES[case.options["dtype"]], case.options["channels"]
    levels = torch.rand((case.n, case.height, case.width, channels), generator=rng)
    x = (levels * 256 if dtype == torch.uint8 else levels).to(dtype)
    return x.to(device), case.options["gradients"]


def traffic(case: Case) -> Traffic:
    """Count `pixels * (C * size read, (1 or 2) * size written)` bytes.

    FLOPs a pixel: 5 of the luma, 8 of the gradients, 2 of their scale, 4 of the magnitude (a root
    counts one).
    """
    pixels = case.n * case.height * case.width
    dtype, channels = DTYPES[case.options["dtype"]], case.options["channels"]
    gradients = case.options["gradients"]
    written = _result_dtype(dtype).itemsize * (2 if gradients else 1)
    flops = (5 if channels == 3 else 0) + 10 + (0 if gradients else 4)
    return Traffic(pixels * channels * dtype.itemsize, pixels * written, pixels * flops)


def _options(dtype: torch.dtype, channels: int, gradients: bool) -> dict[str, Any]:
    return {"dtype": _NAMES[dtype], "channels": channels, "gradients": gradients}


OPERATOR = Operator(
    name="sobel",
    run=sobel,
    reference=reference,
    inputs=inputs,
    cases=(
        *(Case(1, 7, 9, _options(*form)) for form in _FORMS),
        Case(2, 21, 37, _options(torch.uint8, 3, False)),
        Case(2, 3, 131, _options(torch.float32, 1, True)),  # more than one block of columns
        Case(1, 8, 128, _options(torch.float16, 3, False)),  # nothing is cut off
    ),
    variants=tuple(_options(*form) for form in _FORMS if not form[2] or form[1] == 1),
    traffic=traffic,
    launches=launches,
    tolerance=(0.0625 + 1e-4,),  # half a step of float16 above 128 levels, and float32's rounding
)
