"""The fill pyramid and the motion energy: frame, mask and past to level 1 and level 3.

Level k has ceil(size / 2^k) cells. Launches, in order:

- `pull_frame`: bytes to level 1 (`pull_push_frame`).
- `pull_band1` and `pull_band2` to level 3, where both bands of the motion energy meet; without
  the past `pull_level` twice.
- `pull_level` while a level has too many cells for one program, then `coarse`: one program a
  picture pulls the rest, fills by the mean, and pushes back (`pull_push_coarse`).
- `push_level` up to level 1, in place. With the past the step from level 3 is `push_split`, which
  also writes the motion, one value a cell.

These are 6 launches where level 3 has at most 8192 cells, 8 for 720p and 1080p, 10 for 4K. Bytes:
`traffic` has the formula.

Source: pull-push filling (Gortler et al., The Lumigraph, SIGGRAPH 1996); the energy is that of
`fusion.pull_push`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fastrestore.errors import InputError
from fastrestore.kernels import fusion, launch
from fastrestore.kernels import pull_push_coarse as kernels
from fastrestore.kernels.fusion import MOTION_LEVEL
from fastrestore.kernels.operator import Axis, Case, Inputs, Launch, Operator, Traffic
from fastrestore.kernels.pull_push_frame import pull_frame_past, pull_frame_still
from fastrestore.presets import PYRAMID_LEVELS

STRIP, ROWS = 64, 4  # cells of level 1 that a program owns
BLOCK = 128  # cells a program, a thread each
COARSE_BLOCK, COARSE_WARPS = 1024, 16  # one cell a thread spilled registers on sm_120
MOST_COARSE = 8192  # cells of the largest level that one program walks
CHANNELS = {4: 4, 8: 6}  # of a stride: fill; fill, energy and its weight

_TYPES = {torch.float16: "*fp16", torch.float32: "*fp32"}
Pointers = Mapping[str, str]  # argument and its type

# Confidence a = 255 n / (n + 1) where 1 + 1 / n is cut: n = 0.1, as in `fusion`, and the most
_LEAST, _MOST = (255 * n / (n + 1) for n in (0.1, fusion.MAX_FRAMES))


def _over_strips(
    name: str, kernel: Any, inputs: Pointers, out: Pointers, **constants: float
) -> Launch:
    """Return a launch whose programs own a strip of level 1."""
    return Launch(
        name=name,
        kernel=kernel,
        arguments={**inputs, "height": "i32", "width": "i32", **out},
        constants={**constants, "block": STRIP, "rows": ROWS},
        grid=(Axis(("columns",), STRIP), Axis(("rows",), ROWS), Axis(("n",))),
        warps=STRIP // 32,
        divisible=tuple(out),
        wide_copies="band_ptr" in out,
    )


def _over_cells(
    name: str, kernel: Any, inputs: Pointers, out: Pointers, **constants: float
) -> Launch:
    """Return a launch whose threads own one cell each of the level that is written."""
    return Launch(
        name=name,
        kernel=kernel,
        arguments={**inputs, "height": "i32", "width": "i32", **out},
        constants={**constants, "block": BLOCK},
        grid=(Axis(("cells",), BLOCK), Axis(("n",)), Axis()),
        divisible=(*inputs, *out),
        wide_copies="*fp32" in (*inputs.values(), *out.values()) or "band_ptr" in inputs,
    )


def _between(stride: int, fine: str, coarse: str) -> Iterable[Launch]:
    """Return the launches from a level of one type to one of the other, and back."""
    form = _form(stride, fine, coarse)
    down, up = {"fine_ptr": fine}, {"coarse_ptr": coarse}
    yield _over_cells(f"pull_level_{form}", kernels.pull_level, down, up, stride=stride)
    yield _over_cells(f"push_level_{form}", kernels.push_level, up, down, stride=stride)


def _form(stride: int, fine: str, coarse: str) -> str:
    """Return the part of a name that says what two levels are made of."""
    kinds = {"*fp16*fp16": "_fp16", "*fp16*fp32": "_mixed", "*fp32*fp32": ""}
    return f"{CHANNELS[stride]}{kinds[fine + coarse]}"


def _coarse(stride: int) -> Launch:
    """Return the launch of one program a picture."""
    return Launch(
        name=f"coarse_{CHANNELS[stride]}",
        kernel=kernels.coarse,
        arguments={"height": "i32", "width": "i32", "levels": "i32", "pyramid_ptr": "*fp32"},
        constants={"stride": stride, "block": COARSE_BLOCK},
        grid=(Axis(("n",)), Axis(), Axis()),
        warps=COARSE_WARPS,
        stages=1,  # no load may move before the barrier that it waits for
        divisible=("pyramid_ptr",),
    )


def _make_launches() -> Iterable[Launch]:
    words = {"frame_ptr": "*i32", "mask_ptr": "*i32"}
    history = {"state_ptr": "*i32", "sigma_ptr": "*fp32"}
    fill, both = {"fill_ptr": "*fp16"}, {"fill_ptr": "*fp16", "band_ptr": "*fp16"}
    coarse_both = {"coarse_fill_ptr": "*fp16", "coarse_band_ptr": "*fp16"}
    coarse, split = {"coarse_ptr": "*fp32"}, {"fine_ptr": "*fp16", "motion_ptr": "*fp16"}
    cut = {"least": _LEAST, "most": _MOST}
    bands = [{"noise_gain": gain, "most": fusion.MAX_ENERGY} for gain in fusion.BAND_NOISE]
    bands[1] |= dict(zip(("gain1", "gain2"), fusion.BAND_GAIN, strict=True))
    yield _over_strips("pull_frame_still", pull_frame_still, words, fill)
    yield _over_strips(
        "pull_frame_past", pull_frame_past, words | history, both, tau=fusion.TAU, **cut
    )
    yield _over_cells("pull_band1", kernels.pull_band1, both, coarse_both, **bands[0])
    yield _over_cells("pull_band2", kernels.pull_band2, both, coarse, **bands[1])
    for stride, fine, up in (
        (4, "*fp16", "*fp16"),
        (4, "*fp16", "*fp32"),
        (4, "*fp32", "*fp32"),
        (8, "*fp32", "*fp32"),
    ):
        yield from _between(stride, fine, up)
    yield from (_coarse(stride) for stride in CHANNELS)
    yield _over_cells("push_split", kernels.push_split, coarse, split)


_LAUNCHES = {record.name: record for record in _make_launches()}


def launches() -> Iterable[Launch]:
    """Return every compiled form."""
    return _LAUNCHES.values()


def level_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Return height and width of levels 0 to the last."""
    return [(-(-height // 2**k), -(-width // 2**k)) for k in range(PYRAMID_LEVELS + 1)]


def first_coarse(sizes: Sequence[tuple[int, int]]) -> int:
    """Return the first level, at least that of the motion, that one program walks."""
    small = (
        k for k in range(MOTION_LEVEL, PYRAMID_LEVELS) if sizes[k][0] * sizes[k][1] <= MOST_COARSE
    )
    return next(small, PYRAMID_LEVELS)


def _words(argument: str, x: Tensor) -> Tensor:
    """Return bytes as words of 32 bits."""
    if x.data_ptr() % 4:
        raise InputError(
            f"pull_push: {argument} does not begin at a multiple of 4 bytes; call .clone() on it"
        )
    return x.view(-1).view(torch.int32)


class _Steps:
    """The launches over levels of one batch of pictures."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.sizes = level_sizes(*like.shape[1:3])
        self.cells = [height * width for height, width in self.sizes]
        self.first = first_coarse(self.sizes)

    def allocate(self, level: int, *shape: int) -> Tensor:
        """Return memory for a level of every picture, of the level's type."""
        dtype = torch.float16 if level < MOTION_LEVEL else torch.float32
        return launch.allocate((len(self.like), *shape), dtype, self.like)

    def allocate_levels(self, stride: int) -> dict[int, Tensor]:
        """Return memory for levels 1 to the first coarse one, which has all coarser ones behind."""
        levels = {
            k: self.allocate(k, *self.sizes[k], 4 if k < MOTION_LEVEL else stride)
            for k in range(1, self.first)
        }
        levels[self.first] = self.allocate(self.first, sum(self.cells[self.first :]), stride)
        return levels

    def launch(
        self, name: str, fine: int, level: int, read: Sequence[Tensor], *out: Tensor
    ) -> None:
        """Write `level`; the kernel is told the size of the finer of the two that it sees."""
        rows, columns = self.sizes[level]
        grid = {"n": len(self.like), "cells": rows * columns, "rows": rows, "columns": columns}
        _LAUNCHES[name](grid, *read, *self.sizes[fine], *out)

    def coarse(self, pyramid: Tensor) -> None:
        """Pull, fill and push all that one program a picture walks."""
        name = f"coarse_{CHANNELS[pyramid.shape[-1]]}"
        size = self.sizes[self.first]
        _LAUNCHES[name]({"n": len(self.like)}, *size, PYRAMID_LEVELS - self.first, pyramid)


def run(
    frame: Tensor, mask: Tensor, state: Tensor, sigma: Tensor, past: bool
) -> tuple[Tensor, Tensor]:
    """Launch the kernels; arguments as of `pull_push`, already checked.

    Raises:
        InputError: A picture does not begin at a multiple of 4 bytes.
    """
    steps = _Steps(frame)
    levels = steps.allocate_levels(8 if past else 4)
    motion = launch.allocate((len(frame), *steps.sizes[MOTION_LEVEL]), torch.float16, frame)
    pictures = [_words("frame", frame), _words("mask", mask)]
    if past:
        bands = [steps.allocate(k, *steps.sizes[k], 8) for k in (1, 2)]
        pictures += [_words("state", state), sigma]
        steps.launch("pull_frame_past", 0, 1, pictures, levels[1], bands[0])
        steps.launch("pull_band1", 1, 2, [levels[1], bands[0]], levels[2], bands[1])
        steps.launch("pull_band2", 2, 3, [levels[2], bands[1]], levels[3])
    else:
        steps.launch("pull_frame_still", 0, 1, pictures, levels[1])
        motion.zero_()
    forms = {
        k: _form(levels[k].shape[-1], _TYPES[levels[k].dtype], _TYPES[levels[k + 1].dtype])
        for k in range(1, steps.first)
    }
    for k in range(MOTION_LEVEL if past else 1, steps.first):
        steps.launch(f"pull_level_{forms[k]}", k, k + 1, [levels[k]], levels[k + 1])
    steps.coarse(levels[steps.first])
    for k in reversed(range(1, steps.first)):
        if past and k == MOTION_LEVEL - 1:
            steps.launch("push_split", k, k, [levels[k + 1]], levels[k], motion)
        else:
            steps.launch(f"push_level_{forms[k]}", k, k, [levels[k + 1]], levels[k])
    return levels[1], motion


def reference(
    frame: Tensor, mask: Tensor, state: Tensor, sigma: Tensor, past: bool
) -> tuple[Tensor, Tensor]:
    """Compute the same in plain torch, in the type of `sigma`; all but float64 gives float16."""
    dtype = sigma.dtype
    x = frame.permute(0, 3, 1, 2).to(dtype)
    hole = (mask != 0).permute(0, 3, 1, 2).to(dtype)
    if past:
        history = state.permute(0, 3, 1, 2).to(dtype)
        first = fusion.pull_frame(x, hole, history, sigma.view(-1, 1, 1, 1))
        fill, motion = fusion.pull_push(first)
    else:
        fill = _still(torch.cat([x / 255 * (1 - hole), 1 - hole], 1))
        motion = _no_motion(frame)
    result = dtype if dtype == torch.float64 else torch.float16
    fill = fill.permute(0, 2, 3, 1).to(result).contiguous()
    return fill, motion.view(_no_motion(frame).shape).to(result)


def _still(known: Tensor) -> Tensor:
    """Fill from premultiplied pixels and their weight; level 1."""
    pulled = [known]
    for _ in range(PYRAMID_LEVELS):
        pulled.append(fusion.normalise(fusion.pull(pulled[-1]), fusion.FILL))
    coarsest = fusion.mean_fill(pulled.pop(), fusion.FILL)
    return fusion.push(coarsest, pulled[1], pulled[2:], fusion.FILL)


def _no_motion(frame: Tensor) -> Tensor:
    n, height, width = frame.shape[:3]
    step = 2**MOTION_LEVEL
    return frame.new_zeros((n, -(-height // step), -(-width // step)), dtype=torch.float16)


def _fake(
    frame: Tensor, mask: Tensor, state: Tensor, sigma: Tensor, past: bool
) -> tuple[Tensor, Tensor]:
    n, height, width = frame.shape[:3]
    fill = frame.new_empty((n, height // 2, width // 2, 4), dtype=torch.float16)
    return fill, _no_motion(frame)


_op = launch.define(
    "pull_push",
    "(Tensor frame, Tensor mask, Tensor state, Tensor sigma, bool past) -> (Tensor, Tensor)",
    run,
    # `_fake` promises float16, whatever sigma is
    lambda frame, mask, state, sigma, past: reference(frame, mask, state, sigma.float(), past),
    _fake,
)


def pull_push(
    frame: Tensor, mask: Tensor, state: Tensor, sigma: Tensor, past: bool
) -> tuple[Tensor, Tensor]:
    """Fill what is unknown by the pyramid, and measure how the picture differs from its past.

    Args:
        frame: uint8, `(N, H, W, 3)`, contiguous; H and W even.
        mask: uint8, `(N, H, W, 1)`; anything but 0 is a hole.
        state: uint8, `(N, H, W, 4)`: fused base of the past and its confidence.
        sigma: float32, `(N,)`: noise on the 0-255 scale, below 255.
        past: False for stills: state and sigma are not read, nothing is done for the motion.

    Returns:
        Level 1 of the fill, float16 `(N, H/2, W/2, 4)`: r, g, b in 0-1 and their weight, which is
        1 unless the whole picture is a hole. The motion energy at level 3, float16
        `(N, ceil(H/8), ceil(W/8))`, in units of t2 = sigma^2 + TAU^2, with its sign; zeros
        without `past`.

    Raises:
        InputError: Type, shape, layout, device or size that the kernels would read wrongly.
    """
    launch.check("pull_push", "frame", frame, torch.uint8, (None, None, None, 3))
    n, height, width = frame.shape[:3]
    if height % 2 or width % 2:
        raise InputError(f"pull_push: frame is {height}x{width}; pad it to even sizes")
    size = (n, height, width)
    launch.check("pull_push", "mask", mask, torch.uint8, (*size, 1), frame)
    launch.check("pull_push", "state", state, torch.uint8, (*size, 4), frame)
    launch.check("pull_push", "sigma", sigma, torch.float32, (n,), frame)
    launch.check_flag("pull_push", "past", past)
    result: tuple[Tensor, Tensor] = _op(frame, mask, state, sigma, past)
    return result


def inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Return a smooth picture with noise and holes, and a past that differs in a part of it."""
    rng = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=rng)

    size = (case.height, case.width)
    smooth = F.interpolate(rand(case.n, 3, 5, 7), size, mode="bilinear", align_corners=False)
    sigma = torch.arange(case.n) % 3 * 12.5 + 5
    noisy = [
        smooth * 255 + sigma.view(-1, 1, 1, 1) * torch.randn(smooth.shape, generator=rng)
        for _ in range(2)
    ]
    noisy[1][..., : case.width // 3] *= 0.8  # what has changed
    confidence = F.interpolate(rand(case.n, 1, 6, 5), size).clamp(min=0.2).sub(0.2) * 300
    holes = F.interpolate(rand(case.n, 1, -(-case.height // 8), -(-case.width // 8)), size) < 0.4
    mask = holes * rand(case.n, 1, *size).mul(256).clamp(min=1)  # any byte but 0
    pictures = (noisy[0], mask, torch.cat([noisy[1], confidence], 1))
    frame, mask, state = (
        x.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().to(device)
        for x in pictures
    )
    return frame, mask, state, sigma.to(device), case.options["past"]


def traffic(case: Case) -> Traffic:
    """Count what the launches read and write, each level once a launch, every cell incomplete.

    With p pixels, c_k cells of level k, s_k bytes a cell (8; from level 3 on 16, with the past 32):

    - pull_frame: reads 4 p (8 p with the past), writes 8 c_1 (24 c_1);
    - pull_band: read 24 c_1, 24 c_2, write 24 c_2, 32 c_3; else a pull reads s_k c_k of the finer
      and writes s_k c_k of the coarser level;
    - mean: reads 2 s_6 c_6, writes s_6 c_6;
    - push: reads s_k c_k of both levels, writes that of the finer one; the motion writes 2 c_3.

    FLOPs: 16 taps and a division a pulled channel, 5 multiply-adds a pushed one, 16 an energy.
    """
    past = bool(case.options["past"])
    cells = [case.n * height * width for height, width in level_sizes(case.height, case.width)]
    channels = [6 if past and k >= MOTION_LEVEL else 4 for k in range(len(cells))]
    extra = [0, 5, 7, 0, 0, 0, 0] if past else [0] * len(cells)  # channels of the bands
    wide = 32 if past else 16
    pushed = [c * (8 if k < MOTION_LEVEL else wide) for k, c in enumerate(cells)]
    pulled = [p + 16 * c * (e > 0) for p, c, e in zip(pushed, cells, extra, strict=True)]
    read = cells[0] * (8 if past else 4) + sum(pulled[1:-1]) + sum(pushed[1:]) + sum(pushed[2:])
    written = sum(pulled[1:]) + sum(pushed[1:]) + 2 * cells[MOTION_LEVEL]
    flops = 16 * (cells[1] + cells[2]) if past else 0
    for c, many, e in zip(cells[1:], channels[1:], extra[1:], strict=True):
        flops += c * (33 * (many + e) + 10 * many)
    return Traffic(read + pushed[-1], written, flops)


OPERATOR = Operator(
    name="pull_push",
    run=pull_push,
    reference=reference,
    inputs=inputs,
    cases=(
        Case(2, 6, 38, {"past": False}),  # rows that begin at any byte of a word
        Case(2, 8, 24, {"past": True}),
        Case(1, 8, 200, {"past": True}),  # levels of one row; two blocks of columns
        Case(1, 40, 8, {"past": False}),  # of one column
        Case(1, 24, 104, {"past": True}),
        Case(1, 8, 8, {"past": True}),
        Case(1, 16, 128, {"past": False}),  # nothing is cut off
    ),
    variants=({"past": True}, {"past": False}),
    traffic=traffic,
    launches=launches,
    tolerance=(0.2 / 255, 2.0),  # a fifth of a level; one step of float16 above 2048
)
