"""From raw material to network input: what a video of the scene would have left in the base."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastrestore.train.data import Batch
from fastrestore.train.fusion import fill, pack


class Sample(NamedTuple):
    """One step's tensors, `(N, C, H, W)`, float32."""

    packed: Tensor  # 8 channels, network input
    target: Tensor  # 3 channels, 0-1
    mask: Tensor  # 1 channel, 1 = hole
    noise: Tensor  # 1 channel, standard deviation of the base, 0-255 scale


def make_sample(batch: Batch, rng: torch.Generator, device: torch.device) -> Sample:
    """Degrade a batch on the device, without unrolling sequences.

    Known pixels carry noise of `sigma / sqrt(frames)`; of the hole, the trusted part holds true
    content mixed into the fill, and its soft mask says how much is still invented.

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
    base = filled + trust * (seen - filled)
    soft_mask = mask * (1 - trust)
    misjudged = torch.exp(0.2 * (random(n, 1, 1, 1) - 0.5))  # sigma is estimated in use
    packed = pack(base / 255, soft_mask, spread * misjudged * (1 - soft_mask))
    return Sample(packed, clean / 255, mask, spread)
