"""Generator sizes as plain numbers: what can be said of a model without torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from fastrestore.errors import InputError

UNSHUFFLE = 2  # space-to-depth at the input: 4 loses 7 dB of denoising at these widths
IN_CHANNELS = 8  # base r, g, b; soft mask; Sobel; noise map; two spare
PYRAMID_LEVELS = 6
HALO_PX = 64


class Conv(NamedTuple):
    """One convolution of the fused generator at a given input size."""

    name: str
    role: Literal["stem", "spatial", "pointwise", "down", "up", "head"]
    cin: int
    cout: int
    kernel: int
    stride: int
    dilation: int
    height: int  # of the output, px
    width: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates; an `up` (2x2 transposed, stride 2) reads one cell per output."""
        taps = 1 if self.role == "up" else self.kernel**2
        return self.cin * self.cout * taps * self.height * self.width

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.cin * self.cout * self.kernel**2 + self.cout


@dataclass(frozen=True, slots=True)
class Preset:
    """Sizes of the encoder-decoder generator.

    Attributes:
        name: Key in `PRESETS`.
        widths: Channels per level; level 0 runs at half the picture's size.
        encoder: Residual blocks per level before each down-sampling.
        middle: Plain residual blocks of the bottleneck.
        dilations: One more bottleneck block per entry.
        decoder: Residual blocks per level after each up-sampling.
    """

    name: str
    widths: tuple[int, ...]
    encoder: tuple[int, ...]
    middle: int
    dilations: tuple[int, ...]
    decoder: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check what the kernels and the INT8 form rely on."""
        if any(w not in (16, 32, 64, 128) for w in self.widths):
            raise InputError(f"preset {self.name}: widths must be 16, 32, 64 or 128")
        if not len(self.encoder) == len(self.decoder) == len(self.widths) - 1:
            raise InputError(f"preset {self.name}: one encoder and decoder entry per level")

    @property
    def multiple(self) -> int:
        """Height and width must be multiples of this many px."""
        return int(UNSHUFFLE * 2 ** (len(self.widths) - 1))

    def convs(self, height: int, width: int) -> Iterator[Conv]:
        """Yield the convolutions of the fused generator in the order they run.

        Args:
            height: Picture height in px, a multiple of `multiple`.
            width: Picture width in px, likewise.
        """
        s, w = UNSHUFFLE, self.widths
        size = [(height // s >> i, width // s >> i) for i in range(len(w))]

        def block(name: str, level: int, dilation: int = 1) -> Iterator[Conv]:
            c = w[level]
            yield Conv(f"{name}.conv3", "spatial", c, c, 3, 1, dilation, *size[level])
            yield Conv(f"{name}.conv1", "pointwise", c, c, 1, 1, 1, *size[level])

        yield Conv("stem", "stem", IN_CHANNELS * s * s, w[0], 3, 1, 1, *size[0])
        for i, blocks in enumerate(self.encoder):
            for j in range(blocks):
                yield from block(f"encoder.{i}.{j}", i)
            yield Conv(f"down.{i}", "down", w[i], w[i + 1], 2, 2, 1, *size[i + 1])
        for j, dilation in enumerate((*(1,) * self.middle, *self.dilations)):
            yield from block(f"middle.{j}", len(w) - 1, dilation)
        for i in reversed(range(len(w) - 1)):
            yield Conv(f"up.{i}", "up", w[i + 1], w[i], 2, 2, 1, *size[i])
            for j in range(self.decoder[i]):
                yield from block(f"decoder.{i}.{j}", i)
        yield Conv("head", "head", w[0], 3 * s * s, 3, 1, 1, *size[0])

    @property
    def parameters(self) -> int:
        """Weights and biases of the fused generator."""
        return sum(c.parameters for c in self.convs(self.multiple, self.multiple))

    def macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of one picture of that size in px."""
        return sum(c.macs for c in self.convs(height, width))

    @property
    def receptive_field(self) -> int:
        """Side in px of the input area that one output pixel can depend on (fill apart)."""
        radius, step = 0.0, float(UNSHUFFLE)
        for c in self.convs(self.multiple, self.multiple):
            if c.role == "down":
                radius += step / 2
                step *= 2
            elif c.role == "up":
                step /= 2
                radius += step / 2
            else:
                radius += step * c.dilation * (c.kernel - 1) / 2
        return int(2 * radius + UNSHUFFLE)


PRESETS = {
    p.name: p
    for p in (
        Preset("nano", (16, 32, 64), (0, 1), 1, (1, 2, 4), (0, 1)),
        Preset("tiny", (16, 32, 64, 128), (0, 2, 2), 1, (1, 2, 4, 8), (1, 2, 2)),
        Preset("base", (32, 64, 128, 128), (1, 2, 4), 4, (1, 2, 4, 8), (1, 2, 4)),
    )
}
