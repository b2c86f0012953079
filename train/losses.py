"""Loss terms, as pure functions on float tensors in 0-1."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fastrestore.errors import InputError
from fastrestore.kernels.fusion import gradients

log = logging.getLogger(__name__)

GAN = Literal["nonsaturating", "saturating", "least-squares", "hinge"]
_LOGISTIC = ("nonsaturating", "saturating")  # they differ in what the generator minimises


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

    Its scale is that of a difference between neighbours. Integer kernels (1-2-1) give 8 times the
    value and the gradient: a gamma stated for them is 8 times larger here.

    On CUDA it runs as `kernels.edge_loss`: the same loss, one pass each way, float32 alone.

    Source: L_edge of the paper, as an L1 distance of Sobel gradients.
    """
    if output.is_cuda and (fused := _edge_kernels()) is not None:
        return fused(output, target, weights)
    gx, gy = gradients(output - target)
    return ((gx.abs() + gy.abs()) * weights).mean()


@functools.cache
def _edge_kernels() -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """Return the Triton form; None, said once, where triton is not installed."""
    try:
        from fastrestore.kernels.edge_loss import edge_loss
    except ModuleNotFoundError as e:
        if e.name != "triton":
            raise
        log.warning(
            "triton is not installed: the edge loss runs as plain torch, slower; "
            "pip install 'fastrestore[kernels]'"
        )
        return None
    return edge_loss


def log_mse(output: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """`mean over samples of log(sum(w d^2) / sum(w))`: PSNR times -ln(10) / 10, per sample.

    Every sample weighs the same, whether its error is large or small; L1 and L2 are ruled by
    the samples with the largest holes.
    """
    square = ((output - target).square() * weights).mean((1, 2, 3))
    return (square / weights.mean((1, 2, 3)).clamp(min=1e-3) + 1e-5).log().mean()


def discriminator_loss(kind: str, real: Tensor, fake: Tensor, fake_target: Tensor) -> Tensor:
    """What the discriminator minimises: real patches are real, restored ones fake in holes alone.

    With s = softplus, t = fake_target, r and f the logits, means over all patches:

    - nonsaturating, saturating: `mean s(-r) + mean(t s(f) + (1 - t) s(-f))`, cross-entropy
    - least-squares: `(mean (r - 1)^2 + mean (f - (1 - t))^2) / 2`
    - hinge: `mean max(0, 1 - r) + mean(t max(0, 1 + f) + (1 - t) max(0, 1 - f))`

    Args:
        kind: One of `GAN`.
        real: float, `(N, 1, h, w)`, logits of pictures; the single logit `(N, 1)` works alike.
        fake: float, the same shape, logits of restored pictures.
        fake_target: float, the same shape, 0-1: how far the patch is invented. At 0 it shows
            true pixels, and the discriminator is taught to call it real.

    Raises:
        InputError: Unknown kind; shapes differ.

    Source: Goodfellow et al. 2014, eq. 1 (the paper's min-max); Mao et al. 2017 (LSGAN), eq. 9;
        Lim and Ye 2017 (hinge). Targets by mask as in LaMa and AOT-GAN.
    """
    _check(kind, fake, fake_target)
    real, fake, t = _wide(real), _wide(fake), _wide(fake_target)
    if kind in _LOGISTIC:
        as_real, as_fake, true = F.softplus(-fake), F.softplus(fake), F.softplus(-real)
    elif kind == "hinge":
        as_real, as_fake, true = F.relu(1 - fake), F.relu(1 + fake), F.relu(1 - real)
    else:
        return ((real - 1).square().mean() + (fake - (1 - t)).square().mean()) / 2
    return true.mean() + (t * as_fake + (1 - t) * as_real).mean()


def generator_adversarial_loss(kind: str, fake: Tensor, weight: Tensor) -> Tensor:
    """What the generator minimises, over the patches that it invented: L_GAN of the paper.

    `sum(w l(f)) / max(sum(w), 1)` with l of the logit f:

    - nonsaturating: `softplus(-f) = -log D`
    - saturating: `-softplus(f) = log(1 - D)`, the min-max game itself; flat where D is sure
    - least-squares: `(f - 1)^2 / 2`
    - hinge: `-f`

    Args:
        kind: One of `GAN`.
        fake: float, `(N, 1, h, w)` or `(N, 1)`, logits of restored pictures.
        weight: float, the same shape, 0-1: the `fake_target` of the discriminator. Less than one
            patch in the whole batch counts as one, so that a speck of a hole does not shout.

    Raises:
        InputError: Unknown kind; shapes differ.

    Source: Goodfellow et al. 2014, eq. 1 (saturating) and section 3 (non-saturating); Mao et al.
        2017, eq. 9; Lim and Ye 2017.
    """
    _check(kind, fake, weight)
    fake = _wide(fake)
    if kind == "nonsaturating":
        values = F.softplus(-fake)
    elif kind == "saturating":
        values = -F.softplus(fake)
    elif kind == "hinge":
        values = -fake
    else:
        values = (fake - 1).square() / 2
    return _weighted_mean(values, _wide(weight))


def perceptual(
    features_output: Sequence[Tensor],
    features_target: Sequence[Tensor],
    weights: Sequence[float],
    norm: str = "l2",
) -> Tensor:
    """`sum_i lambda_i mean(|phi_i(G) - phi_i(x)|^2)`; norm l1: without the square.

    Args:
        features_output: Maps phi_i of the restored picture, float, `(N, C_i, h_i, w_i)`.
        features_target: Those of the target, without gradient.
        weights: lambda_i, one a map.
        norm: l2 (squared, as in the paper) or l1.

    Raises:
        InputError: Another norm; not as many maps as weights.

    Source: L_perceptual of the paper; Johnson et al. 2016, eq. 2.
    """
    if norm not in ("l2", "l1"):
        raise InputError(f"norm {norm!r}: unknown; use l2 or l1")
    if not len(features_output) == len(features_target) == len(weights):
        raise InputError(
            f"{len(features_output)} and {len(features_target)} feature maps for "
            f"{len(weights)} weights; give one weight a map"
        )
    total = features_output[0].new_zeros((), dtype=_wide(features_output[0]).dtype)
    for output, target, weight in zip(features_output, features_target, weights, strict=True):
        d = _wide(output) - _wide(target)
        total = total + weight * (d.square() if norm == "l2" else d.abs()).mean()
    return total


def feature_matching(fake: Sequence[Tensor], real: Sequence[Tensor], mask: Tensor) -> Tensor:
    """`mean over layers of sum(m |D_i(G) - D_i(x)|) / max(sum(m), 1)`, mean over channels.

    Args:
        fake: Maps D_i of the discriminator for restored pictures, float, `(N, C_i, h_i, w_i)`.
        real: Those for the targets, detached by the caller.
        mask: float, `(N, 1, H, W)`, 1 = hole; averaged over each layer's cells to give m, so
            that a cell without a hole pixel counts nothing.

    Source: Wang et al. 2018 (pix2pixHD), eq. 4, restricted to the hole.
    """
    layers = []
    for f, r in zip(fake, real, strict=True):
        m = F.adaptive_avg_pool2d(_wide(mask), (f.shape[2], f.shape[3]))
        layers.append(_weighted_mean((_wide(f) - _wide(r)).abs().mean(1, keepdim=True), m))
    return torch.stack(layers).mean()


def r1(logits: Tensor, real: Tensor) -> Tensor:
    """`mean over samples of |d(sum of logits) / d(picture)|^2`; the caller's factor is gamma / 2.

    Args:
        logits: float, the discriminator's verdict on `real`, patches or the single one.
        real: float, `(N, C, H, W)`, a leaf that required its gradient before the verdict.

    Returns:
        A scalar with a graph, to be minimised by the discriminator.

    Source: Mescheder et al. 2018, eq. 9.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    return _wide(gradient).square().sum((1, 2, 3)).mean()


def gradient_shares(terms: Mapping[str, Tensor], output: Tensor) -> dict[str, float]:
    """Return by how much each term moves the generator's output: parts that add up to 1.

    Norm of `d(term) / d(output)` over the sum of the norms. It tells a weight that does nothing
    or drowns the others, which values of the loss do not. The graph stays usable.

    Args:
        terms: Scalar terms of the generator's loss, already weighted.
        output: float, `(N, 3, H, W)`, the generator's output, part of their graph.

    Returns:
        One share a term, 0-1; all 0 where no term has a gradient.
    """
    norms = {}
    for name, term in terms.items():
        gradient = None
        if term.requires_grad:
            (gradient,) = torch.autograd.grad(term, output, retain_graph=True, allow_unused=True)
        norms[name] = 0.0 if gradient is None else float(_wide(gradient).norm())
    total = sum(norms.values())
    return {name: norm / total if total else 0.0 for name, norm in norms.items()}


def _wide(x: Tensor) -> Tensor:
    """At least float32: sums of bf16 maps lose small differences."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum().clamp(min=1)


def _check(kind: str, logits: Tensor, target: Tensor) -> None:
    if kind not in get_args(GAN):
        raise InputError(
            f"adversarial loss {kind!r}: unknown; use one of {', '.join(get_args(GAN))}"
        )
    if logits.shape != target.shape:  # else broadcasting would mix samples in silence
        raise InputError(
            f"logits {tuple(logits.shape)} and target {tuple(target.shape)}: shapes differ; "
            "make the target with fake_target"
        )
