"""The generator: space-to-depth, U-Net of residual blocks, dilated bottleneck."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fastrestore.kernels.fusion import correction_gain, pack
from fastrestore.presets import IN_CHANNELS, UNSHUFFLE, Preset
from fastrestore.train.layers import EdgeConv, ResidualBlock


class Generator(nn.Module):
    """Predicts a correction to the base image.

    The last 1x1 of every block and the head start at zero: the network is the identity at first,
    and no level dies before it has learned to help (the deep half did, in every run without it).
    Skips are added, `up` is a 2x2 transposed convolution of stride 2, nothing is normalised.
    """

    def __init__(self, preset: Preset, outputs: int = 3, ablate: str = "") -> None:
        super().__init__()
        self.preset, self.ablate = preset, ablate
        edge = ablate != "plain-conv"

        def blocks(level: int, dilations: Iterable[int]) -> nn.Sequential:
            return nn.Sequential(*(ResidualBlock(w[level], d, ablate) for d in dilations))

        w, cells = preset.widths, UNSHUFFLE**2
        self.stem = EdgeConv(IN_CHANNELS * cells, w[0], edge=edge)
        self.encoder, self.down = nn.ModuleList(), nn.ModuleList()
        self.up, self.decoder = nn.ModuleList(), nn.ModuleList()
        for i, (enc, dec) in enumerate(zip(preset.encoder, preset.decoder, strict=True)):
            self.encoder.append(blocks(i, (1,) * enc))
            self.down.append(nn.Conv2d(w[i], w[i + 1], 2, 2))
            self.up.append(nn.ConvTranspose2d(w[i + 1], w[i], 2, 2))
            self.decoder.append(blocks(i, (1,) * dec))
        dilations = (*(1,) * preset.middle, *preset.dilations)
        self.middle = blocks(-1, dilations)
        self.head = EdgeConv(w[0], outputs * cells, edge=False)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        for name, m in self.named_modules():
            if isinstance(m, nn.Conv2d | nn.ConvTranspose2d):
                if name.endswith("conv1") or name.startswith("head"):
                    nn.init.zeros_(m.weight)
                else:
                    into_relu = "conv3" in name
                    fan_in = m.weight[0].numel() if isinstance(m, nn.Conv2d) else m.in_channels
                    m.weight.normal_(std=((2.0 if into_relu else 1.0) / fan_in) ** 0.5)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    def forward(self, packed: Tensor) -> Tensor:
        """Return the correction to the base image.

        Args:
            packed: float, `(N, 8, H, W)` as made by `fusion.pack`; H, W multiples of the preset's.

        Returns:
            float, `(N, 3, H, W)`, in units of 0-1; to be scaled by the correction gain.
        """
        x = F.pixel_unshuffle(packed, UNSHUFFLE)
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        skips = []
        for encode, down in zip(self.encoder, self.down, strict=True):
            x = encode(x)
            skips.append(x)
            x = down(x)
        x = self.middle(x)
        for i in reversed(range(len(self.up))):
            x = self.decoder[i](self.up[i](x) + skips[i])
        return F.pixel_shuffle(self.head(x), UNSHUFFLE)

    def restore(self, packed: Tensor) -> Tensor:
        """Return `base + k * correction`, float `(N, 3, H, W)`, 0-1 but not clamped."""
        packed = self._ablated(packed)
        correction = self(packed).float()
        restored: Tensor = packed[:, :3] + correction_gain(packed) * correction
        return restored

    def _ablated(self, packed: Tensor) -> Tensor:
        """Take from the input what a comparison goes without."""
        if self.ablate == "zero-fill":
            base, soft_mask = packed[:, :3], packed[:, 3:4]
            return pack(base * (1 - soft_mask), soft_mask, packed[:, 5:6] * (255 / 4))
        if self.ablate == "no-sobel":
            keep = packed.new_ones(1, packed.shape[1], 1, 1)
            keep[:, 4] = 0
            return packed * keep
        return packed

    def fuse(self) -> Generator:
        """Fold every EdgeConv into its 3x3 kernel, exactly; the module is changed in place."""
        for m in self.modules():
            if isinstance(m, EdgeConv):
                m.fuse()
        return self
