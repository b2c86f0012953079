"""The network's input and the next state from frame, past and fill, in one pass.

`pack_strip` has the kernel and its tile picture.

Bytes a pixel: read 3 frame, 1 mask, 4 state, 2 fill and 1/32 motion; written 16 and 4. A still
reads neither state nor motion, and the fill is read only around holes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fastrestore.errors import InputError
from fastrestore.kernels import fusion, launch
from fastrestore.kernels.operator import Axis, Case, Inputs, Launch, Operator, Traffic
from fastrestore.kernels.pack_strip import pack_kernel
from fastrestore.presets import IN_CHANNELS, UNSHUFFLE

BLOCK, ROWS = 32, 8  # pairs of columns, one a thread; rows
CHANNELS = IN_CHANNELS * UNSHUFFLE**2
CELL = 2**fusion.MOTION_LEVEL  # px of one value of the motion


def _form(name: str, past: bool, picture: str, sigma: str, plugin: bool = False) -> Launch:
    """Return one compiled form; `picture` and `sigma` are the types that are handed over."""
    return Launch(
        name=name,
        kernel=pack_kernel,
        arguments={
            "frame_ptr": picture,
            "mask_ptr": picture,
            "state_ptr": picture,
            "sigma_ptr": sigma,
            "f_ptr": "*fp16",
            "motion_ptr": "*fp16",
            "height": "i32",
            "width": "i32",
            "packed_ptr": "*fp16",
            "next_ptr": picture,
        },
        constants={"past": past, "planar": plugin, "block": BLOCK, "rows": ROWS},
        grid=(Axis(("width",), 2 * BLOCK), Axis(("height",), ROWS), Axis(("n",))),
        warps=1,
        divisible=(
            "frame_ptr", "mask_ptr", "state_ptr", "sigma_ptr", "f_ptr", "motion_ptr",
            "packed_ptr", "next_ptr",
        ),
        plugin=plugin,
    )  # fmt: skip


_PAST = _form("pack_past", True, "*u8", "*fp32")
_STILL = _form("pack_still", False, "*u8", "*fp32")
# What TensorRT hands over: fp16 pictures in NHWC; fill and motion in planes
PLUGIN = _form("pack_frame", True, "*fp16", "*fp16", plugin=True)


def launches() -> Iterable[Launch]:
    """Return every compiled form."""
    return _PAST, _STILL, PLUGIN


def run(
    frame: Tensor,
    mask: Tensor,
    state: Tensor,
    sigma: Tensor,
    fill: Tensor,
    motion: Tensor,
    past: bool,
) -> tuple[Tensor, Tensor]:
    """Launch the kernel; arguments as of `pack`, already checked."""
    n, height, width, _ = frame.shape
    packed = launch.allocate((n, height // 2, width // 2, CHANNELS), torch.float16, frame)
    state_out = launch.allocate((n, height, width, 4), torch.uint8, frame)
    form = _PAST if past else _STILL
    sizes = {"n": n, "height": height, "width": width}
    form(sizes, frame, mask, state, sigma, fill, motion, height, width, packed, state_out)
    return packed, state_out


def space_to_depth(x: Tensor) -> Tensor:
    """Turn `(N, C, H, W)` into cells `(N, H/2, W/2, 4 * C)`, channel `(sy * 2 + sx) * C + c`."""
    n, c, height, width = x.shape
    s = UNSHUFFLE
    cells = x.reshape(n, c, height // s, s, width // s, s).permute(0, 2, 4, 3, 5, 1)
    return cells.reshape(n, height // s, width // s, s * s * c)


def reference(
    frame: Tensor,
    mask: Tensor,
    state: Tensor,
    sigma: Tensor,
    fill: Tensor,
    motion: Tensor,
    past: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the same in plain torch, in the widest type of sigma, fill and motion.

    Returns:
        Packed in the type of `fill`, and the next state as uint8.
    """
    wide = torch.promote_types(torch.float32, torch.promote_types(sigma.dtype, fill.dtype))

    def nchw(x: Tensor) -> Tensor:
        return x.to(wide).permute(0, 3, 1, 2)

    if not past:
        state, motion = torch.zeros_like(state), torch.zeros_like(motion)
    pyramid = fusion.Pyramid(nchw(fill), motion.to(wide)[:, None])
    levels = sigma.to(wide)[:, None, None, None]
    fused = fusion.pack_frame(nchw(frame), nchw(mask != 0), nchw(state), levels, pyramid)
    state_out = fused.state.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return space_to_depth(fused.packed).to(fill.dtype), state_out.contiguous()


def _fake(
    frame: Tensor,
    mask: Tensor,
    state: Tensor,
    sigma: Tensor,
    fill: Tensor,
    motion: Tensor,
    past: bool,
) -> tuple[Tensor, Tensor]:
    n, height, width, _ = frame.shape
    packed = fill.new_empty((n, height // UNSHUFFLE, width // UNSHUFFLE, CHANNELS))
    return packed, frame.new_empty((n, height, width, 4))


_op = launch.define(
    "pack",
    "(Tensor frame, Tensor mask, Tensor state, Tensor sigma, Tensor fill, Tensor motion, "
    "bool past) -> (Tensor, Tensor)",
    run,
    reference,
    _fake,
)


def pack(
    frame: Tensor,
    mask: Tensor,
    state: Tensor,
    sigma: Tensor,
    fill: Tensor,
    motion: Tensor,
    past: bool,
) -> tuple[Tensor, Tensor]:
    """Average the frame (holes filled) with the past, and build the network's input.

    Args:
        frame: uint8, `(N, H, W, 3)`, R, G, B; H and W multiples of 8.
        mask: uint8, `(N, H, W, 1)`, anything but 0 = hole.
        state: uint8, `(N, H, W, 4)`: fused base of the past, and how far it is trusted.
        sigma: float32, `(N,)`, noise on the 0-255 scale, below 255.
        fill: float16, `(N, H/2, W/2, 4)`: level 1 of the pyramid, r, g, b (0-1) and a weight.
        motion: float16, `(N, H/8, W/8)`: level 3, energy of the motion.
        past: False for a still: neither state nor motion is read.

    Returns:
        packed: float16, `(N, H/2, W/2, 32)`, channel `(sy * 2 + sx) * 8 + c`, c as
            `fusion.pack`; the last two of each eight are zero.
        state_out: uint8, `(N, H, W, 4)`, the next frame's state.

    Raises:
        InputError: Type, shape, layout or size that the kernel would read wrongly.
    """
    launch.check("pack", "frame", frame, torch.uint8, (None, None, None, 3))
    n, height, width, _ = frame.shape
    if height % CELL or width % CELL:
        raise InputError(
            f"pack: frame is {height}x{width}, sides must be multiples of {CELL}; pad it"
        )
    if frame.numel() // 3 * IN_CHANNELS > launch.MOST_ELEMENTS:
        raise InputError(
            f"pack: frame has {frame.numel() // 3} pixels, the result would have more than "
            f"2^31 - 1 elements; split the batch"
        )
    launch.check("pack", "mask", mask, torch.uint8, (n, height, width, 1), frame)
    launch.check("pack", "state", state, torch.uint8, (n, height, width, 4), frame)
    launch.check("pack", "sigma", sigma, torch.float32, (n,), frame)
    half, cells = (n, height // 2, width // 2, 4), (n, height // CELL, width // CELL)
    launch.check("pack", "fill", fill, torch.float16, half, frame)
    launch.check("pack", "motion", motion, torch.float16, cells, frame)
    launch.check_flag("pack", "past", past)
    packed, state_out = _op(frame, mask, state, sigma, fill, motion, past)
    return packed, state_out


def inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Return noise, a past of which half is near the frame, and holes of 8 x 8 px."""
    rng = torch.Generator().manual_seed(seed)
    n, height, width = case.n, case.height, case.width

    def noise(*shape: int) -> Tensor:
        return torch.rand(shape, generator=rng)

    frame = (noise(n, height, width, 3) * 256).to(torch.uint8)
    holes = noise(n, height // CELL, width // CELL, 1) < 0.3
    mask = holes.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)
    state = (noise(n, height, width, 4) * 256).to(torch.uint8)
    state[:, : height // 2, :, :3] = frame[:, : height // 2]
    sigma = torch.tensor([5.0, 75.0, 0.0, 25.0]).repeat(-(-n // 4))[:n]
    fill = noise(n, height // 2, width // 2, 4).half()
    motion = (noise(n, height // CELL, width // CELL) * 6 - 1).half()
    tensors = (frame, mask.to(torch.uint8), state, sigma, fill, motion)
    return *(x.contiguous().to(device) for x in tensors), case.options["past"]


def traffic(case: Case) -> Traffic:
    """Count `pixels * (10 + 1/32) + 4 * N` bytes read, a still's `pixels * 6`, and 20 written.

    That is the whole fill; only its part around holes is read. FLOPs a pixel: 21 of the fill
    enlarged, 24 of Sobel and luma, 15 of scale and noise; with the past 33 more of motion,
    weights and average.
    """
    pixels = case.n * case.height * case.width
    past = bool(case.options["past"])
    read = 6 * pixels + 4 * case.n
    if past:
        read += 4 * pixels + 2 * pixels // CELL**2
    return Traffic(read, 20 * pixels, pixels * (93 if past else 60))


OPERATOR = Operator(
    name="pack",
    run=pack,
    reference=reference,
    inputs=inputs,
    cases=(
        Case(1, 8, 72, {"past": True}),  # more than one strip across
        Case(2, 16, 8, {"past": True}),  # and down
        Case(1, 8, 8, {"past": False}),
    ),
    variants=({"past": True}, {"past": False}),
    traffic=traffic,
    launches=launches,
    # half a step of float16 below 2 (noise map of sigma 75), and one level
    tolerance=(2**-11 + 2e-5, 1.0),
)
