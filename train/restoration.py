"""The restorer's task: fill holes, remove noise, and, in stage 2, look real."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fastrestore.arrays import U8
from fastrestore.presets import PRESETS
from fastrestore.train import losses, validate
from fastrestore.train.config import TrainConfig
from fastrestore.train.data import Batch, Pictures, Sampler
from fastrestore.train.generator import Generator
from fastrestore.train.perceptual import VGG_FILE, Features, find_weights, parse_layers
from fastrestore.train.run import Run
from fastrestore.train.samples import Sample, make_sample
from fastrestore.train.task import Draw

Cases = dict[str, list[validate.Case]]


class Restoration:
    """`L_total = L_GAN + alpha L_perceptual + beta L_1 + gamma L_edge`, and two terms of ours.

    A term whose weight is zero is not computed: with the first and second at zero this is stage 1.
    """

    def __init__(self, config: TrainConfig) -> None:
        """Load the perceptual network, if the config asks for it.

        Raises:
            InputError: Its weights are not found or do not fit.
        """
        self.config = config
        self.device = torch.device(config.device)
        self.features: Features | None = None
        if config.perceptual:
            path = find_weights(VGG_FILE, config.perceptual_folder)
            layers = parse_layers(config.perceptual_layers)
            self.features = Features.load(path, layers).to(self.device)
        self.shares: dict[str, float] = {}
        self.last: tuple[Tensor, Tensor, Tensor] | None = None

    def network(self) -> Generator:
        """Make the generator in its initial state."""
        return Generator(PRESETS[self.config.preset], ablate=self.config.ablate)

    def sampler(self, pictures: Pictures, crop: int) -> Draw:
        """Make the source of raw batches."""
        c = self.config
        sampler = Sampler(
            pictures,
            np.random.default_rng(0),
            crop,
            noisy=c.noisy,
            max_sigma=c.max_sigma,
            max_ratio=c.max_ratio,
            replace_background=c.key_backgrounds,
        )

        def draw(rng: np.random.Generator, n: int) -> Batch:
            mine = copy.copy(sampler)  # several threads draw at once, each with its generator
            mine.rng = rng
            return mine.batch(n)

        return draw

    def terms(self, run: Run, batch: Batch, seed: int) -> dict[str, Tensor]:
        """Return the weighted terms of both players."""
        rng = torch.Generator(self.device).manual_seed(seed)
        sample = make_sample(batch, rng, self.device)
        c = self.config
        waits = run.adversary is not None and run.step < c.d_warm
        with torch.autocast(c.device, torch.bfloat16), torch.set_grad_enabled(not waits):
            output = cast(Generator, run.net).restore(sample.packed)
        terms = {} if waits else self._own_terms(output, sample)
        if run.adversary is not None:
            composite = sample.target + sample.mask * (output - sample.target)
            material = (composite, sample.target, sample.mask)
            terms |= run.adversary.terms(*material, run.step)
            self.last = (composite.detach(), sample.target, sample.mask)
        if (run.step + 1) % c.validate_every == 0 and not waits:
            mine = {k: v for k, v in terms.items() if k != "discriminator"}
            self.shares = losses.gradient_shares(mine, output)
        return terms

    def _own_terms(self, output: Tensor, sample: Sample) -> dict[str, Tensor]:
        """Return the terms that need no discriminator."""
        c, terms = self.config, {}
        weights = losses.pixel_weights(sample.mask, sample.noise)
        for name in ("l1", "edge", "log_mse"):
            if weight := getattr(c, name):
                terms[name] = weight * getattr(losses, name)(output, sample.target, weights)
        if self.features:
            noisy = sample.noise.amax((1, 2, 3), keepdim=True) > 0
            seen = torch.where(noisy | (sample.mask > 0), output, sample.target)
            distance = self._distance(self.features, seen, sample.target)
            terms["perceptual"] = c.perceptual * distance
        return terms

    def _distance(self, features: Features, output: Tensor, target: Tensor) -> Tensor:
        """Compare two batches by VGG's features."""
        c = self.config
        if c.perceptual_reduce > 1:
            output, target = (
                torch.nn.functional.avg_pool2d(x, c.perceptual_reduce) for x in (output, target)
            )
        with torch.autocast(c.device, torch.bfloat16):
            with torch.no_grad():
                wanted = features(target)
            found = features(output)
        norm = c.perceptual_norm
        return losses.perceptual(
            [f.float() for f in found], [f.float() for f in wanted], features.weights, norm
        )

    def cases(self, held_out: list[U8]) -> Cases:
        """Damage the held-out pictures in the fixed ways of `validate`."""
        return validate.make_cases(held_out, PRESETS[self.config.preset].multiple)

    def report(self, run: Run, cases: Cases, folder: Path) -> dict[str, Any]:
        """Return PSNR, the use of every level, gradient shares and the discriminator's health."""
        few, ema = cases["ff20"][:8], cast(Generator, run.ema)
        row: dict[str, Any] = {
            "psnr": {k: round(validate.mean_psnr(ema, v), 3) for k, v in cases.items()},
            "bypass": validate.bypass_losses(ema, few),
            "active": validate.active_fractions(ema, few[0]),
        }
        if self.shares:
            row["gradient"] = {k: round(v, 3) for k, v in self.shares.items()}
        if run.adversary is not None and self.last is not None:
            row["judge"] = self._health(run, cases)
        validate.write_grid(folder / "grid.png", ema, [*few[:4], cases["s25"][0]])
        return row

    def _health(self, run: Run, cases: Cases) -> dict[str, float]:
        """Add to the discriminator's health how much better it knows what it was trained on."""
        adversary = run.adversary
        if adversary is None or self.last is None:
            return {}
        fake, real, mask = self.last
        unseen = cases["ff20"][: len(real)]
        side = min(real.shape[-1], *unseen[0].mask.shape)
        clean, holes = (
            torch.from_numpy(np.stack([a[:side, :side] for a in arrays])).to(self.device)
            for arrays in ([c.clean for c in unseen], [c.mask for c in unseen])
        )
        held_out = (clean.permute(0, 3, 1, 2).float() / 255, holes[:, None].float())
        seen = (real[..., :side, :side], mask[..., :side, :side])
        gap = adversary.mean_logit(*seen) - adversary.mean_logit(*held_out)
        found = {**adversary.health(fake, real, mask), "train_minus_held_out": gap}
        return {k: round(v, 3) for k, v in found.items() if not math.isnan(v)}  # no hole seen
