"""The generator between `pack` and `unpack`, from the weights of a model file.

Activations are NHWC in memory. Torch's convolutions see the same bytes as NCHW tensors of the
format channels_last, so that nothing is copied between our kernels and cuDNN's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fastrestore.errors import InputError, ModelError
from fastrestore.kernels.residual_block import residual_block, weights
from fastrestore.kernels.unpack import HEAD_CHANNELS, PADDED_CHANNELS
from fastrestore.kernels.weights import ModelFile

Blocks = Literal["auto", "kernel", "native"]
Layer = Callable[[Tensor], Tensor]

# Widths at which `auto` takes our kernel: none, until a device timing in this repository says so.
FASTER_WIDTHS: frozenset[int] = frozenset()


class Network:
    """Convolutions and residual blocks, called on the packed input.

    Float16 on a GPU, where both ways accumulate in float32; float32 on a CPU. A block of our
    kernel computes in float16 on both.
    """

    def __init__(
        self,
        file: ModelFile,
        device: torch.device,
        dtype: torch.dtype,
        blocks: Blocks = "auto",
    ) -> None:
        """Put the weights on the device.

        Args:
            file: A restorer's weights.
            device: Where it runs.
            dtype: Of weights and activations.
            blocks: What computes a residual block: our `kernel`, torch's two convolutions
                (`native`), or `auto` = our kernel at the widths where it was measured to be
                faster. There is no such measurement yet, so that auto is native.

        Raises:
            InputError: No such choice of blocks.
            ModelError: The head is not a restorer's.
        """
        if blocks not in get_args(Blocks):
            raise InputError(f"blocks {blocks}: not known; choose one of auto, kernel, native")
        outputs = len(file.weights["head.conv.bias"])
        if outputs != HEAD_CHANNELS:
            raise ModelError(
                f"head: has {outputs} outputs, a restorer's has {HEAD_CHANNELS}; "
                "choose another model"
            )
        self._file, self._device, self._dtype, self._blocks = file, device, dtype, blocks
        preset = file.preset
        self._stem = self._conv3("stem")
        self._encoder = [
            (self._level(f"encoder.{i}", (1,) * n), self._down(f"down.{i}"))
            for i, n in enumerate(preset.encoder)
        ]
        self._middle = self._level("middle", (*(1,) * preset.middle, *preset.dilations))
        self._decoder = [
            (self._up(f"up.{i}"), self._level(f"decoder.{i}", (1,) * n))
            for i, n in enumerate(preset.decoder)
        ]
        # Padded with zeros: rows of 32 bytes, so that every access is aligned to 16.
        self._head = self._conv3("head", PADDED_CHANNELS)

    def __call__(self, packed: Tensor) -> Tensor:
        """Return the correction to the base, in cells of 2 x 2 px.

        Args:
            packed: float, `(N, H/2, W/2, 32)`, as `pack` makes it.

        Returns:
            The network's dtype, `(N, H/2, W/2, 16)`: channel `cell * 3 + c`, the last four are 0.
        """
        x = self._stem(packed.to(self._dtype).permute(0, 3, 1, 2))
        skips = []
        for blocks, down in self._encoder:
            x = _chain(blocks, x)
            skips.append(x)
            x = down(x)
        x = _chain(self._middle, x)
        for (up, blocks), skip in zip(reversed(self._decoder), reversed(skips), strict=True):
            x = _chain(blocks, up(x).add_(skip))
        return self._head(x).permute(0, 2, 3, 1)

    def _tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self._file.weights[name].copy())

    def _native(self, layer: str, padded: int = 0) -> tuple[Tensor, Tensor]:
        """Return weight and bias of a convolution; `padded` output channels with zeros."""
        weight, bias = self._tensor(f"{layer}.weight"), self._tensor(f"{layer}.bias")
        if padded:
            more = padded - len(bias)
            weight, bias = F.pad(weight, (0,) * 7 + (more,)), F.pad(bias, (0, more))
        weight = weight.to(self._device, self._dtype, memory_format=torch.channels_last)
        return weight, bias.to(self._device, self._dtype)

    def _conv3(self, name: str, padded: int = 0) -> Layer:
        weight, bias = self._native(f"{name}.conv", padded)
        return lambda x: F.conv2d(x, weight, bias, padding=1)

    def _down(self, name: str) -> Layer:
        weight, bias = self._native(name)
        return lambda x: F.conv2d(x, weight, bias, stride=2)

    def _up(self, name: str) -> Layer:
        weight, bias = self._native(name)
        return lambda x: F.conv_transpose2d(x, weight, bias, stride=2)

    def _level(self, name: str, dilations: Iterable[int]) -> list[Layer]:
        return [self._block(f"{name}.{j}", d) for j, d in enumerate(dilations)]

    def _block(self, name: str, dilation: int) -> Layer:
        width = len(self._file.weights[f"{name}.conv1.bias"])
        fastest = "kernel" if width in FASTER_WIDTHS else "native"
        choice = fastest if self._blocks == "auto" else self._blocks
        return (self._our_block if choice == "kernel" else self._native_block)(name, dilation)

    def _native_block(self, name: str, dilation: int) -> Layer:
        w3, b3 = self._native(f"{name}.conv3.conv")
        w1, b1 = self._native(f"{name}.conv1")

        def block(x: Tensor) -> Tensor:
            h = F.conv2d(x, w3, b3, padding=dilation, dilation=dilation).relu_()
            return F.conv2d(h, w1, b1).add_(x)

        return block

    def _our_block(self, name: str, dilation: int) -> Layer:
        layers = (f"{name}.conv3.conv", f"{name}.conv1")
        tensors = (self._tensor(f"{at}.{part}") for at in layers for part in ("weight", "bias"))
        w3, b3, w1, b1 = (w.to(self._device) for w in weights(*tensors))

        def block(x: Tensor) -> Tensor:
            rows = x.permute(0, 2, 3, 1).to(torch.float16)
            y: Tensor = residual_block(rows, w3, b3, w1, b1, dilation)
            return y.to(x.dtype).permute(0, 3, 1, 2)

        return block


def _chain(layers: Iterable[Layer], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x
