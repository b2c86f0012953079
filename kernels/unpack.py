"""From the network's correction to the picture, in one pass.

Tile: a program owns 128 columns of two rows (one row of cells), one column a thread. A pixel of
the packed picture is 16 bytes and one load, and neighbouring threads read whole sectors. A pixel
of the result is three bytes, which no vector fits: three stores, merged in the cache.

restored = 255 * (base + k * correction), with k = (kn + soft mask) / (kn + 1) and kn the square of
the base's noise over `TAU_CORRECTION`. The base is float16: a level of 255 / 255 is off by at
most 0.06 levels there, so a known pixel without noise (k = 0) comes back to the byte.

With `composite`, pixels outside the mask are the frame's own bytes, and nothing else is read for
them. W need not be a multiple of anything but 2: no access crosses a pixel.

Bytes a pixel: read 16 packed and 6 head (8 where it is padded), written 3; with `composite` also
read 1 mask, and 3 frame instead of head and packed outside of the mask.

Source: `UnpackFrame` of the exported graph; `fusion.correction_gain`.
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
from fastrestore.kernels.pack import CHANNELS as PACKED_CHANNELS
from fastrestore.kernels.pack import space_to_depth
from fastrestore.kernels.pack_strip import from_levels
from fastrestore.presets import IN_CHANNELS, UNSHUFFLE

BLOCK = 128  # columns
HEAD_CHANNELS = 3 * UNSHUFFLE**2
PADDED_CHANNELS = 16

_NOISE_UNIT = tl.constexpr(255 / 4 / fusion.TAU_CORRECTION)


@triton.jit
def _load_packed(packed_ptr: tl.tensor, at: tl.tensor, wanted: tl.tensor) -> Any:
    """Read r, g, b, soft mask and noise of each pixel in one load."""
    x = tl.load(packed_ptr + at[:, None] + tl.arange(0, 8)[None, :], wanted[:, None], 0.0)
    even, odd = tl.split(tl.reshape(x.to(tl.float32), (x.shape[0], 2, 2, 2)))
    c04, c26 = tl.split(even)
    c15, c37 = tl.split(odd)
    red, _ = tl.split(c04)
    green, noise = tl.split(c15)
    blue, _ = tl.split(c26)
    soft, _ = tl.split(c37)
    return red, green, blue, soft, noise


@triton.jit
def _colour(
    base: tl.tensor,
    gain: tl.tensor,
    head_ptr: tl.tensor,
    frame_ptr: tl.tensor,
    out_ptr: tl.tensor,
    wanted: tl.tensor,
    ok: tl.tensor,
    composite: tl.constexpr,
) -> None:
    """Write one channel."""
    correction = tl.load(head_ptr, wanted, 0.0).to(tl.float32)
    value = from_levels((base + gain * correction) * 255.0, out_ptr.dtype.element_ty)
    if composite:
        value = tl.where(wanted, value, tl.load(frame_ptr, ok & (wanted == 0), 0))
    tl.store(out_ptr, value, ok)


@triton.jit
def _cells(
    head_ptr: tl.tensor,
    packed_ptr: tl.tensor,
    frame_ptr: tl.tensor,
    mask_ptr: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    out_ptr: tl.tensor,
    composite: tl.constexpr,
    channels: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Restore two rows of pixels. `frame_ptr` and `mask_ptr` are not read without `composite`."""
    x = tl.program_id(0) * block + tl.arange(0, block)
    row = tl.program_id(2) * (height // 2) + tl.program_id(1)
    ok = x < width
    cell = row * (width // 2) + x // 2
    for sy in tl.static_range(2):
        s = 2 * sy + x % 2
        at = (2 * row + sy) * width + x
        wanted = ok
        if composite:
            wanted = tl.load(mask_ptr + at, ok, 0) != 0
        red, green, blue, soft, noise = _load_packed(packed_ptr, cell * 32 + s * 8, wanted)
        kn = noise * _NOISE_UNIT
        kn = kn * kn
        k = (kn + soft) / (kn + 1.0)
        head = head_ptr + cell * channels + s * 3
        frame, out = frame_ptr + 3 * at, out_ptr + 3 * at
        _colour(red, k, head, frame, out, wanted, ok, composite)
        _colour(green, k, head + 1, frame + 1, out + 1, wanted, ok, composite)
        _colour(blue, k, head + 2, frame + 2, out + 2, wanted, ok, composite)


@triton.jit(do_not_specialize=["height", "width"])  # another size needs no new compilation
def unpack_kernel(
    residual_ptr: tl.tensor,
    packed_ptr: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    restored_ptr: tl.tensor,
    channels: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Restore every pixel; `reference` is its plain form."""
    _cells(
        residual_ptr, packed_ptr, restored_ptr, restored_ptr, height, width, restored_ptr,
        False, channels, block,
    )  # fmt: skip


@triton.jit(do_not_specialize=["height", "width"])
def composite_kernel(
    residual_ptr: tl.tensor,
    packed_ptr: tl.tensor,
    frame_ptr: tl.tensor,
    mask_ptr: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    restored_ptr: tl.tensor,
    channels: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Restore what is under the mask and copy the rest."""
    _cells(
        residual_ptr, packed_ptr, frame_ptr, mask_ptr, height, width, restored_ptr,
        True, channels, block,
    )  # fmt: skip


def _form(
    name: str, channels: int, composite: bool, picture: str = "*u8", plugin: bool = False
) -> Launch:
    """Return one compiled form; `picture` is the type of the result."""
    pictures = {"frame_ptr": picture, "mask_ptr": picture} if composite else {}
    pointers = {"residual_ptr": "*fp16", "packed_ptr": "*fp16", **pictures}
    sizes = {"height": "i32", "width": "i32"}
    return Launch(
        name=name,
        kernel=composite_kernel if composite else unpack_kernel,
        arguments={**pointers, **sizes, "restored_ptr": picture},
        constants={"channels": channels, "block": BLOCK},
        grid=(Axis(("width",), BLOCK), Axis(("height",), 2), Axis(("n",))),
        divisible=(*pointers, "restored_ptr"),
        plugin=plugin,
    )


_FORMS = {
    (channels, composite): _form(
        f"unpack_{channels}" + ("_composite" if composite else ""), channels, composite
    )
    for channels in (HEAD_CHANNELS, PADDED_CHANNELS)
    for composite in (False, True)
}
# What TensorRT hands over: float16 NHWC with channels padded to a multiple of 8
PLUGIN = _form("unpack_frame", PADDED_CHANNELS, False, "*fp16", plugin=True)


def launches() -> Iterable[Launch]:
    """Return every compiled form."""
    return *_FORMS.values(), PLUGIN


def run(head: Tensor, packed: Tensor, frame: Tensor, mask: Tensor, composite: bool) -> Tensor:
    """Launch the kernel; arguments as of `unpack`, already checked."""
    n, height, width, _ = frame.shape
    out = launch.allocate((n, height, width, 3), torch.uint8, head)
    form = _FORMS[head.shape[-1], composite]
    pictures = (frame, mask) if composite else ()
    form({"n": n, "height": height, "width": width}, head, packed, *pictures, height, width, out)
    return out


def depth_to_space(x: Tensor, channels: int) -> Tensor:
    """Turn cells `(N, h, w, >= 4 * C)` into `(N, C, 2 * h, 2 * w)`; undoes `space_to_depth`."""
    n, h, w, _ = x.shape
    s = UNSHUFFLE
    cells = x[..., : s * s * channels].reshape(n, h, w, s, s, channels)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(n, channels, h * s, w * s)


def reference(head: Tensor, packed: Tensor, frame: Tensor, mask: Tensor, composite: bool) -> Tensor:
    """Compute the same in plain torch, in float32 or the wider type of head and packed."""
    wide = torch.promote_types(torch.float32, torch.promote_types(head.dtype, packed.dtype))
    pixels = depth_to_space(packed.to(wide), IN_CHANNELS)
    correction = fusion.correction_gain(pixels) * depth_to_space(head.to(wide), 3)
    levels = ((pixels[:, :3] + correction) * 255).clamp(0, 255).round().to(torch.uint8)
    restored = levels.permute(0, 2, 3, 1)
    if composite:
        restored = torch.where(mask != 0, restored, frame)
    return restored.contiguous()


def _fake(head: Tensor, packed: Tensor, frame: Tensor, mask: Tensor, composite: bool) -> Tensor:
    return torch.empty_like(frame, memory_format=torch.contiguous_format)


_op = launch.define(
    "unpack",
    "(Tensor head, Tensor packed, Tensor frame, Tensor mask, bool composite) -> Tensor",
    run,
    reference,
    _fake,
)


def unpack(head: Tensor, packed: Tensor, frame: Tensor, mask: Tensor, composite: bool) -> Tensor:
    """Apply the network's correction to the base and write the picture.

    Args:
        head: float16, `(N, H/2, W/2, 12 or 16)`, channel `(sy * 2 + sx) * 3 + c`, 0-1; the last
            four of 16 are not read.
        packed: float16, `(N, H/2, W/2, 32)`, as `pack` returns it.
        frame: uint8, `(N, H, W, 3)`, R, G, B; H and W even.
        mask: uint8, `(N, H, W, 1)`, anything but 0 = hole.
        composite: Copy the frame where there is no hole. False: frame and mask are not read.

    Returns:
        uint8, `(N, H, W, 3)`, R, G, B, rounded half to even.

    Raises:
        InputError: Type, shape, layout or size that the kernel would read wrongly.
    """
    launch.check("unpack", "frame", frame, torch.uint8, (None, None, None, 3))
    n, height, width, _ = frame.shape
    if height % UNSHUFFLE or width % UNSHUFFLE:
        raise InputError(f"unpack: frame is {height}x{width}, both must be even; pad it")
    launch.check("unpack", "mask", mask, torch.uint8, (n, height, width, 1), frame)
    padded = isinstance(head, Tensor) and head.shape[-1:] == (PADDED_CHANNELS,)
    channels = PADDED_CHANNELS if padded else HEAD_CHANNELS
    half = (n, height // UNSHUFFLE, width // UNSHUFFLE)
    launch.check("unpack", "head", head, torch.float16, (*half, channels), frame)
    launch.check("unpack", "packed", packed, torch.float16, (*half, PACKED_CHANNELS), frame)
    launch.check_flag("unpack", "composite", composite)
    restored: Tensor = _op(head, packed, frame, mask, composite)
    return restored


def inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Return noise: a base of whole levels, half of it known and clean; small corrections."""
    rng = torch.Generator().manual_seed(seed)
    n, height, width = case.n, case.height, case.width

    def noise(*shape: int) -> Tensor:
        return torch.rand(shape, generator=rng)

    frame = (noise(n, height, width, 3) * 256).to(torch.uint8)
    mask = (noise(n, height, width, 1) < 0.3).to(torch.uint8)
    planes = torch.zeros(n, IN_CHANNELS, height, width)
    planes[:, :3] = frame.permute(0, 3, 1, 2) / 255
    planes[:, 3:4] = mask.permute(0, 3, 1, 2) * noise(n, 1, height, width)
    planes[:, 5] = (noise(n, height, width) - 0.5).clamp(min=0)
    packed = space_to_depth(planes).half()
    channels = case.options["channels"]
    head = (noise(n, height // UNSHUFFLE, width // UNSHUFFLE, channels) - 0.5).half()
    tensors = (head, packed, frame, mask)
    return *(x.contiguous().to(device) for x in tensors), case.options["composite"]


def traffic(case: Case) -> Traffic:
    """Count `pixels * (16 + channels / 2)` bytes read, 1 + 3 more to composite, 3 written.

    That is with all of head, packed and frame; what is outside or under the mask is not read.
    FLOPs a pixel: 6 of the gain, 18 of the three channels.
    """
    pixels = case.n * case.height * case.width
    read = 16 + case.options["channels"] // 2 + (4 if case.options["composite"] else 0)
    return Traffic(pixels * read, pixels * 3, pixels * 24)


_OPTIONS = tuple({"channels": channels, "composite": composite} for channels, composite in _FORMS)
OPERATOR = Operator(
    name="unpack",
    run=unpack,
    reference=reference,
    inputs=inputs,
    cases=(
        *(Case(2, 6, 138, options) for options in _OPTIONS),
        Case(1, 2, 2, _OPTIONS[0]),
        Case(1, 4, 128, _OPTIONS[2]),  # nothing is cut off
    ),
    variants=_OPTIONS,
    traffic=traffic,
    launches=launches,
    tolerance=(1.0,),
)
