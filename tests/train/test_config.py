"""The record of a run: what it refuses, and what it calls the same run."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from fastrestore.errors import InputError
from fastrestore.train.config import CHOICES, RECIPES, TrainConfig

BASE = TrainConfig(track="free", data=("a", "b=0.5"), steps=900, adversarial=1.0)
# A second valid value for every field.
OTHER: dict[str, Any] = {
    "preset": "nano",
    "track": "research",
    "task": "detector",
    "data": ("a", "b=0.6"),
    "minutes": 30.0,
    "steps": 1000,
    "batch": 4,
    "crop": 64,
    "large_crop": 512,
    "large_share": 0.3,
    "lr": 1e-3,
    "muon": 2.0,
    "decay": 0.1,
    "warm_up": 0.1,
    "l1": 0.5,
    "edge": 0.0,
    "log_mse": 0.1,
    "adversarial": 0.5,
    "gan": "hinge",
    "perceptual": 1.0,
    "perceptual_layers": "relu1_1=1",
    "perceptual_norm": "l1",
    "perceptual_reduce": 2,
    "perceptual_folder": "weights",
    "feature_matching": 1.0,
    "d_lr": 1e-4,
    "d_warm": 0,
    "d_width": 16,
    "r1": 1.0,
    "r1_every": 4,
    "accumulate": 2,
    "key_backgrounds": 0.5,
    "noisy": 0.25,
    "max_sigma": 25.0,
    "max_ratio": 0.4,
    "ema": 0.99,
    "clip": 2.0,
    "validate_every": 10,
    "held_out": 8,
    "threads": 2,
    "workers": 2,
    "seed": 1,
    "device": "cuda",
    "from_weights": "runs/other",
    "ablate": "plain-conv",
}
MAY_DIFFER = {"minutes", "steps", "threads", "workers", "validate_every"}


def changed(name: str) -> TrainConfig:
    if name == "minutes":
        return replace(BASE, minutes=OTHER["minutes"], steps=0)
    if name == "task":
        return replace(BASE, task=OTHER["task"], adversarial=0.0)
    return replace(BASE, **{name: OTHER[name]})


def test_every_field_is_tried_here() -> None:
    assert set(OTHER) == {f.name for f in fields(TrainConfig)}
    assert all(getattr(BASE, name) != value for name, value in OTHER.items())


@pytest.mark.parametrize("name", OTHER)
def test_same_run_allows_another_length_only(name: str) -> None:
    assert BASE.same_run(changed(name)) == (name in MAY_DIFFER)
    assert changed(name).same_run(BASE) == (name in MAY_DIFFER)


def test_same_run_does_not_ask_how_the_data_was_written() -> None:
    assert BASE.same_run(TrainConfig.from_json(json.loads(json.dumps(BASE.to_json()))))


@pytest.mark.parametrize("name", OTHER)
def test_json_round_trip(name: str) -> None:
    config = changed(name)
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"preset": "huge"}, "preset huge: choose one of nano, tiny, base"),
        ({"track": "paid"}, "track paid: choose one of free, research"),
        ({"data": ()}, "no data"),
        ({"steps": 0}, "either minutes or steps"),
        ({"minutes": 1.0}, "either minutes or steps"),
        ({"crop": 100}, "crop 100: must be a multiple of 16 px"),
        ({"large_crop": 264}, "crop 264: must be a multiple of 16 px"),
        ({"crop": 0}, "crop 0"),
        ({"crop": -16}, "crop -16"),
        ({"preset": "nano", "crop": 20}, "crop 20: must be a multiple of 8 px"),
        ({"batch": 0}, "batch"),
        ({"threads": 0}, "threads"),
        ({"validate_every": 0}, "validate-every"),
        # a run that would never end
        ({"minutes": -1.0}, "minutes"),
        ({"minutes": float("nan")}, "minutes"),
        ({"minutes": float("inf"), "steps": 0}, "minutes"),
        ({"minutes": 5.0, "steps": -1}, "steps"),
        # a run that would end in a traceback, or teach nothing
        ({"crop": 256, "large_crop": 128}, "crop 256"),
        ({"large_share": 1.5}, "large-share"),
        ({"lr": 0.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"muon": -1.0}, "muon"),
        ({"decay": -0.1}, "decay"),
        ({"warm_up": 1.0}, "warm-up"),
        ({"warm_up": -0.1}, "warm-up"),
        ({"l1": -1.0}, "l1"),
        ({"l1": 0.0, "edge": 0.0, "log_mse": 0.0}, "l1, edge or log-mse"),
        ({"noisy": 1.5}, "noisy"),
        ({"max_sigma": 255.0}, "max-sigma"),
        ({"max_ratio": 0.0}, "max-ratio"),
        ({"max_ratio": 0.96}, "max-ratio"),
        ({"ema": 1.5}, "ema"),
        ({"clip": 0.0}, "clip"),
        ({"held_out": 0}, "held-out"),
        ({"seed": -1}, "seed"),
        ({"device": "tpu"}, "device tpu: choose one of cpu, cuda"),
        ({"task": "colourer"}, "task colourer: choose one of restorer, detector"),
        ({"gan": "wasserstein"}, "gan wasserstein: choose one of nonsaturating, saturating"),
        ({"perceptual_norm": "l3"}, "perceptual-norm l3: choose one of l1, l2"),
        ({"ablate": "all"}, "ablate all: choose one of plain-conv, zero-fill, no-sobel"),
        ({"adversarial": -1.0}, "adversarial"),
        ({"adversarial": float("nan")}, "adversarial"),
        ({"perceptual": -1.0}, "perceptual"),
        ({"perceptual_reduce": 0}, "perceptual-reduce"),
        ({"feature_matching": float("inf")}, "feature-matching"),
        ({"feature_matching": 1.0, "adversarial": 0.0}, "feature-matching needs a discriminator"),
        ({"d_lr": 0.0}, "d-lr"),
        ({"d_warm": -1}, "d-warm"),
        ({"d_width": 0}, "d-width"),
        ({"r1": -1.0}, "r1"),
        ({"r1_every": 0}, "r1-every"),
        ({"accumulate": 0}, "accumulate"),
        ({"key_backgrounds": 1.5}, "key-backgrounds"),
        ({"workers": -1}, "workers"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as e:
        replace(BASE, **changes)
    assert says in str(e.value)
    assert "\n" not in str(e.value)


def test_track_must_be_given() -> None:
    """Weights whose track nobody named must not pass for free ones."""
    without = {k: v for k, v in BASE.to_json().items() if k != "track"}
    with pytest.raises(InputError, match="track"):
        TrainConfig.from_json(without)


def test_unknown_fields_are_named() -> None:
    with pytest.raises(InputError, match=r"unknown fields alpha, beta$"):
        TrainConfig.from_json({**BASE.to_json(), "beta": 1, "alpha": 2})


@pytest.mark.parametrize(
    "changes",
    [{"steps": "100"}, {"data": None}, {"data": 5}, {"preset": []}, {"crop": None}, {"lr": {}}],
    ids=str,
)
def test_values_of_another_type_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError) as e:
        TrainConfig.from_json({**BASE.to_json(), **changes})
    assert "\n" not in str(e.value)


GIVEN: dict[str, Any] = {"track": "free", "data": ("a",), "steps": 900, "from_weights": "tiny"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_is_a_config_that_what_is_given_overrides(recipe: str) -> None:
    config = TrainConfig.of(recipe, GIVEN)
    wanted = {**TrainConfig(**GIVEN).to_json(), **RECIPES[recipe]}
    assert config.to_json() == wanted
    assert TrainConfig.of(recipe, {**GIVEN, "edge": 0.25, "lr": 1e-4}).to_json() == {
        **wanted,
        "edge": 0.25,
        "lr": 1e-4,
    }


def test_recipes_are_what_they_are_called() -> None:
    psnr, tune, paper, sharp = (
        TrainConfig.of(recipe, GIVEN) for recipe in ("psnr", "tune", "paper", "sharp")
    )
    assert psnr == TrainConfig(**GIVEN)  # the defaults are stage 1
    for stage1 in (psnr, tune):
        assert stage1.adversarial == stage1.perceptual == stage1.feature_matching == 0
    for stage2 in (paper, sharp):
        assert min(stage2.adversarial, stage2.perceptual, stage2.l1, stage2.edge) > 0
    # the paper's four terms and its min-max, and nothing of ours
    assert (paper.adversarial, paper.gan, paper.perceptual_norm) == (1, "saturating", "l2")
    assert paper.feature_matching == paper.log_mse == 0
    assert sharp.feature_matching > 0


@pytest.mark.parametrize("recipe", ["blunt", "", "PSNR"])
def test_unknown_recipe_is_refused(recipe: str) -> None:
    with pytest.raises(InputError, match=f"recipe {recipe}: choose one of psnr, tune") as e:
        TrainConfig.of(recipe, GIVEN)
    assert "\n" not in str(e.value)


def test_recipe_does_not_excuse_what_cannot_be_trained() -> None:
    with pytest.raises(InputError, match="either minutes or steps"):
        TrainConfig.of("sharp", {**GIVEN, "steps": 0})


def test_choices_are_those_that_are_accepted() -> None:
    for name, values in CHOICES.items():
        for value in values:
            plain = replace(BASE, adversarial=0.0)
            assert getattr(replace(plain, **{name: value}), name) == value


def test_checkpoint_of_before_a_field_is_read_with_its_default() -> None:
    old = {"track": "free", "data": ["a"], "steps": 5, "lr": 1e-3}
    assert TrainConfig.from_json(old) == TrainConfig(track="free", data=("a",), steps=5, lr=1e-3)


@pytest.mark.parametrize("recipe", ["tune", "paper", "sharp"])
def test_later_stages_need_weights_to_go_on_from(recipe: str) -> None:
    with pytest.raises(InputError, match="give --from"):
        TrainConfig.of(recipe, {**GIVEN, "from_weights": ""})


@pytest.mark.parametrize(
    "changes", [{"adversarial": 1.0}, {"perceptual": 1.0}, {"ablate": "no-sobel"}]
)
def test_detector_takes_nothing_that_does_nothing(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="leave them away"):
        TrainConfig(track="free", data=("a",), steps=9, task="detector", **changes)


def test_run_that_only_warms_the_discriminator_is_refused() -> None:
    with pytest.raises(InputError, match="d-warm 500"):
        replace(BASE, steps=500)
    assert replace(BASE, steps=501).steps == 501
