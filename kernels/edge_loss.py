"""Loss of Sobel gradients, forward and backward, without a picture of gradients in memory.

`mean(w (|gx| + |gy|))` of d = output - target. The Sobel operator is linear, so one stencil on
the difference does for both pictures.

Tile: a program owns 128 columns of 8 rows of one channel, one column a thread; it walks down with
three columns of two rows in registers, and clamped indices replicate the border. Programs that
differ in the channel alone run side by side and share the weights through the cache.

Forward writes one partial sum a program and one byte an element: the sign of gx plus 1 in bits 0
and 1, that of gy in bits 2 and 3. The partial sums are added in float64, in a fixed order, without
atomics: the same inputs give the same bits. Backward reads that byte and the weights alone. The
adjoint of `[1, 2, 1]` with replicated border is itself; that of `s[i + 1] - s[i - 1]` is
`s[i - 1] - s[i + 1]` with the border continued oddly, `s[-1] = -s[0]`, `s[n] = -s[n - 1]`.

Bytes an element, weights apart: 8 + 1 forward, 1 + 4 backward; weights 4 a pixel each way.

Source: L_edge of the paper, as an L1 distance of Sobel gradients; `train.losses.edge`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fastrestore.errors import InputError
from fastrestore.kernels import launch
from fastrestore.kernels.fusion import gradients
from fastrestore.kernels.operator import Axis, Case, Inputs, Launch, Operator, Traffic

BLOCK, ROWS = 128, 8
CHANNELS = 3
GRID = (Axis(("planes",)), Axis(("width",), BLOCK), Axis(("height",), ROWS))


@triton.jit
def _columns(x: tl.tensor, width: tl.tensor) -> Any:
    """Return left, here and right, clamped to the picture."""
    here = tl.minimum(x, width - 1)
    return tl.maximum(here - 1, 0), here, tl.minimum(here + 1, width - 1)


@triton.jit
def _differences(
    o: tl.tensor,
    t: tl.tensor,
    y: tl.tensor,
    x: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    o_step: tl.tensor,
    t_step: tl.tensor,
) -> Any:
    """Load three columns of row y of output - target; beyond the border the outermost row."""
    row = tl.minimum(tl.maximum(y, 0), height - 1) * width
    left, here, right = _columns(x, width)
    left, here, right = row + left, row + here, row + right
    a = tl.load(o + left * o_step) - tl.load(t + left * t_step)
    b = tl.load(o + here * o_step) - tl.load(t + here * t_step)
    c = tl.load(o + right * o_step) - tl.load(t + right * t_step)
    return a, b, c


@triton.jit
def _plane(plane: tl.tensor, pixels: tl.tensor, step: tl.constexpr) -> Any:
    """Return where a plane starts: `step` is 1 for planar channels, 3 for interleaved ones."""
    start = plane * pixels
    if step == 3:
        start = plane // 3 * 3 * pixels + plane % 3
    return start


@triton.jit
def _sign(x: tl.tensor) -> Any:
    return (x > 0).to(tl.int32) - (x < 0).to(tl.int32)


@triton.jit(do_not_specialize=["height"])
def edge_loss_kernel(
    output_ptr: tl.tensor,
    target_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    sums_ptr: tl.tensor,
    signs_ptr: tl.tensor,
    o_step: tl.constexpr,
    t_step: tl.constexpr,
    block: tl.constexpr,
    rows: tl.constexpr,
) -> None:
    """Sum `8 w (|gx| + |gy|)` of one strip and write its signs; `forward_reference` is plain."""
    plane = tl.program_id(0)
    x = tl.program_id(1) * block + tl.arange(0, block)
    top = tl.program_id(2) * rows
    pixels = height * width
    o = output_ptr + _plane(plane, pixels, o_step)
    t = target_ptr + _plane(plane, pixels, t_step)
    w_ptr = weights_ptr + plane // 3 * pixels
    a0, b0, c0 = _differences(o, t, top - 1, x, height, width, o_step, t_step)
    a1, b1, c1 = _differences(o, t, top, x, height, width, o_step, t_step)
    total = tl.zeros((block,), tl.float32)
    for r in tl.static_range(rows):
        y = top + r
        a2, b2, c2 = _differences(o, t, y + 1, x, height, width, o_step, t_step)
        gx = (c0 - a0) + 2 * (c1 - a1) + (c2 - a2)
        gy = (a2 - a0) + 2 * (b2 - b0) + (c2 - c0)
        inside = (x < width) & (y + 0 * x < height)
        at = y * width + x
        w = tl.load(w_ptr + at, mask=inside, other=0.0)  # what is outside weighs nothing
        total += (tl.abs(gx) + tl.abs(gy)) * w
        code = (_sign(gx) + 1) | ((_sign(gy) + 1) << 2)
        tl.store(signs_ptr + plane * pixels + at, code.to(tl.uint8), mask=inside)
        a0, b0, c0 = a1, b1, c1
        a1, b1, c1 = a2, b2, c2
    strip = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    tl.store(sums_ptr + strip * tl.num_programs(0) + plane, tl.sum(total, 0))


@triton.jit
def _weighted_signs(
    s: tl.tensor, w: tl.tensor, y: tl.tensor, x: tl.tensor, height: tl.tensor, width: tl.tensor
) -> Any:
    """Return of row y: the gx part, differenced along x; the gy part, smoothed along x."""
    row = tl.minimum(tl.maximum(y, 0), height - 1) * width
    left, here, right = _columns(x, width)
    a = tl.load(s + row + left).to(tl.int32)
    b = tl.load(s + row + here).to(tl.int32)
    c = tl.load(s + row + right).to(tl.int32)
    wa = tl.load(w + row + left)
    wb = tl.load(w + row + here)
    wc = tl.load(w + row + right)
    before = wa * ((a & 3) - 1).to(tl.float32)
    behind = wc * ((c & 3) - 1).to(tl.float32)
    dx = tl.where(x == 0, -before, before) - tl.where(x == width - 1, -behind, behind)
    smooth = wa * ((a >> 2) - 1).to(tl.float32) + wc * ((c >> 2) - 1).to(tl.float32)
    return dx, smooth + 2 * wb * ((b >> 2) - 1).to(tl.float32)


@triton.jit(do_not_specialize=["height"])
def edge_loss_backward_kernel(
    loss_ptr: tl.tensor,
    signs_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    out_ptr: tl.tensor,
    block: tl.constexpr,
    rows: tl.constexpr,
) -> None:
    """Compute one strip of the gradient by the output; `backward_reference` is its plain form."""
    plane = tl.program_id(0)
    x = tl.program_id(1) * block + tl.arange(0, block)
    top = tl.program_id(2) * rows
    pixels = height * width
    scale = tl.load(loss_ptr) * 0.125 / (tl.num_programs(0) * pixels).to(tl.float32)
    s = signs_ptr + plane * pixels
    w = weights_ptr + plane // 3 * pixels
    dx0, sy0 = _weighted_signs(s, w, top - 1, x, height, width)
    dx1, sy1 = _weighted_signs(s, w, top, x, height, width)
    for r in tl.static_range(rows):
        y = top + r
        dx2, sy2 = _weighted_signs(s, w, y + 1, x, height, width)
        above = tl.where(y == 0, -1.0, 1.0)  # the odd continuation, along y
        below = tl.where(y == height - 1, -1.0, 1.0)
        found = dx0 + 2 * dx1 + dx2 + (sy0 * above - sy2 * below)
        inside = (x < width) & (y + 0 * x < height)
        tl.store(out_ptr + plane * pixels + y * width + x, found * scale, mask=inside)
        dx0, sy0 = dx1, sy1
        dx1, sy1 = dx2, sy2


def _launch(
    name: str, kernel: Any, inputs: dict[str, str], results: dict[str, str], **constants: int
) -> Launch:
    """Return a compiled form; a column a thread, so that none ever copies 16 bytes."""
    return Launch(
        name=name,
        kernel=kernel,
        arguments={**inputs, "height": "i32", "width": "i32", **results},
        constants={**constants, "block": BLOCK, "rows": ROWS},
        grid=GRID,
        divisible=(*inputs, *results),
        wide_copies=False,
    )


_LAYOUTS = {1: "planar", CHANNELS: "last"}  # step from pixel to pixel
_FORWARD = {
    (o, t): _launch(
        f"edge_loss_{_LAYOUTS[o]}_{_LAYOUTS[t]}",
        edge_loss_kernel,
        dict.fromkeys(("output_ptr", "target_ptr", "weights_ptr"), "*fp32"),
        {"sums_ptr": "*fp32", "signs_ptr": "*u8"},
        o_step=o,
        t_step=t,
    )
    for o in _LAYOUTS
    for t in _LAYOUTS
}
_BACKWARD = _launch(
    "edge_loss_backward",
    edge_loss_backward_kernel,
    {"loss_ptr": "*fp32", "signs_ptr": "*u8", "weights_ptr": "*fp32"},
    {"out_ptr": "*fp32"},
)


def launches() -> Iterable[Launch]:
    """Return every compiled form."""
    return (*_FORWARD.values(), _BACKWARD)


def _sizes(x: Tensor) -> dict[str, int]:
    n, channels, height, width = x.shape
    return {"planes": n * channels, "height": height, "width": width}


def run(output: Tensor, target: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Launch the forward kernel; arguments as of `edge_loss`, already checked.

    Returns:
        The loss, and the signs that backward reads: uint8, `(N, 3, H, W)`.
    """
    sizes = _sizes(output)
    sums = launch.allocate([math.prod(axis.at(sizes) for axis in GRID)], torch.float32, output)
    signs = launch.allocate(output.shape, torch.uint8, output)
    o, t = (1 if x.is_contiguous() else CHANNELS for x in (output, target))
    height, width = output.shape[2:]
    _FORWARD[o, t](sizes, output, target, weights, height, width, sums, signs)
    loss = sums.sum(dtype=torch.float64) / (8 * output.numel())
    return loss.to(torch.float32), signs


def run_backward(loss: Tensor, signs: Tensor, weights: Tensor) -> Tensor:
    """Launch the backward kernel.

    Takes the gradient by the loss, float32, `()`, and the signs that `run` wrote; returns the
    gradient by the output, contiguous. That by the target is its negative.
    """
    out = launch.allocate(signs.shape, torch.float32, signs)
    height, width = signs.shape[2:]
    _BACKWARD(_sizes(signs), loss, signs, weights, height, width, out)
    return out


def reference(output: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Compute the loss in plain torch; autograd differentiates it, any float type."""
    gx, gy = gradients(output - target)
    return ((gx.abs() + gy.abs()) * weights).mean()


def forward_reference(output: Tensor, target: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Compute what `run` does in plain torch."""
    gx, gy = gradients(output - target)
    loss = ((gx.abs() + gy.abs()) * weights).mean()
    code = (gx.sign() + 1) + 4 * (gy.sign() + 1)
    return loss, code.to(torch.uint8).contiguous()


def backward_reference(loss: Tensor, signs: Tensor, weights: Tensor) -> Tensor:
    """Compute what `run_backward` does in plain torch."""
    u = F.pad(((signs & 3).to(weights) - 1) * weights, (1, 1, 1, 1), mode="replicate")
    v = F.pad(((signs >> 2).to(weights) - 1) * weights, (1, 1, 1, 1), mode="replicate")
    for border in (u[..., 0], u[..., -1], v[..., 0, :], v[..., -1, :]):
        border.neg_()
    dx, dy = u[..., :-2] - u[..., 2:], v[..., :-2, :] - v[..., 2:, :]
    total = dx[..., :-2, :] + 2 * dx[..., 1:-1, :] + dx[..., 2:, :]
    total = total + dy[..., :-2] + 2 * dy[..., 1:-1] + dy[..., 2:]
    return total * (loss / (8 * signs.numel()))


def _fake(output: Tensor, target: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    return output.new_empty(()), output.new_empty(output.shape, dtype=torch.uint8)


def _fake_backward(loss: Tensor, signs: Tensor, weights: Tensor) -> Tensor:
    return signs.new_empty(signs.shape, dtype=torch.float32)


_SCHEMA = "(Tensor output, Tensor target, Tensor weights) -> (Tensor loss, Tensor signs)"
_BACKWARD_SCHEMA = "(Tensor loss, Tensor signs, Tensor weights) -> Tensor"
_op = launch.define("edge_loss", _SCHEMA, run, forward_reference, _fake)
_backward_op = launch.define(
    "edge_loss_backward", _BACKWARD_SCHEMA, run_backward, backward_reference, _fake_backward
)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1], inputs[2])


def _differentiate(ctx: Any, loss: Tensor, _signs: Tensor) -> tuple[Tensor | None, ...]:
    signs, weights = ctx.saved_tensors
    found = _backward_op(loss, signs, weights)
    wanted = ctx.needs_input_grad
    return found if wanted[0] else None, -found if wanted[1] else None, None


_op.register_autograd(_differentiate, setup_context=_keep)


def edge_loss(output: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Return `mean(w (|gx| + |gy|))` of output - target: Sobel / 8, replicate border.

    Gradients flow to output and target, once: there is no second derivative. Where gx or gy is
    exactly 0, or NaN, the gradient of its size is taken as 0, as torch does: a NaN shows in the
    loss alone.

    Args:
        output: float32, `(N, 3, H, W)`, contiguous or channels_last.
        target: float32, the same shape, either layout.
        weights: float32, `(N, 1, H, W)`, contiguous, no gradient.

    Returns:
        float32, `()`; the same bits for the same inputs.

    Raises:
        InputError: Type, shape, layout, device or size that the kernel would read wrongly; weights
            that ask for a gradient.
    """
    _check_picture("output", output, (None, CHANNELS, None, None))
    n, _, height, width = output.shape
    _check_picture("target", target, (n, CHANNELS, height, width), output)
    launch.check("edge_loss", "weights", weights, torch.float32, (n, 1, height, width), output)
    if weights.requires_grad:
        raise InputError("edge_loss: weights get no gradient; detach them")
    loss: Tensor = _op(output, target, weights)[0]
    return loss


def _check_picture(
    argument: str, x: Tensor, shape: tuple[int | None, ...], like: Tensor | None = None
) -> None:
    """Check a picture in the order of its memory."""
    planar = not isinstance(x, Tensor) or x.dim() != 4 or x.is_contiguous()
    if not planar and x.permute(0, 2, 3, 1).is_contiguous():
        x, shape = x.permute(0, 2, 3, 1), (shape[0], *shape[2:], shape[1])
    launch.check("edge_loss", argument, x, torch.float32, shape, like)


def inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Return noise in 0-1 and weights of which a quarter is 0."""
    rng = torch.Generator().manual_seed(seed)
    pictures = []
    for name in ("output", "target"):
        shape = (case.n, CHANNELS, case.height, case.width)
        picture = torch.rand(shape, generator=rng).to(device)
        last = name in case.options.get("channels_last", ())
        pictures.append(picture.contiguous(memory_format=torch.channels_last) if last else picture)
    weights = torch.rand((case.n, 1, case.height, case.width), generator=rng)
    weights = (4 * weights - 1).clamp(min=0)
    return (*pictures, weights.to(device))


def traffic(case: Case) -> Traffic:
    """Count forward: `8e + 4p` bytes read, `e` and the loss written; e elements, p = e / 3 pixels.

    FLOPs an element: 1 of the difference, 12 of both gradients, 5 of the weighted sum.
    """
    pixels = case.n * case.height * case.width
    e = CHANNELS * pixels
    return Traffic(8 * e + 4 * pixels, e + 4, 18 * e)


def traffic_backward(case: Case) -> Traffic:
    """Count backward: `e + 4p` bytes and the loss's gradient read, `4e` written; 18 FLOPs each."""
    pixels = case.n * case.height * case.width
    e = CHANNELS * pixels
    return Traffic(e + 4 * pixels + 4, 4 * e, 18 * e)


OPERATOR = Operator(
    name="edge_loss",
    run=edge_loss,
    reference=reference,
    inputs=inputs,
    cases=(
        Case(2, 7, 9),
        Case(1, 21, 37, {"channels_last": ("target",)}),
        Case(1, 3, 131, {"channels_last": ("output",)}),  # more than one block of columns
        Case(1, 5, 1, {"channels_last": ("output", "target")}),
        Case(1, 1, 5),
        Case(1, 8, 128),  # nothing is cut off
    ),
    variants=({}, {"channels_last": ("target",)}),  # plain; as training lays them out
    traffic=traffic,
    launches=launches,
    tolerance=(1e-6,),
    differentiable=(0, 1),
)
