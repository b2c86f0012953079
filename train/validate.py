"""What a run looks at while it trains: PSNR on held-out pictures, and whether every level works."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastrestore.arrays import U8
from fastrestore.atomic import write_file
from fastrestore.degrade import add_noise, make_mask, seed_for
from fastrestore.kernels.fusion import fuse
from fastrestore.metrics import psnr
from fastrestore.train.generator import Generator
from fastrestore.train.layers import EdgeConv

BEST_PSNR = 100.0  # dB, of a picture without any error: means must stay numbers
CASES = (("freeform", 0.1, 0.0), ("freeform", 0.2, 0.0), ("freeform", 0.4, 0.0), ("", 0.0, 25.0))


class Case(NamedTuple):
    """One held-out picture with one kind of damage, uint8."""

    clean: U8
    damaged: U8
    mask: U8
    sigma: float


def case_name(holes: str, ratio: float, sigma: float) -> str:
    """`ff20` for 20 % free-form holes, `s25` for noise."""
    return f"s{sigma:g}" if not holes else f"ff{100 * ratio:g}"


def make_cases(pictures: list[U8], multiple: int, side: int = 256) -> dict[str, list[Case]]:
    """Damage every picture's centre in every way of `CASES`, seeded by its index."""
    out: dict[str, list[Case]] = {}
    for holes, ratio, sigma in CASES:
        cases = []
        for i, picture in enumerate(pictures):
            h, w = (min(side, s - s % multiple) for s in picture.shape[:2])
            y, x = ((s - t) // 2 for s, t in zip(picture.shape, (h, w), strict=False))
            clean = np.ascontiguousarray(picture[y : y + h, x : x + w])
            rng = seed_for(f"held-out-{i}", ratio)
            mask = make_mask(holes, rng, h, w, ratio) if holes else np.zeros((h, w), np.uint8)
            cases.append(Case(clean, add_noise(clean, sigma, rng), mask, sigma))
        out[case_name(holes, ratio, sigma)] = cases
    return out


@torch.no_grad()
def restore(net: Generator, case: Case) -> U8:
    """Restore one case as the exported graph and the runtime do, composite included."""
    device = next(net.parameters()).device

    def levels(a: U8) -> Tensor:
        return torch.from_numpy(a).to(device).permute(2, 0, 1)[None].float()

    frame, mask = levels(case.damaged), levels(case.mask[..., None])
    state = torch.zeros_like(frame[:, [0, 0, 0, 0]])
    sigma = torch.full((1, 1, 1, 1), case.sigma, device=device)
    y = net.restore(fuse(frame, mask, state, sigma).packed)
    out: U8 = (y * 255).round().clamp(0, 255)[0].permute(1, 2, 0).byte().cpu().numpy()
    return out if case.sigma else np.where(case.mask[..., None] > 0, out, case.damaged)


def mean_psnr(net: Generator, cases: list[Case]) -> float:
    """Mean of per-picture PSNR, dB."""
    return float(np.mean([min(BEST_PSNR, psnr(restore(net, c), c.clean)) for c in cases]))


def active_fractions(net: Generator, case: Case) -> dict[str, float]:
    """Share of positive ReLU inputs per residual block on one picture: 0 = a dead block."""
    found: dict[str, float] = {}
    hooks = []
    for name, module in net.named_modules():
        if isinstance(module, EdgeConv) and name.endswith("conv3"):

            def note(_m: nn.Module, _x: object, y: Tensor, name: str = name) -> None:
                found[name.removesuffix(".conv3")] = round(float((y > 0).float().mean()), 3)

            hooks.append(module.register_forward_hook(note))
    restore(net, case)
    for hook in hooks:
        hook.remove()
    return found


def bypass_losses(net: Generator, cases: list[Case]) -> dict[str, float]:
    """PSNR lost, in dB, when the residual blocks of one level are left out: 0 = no use."""
    whole = mean_psnr(net, cases)
    lost = {}
    middle, net.middle = net.middle, nn.Sequential()
    lost["middle"] = round(whole - mean_psnr(net, cases), 3)
    net.middle = middle
    for name, levels in (("encoder", net.encoder), ("decoder", net.decoder)):
        for i, blocks in enumerate(levels):
            if any(True for _ in blocks.children()):
                levels[i] = nn.Sequential()
                lost[f"{name}.{i}"] = round(whole - mean_psnr(net, cases), 3)
                levels[i] = blocks
    return lost


def write_grid(path: Path, net: Generator, cases: list[Case]) -> None:
    """Write rows of damaged | restored | clean as one PNG, all cut to the narrowest picture.

    Raises:
        OutputError: The file cannot be written.
    """
    from PIL import Image

    rows, width = [], min(c.clean.shape[1] for c in cases)
    for c in cases:
        damaged = np.where(c.mask[..., None] > 0, np.uint8(255), c.damaged)
        cells = (damaged, restore(net, c), c.clean)
        rows.append(np.concatenate([cell[:, :width] for cell in cells], 1))
    file = BytesIO()
    Image.fromarray(np.concatenate(rows)).save(file, "PNG")
    write_file(path, file.getvalue())
