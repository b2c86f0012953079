"""Runs small enough for a test: a small generator, eight pictures, ten masks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from fastrestore.train.config import TrainConfig

MakeConfig = Callable[..., "TrainConfig"]


@pytest.fixture
def micro(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the preset `micro`, and leave out what only takes time."""
    from fastrestore.presets import PRESETS, Preset
    from fastrestore.train import loop, restoration
    from fastrestore.train.config import CHOICES

    monkeypatch.setitem(PRESETS, "micro", Preset("micro", (16, 16, 32), (1, 0), 1, (2,), (1, 0)))
    monkeypatch.setitem(CHOICES, "preset", tuple(PRESETS))
    monkeypatch.setattr(restoration, "Sampler", partial(restoration.Sampler, bank=10))
    monkeypatch.setattr(loop, "matmul_flops", lambda *_: 1e12)


@pytest.fixture
def random_vgg(monkeypatch: pytest.MonkeyPatch) -> None:
    """A perceptual network of random weights: what is tested needs no trained ones."""
    import torch

    from fastrestore.train import restoration

    class Random(restoration.Features):
        @classmethod
        def load(cls, path: Path, layers: Any) -> Random:
            torch.manual_seed(3)
            return cls(layers)

    monkeypatch.setattr(restoration, "Features", Random)
    monkeypatch.setattr(restoration, "find_weights", lambda name, folder="": Path(name))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight smooth pictures with an edge each."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    y, x = np.mgrid[:72, :80] / 72
    for i in range(8):
        planes = [np.sin(4 * x + i * y + c) + (x + 0.1 * i > y + 0.4) for c in range(3)]
        picture = np.rint(90 + 60 * np.stack(planes, -1)).clip(0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def make_config(folder: Path, micro: None) -> MakeConfig:
    """Make the config of a run of four steps, the last on large crops; arguments override."""
    from fastrestore.train.config import TrainConfig

    settings: dict[str, Any] = {
        "preset": "micro",
        "track": "free",
        "data": (str(folder),),
        "steps": 4,
        "batch": 4,
        "crop": 32,
        "large_crop": 64,
        "large_share": 0.25,
        "held_out": 2,
        "validate_every": 1000,
        "d_width": 8,
    }
    return lambda **changes: TrainConfig(**(settings | changes))


@pytest.fixture
def stage2(make_config: MakeConfig, random_vgg: None) -> MakeConfig:
    """Make the config of such a run with every term; the discriminator has one step's start."""
    settings = {
        "adversarial": 0.1,
        "perceptual": 0.5,
        "perceptual_layers": "relu1_1=1,relu1_2=0.5",
        "feature_matching": 0.5,
        "log_mse": 0.05,
        "d_warm": 1,
    }
    return lambda **changes: make_config(**(settings | changes))
