"""Loss terms, as pure functions on float tensors in 0-1."""

from __future__ import annotations

from torch import Tensor

from fastrestore.train.fusion import gradients


def pixel_weights(mask: Tensor, noisy: Tensor) -> Tensor:
    """Weights of the reconstruction terms.

    A clean sample counts in its hole alone, normalised by the hole's area: elsewhere the base is
    the target already, and a whole-picture mean would be met by doing nothing. A noisy sample
    counts everywhere, the hole six times.

    Args:
        mask: float, `(N, 1, H, W)`, 1 = hole.
        noisy: float, `(N, 1, 1, 1)`, 1 where the sample has noise.

    Returns:
        float, `(N, 1, H, W)`.
    """
    share = mask.mean((2, 3), keepdim=True).clamp(min=0.02)
    return noisy * (1 + 5 * mask) + (1 - noisy) * 0.6 * mask / share


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
