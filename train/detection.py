"""The damage detector as a task: the restorer's body with one output, the logit of damage."""

from __future__ import annotations

import math
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fastrestore.arrays import U8
from fastrestore.atomic import write_file
from fastrestore.damage import KINDS, draw_damage
from fastrestore.degrade import add_noise, seed_for
from fastrestore.kernels.fusion import pack
from fastrestore.presets import PRESETS
from fastrestore.train.config import TrainConfig
from fastrestore.train.data import Pictures
from fastrestore.train.generator import Generator

if TYPE_CHECKING:
    from fastrestore.train.run import Run
    from fastrestore.train.task import Draw

PRIOR = 0.05  # share of damaged pixels that an untrained network assumes
UNDAMAGED = 0.5  # share of samples without damage: what a clean picture looks like
THIN_PX = 9  # damage that fills little of a window of this side is thin
THIN_WEIGHT = 1.5  # of a pixel of the thinnest damage, beyond 1
DICE_WEIGHT = 0.5
CASES_PER_KIND = 12
CASE_SIGMA = 25.0


class Damaged(NamedTuple):
    """A batch: pictures and what is damaged in them."""

    frame: U8  # (N, H, W, 3)
    mask: U8  # (N, H, W), 1 = damage


class Case(NamedTuple):
    """One validation picture, `(H, W, 3)`, and its truth, `(H, W)`."""

    frame: U8
    mask: U8


def pack_frame(frame: Tensor) -> Tensor:
    """Build the detector's input: the restorer's, with neither holes nor noise map.

    Args:
        frame: float, `(N, 3, H, W)`, levels 0-255.

    Returns:
        `(N, 8, H, W)`: r, g, b (0-1), zero, Sobel magnitude of the luma, three zeros.
    """
    none = torch.zeros_like(frame[:, :1])
    return pack(frame / 255, none, none)


def cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy in which thin damage counts more.

    A pixel of damage weighs `1 + THIN_WEIGHT * (1 - share)` with the share of damage in its
    window: by area alone one block is worth a hundred scratches.

    Args:
        logits: float, `(N, 1, H, W)`.
        mask: float, `(N, 1, H, W)`, 1 = damage.
    """
    share = F.avg_pool2d(mask, THIN_PX, 1, THIN_PX // 2, count_include_pad=False)
    weight = 1 + THIN_WEIGHT * mask * (1 - share)
    return F.binary_cross_entropy_with_logits(logits, mask, weight)


def dice(logits: Tensor, mask: Tensor) -> Tensor:
    """`1 - 2 |P M| / (|P|^2 + |M|^2)`, averaged over the samples that have damage.

    Independent of how much is damaged. Undamaged samples are left to the cross-entropy.

    Args:
        logits: float, `(N, 1, H, W)`.
        mask: float, `(N, 1, H, W)`, 1 = damage.

    Source: Milletari et al., V-Net, 3DV 2016, equation 3.
    """
    p = logits.sigmoid()
    both = (p * mask).sum((1, 2, 3))
    either = (p.square() + mask).sum((1, 2, 3))
    has_damage = (mask.amax((1, 2, 3)) > 0).float()
    lost = has_damage * (1 - 2 * both / (either + 1))
    return lost.sum() / has_damage.sum().clamp(min=1)


class Detection:
    """Finds damage blind. Its figures: IoU per kind of damage, false alarms on clean pictures."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    def network(self) -> Generator:
        """Make the network; at first it gives every pixel the prior."""
        net = Generator(PRESETS[self.config.preset], outputs=1)
        with torch.no_grad():
            for name, p in net.head.named_parameters():
                if name.endswith("bias"):
                    p.fill_(math.log(PRIOR / (1 - PRIOR)))
        return net

    def sampler(self, pictures: Pictures, crop: int) -> Draw:
        """Make the source of batches; the cover of a hole may be a piece of the picture before."""

        def draw(rng: np.random.Generator, n: int) -> Damaged:
            clean = [_crop(pictures, rng, crop) for _ in range(n)]
            pairs = [self._sample(c, rng, clean[i - 1] if i else None) for i, c in enumerate(clean)]
            return Damaged(np.stack([f for f, _ in pairs]), np.stack([m for _, m in pairs]))

        return draw

    def _sample(self, clean: U8, rng: np.random.Generator, foreign: U8 | None) -> tuple[U8, U8]:
        """Age a clean crop, then damage it: noise and compression are no damage."""
        c = self.config
        if rng.random() < 0.1:  # as most scratched film is
            luma = clean @ np.array([0.299, 0.587, 0.114])
            clean = np.repeat(np.rint(luma).astype(np.uint8)[..., None], 3, 2)
        if rng.random() < c.noisy:
            clean = add_noise(clean, c.max_sigma * rng.random() ** 2, rng)
        if rng.random() < 0.25:
            clean = _compress(clean, int(rng.integers(50, 96)))
        if rng.random() < UNDAMAGED:
            return clean, np.zeros(clean.shape[:2], np.uint8)
        damaged, mask = draw_damage(clean, rng, foreign=foreign)
        if rng.random() < 0.15:  # stored once more; the damage stays where it is
            damaged = _compress(damaged, int(rng.integers(80, 98)))
        return damaged, mask

    def terms(self, run: Run, batch: Damaged, seed: int) -> dict[str, Tensor]:
        """Return cross-entropy and Dice; nothing is drawn on the device."""
        frame = torch.from_numpy(batch.frame).to(self.config.device).permute(0, 3, 1, 2).float()
        mask = torch.from_numpy(batch.mask).to(self.config.device)[:, None].float()
        with torch.autocast(self.config.device, torch.bfloat16):
            logits = run.net(pack_frame(frame))
        logits = logits.float()
        return {
            "cross_entropy": cross_entropy(logits, mask),
            "dice": DICE_WEIGHT * dice(logits, mask),
        }

    def cases(self, held_out: list[U8]) -> dict[str, list[Case]]:
        """Damage centres of the held-out pictures, seeded: by kind, all kinds in noise, not at all.

        `clean` and `noisy` have no damage; `in_noise` has one to three kinds, over noise.
        """
        multiple = PRESETS[self.config.preset].multiple
        centres = [_centre(p, multiple) for p in held_out]
        out: dict[str, list[Case]] = {}
        for number, kind in enumerate((*KINDS, "in_noise")):
            out[kind] = []
            for i, centre in enumerate(centres[:CASES_PER_KIND]):
                rng = seed_for(f"detector-{i}", number)
                noisy = kind == "in_noise"
                frame = add_noise(centre, CASE_SIGMA if noisy else 0.0, rng)
                foreign = centres[(i + 1) % len(centres)]
                case = draw_damage(frame, rng, None if noisy else [kind], foreign)
                out[kind].append(Case(*case))
        for name, sigma in (("clean", 0.0), ("noisy", CASE_SIGMA)):
            frames = [
                add_noise(c, sigma, seed_for(f"detector-{i}", 99)) for i, c in enumerate(centres)
            ]
            out[name] = [Case(f, np.zeros(f.shape[:2], np.uint8)) for f in frames]
        return out

    def report(self, run: Run, cases: dict[str, list[Case]], folder: Path) -> dict[str, Any]:
        """Return IoU by kind and false alarms in percent of the pixels; write `grid.png`."""
        iou, alarms = {}, {}
        for name, material in cases.items():
            if any(c.mask.any() for c in material):
                iou[name] = round(mean_iou(run.ema, material), 4)
            else:
                alarms[name] = round(100 * false_alarms(run.ema, material), 4)
        shown = [material[i % len(material)] for i, material in enumerate(cases.values())]
        write_grid(folder / "grid.png", run.ema, shown)
        return {"iou": iou, "false_alarms_percent": alarms}


@torch.no_grad()
def probability(net: nn.Module, frame: U8) -> U8:
    """Return the probability of damage, uint8 `(H, W)`, 0-255, as the exported graph does.

    Args:
        net: The detector.
        frame: uint8 `(H, W, 3)`, sides multiples of the preset's.
    """
    device = next(net.parameters()).device
    x = torch.from_numpy(frame).to(device).permute(2, 0, 1)[None].float()
    p: U8 = (255 * net(pack_frame(x)).float().sigmoid()).round().byte()[0, 0].cpu().numpy()
    return p


def mean_iou(net: nn.Module, cases: list[Case]) -> float:
    """Intersection over union at a threshold of one half, summed over the cases."""
    both = either = 0
    for c in cases:
        found = probability(net, c.frame) >= 128
        both += int((found & (c.mask > 0)).sum())
        either += int((found | (c.mask > 0)).sum())
    return both / max(either, 1)


def false_alarms(net: nn.Module, cases: list[Case]) -> float:
    """Share of the pixels taken for damage, 0-1, in pictures that have none."""
    return float(np.mean([(probability(net, c.frame) >= 128).mean() for c in cases]))


def write_grid(path: Path, net: nn.Module, cases: list[Case]) -> None:
    """Write rows of damaged | probability | truth as one PNG, all cut to the narrowest picture.

    Raises:
        OutputError: The file cannot be written.
    """
    from PIL import Image

    rows, width = [], min(c.frame.shape[1] for c in cases)
    for c in cases:
        maps = (probability(net, c.frame), c.mask * np.uint8(255))
        cells = (c.frame, *(np.repeat(m[..., None], 3, 2) for m in maps))
        rows.append(np.concatenate([cell[:, :width] for cell in cells], 1))
    file = BytesIO()
    Image.fromarray(np.concatenate(rows)).save(file, "PNG")
    write_file(path, file.getvalue())


def _centre(picture: U8, multiple: int, side: int = 256) -> U8:
    h, w = (min(side, s - s % multiple) for s in picture.shape[:2])
    y, x = (picture.shape[0] - h) // 2, (picture.shape[1] - w) // 2
    return np.ascontiguousarray(picture[y : y + h, x : x + w])


def _crop(pictures: Pictures, rng: np.random.Generator, side: int) -> U8:
    """Cut a crop from a picture at full size or reduced, half of them mirrored."""
    import cv2

    picture = pictures.train[rng.choice(len(pictures.train), p=pictures.weights)]
    h, w = picture.shape[:2]
    if rng.random() < 0.3 and min(h, w) > side:
        factor = rng.uniform(side / min(h, w), 1)
        w, h = max(side, round(w * factor)), max(side, round(h * factor))
        picture = np.asarray(cv2.resize(picture, (w, h), interpolation=cv2.INTER_AREA), np.uint8)
    y, x = rng.integers(0, h - side + 1), rng.integers(0, w - side + 1)
    return picture[y : y + side, x : x + side][:, :: 1 if rng.random() < 0.5 else -1]


def _compress(image: U8, quality: int) -> U8:
    """Store as JPEG and read back."""
    import cv2

    bgr = np.ascontiguousarray(image[..., ::-1])
    data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.ascontiguousarray(
        np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)[..., ::-1]
    )
