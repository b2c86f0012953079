"""Loss terms, as pure functions on float tensors in 0-1."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrestore.train.fusion import gradients


def pixel_weights(mask: Tensor, noise: Tensor) -> Tensor:
    """Weights of the reconstruction terms.

    A clean sample counts in its hole alone, normalised by the hole's area: elsewhere the base is
    the target already, and a whole-picture mean would be met by doing nothing. A noisy sample
    counts everywhere, the hole six times, and the more the weaker its noise: by the inverse of
    the error that a good denoiser leaves (about 3, 7 and 11 levels at sigma 5, 25 and 50), so that
    weak noise is not drowned by strong.

    Args:
        mask: float, `(N, 1, H, W)`, 1 = hole.
        noise: float, `(N, 1, H, W)`, standard deviation of the base, 0-255 scale.

    Returns:
        float, `(N, 1, H, W)`.
    """
    share = mask.mean((2, 3), keepdim=True).clamp(min=0.02)
    everywhere = (1 + 5 * mask) * (30 / (noise + 5)) ** 0.75  # 1 at sigma 25
    in_hole = 0.6 * mask / share
    return torch.where(noise.amax((1, 2, 3), keepdim=True) > 0, everywhere, in_hole)


def l1(output: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """`mean(w |G - x|)`."""
    return ((output - target).abs() * weights).mean()


def edge(output: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """`mean(w (|Kx * d| + |Ky * d|))`, d = G - x, K = Sobel / 8, replicate border.

    Source: L_edge of the paper, as an L1 distance of Sobel gradients.
    """
    gx, gy = gradients(output - target)
    return ((gx.abs() + gy.abs()) * weights).mean()


def log_mse(output: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """`mean over samples of log(sum(w d^2) / sum(w))`: minus the PSNR in nepers, per sample.

    Every sample weighs the same, whether its error is large or small; L1 and L2 are ruled by
    the samples with the largest holes.
    """
    square = ((output - target).square() * weights).mean((1, 2, 3))
    return (square / weights.mean((1, 2, 3)).clamp(min=1e-3) + 1e-5).log().mean()
