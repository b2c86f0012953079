"""What a kernel takes at best: bytes over bandwidth, FLOPs over rate. Nothing is measured here.

The larger of the two is the predicted time. It leaves out what a launch costs (about 2 us a
kernel), the second-level cache and the instructions that move no data, so that it is a lower
bound: 60 to 80 % of a roof are a good result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fastrestore.kernels import edge_loss
from fastrestore.kernels.operator import Case, Operator, Traffic
from fastrestore.kernels.registry import OPERATORS
from fastrestore.presets import PRESETS
from fastrestore.roofline import kernels as network_kernels

SIZES = {"256x256": (256, 256), "720p": (720, 1280), "1080p": (1080, 1920)}
LARGEST = {"4K": (2160, 3840)}  # pull_push alone: its target is set there
MODEL = "tiny"


class Roofs(NamedTuple):
    """Most that a card does.

    Attributes:
        name: As printed.
        bandwidth: Of memory, GB/s, read and written together.
        tensor: Of matrix instructions, float16 with float32 sums, dense, TFLOPS.
        plain: Of everything else, float32, TFLOPS.
    """

    name: str
    bandwidth: float
    tensor: float
    plain: float

    def predict_us(self, traffic: Traffic, tensor: bool) -> float:
        """Return the larger of the time for the bytes and that for the FLOPs."""
        by_bytes = (traffic.read + traffic.written) / (self.bandwidth * 1e3)
        by_flops = traffic.flops / ((self.tensor if tensor else self.plain) * 1e6)
        return max(by_bytes, by_flops)


# Sources, in order: NVIDIA "H100 Tensor Core GPU" data sheet, SXM (sparse figures halved, FP32 67);
# "Ada GPU architecture" white paper, appendix on the GeForce RTX 4090 (FP16 with FP32 sums, FP32
# 82.6); "Jetson AGX Orin Series" technical brief (170 sparse INT8 TOPS / 4; FP32 5.3); Jetson Orin
# NX module data: 8 of the same multiprocessors at 918 MHz, both rates derived from that.
CARDS = (
    Roofs("H100 SXM", 3350, 989.4, 67),
    Roofs("RTX 4090", 1008, 165.2, 82.6),
    Roofs("AGX Orin 64 GB", 204.8, 42.6, 5.3),
    Roofs("Orin NX 16 GB", 102.4, 15.0, 1.88),
)


def on_tensor_cores(operator: Operator) -> bool:
    """Tell whether its FLOPs are those of matrix instructions."""
    return any(launch.tensor_cores for launch in operator.launches())


def traffic(operator: Operator, case: Case) -> Traffic:
    """Return the least work of what is timed: of `edge_loss` forward and backward together."""
    least = operator.traffic(case)
    if operator.name != edge_loss.OPERATOR.name:
        return least
    back = edge_loss.traffic_backward(case)
    return Traffic(*(a + b for a, b in zip(least, back, strict=True)))


def predict_network_us(roofs: Roofs, n: int, height: int, width: int, fused: bool) -> float:
    """Predict the whole network: the sum over the launches that it is made of.

    Args:
        roofs: Of the card.
        n: Pictures.
        height: In px.
        width: In px.
        fused: A residual block is one kernel, not two.
    """
    total = 0.0
    for kernel in network_kernels(PRESETS[MODEL], height, width, fused=fused):
        work = Traffic(int(n * kernel.moved_bytes), 0, int(n * kernel.flops))
        total += roofs.predict_us(work, kernel.channels > 0)
    return total


def variant(options: Mapping[str, Any]) -> str:
    """Return the words for the options of a case; empty for none."""
    words = []
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(name if value else f"no {name}")
        elif isinstance(value, tuple):
            words.append(f"{name} {' '.join(map(str, value))}")
        else:
            words.append(f"{name} {value}")
    return ", ".join(words)


def number(us: float) -> str:
    """Return a time with three digits."""
    return f"{us:.0f}" if us >= 100 else f"{us:.1f}" if us >= 10 else f"{us:.2f}"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def arithmetic(operator: Operator, sizes: Mapping[str, tuple[int, int]]) -> str:
    """Return the predicted times of an operator's variants, one picture, as a table."""
    rows = []
    for options in operator.variants:
        for size, (height, width) in sizes.items():
            work = traffic(operator, Case(1, height, width, options))
            moved, pixels = work.read + work.written, height * width
            times = [number(card.predict_us(work, on_tensor_cores(operator))) for card in CARDS]
            counts = f"{moved / pixels:.1f}", f"{work.flops / pixels:.0f}"
            name = variant(options) or "plain"
            rows.append([name, size, *counts, f"{work.flops / moved:.1f}", *times])
    heads = ["variant", "picture", "bytes a pixel", "FLOPs a pixel", "FLOPs a byte"]
    return table([*heads, *(f"{card.name}, us" for card in CARDS)], rows)


def network_arithmetic(sizes: Mapping[str, tuple[int, int]]) -> str:
    """Return the predicted times of the whole network as a table."""
    rows = []
    for size, (height, width) in sizes.items():
        for n in (1, 8):
            for blocks, fused in (("kernel", True), ("native", False)):
                times = (predict_network_us(c, n, height, width, fused) for c in CARDS)
                rows.append([size, n, blocks, *map(number, times)])
    return table(["picture", "batch", "blocks", *(f"{c.name}, us" for c in CARDS)], rows)


def all_arithmetic() -> str:
    """Return every table, with its heading."""
    parts = [
        "Roofline arithmetic from data sheets, float16. Not measured.",
        *(
            f"{operator.name}\n\n"
            + arithmetic(operator, SIZES | (LARGEST if operator.name == "pull_push" else {}))
            for operator in OPERATORS.values()
        ),
        f"whole network, `{MODEL}`\n\n{network_arithmetic(SIZES)}",
    ]
    return "\n\n".join(parts)
