"""The discriminator: strided convolutions, a verdict a patch and one on the whole picture."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.parametrizations import spectral_norm

from fastrestore.errors import InputError

CELL = 16  # px: side of the square that one patch logit stands for
SLOPE = 0.2
DETAIL = 8.0  # what lies beyond a 3x3 mean is about this much weaker than the picture
FULL = 0.25  # share of a patch's cell from which on it counts as invented altogether


class Judgement(NamedTuple):
    """The discriminator's verdict: logits, positive = real.

    `patches` `(N, 1, H/16, W/16)`, `whole` `(N, 1)`, `features` four maps, fine to coarse.
    """

    patches: Tensor
    whole: Tensor
    features: list[Tensor]


class Discriminator(nn.Module):
    """Judges a picture and its mask, patch by patch and as a whole.

    Beside the picture it gets its detail, enlarged: what a restored hole lacks is weak there, and
    without this the discriminator learned nothing in 2,000 crops.

    Four 4x4 convolutions of stride 2 (widths w, 2w, 4w, 8w; LeakyReLU 0.2), then a 3x3 for the
    patch logits, each of which sees 80 px, and the mean over the picture with a linear layer for
    the paper's single logit. Kernel 4 is a multiple of the stride: every pixel counts alike, and
    gradients show no lattice. Nothing is normalised by batch statistics, so that a sample's
    verdict does not depend on its neighbours. Spectral norm bounds the four; the two heads are
    free, or the logits could not leave the neighbourhood of zero.

    Source: Radford et al. 2016 (DCGAN); Isola et al. 2017 (PatchGAN); Miyato et al. 2018.
    """

    def __init__(self, width: int = 32, spectral: bool = True) -> None:
        super().__init__()
        widths = (7, width, 2 * width, 4 * width, 8 * width)
        self.body = nn.ModuleList()
        for cin, cout in pairwise(widths):
            conv = nn.Conv2d(cin, cout, 4, 2, 1)
            nn.init.kaiming_normal_(conv.weight, SLOPE)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # it has a bias
            self.body.append(spectral_norm(conv) if spectral else conv)
        self.patches = nn.Conv2d(widths[-1], 1, 3, padding=1)
        self.whole = nn.Linear(widths[-1], 1)

    def forward(self, x: Tensor) -> Judgement:
        """Judge.

        Args:
            x: float, `(N, 4, H, W)`: RGB 0-1, then the mask (1 = hole), which goes with true
                pictures as well, or it alone would tell them from restored ones. H and W are
                multiples of 16.

        Raises:
            InputError: Another number of channels or size.
        """
        _, channels, height, width = x.shape
        if channels != 4 or height % CELL or width % CELL:
            raise InputError(
                f"discriminator: {channels} channels of {height}x{width}; "
                f"give RGB and mask with sides that are multiples of {CELL}"
            )
        rgb = x[:, :3]
        mean = F.avg_pool2d(F.pad(rgb, (1, 1, 1, 1), mode="replicate"), 3, 1)
        y = torch.cat([2 * x - 1, DETAIL * (rgb - mean)], 1)
        y = y.contiguous(memory_format=torch.channels_last)
        features = []
        for conv in self.body:
            y = F.leaky_relu(conv(y), SLOPE)
            features.append(y)
        return Judgement(self.patches(y), self.whole(y.mean((2, 3))), features)


def fake_target(mask: Tensor, patches: Tensor) -> Tensor:
    """Return how far each patch is invented: four times the hole's share of its cell, at most 1.

    Neither extreme serves. A maximum calls a patch fake for one pixel in 256, which nobody could
    see: noise in the labels, all along the border of every hole. The plain share calls a patch
    with a 3 px scratch four fifths real, and little is learned where the eye looks first. Here a
    quarter of the cell, a 4 px scratch through it, is fake outright, and less is so in part.

    Args:
        mask: float, `(N, 1, H, W)`, 1 = hole.
        patches: float, `(N, 1, h, w)`, the logits whose grid it takes.

    Returns:
        float, `(N, 1, h, w)`, 0-1; 0 exactly where the cell has no hole.
    """
    share = F.adaptive_avg_pool2d(mask, (patches.shape[2], patches.shape[3]))
    return (share / FULL).clamp(max=1)


@torch.no_grad()
def health(
    real: Judgement, fake: Judgement, target: Tensor, kind: str = "nonsaturating"
) -> dict[str, float]:
    """Return what to watch: accuracy near 0.5 to 0.9 is a game, 1.0 a discriminator that has won.

    Args:
        real: Verdict on true pictures with the same masks.
        fake: Verdict on restored ones.
        target: `fake_target` of the masks: patches count by it, so known ones do not flatter.
        kind: The adversarial loss; least squares has its boundary at 0.5, the others at 0.

    Returns:
        `real_logit`, `fake_logit`: means over the patches in holes; `real_accuracy`,
        `fake_accuracy`: share of them on the right side; `known_accuracy`: share of the
        untouched patches of restored pictures called real; `whole_accuracy`. NaN where there is
        no such patch.
    """
    boundary = 0.5 if kind == "least-squares" else 0.0

    def mean(values: Tensor, weights: Tensor) -> float:
        return float((values * weights).sum() / weights.sum())

    is_real, is_fake = real.patches > boundary, fake.patches <= boundary
    whole = torch.cat([real.whole > boundary, fake.whole <= boundary])
    return {
        "real_logit": mean(real.patches, target),
        "fake_logit": mean(fake.patches, target),
        "real_accuracy": mean(is_real, target),
        "fake_accuracy": mean(is_fake, target),
        "known_accuracy": mean(~is_fake, (target == 0).float()),
        "whole_accuracy": float(whole.float().mean()),
    }
