"""The fused base image: pull-push fill, Kalman average with the past, and the network's inputs.

This is the torch reference of everything in the exported graph that has no weights. Pictures and
state are float tensors in grey levels (0-255), so that every quantity also fits FP16; the packed
network input is 0-1. A still is a video of one frame with an empty (zero) state.

Symbols: s2 = sigma^2; t2 = s2 + TAU^2; n = number of frames the state is worth, a = n / (n + 1)
its stored confidence; g = weight of the past in the base.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fastrestore.presets import PYRAMID_LEVELS

TAU = 3.0  # levels: model error of a static scene
FILL_SIGMA = 24.0  # levels: what the spatial fill of a hole is worth
MAX_FRAMES = 15.0  # an 8-bit state cannot average longer: smaller changes are rounded away
TAU_CORRECTION = 4.0  # levels: base noise below this is left alone
MAX_ENERGY = 64.0
# Motion energy in two low-pass bands: noise gain of one and two binomial pulls, with margins.
BAND_NOISE = (0.0977 * 1.5, 0.0201 * 1.4)
BAND_GAIN = (30.0, 48.0)
MOTION_LEVEL = 3  # pyramid level at which the motion energy is read

# Which channel holds the weight of each: the fill, the motion energy, both.
FILL, ENERGY, FILL_AND_ENERGY = [3] * 4, [1] * 2, [3, 3, 3, 3, 5, 5]

_TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0])
BINOMIAL = torch.outer(_TAPS, _TAPS) / 64
LUMA = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # BT.601


class Fused(NamedTuple):
    """Result of `fuse`: network input `(N, 8, H, W)` in 0-1 and the next state in levels."""

    packed: Tensor
    state: Tensor


def pull(x: Tensor) -> Tensor:
    """Binomial 4x4 average, stride 2, zero padding: size n becomes ceil(n / 2)."""
    c = x.shape[1]
    kernel = BINOMIAL.to(x).expand(c, 1, 4, 4)
    return F.conv2d(F.pad(x, (1, 2, 1, 2)), kernel, stride=2, groups=c)


def normalise(x: Tensor, weight_of: list[int]) -> Tensor:
    """Divide premultiplied channels by their weight, at least 1/4: below that it stays a weight.

    Args:
        x: float, `(N, C, h, w)`, as `pull` returns it.
        weight_of: For each channel, the index of the channel that holds its weight.
    """
    return x / x[:, weight_of].clamp(min=0.25)


def enlarge(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear x2, cut to the size of the finer level."""
    up = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    return up[:, :, : like.shape[2], : like.shape[3]]


def push(coarse: Tensor, finest: Tensor, pulled: list[Tensor], weight_of: list[int]) -> Tensor:
    """Fill from coarse to fine what each level does not know itself."""
    x = coarse
    for level in reversed(pulled):
        x = level + enlarge(x, level) * (1 - level[:, weight_of])
    return finest + enlarge(x, finest) * (1 - finest[:, weight_of])


def mean_fill(x: Tensor, weight_of: list[int]) -> Tensor:
    """Give the mean of what is known to the cells that no level reached."""
    mean = x.mean((2, 3), keepdim=True)
    return x + mean / mean[:, weight_of].clamp(min=1e-3) * (1 - x[:, weight_of])


def fill(frame: Tensor, mask: Tensor) -> Tensor:
    """Fill holes by the pull-push pyramid alone.

    Args:
        frame: float, `(N, 3, H, W)`, any range.
        mask: float, `(N, 1, H, W)`, 1 = hole.

    Returns:
        float, `(N, 3, H, W)`: the frame's own pixels outside the hole.
    """
    known = 1 - mask
    x = torch.cat([frame * known, known], 1)
    pulled = [x]
    for _ in range(PYRAMID_LEVELS):
        pulled.append(normalise(pull(pulled[-1]), FILL))
    coarse = mean_fill(pulled.pop(), FILL)
    finest = pulled.pop(0)
    return push(coarse, finest, pulled, FILL)[:, :3]


def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel gradients in x and y, kernels / 8, replicate border; `(N, C, H, W)` each.

    Written as sums of shifted views: a convolution with one input channel is 20 times slower on
    a CPU, backward most of all.
    """
    p = F.pad(x, (1, 1, 1, 1), mode="replicate")
    dx = p[..., 2:] - p[..., :-2]
    dy = p[..., 2:, :] - p[..., :-2, :]
    gx = (dx[..., :-2, :] + 2 * dx[..., 1:-1, :] + dx[..., 2:, :]) / 8
    gy = (dy[..., :-2] + 2 * dy[..., 1:-1] + dy[..., 2:]) / 8
    return gx, gy


def sobel(luma: Tensor) -> Tensor:
    """Gradient magnitude, `(N, 1, H, W)`, kernels / 8, replicate border."""
    gx, gy = gradients(luma)
    return (gx.square() + gy.square()).sqrt()


def pack(base: Tensor, soft_mask: Tensor, noise: Tensor) -> Tensor:
    """Build the network's input.

    Args:
        base: float, `(N, 3, H, W)`, 0-1.
        soft_mask: float, `(N, 1, H, W)`, share of invented content, 1 = all of it.
        noise: float, `(N, 1, H, W)`, standard deviation of the base, 0-255 scale.

    Returns:
        `(N, 8, H, W)`: r, g, b, soft mask, Sobel, noise map (4 * noise / 255), two zeros.
    """
    edges = sobel((base * LUMA.to(base)).sum(1, keepdim=True))
    spare = torch.zeros_like(base[:, :2])
    return torch.cat([base, soft_mask, edges, noise * (4 / 255), spare], 1)


def correction_gain(packed: Tensor) -> Tensor:
    """Share k of the correction that is used: 1 where content is invented.

    Where it is measured, k = s^2 / (s^2 + TAU_CORRECTION^2) with the base's noise s, so that what
    is clean already stays clean. `(N, 8, H, W)` -> `(N, 1, H, W)`.
    """
    kn = (packed[:, 5:6] * (255 / 4 / TAU_CORRECTION)).square()
    return (kn + packed[:, 3:4]) / (kn + 1)


class FirstLevel(NamedTuple):
    """Level 1 of the pyramid, at half size: the fill and the difference to the past."""

    fill: Tensor  # 4 channels: r, g, b (0-1) premultiplied, and their weight
    band: Tensor  # 5 channels: difference in r, g, b; noise expected; share that can be compared


class Pyramid(NamedTuple):
    """What the pyramid gives back: the fill at level 1, the motion energy at level 3."""

    fill: Tensor  # 4 channels
    motion: Tensor  # 1 channel, in units of t2


def fuse(frame: Tensor, mask: Tensor, state: Tensor, sigma: Tensor) -> Fused:
    """Average the frame (holes filled) with the past, and build the network's input.

    Args:
        frame: float, `(N, 3, H, W)`, levels 0-255; H and W multiples of 8.
        mask: float, `(N, 1, H, W)`, 1 = hole.
        state: float, `(N, 4, H, W)`, levels: fused base of the past and confidence.
        sigma: float, `(N, 1, 1, 1)`, noise on the 0-255 scale, below 255.
    """
    pyramid = pull_push(pull_frame(frame, mask, state, sigma))
    return pack_frame(frame, mask, state, sigma, pyramid)


def pull_frame(frame: Tensor, mask: Tensor, state: Tensor, sigma: Tensor) -> FirstLevel:
    """Reduce the frame's known pixels, and how they differ from the past, to half size.

    Args: as of `fuse`.
    """
    t2, ratio = _variances(sigma)
    past, confidence, known = state[:, :3], state[:, 3:], 1 - mask
    n = frames_remembered(confidence)
    comparable = known * confidence.clamp(max=1)
    fill = normalise(pull(torch.cat([frame / 255 * known, known], 1)), FILL)
    difference = (frame - past) * t2.rsqrt() * comparable
    expected = ratio * (1 + 1 / n.clamp(min=0.1)) * comparable
    return FirstLevel(fill, pull(torch.cat([difference, expected, comparable], 1)))


def pull_push(first: FirstLevel) -> Pyramid:
    """Run fill and motion energy down and up one pyramid."""
    p1, b1 = first
    p2, b2 = normalise(pull(p1), FILL), pull(b1)
    e1 = normalise(pull(energy(b1, 0)), ENERGY)
    e1 = normalise(pull(e1), ENERGY)
    e2 = normalise(pull(energy(b2, 1)), ENERGY)
    strongest = torch.maximum(BAND_GAIN[0] * e1[:, :1], BAND_GAIN[1] * e2[:, :1])
    seen = torch.maximum(e1[:, 1:], e2[:, 1:])
    x = torch.cat([normalise(pull(p2), FILL), strongest, seen], 1)
    pulled = []
    for _ in range(PYRAMID_LEVELS - MOTION_LEVEL):
        pulled.append(x)
        x = normalise(pull(x), FILL_AND_ENERGY)
    x = mean_fill(x, FILL_AND_ENERGY)
    for level in reversed(pulled):
        x = level + enlarge(x, level) * (1 - level[:, FILL_AND_ENERGY])
    return Pyramid(push(x[:, :4], p1, [p2], FILL), x[:, 4:5])


def pack_frame(
    frame: Tensor, mask: Tensor, state: Tensor, sigma: Tensor, pyramid: Pyramid
) -> Fused:
    """Do the pyramid's last step, average with the past, and build the network's input.

    Args: as of `fuse`.
    """
    t2, ratio = _variances(sigma)
    past, confidence, known = state[:, :3], state[:, 3:], 1 - mask
    motion = F.interpolate(
        pyramid.motion, scale_factor=2**MOTION_LEVEL, mode="bilinear", align_corners=False
    ).clamp(min=0)
    n = frames_remembered(confidence)
    n = n / (1 + n * motion)
    c = (ratio + (FILL_SIGMA**2 / t2 - ratio) * mask) * n
    g = c / (c + 1)
    filled = frame * known + enlarge(pyramid.fill, frame)[:, :3] * mask * 255
    base = filled + g * (past - filled)
    soft_mask = mask * (1 - g)
    n = torch.minimum(n + known, (2 * sigma - 1).clamp(1, MAX_FRAMES))
    noise = sigma / n.clamp(min=1).sqrt() * (1 - soft_mask)
    next_state = torch.cat([base, 255 * n / (n + 1)], 1).round()
    return Fused(pack(base / 255, soft_mask, noise), next_state)


def frames_remembered(confidence: Tensor) -> Tensor:
    """Return n of a stored confidence a = n / (n + 1), 0-255; at most `MAX_FRAMES`."""
    b = (1 - confidence / 255).clamp(min=1 / (MAX_FRAMES + 1))
    return (1 - b) / b


def _variances(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return t2 and s2 / t2."""
    s2 = sigma.square()
    t2 = s2 + TAU**2
    return t2, s2 / t2


def energy(band: Tensor, i: int) -> Tensor:
    """Mean square difference beyond the noise of a static pixel, premultiplied, and its weight."""
    weight = band[:, 4:].clamp(min=0.05)
    square = (band[:, :3] / weight).square().mean(1, keepdim=True)
    e = (square - BAND_NOISE[i] * band[:, 3:4] / weight).clamp(max=MAX_ENERGY)
    w = (2 * band[:, 4:]).clamp(max=1)
    return torch.cat([e * w, w], 1)
