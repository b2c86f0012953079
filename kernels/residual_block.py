"""The generator's residual block, `y = x + W1 relu(W3_d * x + b3) + b1`, in one pass.

Tile: a program owns `block_m` consecutive pixels of the flattened batch, whatever rows they lie
in, and all their channels. It walks over the nine taps of the 3x3, `block_k` input channels a
step: the tap's pixels lie one fixed distance away in memory, so a step loads a block of
`block_m x block_k` there and multiplies it by `block_k x C` weights. What a tap would read beyond
the border, or in the next picture of the batch, is masked to zero; which taps that are is worked
out once and kept as nine bits a pixel. The sum, bias and ReLU become float16, the left side of
the second product with the 1x1 weights, `block_e` output channels at a time; x is added and the
result stored. The intermediate never goes to memory, and x is walked over once for every width.

Every pixel is read nine times, but from memory once: input loads ask for the L1 cache (`.ca`;
Triton before 3.9 ignores that for asynchronous copies), because the second-level cache, not
memory, is the limit.

Bytes a pixel: x once, y once, `4 C`; two convolutions of a library move `10 C`. FLOPs a pixel:
`20 C^2`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fastrestore.errors import InputError
from fastrestore.kernels import launch, tiles
from fastrestore.kernels.operator import Axis, Case, Inputs, Launch, Operator, Traffic
from fastrestore.kernels.tiles import WIDTHS, Tile
from fastrestore.presets import PRESETS

DILATIONS = (1, 2, 4, 8)
# Picture px along a side for one pixel of the block, as the preset `base` runs each width (16: as
# `tiny` does). Cases are sizes of pictures.
REDUCTION = {16: 2, 32: 2, 64: 4, 128: 8}
_FULL_HD = Case(1, 1088, 1920)
_POINTERS = ("x_ptr", "w3_ptr", "b3_ptr", "w1_ptr", "b1_ptr")
_SCALARS = ("height", "width", "pixels")


# Without `do_not_specialize` a new height or width could compile anew in the middle of a video.
@triton.jit(do_not_specialize=["height", "width", "pixels"])
def residual_block_kernel(
    x_ptr: tl.tensor,
    w3_ptr: tl.tensor,
    b3_ptr: tl.tensor,
    w1_ptr: tl.tensor,
    b1_ptr: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    pixels: tl.tensor,
    y_ptr: tl.tensor,
    channels: tl.constexpr,
    dilation: tl.constexpr,
    block_m: tl.constexpr,
    block_k: tl.constexpr,
    block_e: tl.constexpr,
) -> None:
    """Compute `block_m` pixels of `pixels` = N * height * width; `reference` is the plain form."""
    m = tl.program_id(0) * block_m + tl.arange(0, block_m)
    y = m % (height * width) // width
    x = m % width
    # Nine bits a pixel, bit ky * 3 + kx: the taps that lie inside the picture.
    rows = tl.where(y >= dilation, 0o007, 0) + 0o070 + tl.where(y + dilation < height, 0o700, 0)
    columns = tl.where(x >= dilation, 0o111, 0) + 0o222 + tl.where(x + dilation < width, 0o444, 0)
    taps = tl.where(m < pixels, rows & columns, 0)

    k = tl.arange(0, block_k)
    every = tl.arange(0, channels)
    x_at = m[:, None] * channels + k[None, :]
    w_at = k[:, None] * channels + every[None, :]
    steps: tl.constexpr = channels // block_k
    total = tl.zeros((block_m, channels), tl.float32)
    for i in range(9 * steps):
        tap = i // steps
        away = (tap // 3 - 1) * dilation * width + (tap % 3 - 1) * dilation
        inside = ((taps >> tap) & 1) != 0
        # The scalar part goes to the pointer: one addition a load is left for the threads.
        from_x = x_ptr + (away * channels + i % steps * block_k)
        values = tl.load(from_x + x_at, mask=inside[:, None], other=0.0, cache_modifier=".ca")
        weights = tl.load(w3_ptr + i * (block_k * channels) + w_at)
        total = tl.dot(values, weights, total)

    total += tl.load(b3_ptr + every).to(tl.float32)[None, :]
    # As torch, ReLU keeps a NaN: a fault stays visible.
    hidden = tl.maximum(total, 0.0, propagate_nan=tl.PropagateNan.ALL).to(tl.float16)
    for start in tl.static_range(0, channels, block_e):
        e = start + tl.arange(0, block_e)
        w1 = tl.load(w1_ptr + every[:, None] * channels + e[None, :])
        at = m[:, None] * channels + e[None, :]
        mask = (m < pixels)[:, None]
        out = tl.dot(hidden, w1) + tl.load(b1_ptr + e).to(tl.float32)[None, :]
        out += tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(y_ptr + at, out.to(tl.float16), mask=mask)


@functools.cache
def form(channels: int, dilation: int, tile: Tile, name: str = "", bias: str = "fp32") -> Launch:
    """Return the launch for a width, dilation and tile.

    Args:
        channels: Width.
        dilation: Of the 3x3.
        tile: How it is cut.
        name: Of the record; empty = `residual_block_c32_d1`.
        bias: Type of the biases, `fp32`, or `fp16` for TensorRT.
    """
    types = {"b3_ptr": f"*{bias}", "b1_ptr": f"*{bias}"}
    return Launch(
        name=name or f"residual_block_c{channels}_d{dilation}",
        kernel=residual_block_kernel,
        arguments={
            **{p: types.get(p, "*fp16") for p in _POINTERS},
            **dict.fromkeys(_SCALARS, "i32"),
            "y_ptr": "*fp16",
        },
        constants={
            "channels": channels,
            "dilation": dilation,
            "block_m": tile.block_m,
            "block_k": tile.block_k,
            "block_e": tile.block_e,
        },
        grid=(Axis(("pixels",), tile.block_m), Axis(), Axis()),
        warps=tile.warps,
        stages=tile.stages,
        divisible=(*_POINTERS, "y_ptr"),
        tensor_cores=True,
        plugin=bias == "fp16",
    )


def launches() -> Iterable[Launch]:
    """Yield every width and dilation by the default tiles, and the plugins of the presets.

    Small tiles come in one dilation: another only moves addresses. A plugin takes the tile that
    suits its width in a picture of 1920 x 1088 px.
    """
    for channels in WIDTHS:
        small, large = (tiles.for_card().tiles[channels][size] for size in tiles.SIZES)
        yield form(channels, 1, small, f"residual_block_small_c{channels}_d1")
        for dilation in DILATIONS:
            yield form(channels, dilation, large)
    for channels, dilation in plugin_forms():
        tile = tiles.choose(channels, _pixels(_FULL_HD, channels))
        yield form(
            channels, dilation, tile, f"residual_block_plugin_c{channels}_d{dilation}", "fp16"
        )


def plugin_forms() -> list[tuple[int, int]]:
    """Return the widths and dilations of the blocks of every preset, sorted."""
    return sorted(
        {
            (conv.cin, conv.dilation)
            for preset in PRESETS.values()
            for conv in preset.convs(preset.multiple, preset.multiple)
            if conv.role == "spatial"
        }
    )


def run(x: Tensor, w3: Tensor, b3: Tensor, w1: Tensor, b1: Tensor, dilation: int) -> Tensor:
    """Launch the kernel; arguments as of `residual_block`, already checked."""
    n, height, width, channels = x.shape
    capability = torch.cuda.get_device_capability(x.device) if x.is_cuda else None
    tile = tiles.choose(channels, n * height * width, capability)
    y = launch.allocate(x.shape, x.dtype, x)
    compute(form(channels, dilation, tile), x, w3, b3, w1, b1, y)
    return y


def compute(
    record: Launch, x: Tensor, w3: Tensor, b3: Tensor, w1: Tensor, b1: Tensor, y: Tensor
) -> None:
    """Run one form of the kernel into `y`, which is shaped as x."""
    n, height, width, _ = x.shape
    pixels = n * height * width
    record({"pixels": pixels}, x, w3, b3, w1, b1, height, width, pixels, y)


def reference(x: Tensor, w3: Tensor, b3: Tensor, w1: Tensor, b1: Tensor, dilation: int) -> Tensor:
    """Compute it in plain torch, in float32 or wider; the intermediate is rounded to float16."""
    wide = functools.reduce(
        torch.promote_types, (t.dtype for t in (x, w3, b3, w1, b1)), torch.float32
    )
    channels = x.shape[3]
    x_wide = x.to(wide)
    conv3 = w3.to(wide).reshape(3, 3, channels, channels).permute(3, 2, 0, 1)
    hidden = F.conv2d(
        x_wide.permute(0, 3, 1, 2), conv3, b3.to(wide), padding=dilation, dilation=dilation
    )
    hidden = hidden.relu().to(torch.float16).to(wide).permute(0, 2, 3, 1)
    y = x_wide + hidden @ w1.to(wide) + b1.to(wide)
    return y.to(x.dtype).contiguous()


def _fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


_op = launch.define(
    "residual_block",
    "(Tensor x, Tensor w3, Tensor b3, Tensor w1, Tensor b1, int dilation) -> Tensor",
    run,
    reference,
    _fake,
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.dilation = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Compute the reference once more and differentiate it: nothing but the inputs is kept."""
    with torch.enable_grad():
        x, w3, b3, w1, b1 = inputs = [
            t.detach().requires_grad_(asked)
            for t, asked in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)
        ]
        y = reference(x, w3, b3, w1, b1, ctx.dilation)
    asked = [t for t in inputs if t.requires_grad]
    found = iter(torch.autograd.grad(y, asked, gradient))
    return (*(next(found) if t.requires_grad else None for t in inputs), None)


_op.register_autograd(_differentiate, setup_context=_keep)


def residual_block(
    x: Tensor, w3: Tensor, b3: Tensor, w1: Tensor, b1: Tensor, dilation: int
) -> Tensor:
    """Return `x + W1 relu(W3_d * x + b3) + b1`; zero padding, float32 sums.

    The intermediate is rounded to float16. Gradients flow to all tensors, once: there is no
    second derivative.

    Args:
        x: float16, `(N, H, W, C)`, contiguous; C is 16, 32, 64 or 128.
        w3: float16, `(9 C, C)`: row `(ky * 3 + kx) * C + input channel`; see `weights`.
        b3: float32, `(C,)`.
        w1: float16, `(C, C)`: input, output channel.
        b1: float32, `(C,)`.
        dilation: Of the 3x3, 1, 2, 4 or 8 px.

    Returns:
        float16, `(N, H, W, C)`.

    Raises:
        InputError: Type, shape, layout, device, size or dilation that the kernel does not take.
    """
    launch.check("residual_block", "x", x, torch.float16, (None, None, None, None))
    c = x.shape[3]
    if c not in WIDTHS:
        raise InputError(f"residual_block: x has {c} channels; use 16, 32, 64 or 128")
    launch.check("residual_block", "w3", w3, torch.float16, (9 * c, c), x)
    launch.check("residual_block", "b3", b3, torch.float32, (c,), x)
    launch.check("residual_block", "w1", w1, torch.float16, (c, c), x)
    launch.check("residual_block", "b1", b1, torch.float32, (c,), x)
    if isinstance(dilation, bool) or not isinstance(dilation, int):
        raise InputError(f"residual_block: dilation must be an int, got {type(dilation).__name__}")
    if dilation not in DILATIONS:
        raise InputError(f"residual_block: dilation is {dilation}; use 1, 2, 4 or 8")
    y: Tensor = _op(x, w3, b3, w1, b1, dilation)
    return y


def weights(
    conv3: Tensor, bias3: Tensor, conv1: Tensor, bias1: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return w3, b3, w1, b1 as `residual_block` takes them; gradients flow through.

    Args:
        conv3: float, `(C, C, 3, 3)`: output, input channel, ky, kx, as torch and ONNX have it.
        bias3: float, `(C,)`.
        conv1: float, `(C, C, 1, 1)`.
        bias1: float, `(C,)`.

    Raises:
        InputError: A shape does not fit.
    """
    c = len(bias3)
    shapes = {"conv3": (c, c, 3, 3), "bias3": (c,), "conv1": (c, c, 1, 1), "bias1": (c,)}
    for (name, shape), given in zip(shapes.items(), (conv3, bias3, conv1, bias1), strict=True):
        if given.shape != shape:
            raise InputError(f"residual_block: {name} must be {shape}, got {tuple(given.shape)}")
    w3 = conv3.permute(2, 3, 1, 0).reshape(9 * c, c).to(torch.float16)
    w1 = conv1.reshape(c, c).T.to(torch.float16).contiguous()
    return w3.contiguous(), bias3.to(torch.float32), w1, bias1.to(torch.float32)


def _size(case: Case, channels: int) -> tuple[int, int]:
    """Return height and width at which a width runs in a picture of the case."""
    step = REDUCTION[channels]
    return -(-case.height // step), -(-case.width // step)


def _pixels(case: Case, channels: int) -> int:
    height, width = _size(case, channels)
    return case.n * height * width


def inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Return noise of standard deviation 1, and weights that keep it."""
    c, rng = case.options["channels"], torch.Generator().manual_seed(seed)

    def noise(*shape: int, fan_in: int = 1) -> Tensor:
        scale = 1 / math.sqrt(fan_in)
        return (torch.randn(shape, generator=rng) * scale).to(device)

    x = noise(case.n, *_size(case, c), c).half()
    w3, w1 = noise(9 * c, c, fan_in=9 * c).half(), noise(c, c, fan_in=c).half()
    return x, w3, noise(c), w1, noise(c), case.options["dilation"]


def traffic(case: Case) -> Traffic:
    """Count x, y and the weights once, and both products."""
    c = case.options["channels"]
    pixels = _pixels(case, c)
    tensor, weight = 2 * pixels * c, 2 * 10 * c * c + 2 * 4 * c
    return Traffic(tensor + weight, tensor, 2 * pixels * 10 * c * c)


def _cases() -> Iterable[Case]:
    """Yield every width and dilation, ragged; some pictures are smaller than the dilation."""
    for channels in WIDTHS:
        for dilation, (n, height, width) in zip(
            DILATIONS, ((1, 5, 7), (2, 3, 11), (1, 9, 13), (2, 5, 7)), strict=True
        ):
            step = REDUCTION[channels]
            options = {"channels": channels, "dilation": dilation}
            yield Case(n, height * step, width * step, options)


OPERATOR = Operator(
    name="residual_block",
    run=residual_block,
    reference=reference,
    inputs=inputs,
    cases=tuple(_cases()),
    variants=tuple({"channels": c, "dilation": d} for c in WIDTHS for d in (1, 8)),
    traffic=traffic,
    launches=launches,
    tolerance=(8e-3,),
    differentiable=(0, 1, 2, 3, 4),
)
