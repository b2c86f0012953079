"""How fast a run learns, against what its processor can multiply."""

from __future__ import annotations

import time

import torch

from fastrestore.presets import PRESETS
from fastrestore.train.config import TrainConfig


def matmul_flops(device: torch.device, side: int = 1024, seconds: float = 0.2) -> float:
    """Measure FLOP/s of a bfloat16 matrix product: what a perfect training step could use.

    Args:
        device: Where.
        side: Rows and columns; 1024 fills a CPU core, a large GPU needs 8192.
        seconds: How long to measure.
    """
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(3):
        a @ a
    wait()
    began, n = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        for _ in range(4):
            a @ a
        wait()
        n += 4
    return n * 2 * side**3 / (time.perf_counter() - began)


def picture_flops(config: TrainConfig, crop: int) -> float:
    """FLOPs of one crop through the generator: forward, and twice as much backward.

    The discriminator and the perceptual network are not counted.
    """
    return 3 * 2 * PRESETS[config.preset].macs(crop, crop)
