"""Predicted latency of a preset on a board. A model on paper: nothing here was measured.

Each kernel of the deployed graph costs

    t = max(flops / rate, bytes / memory) + launch

- Convolution (tensor cores): rate = peak * 0.55 * sqrt(min(1, N / 64)) * sqrt(min(1, K / 288)),
  N = output channels and K = products per output of the matrix product: narrow convolutions
  feed tensor cores badly. Everything else runs on CUDA cores at 0.3 of their FP16 peak.
- memory = 0.75 of the bandwidth, or 2.5 times the bandwidth where the kernel's tensors fit into
  0.6 of the L2 cache. Bytes: each input read once, each output written once; weights are free.
- launch: one kernel in a CUDA graph.

INT8: stem, head and every convolution that touches the finest level stay FP16, as do the
pyramid, pack and unpack. An INT8 convolution moves one byte an element, which flatters it.

The result is a lower bound. Engines with 16 to 128 channels usually need 1.5 to 2.5 times as
long: plan with twice the figure, and show it to nobody without the word "predicted".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from fastrestore.errors import InputError
from fastrestore.presets import IN_CHANNELS, PYRAMID_LEVELS, UNSHUFFLE, Conv, Preset

Precision = Literal["fp16", "int8"]

FP16_BYTES = 2
TENSOR_EFFICIENCY = 0.55
CUDA_EFFICIENCY = 0.3
FLOPS_PER_VALUE = 16.0  # a separable 4x4 filter: 8 multiply-adds; the other steps need less


@dataclass(frozen=True, slots=True)
class Board:
    """Peak figures of one GPU; dense, without structured sparsity.

    Attributes:
        name: As printed.
        fp16_tflops: Tensor cores, FP16 with FP32 accumulation.
        int8_tops: Tensor cores, INT8; deep-learning accelerators beside the GPU not counted.
        cuda_fp16_tflops: CUDA cores, FP16.
        bandwidth_gbs: Memory, GB/s.
        l2_mb: Level 2 cache.
        launch_us: Cost of one kernel inside a CUDA graph; an assumption, not a vendor's figure.
    """

    name: str
    fp16_tflops: float
    int8_tops: float
    cuda_fp16_tflops: float
    bandwidth_gbs: float
    l2_mb: float
    launch_us: float


# Sources: NVIDIA "H100 Tensor Core GPU" data sheet and Hopper architecture white paper; "Ada GPU
# architecture" white paper, appendix on the GeForce RTX 4090; "Jetson AGX Orin Series" technical
# brief (170 sparse INT8 TOPS of the GPU, 5.3 FP32 TFLOPS at 1.3 GHz); "Jetson Orin Nano Series"
# data sheet (40 sparse TOPS at 625 MHz, 68 GB/s) and its Super mode (67 sparse TOPS at 1020 MHz,
# 102 GB/s). Sparse figures are halved; Orin's FP16 is half of its INT8, and its CUDA-core FP16 is
# twice the FP32 figure: cores * 2 * 2 * clock.
BOARDS = (
    Board("H100 SXM", 989, 1979, 134, 3350, 50, 1.5),
    Board("RTX 4090", 165, 660, 83, 1008, 72, 1.5),
    Board("AGX Orin 64 GB", 42.5, 85, 10.6, 204.8, 4, 3.0),
    Board("Orin Nano Super 8 GB", 16.7, 33.5, 4.2, 102, 2, 4.0),
    Board("Orin Nano 8 GB", 10, 20, 2.5, 68, 2, 4.0),
)


class Kernel(NamedTuple):
    """One launch.

    `products` and `channels` are K and N of the matrix product, both 0 on CUDA cores;
    `moved_bytes` is what it reads and writes.
    """

    name: str
    flops: float
    products: int
    channels: int
    moved_bytes: float
    precision: Precision


def predict_ms(
    preset: Preset,
    board: Board,
    height: int,
    width: int,
    precision: Precision = "fp16",
    fused: bool = True,
) -> float:
    """Predict the time of one picture on the device, without copies to and from the host.

    Args:
        preset: Generator size.
        board: One of `BOARDS`, or your own figures.
        height: Picture height in px, rounded up to the preset's multiple as the runtime pads.
        width: Picture width in px, likewise.
        precision: `fp16` or `int8`.
        fused: A residual block is one kernel; False = 3x3 and 1x1 apart.

    Returns:
        Milliseconds: a bound from the module's formula, not a measurement.

    Raises:
        InputError: Size below 1 px or unknown precision.
    """
    launches = kernels(preset, height, width, precision, fused)
    return 1e3 * sum(_seconds(k, board) for k in launches)


def kernels(
    preset: Preset, height: int, width: int, precision: Precision = "fp16", fused: bool = True
) -> tuple[Kernel, ...]:
    """List the launches of one picture in the order they run; arguments as `predict_ms`."""
    if precision not in get_args(Precision):
        raise InputError(f"precision {precision!r}: not known; choose fp16 or int8")
    if height < 1 or width < 1:
        raise InputError(f"size {width}x{height}: must be at least 1x1 px")
    h, w = (-(-side // preset.multiple) * preset.multiple for side in (height, width))
    before, after = _before_network(h, w), _after_network(h, w)
    return (*before, *_network(preset, h, w, precision, fused), *after)


def _network(
    preset: Preset, height: int, width: int, precision: Precision, fused: bool
) -> Iterator[Kernel]:
    """Yield the convolutions; a residual block as one or two kernels."""
    convs = preset.convs(height, width)
    for conv in convs:
        own: Precision = "fp16" if _touches_finest(conv, height) else precision
        if conv.role == "spatial" and fused:
            point = next(convs)  # the fused kernel keeps the 3x3's output on chip
            name = conv.name.removesuffix(".conv3")
            flops = 2.0 * (conv.macs + point.macs)
            moved = _conv_bytes(conv, own)
            yield Kernel(name, flops, conv.cin * conv.kernel**2, conv.cout, moved, own)
        else:
            products, channels = _matrix(conv)
            moved = _conv_bytes(conv, own)
            yield Kernel(conv.name, 2.0 * conv.macs, products, channels, moved, own)


def _touches_finest(conv: Conv, height: int) -> bool:
    """Say whether it reads or writes level 0, as stem and head do: INT8 costs quality there."""
    rows = conv.height * (conv.stride if conv.role == "down" else 1)
    return rows == height // UNSHUFFLE


def _matrix(conv: Conv) -> tuple[int, int]:
    """Return K and N; a 2x2 transposed convolution is one product with four times the outputs."""
    if conv.role == "up":
        return conv.cin, 4 * conv.cout
    return conv.cin * conv.kernel**2, conv.cout


def _conv_bytes(conv: Conv, precision: Precision) -> float:
    """Bytes read and written, with the skip that is added in the same kernel."""
    cells = conv.height * conv.width
    reads = {"down": 4.0 * conv.cin, "up": conv.cin / 4}.get(conv.role, float(conv.cin))
    skip = conv.cout if conv.role in ("up", "pointwise") else 0
    size = FP16_BYTES if precision == "fp16" else 1
    return (reads + conv.cout + skip) * cells * size


class _Tensor(NamedTuple):
    """`channels` at pyramid level `level` (0 = the picture), `size` bytes each."""

    channels: int
    level: int
    size: int = FP16_BYTES

    def values(self, height: int, width: int) -> int:
        scale = 1 << self.level  # ceil mode: no level loses a border pixel
        return self.channels * -(-height // scale) * -(-width // scale)


_INPUTS = (_Tensor(3, 0, 1), _Tensor(1, 0, 1), _Tensor(4, 0, 1))  # frame, mask, state
_PACKED = _Tensor(IN_CHANNELS * UNSHUFFLE**2, 1)
_RESIDUAL = _Tensor(3 * UNSHUFFLE**2, 1)
_MOTION_LEVEL = 3  # where the two bands of motion energy meet and join the fill


def _before_network(height: int, width: int) -> Iterator[Kernel]:
    """Yield fill pyramid, temporal base and pack: one launch per function of the model file.

    About 15 bytes a pixel for the fill, 22 for the pack and 20 for state and motion energy.
    """

    def launch(name: str, reads: tuple[_Tensor, ...], writes: tuple[_Tensor, ...]) -> Kernel:
        return _pointwise(name, reads, writes, height, width)

    p1, b1, p2, b2 = _Tensor(4, 1), _Tensor(5, 1), _Tensor(4, 2), _Tensor(7, 2)
    yield launch("PullFrame", _INPUTS, (p1, b1))
    yield launch("PullBand1", (p1, b1), (p2, b2))
    yield launch("PullBand2", (p2, b2), (_Tensor(6, _MOTION_LEVEL),))
    for i in range(_MOTION_LEVEL, PYRAMID_LEVELS):
        yield launch(f"PullLevel.{i + 1}", (_Tensor(6, i),), (_Tensor(6, i + 1),))
    top = _Tensor(6, PYRAMID_LEVELS)
    yield launch("MeanFill", (top,), (top,))
    for i in range(PYRAMID_LEVELS - 1, _MOTION_LEVEL, -1):
        level = _Tensor(6, i)
        yield launch(f"PushLevel6.{i}", (level, _Tensor(6, i + 1)), (level,))
    motion = _Tensor(1, _MOTION_LEVEL)
    at, coarser = _Tensor(6, _MOTION_LEVEL), _Tensor(6, _MOTION_LEVEL + 1)
    yield launch("PushSplit", (at, coarser), (_Tensor(4, _MOTION_LEVEL), motion))
    for i in range(_MOTION_LEVEL - 1, 0, -1):
        level = _Tensor(4, i)
        yield launch(f"PushLevel.{i}", (level, _Tensor(4, i + 1)), (level,))
    yield launch("PackFrame", (*_INPUTS, p1, motion), (_PACKED, _Tensor(4, 0, 1)))


def _after_network(height: int, width: int) -> Iterator[Kernel]:
    """Yield the one kernel that adds the correction to the base: 25 bytes a pixel."""
    reads, restored = (_RESIDUAL, _PACKED), _Tensor(3, 0, 1)
    yield _pointwise("UnpackFrame", reads, (restored,), height, width)


def _pointwise(
    name: str, reads: tuple[_Tensor, ...], writes: tuple[_Tensor, ...], height: int, width: int
) -> Kernel:
    moved = sum(t.values(height, width) * t.size for t in (*reads, *writes))
    flops = FLOPS_PER_VALUE * sum(t.values(height, width) for t in writes)
    return Kernel(name, flops, 0, 0, moved, "fp16")


def _seconds(kernel: Kernel, board: Board) -> float:
    """Apply the module's formula to one launch."""
    if kernel.channels:
        peak = board.fp16_tflops if kernel.precision == "fp16" else board.int8_tops
        fill = min(1.0, kernel.channels / 64) * min(1.0, kernel.products / 288)
        rate = peak * 1e12 * TENSOR_EFFICIENCY * math.sqrt(fill)
    else:
        rate = board.cuda_fp16_tflops * 1e12 * CUDA_EFFICIENCY
    fits = kernel.moved_bytes <= 0.6e6 * board.l2_mb
    memory = board.bandwidth_gbs * 1e9 * (2.5 if fits else 0.75)
    return max(kernel.flops / rate, kernel.moved_bytes / memory) + board.launch_us * 1e-6
