"""The discriminator in training: its loss, what it tells the generator, and its health."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrestore.train import losses
from fastrestore.train.config import TrainConfig
from fastrestore.train.discriminator import Discriminator, Judgement, fake_target, health


class Adversary:
    """A discriminator and its optimiser.

    It sees composites: the generator's output inside the hole, the truth outside. What it calls
    fake is the hole alone (`fake_target`); the paper's single logit for the whole picture counts
    as much as all patches together.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.net = Discriminator(config.d_width, spectral=config.r1 == 0)
        self.net.to(torch.device(config.device), memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.net.eval()  # spectral norms are followed by `step` alone
        self.adam = torch.optim.Adam(self.net.parameters(), config.d_lr, betas=(0.0, 0.99))

    def step(self) -> None:
        """Step the optimiser, clear the gradients, and follow the spectral norms.

        Once a step and not once a verdict: what is learned must not depend on how a step's
        samples are split into batches and processes, nor on how often it is validated.
        """
        self.adam.step()
        self.net.zero_grad(set_to_none=True)
        self.net.train()
        with torch.no_grad():
            for conv in self.net.body:
                _ = conv.weight  # one power iteration, where there is a spectral norm
        self.net.eval()

    def judge(self, rgb: Tensor, mask: Tensor) -> Judgement:
        """Judge pictures, float `(N, 3, H, W)` in 0-1, under masks `(N, 1, H, W)`."""
        with torch.autocast(rgb.device.type, torch.bfloat16):
            j: Judgement = self.net(torch.cat([rgb, mask], 1))
        return Judgement(j.patches.float(), j.whole.float(), [f.float() for f in j.features])

    def terms(self, fake: Tensor, real: Tensor, mask: Tensor, step: int) -> dict[str, Tensor]:
        """Return the weighted terms of both players: one backward pass serves them.

        The generator's terms flow through a frozen discriminator, the discriminator's loss stops
        at the generator's output.

        Args:
            fake: float, `(N, 3, H, W)`, composites of the generator's output.
            real: float, `(N, 3, H, W)`, the truth.
            mask: float, `(N, 1, H, W)`, 1 = hole.
            step: Decides whether the gradient penalty is due, and whether the generator learns.
        """
        c, terms = self.config, {}
        if step >= c.d_warm:
            self.net.requires_grad_(False)
            judged = self.judge(fake, mask)
            target = fake_target(mask, judged.patches)
            holed = mask.amax((2, 3))
            patches = losses.generator_adversarial_loss(c.gan, judged.patches, target)
            whole = losses.generator_adversarial_loss(c.gan, judged.whole, holed)
            terms["adversarial"] = c.adversarial * (patches + whole) / 2
            if c.feature_matching:
                with torch.no_grad():
                    wanted = self.judge(real, mask).features
                distance = losses.feature_matching(judged.features, wanted, mask)
                terms["feature_matching"] = c.feature_matching * distance
            self.net.requires_grad_(True)
        terms["discriminator"] = self._own_loss(fake.detach(), real, mask, step)
        return terms

    def _own_loss(self, fake: Tensor, real: Tensor, mask: Tensor, step: int) -> Tensor:
        c = self.config
        penalised = c.r1 > 0 and step % c.r1_every == 0
        real = real.detach().requires_grad_(penalised)
        on_real, on_fake = self.judge(real, mask), self.judge(fake, mask)
        target, holed = fake_target(mask, on_fake.patches), mask.amax((2, 3))
        patches = losses.discriminator_loss(c.gan, on_real.patches, on_fake.patches, target)
        whole = losses.discriminator_loss(c.gan, on_real.whole, on_fake.whole, holed)
        loss = (patches + whole) / 2
        if penalised:  # lazily: rare but as much stronger
            loss = loss + c.r1 * c.r1_every / 2 * losses.r1(on_real.patches, real)
        return loss

    @torch.no_grad()
    def health(self, fake: Tensor, real: Tensor, mask: Tensor) -> dict[str, float]:
        """Return mean logits and accuracy on one batch; see `discriminator.health`."""
        on_real, on_fake = self.judge(real, mask), self.judge(fake, mask)
        return health(on_real, on_fake, fake_target(mask, on_fake.patches), self.config.gan)

    @torch.no_grad()
    def mean_logit(self, real: Tensor, mask: Tensor) -> float:
        """Return the mean patch logit of true pictures; overfit if far higher on seen ones."""
        return float(self.judge(real, mask).patches.mean())
