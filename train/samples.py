"""From raw material to network input: what a video of the scene would have left in the base."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fastrestore.kernels.fusion import fill, pack
from fastrestore.train.data import Batch

GUESSED = 0.3  # share of the samples whose trusted content is a coarse guess, not the truth
GUESS_SCALES = (2, 4, 8)
GUESS_SHIFT = 4.0  # levels: a guess may be that much off in colour


class Sample(NamedTuple):
    """One step's tensors, `(N, C, H, W)`, float32."""

    packed: Tensor  # 8 channels, network input
    target: Tensor  # 3 channels, 0-1
    mask: Tensor  # 1 channel, 1 = hole
    noise: Tensor  # 1 channel, standard deviation of the base, 0-255 scale


def make_sample(batch: Batch, rng: torch.Generator, device: torch.device) -> Sample:
    """Degrade a batch on the device, without unrolling sequences.

    Known pixels carry noise of `sigma / sqrt(frames)`; of the hole, the trusted part holds true
    content mixed into the fill, and its soft mask says how much is still invented. In some samples
    the trusted content is what a coarser scale would have left there, so that the network learns
    to sharpen it.

    Args:
        batch: Clean crops, holes, noise and trust.
        rng: Generator on `device`; the only source of randomness here.
        device: Where the work is done.
    """
    clean = torch.from_numpy(batch.clean).to(device).permute(0, 3, 1, 2).float()
    mask, trusted, frames = (
        torch.from_numpy(a).to(device)[:, None].float()
        for a in (batch.mask, batch.trusted, batch.frames)
    )
    sigma = torch.from_numpy(batch.sigma).to(device).view(-1, 1, 1, 1)
    n = len(clean)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=rng, device=device)

    noise = torch.randn(clean.shape, generator=rng, device=device)
    spread = sigma / frames.sqrt()
    # Half as a camera stores it, half as published tables define it: unclipped, not rounded.
    seen = clean + noise * spread
    stored = random(n, 1, 1, 1) < 0.5
    seen = torch.where(stored, seen.round().clamp(0, 255), seen)
    trust = trusted * (0.5 + 0.5 * random(n, 1, 1, 1))
    filled = fill(seen, mask)
    guessed = random(n, 1, 1, 1) < GUESSED
    content = torch.where(guessed, coarse_guess(clean, random(n, 4, 1, 1)), seen)
    base = filled + trust * (content - filled)
    soft_mask = mask * (1 - trust)
    misjudged = torch.exp(0.2 * (random(n, 1, 1, 1) - 0.5))  # sigma is estimated in use
    packed = pack(base / 255, soft_mask, spread * misjudged * (1 - soft_mask))
    return Sample(packed, clean / 255, mask, spread)


def coarse_guess(clean: Tensor, draws: Tensor) -> Tensor:
    """Blur as a picture of a coarser scale is blurred, and shift the colour a little.

    Args:
        clean: float, `(N, 3, H, W)`, levels 0-255.
        draws: float, `(N, 4, 1, 1)`, uniform in 0-1: the scale, and the shift of each channel.

    Returns:
        float, `(N, 3, H, W)`, levels 0-255.
    """
    h, w = clean.shape[2:]
    guess = clean
    for i, scale in enumerate(GUESS_SCALES):
        small = F.avg_pool2d(clean, scale, ceil_mode=True)
        large = F.interpolate(small, scale_factor=scale, mode="bilinear", align_corners=False)
        guess = torch.where(draws[:, :1] * len(GUESS_SCALES) >= i, large[:, :, :h, :w], guess)
    return (guess + GUESS_SHIFT * (2 * draws[:, 1:] - 1)).clamp(0, 255)
