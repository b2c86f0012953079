"""Everything a training run depends on, in one frozen record."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_args

from fastrestore.errors import InputError
from fastrestore.presets import PRESETS
from fastrestore.spec import Track

_DEVICES = ("cpu", "cuda")
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
    "noisy": (0, 1),
    "max_sigma": (0, 254),
    "max_ratio": (0.03, 0.95),
    "ema": (0, 1),
    "clip": (1e-9, 1e9),
    "validate_every": (1, 1e9),
    "held_out": (1, 1e6),
    "threads": (1, 1024),
    "seed": (0, 2**63 - 1),
}


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One run of stage 1. Command line options are made from these fields.

    Attributes:
        preset: Generator size.
        track: `free` (weights that may ship) or `research`.
        data: Folders of pictures; `FOLDER=WEIGHT` sets its share of the samples (default 1).
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
        noisy: Share of samples with noise.
        max_sigma: Strongest noise, 0-255 scale; weak noise is drawn more often.
        max_ratio: Holes cover up to this share of a crop.
        ema: Decay of the averaged weights, which are what ships.
        clip: Largest norm of the AdamW gradients.
        validate_every: Steps between validations.
        held_out: Pictures kept from training for validation.
        threads: CPU threads of torch.
        seed: Seed of weights, samples and noise; the bank of masks depends on the crop alone.
        device: `cpu` or `cuda`.
        from_weights: Checkpoint folder whose averaged weights the run starts from, or empty.
    """

    preset: str = "tiny"
    track: Track = field(kw_only=True)
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
    noisy: float = 0.5
    max_sigma: float = 50.0
    max_ratio: float = 0.6
    ema: float = 0.999
    clip: float = 1.0
    validate_every: int = 1000
    held_out: int = 24
    threads: int = 1
    seed: int = 0
    device: str = "cpu"
    from_weights: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be trained, in words."""
        if self.preset not in PRESETS:
            raise InputError(f"preset {self.preset}: choose one of {', '.join(PRESETS)}")
        if self.track not in get_args(Track):
            raise InputError(f"track {self.track}: choose one of {', '.join(get_args(Track))}")
        if self.device not in _DEVICES:
            raise InputError(f"device {self.device}: choose one of {', '.join(_DEVICES)}")
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

        Length, threads and validation may differ; the device may not: a random generator's state
        does not move from one to another.
        """
        length = {"minutes", "steps", "threads", "validate_every"}
        a, b = (
            {k: v for k, v in json.loads(json.dumps(c.to_json())).items() if k not in length}
            for c in (self, other)
        )
        return a == b
