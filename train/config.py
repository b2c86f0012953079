"""Everything a training run depends on, in one frozen record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from fastrestore.errors import InputError
from fastrestore.presets import PRESETS
from fastrestore.spec import Track

TaskName = Literal["restorer", "detector"]
GanName = Literal["nonsaturating", "saturating", "least-squares", "hinge"]
Norm = Literal["l1", "l2"]
# What is left out or replaced to see what it is worth; "" = nothing.
Ablation = Literal["", "plain-conv", "zero-fill", "no-sobel", "block-33", "leaky-relu"]
CHOICES: dict[str, tuple[str, ...]] = {
    "preset": tuple(PRESETS),
    "track": get_args(Track),
    "task": get_args(TaskName),
    "gan": get_args(GanName),
    "perceptual_norm": get_args(Norm),
    "ablate": get_args(Ablation),
    "device": ("cpu", "cuda"),
}
# What a recipe sets; what is given beside it rules. `psnr` is stage 1 from scratch, `tune` a short
# run from finished weights, `paper` and `sharp` are stage 2 and start from those of stage 1.
# `paper` is L_GAN + alpha L_perceptual + beta L_1 + gamma L_edge with L_GAN at 1, and ratios as in
# public inpainting code, since the paper gives no usable values.
RECIPES: dict[str, dict[str, Any]] = {
    "psnr": {"l1": 1.0, "edge": 0.5},
    "tune": {
        "l1": 0.0,
        "edge": 0.0,
        "log_mse": 0.1,
        "lr": 6e-4,
        "muon": 0.75,
        "decay": 0.05,
        "ema": 0.998,
        "large_share": 0.5,
    },
    "paper": {
        "adversarial": 1.0,
        "perceptual": 10.0,
        "l1": 100.0,
        "edge": 50.0,
        "gan": "saturating",
    },
    "sharp": {
        # At 1.0 the adversarial term had 9/10 of the gradient, and the generator drew a lattice.
        "adversarial": 0.03,
        "perceptual": 2.0,
        "perceptual_layers": "relu1_2=1,relu2_2=0.3,relu3_3=0.1",
        "perceptual_reduce": 2,
        "l1": 40.0,
        "edge": 20.0,
        "feature_matching": 1.0,
        "batch": 8,
        "lr": 5e-4,
        "muon": 0.5,
        "d_lr": 2e-3,
        "d_warm": 300,
        "large_share": 0.0,
        "noisy": 0.2,
        "ema": 0.998,
    },
}
# Smallest and largest value of every number; outside them a run never ends, fails or is void.
_RANGES: dict[str, tuple[float, float]] = {
    "minutes": (0, 1e6),
    "steps": (0, 1e9),
    "batch": (1, 1e5),
    "large_share": (0, 1),
    "lr": (1e-9, 1),
    "muon": (0, 100),
    "decay": (0, 1e3),
    "warm_up": (0, 0.9),
    "l1": (0, 1e6),
    "edge": (0, 1e6),
    "log_mse": (0, 1e6),
    "adversarial": (0, 1e6),
    "perceptual": (0, 1e6),
    "perceptual_reduce": (1, 8),
    "feature_matching": (0, 1e6),
    "d_lr": (1e-9, 1),
    "d_warm": (0, 1e9),
    "d_width": (4, 256),
    "r1": (0, 1e6),
    "r1_every": (1, 1e6),
    "accumulate": (1, 1e4),
    "noisy": (0, 1),
    "max_sigma": (0, 254),
    "max_ratio": (0.03, 0.95),
    "ema": (0, 1),
    "clip": (1e-9, 1e9),
    "validate_every": (1, 1e9),
    "held_out": (1, 1e6),
    "key_backgrounds": (0, 1),
    "threads": (1, 1024),
    "workers": (0, 1024),
    "seed": (0, 2**63 - 1),
}


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One run. Command line options are made from these fields.

    Attributes:
        preset: Generator size.
        track: `free` (weights that may ship) or `research`.
        data: Folders, zips, packed files or LMDBs of pictures; `PLACE@LIST:PART` chooses by a
            list, `=WEIGHT` sets its share of the samples (default 1).
        task: `restorer`, or `detector` (damage in a picture without a mask).
        minutes: Length of the whole run; the schedule follows the clock. 0 = use `steps`.
        steps: Length in steps, when `minutes` is 0.
        batch: Pictures a step at the small crop; the large crop takes a quarter, at least 1.
        crop: Side of the first phase's crops, px.
        large_crop: Side of the last phase's crops, px.
        large_share: Part of the run that uses large crops, at its end.
        lr: Rate of AdamW (biases, EdgeConv branches).
        muon: Muon's rate on convolution weights, as a multiple of `lr`.
        decay: Decoupled weight decay of the convolution weights, per unit of rate.
        warm_up: Part of the run in which the rate rises to its top; then cosine to zero.
        l1: Weight of the hole-normalised L1 term (beta in the paper).
        edge: Weight of the Sobel edge term (gamma in the paper, kernels / 8).
        log_mse: Weight of the log mean-square-error term: PSNR itself, sample by sample.
        adversarial: Weight of L_GAN; above 0 a discriminator is trained, too (stage 2).
        gan: Kind of adversarial loss; the paper's min-max is `saturating`.
        perceptual: Weight of the VGG term (alpha in the paper).
        perceptual_layers: VGG layers and their weights lambda.
        perceptual_norm: `l2` (the paper's square) or `l1`.
        perceptual_reduce: Pictures are reduced by this factor before VGG sees them.
        perceptual_folder: Folder of `fastrestore prepare-weights`; empty = where it is looked for.
        feature_matching: Weight of the distance between the discriminator's features.
        d_lr: Adam's rate for the discriminator.
        d_warm: Steps in which only the discriminator learns.
        d_width: Channels of the discriminator's first layer.
        r1: Weight of the gradient penalty on real pictures; above 0 replaces spectral norm.
        r1_every: Steps between two penalties.
        accumulate: Batches whose gradients are summed into one step.
        noisy: Share of samples with noise.
        max_sigma: Strongest noise, 0-255 scale; weak noise is drawn more often.
        max_ratio: Holes cover up to this share of a crop.
        ema: Decay of the averaged weights, which are what ships.
        clip: Largest norm of the AdamW gradients.
        validate_every: Steps between validations.
        key_backgrounds: Probability of replacing a portrait's plain studio background by a
            photograph.
        held_out: Pictures kept from training for validation.
        threads: CPU threads of torch.
        workers: Threads that draw batches ahead; for a GPU.
        seed: Seed of weights, samples and noise; the bank of masks depends on the crop alone.
        device: `cpu` or `cuda`.
        from_weights: Model or checkpoint whose weights the run starts from, or empty.
        ablate: What is left out, to see what it is worth; such a run cannot be exported.
    """

    preset: str = "tiny"
    track: Track = field(kw_only=True)
    task: TaskName = "restorer"
    data: tuple[str, ...] = ()
    minutes: float = 0.0
    steps: int = 0
    batch: int = 8
    crop: int = 128
    large_crop: int = 256
    large_share: float = 0.2
    lr: float = 3e-3
    muon: float = 1.0
    decay: float = 0.0
    warm_up: float = 0.05
    l1: float = 1.0
    edge: float = 0.5
    log_mse: float = 0.0
    adversarial: float = 0.0
    gan: GanName = "nonsaturating"
    perceptual: float = 0.0
    perceptual_layers: str = "relu1_2=1,relu2_2=1"
    perceptual_norm: Norm = "l2"
    perceptual_reduce: int = 1
    perceptual_folder: str = ""
    feature_matching: float = 0.0
    d_lr: float = 4e-4
    d_warm: int = 500
    d_width: int = 32
    r1: float = 0.0
    r1_every: int = 16
    accumulate: int = 1
    noisy: float = 0.5
    max_sigma: float = 50.0
    max_ratio: float = 0.6
    ema: float = 0.999
    clip: float = 1.0
    validate_every: int = 1000
    key_backgrounds: float = 0.0
    held_out: int = 24
    threads: int = 1
    workers: int = 0
    seed: int = 0
    device: str = "cpu"
    from_weights: str = ""
    ablate: Ablation = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be trained, in words."""
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                option = name.replace("_", "-")
                raise InputError(
                    f"{option} {value}: choose one of {', '.join(filter(None, known))}"
                )
        if not self.data:
            raise InputError("no data: name at least one folder of pictures")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:  # also refuses what is not a number
                option = name.replace("_", "-")
                raise InputError(f"{option} {value}: must be from {low:g} to {high:g}")
        if (self.minutes > 0) == (self.steps > 0):
            raise InputError("give either minutes or steps, above zero")
        multiple = PRESETS[self.preset].multiple
        for side in (self.crop, self.large_crop):
            if side < multiple or side % multiple:
                raise InputError(f"crop {side}: must be a multiple of {multiple} px")
        if self.crop > self.large_crop:
            raise InputError(f"crop {self.crop}: must not be above large-crop {self.large_crop}")
        if not self.l1 + self.edge + self.log_mse:
            raise InputError("give at least one of l1, edge or log-mse a weight above zero")
        if self.adversarial and (self.crop % 16 or self.large_crop % 16):
            raise InputError("crop: with a discriminator it must be a multiple of 16 px")
        if self.task == "detector" and (self.adversarial or self.perceptual or self.ablate):
            raise InputError(
                "detector: adversarial, perceptual and ablate do nothing; leave them away"
            )
        if self.adversarial and self.steps and self.d_warm >= self.steps:
            raise InputError(
                f"d-warm {self.d_warm}: of {self.steps} steps the generator learns none; give more"
            )
        if self.feature_matching and not self.adversarial:
            raise InputError("feature-matching needs a discriminator; give adversarial a weight")

    @classmethod
    def of(cls, recipe: str, given: Mapping[str, Any]) -> TrainConfig:
        """Build a config from a recipe's loss weights and what the caller gives beside them.

        Raises:
            InputError: No such recipe, or a config that cannot be trained.
        """
        if recipe not in RECIPES:
            raise InputError(f"recipe {recipe}: choose one of {', '.join(RECIPES)}")
        if recipe != "psnr" and not given.get("from_weights"):
            raise InputError(f"recipe {recipe}: goes on from finished weights; give --from")
        return cls(**{**RECIPES[recipe], **given})

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TrainConfig:
        """Rebuild a config.

        Raises:
            InputError: A field is unknown, missing or of another type, or cannot be trained.
        """
        unknown = sorted(set(data) - {f.name for f in fields(cls)})
        if unknown:
            raise InputError(f"training config: unknown fields {', '.join(unknown)}")
        try:
            return cls(**{**data, "data": tuple(data.get("data", ()))})
        except TypeError as e:
            raise InputError(f"training config: cannot be read ({e})") from e

    def same_run(self, other: TrainConfig) -> bool:
        """Whether a checkpoint of `other` can be gone on with.

        Length, threads and validation may differ; the device may not: it rounds otherwise.
        """
        length = {"minutes", "steps", "threads", "workers", "validate_every"}
        a, b = (
            {k: v for k, v in json.loads(json.dumps(c.to_json())).items() if k not in length}
            for c in (self, other)
        )
        return a == b
