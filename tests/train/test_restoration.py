"""The restorer's terms: each moves what it should, and nothing else."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastrestore.errors import InputError
from fastrestore.presets import PRESETS
from fastrestore.train import loop, losses, perceptual, restoration
from fastrestore.train.config import TrainConfig
from fastrestore.train.data import Batch, Pictures
from fastrestore.train.restoration import Restoration
from fastrestore.train.run import Run, start

MakeConfig = Callable[..., TrainConfig]
BLOCKS = ["encoder.0.0", "middle.0", "middle.1", "decoder.0.0"]
CLEAN, NOISY = slice(0, 2), slice(2, 4)  # samples of `material`
SMALL_MASK = (slice(9, 23), slice(5, 19))


@pytest.fixture
def pictures(folder: Path) -> Pictures:
    return Pictures.load((str(folder),), 2, 64)


@pytest.fixture
def material(make_config: MakeConfig, pictures: Pictures) -> Batch:
    """Two clean samples and two noisy ones, all with the same hole."""
    draw = Restoration(make_config()).sampler(pictures, 32)
    batch = draw(np.random.default_rng(9), 4)
    mask = np.zeros_like(batch.mask)
    mask[:, SMALL_MASK[0], SMALL_MASK[1]] = 1
    sigma = np.array([0, 0, 25, 25], np.float32)
    return batch._replace(mask=mask, trusted=np.zeros_like(mask), sigma=sigma)


def begin(config: TrainConfig) -> tuple[Restoration, Run]:
    """A run whose generator already says something, so that all of it has a gradient."""
    torch.manual_seed(config.seed)
    task = Restoration(config)
    net = task.network()
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.normal_(std=0.3 * p[0].numel() ** -0.5)
    return task, start(config, net)


def output_gradients(
    task: Restoration, run: Run, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Tensor]:
    """Gradient of each term for the generator's output, `(N, 32, 32)`, summed over channels."""
    outputs = []
    usual = type(run.net).restore

    def restore(net: Any, packed: Tensor) -> Tensor:
        outputs.append(usual(net, packed))
        return outputs[-1]

    with monkeypatch.context() as patch:
        patch.setattr(type(run.net), "restore", restore)
        terms = task.terms(run, batch, 0)
    found = {}
    for name, term in terms.items():
        (g,) = torch.autograd.grad(term, outputs[0], retain_graph=True, allow_unused=True)
        found[name] = torch.zeros(4, 32, 32) if g is None else g.abs().sum(1)
    return found


def test_stage_1_computes_nothing_of_stage_2(make_config: MakeConfig, material: Batch) -> None:
    task, run = begin(make_config())
    assert task.features is None
    assert run.adversary is None
    assert task.terms(run, material, 0).keys() == {"l1", "edge"}


@pytest.mark.parametrize("name", ["l1", "edge", "log_mse"])
def test_weights_of_the_reconstruction_are_used(
    make_config: MakeConfig, material: Batch, name: str
) -> None:
    off = {"l1": 0.0, "edge": 0.0, "log_mse": 0.0}
    values = []
    for weight in (1.0, 3.0):
        config = make_config(**(off | {name: weight}))
        torch.manual_seed(config.seed)
        task = Restoration(config)
        run = start(config, task.network())  # the identity
        terms = task.terms(run, material, 5)
        assert terms.keys() == {name}
        values.append(terms[name].item())
    rng = torch.Generator().manual_seed(5)
    sample = restoration.make_sample(material, rng, torch.device("cpu"))
    weights = losses.pixel_weights(sample.mask, sample.noise)
    expected = getattr(losses, name)(sample.packed[:, :3], sample.target, weights)
    assert values[0] == pytest.approx(float(expected))
    assert values[1] == pytest.approx(3 * values[0])


@pytest.mark.parametrize("name", ["adversarial", "perceptual", "feature_matching"])
def test_weights_of_stage_2_are_used(stage2: MakeConfig, material: Batch, name: str) -> None:
    values = []
    for factor in (1.0, 3.0):
        config = stage2(d_warm=0, **{name: 0.2 * factor})
        task, run = begin(config)
        values.append({k: v.item() for k, v in task.terms(run, material, 5).items()})
    assert abs(values[0][name]) > 1e-6
    for k, v in values[0].items():
        assert values[1][k] == pytest.approx(v * (3 if k == name else 1), rel=1e-4), k


def test_each_term_moves_the_pixels_that_it_should(
    stage2: MakeConfig, material: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What looks at the picture as a whole must not touch pixels that stay as they are."""
    task, run = begin(stage2(d_warm=0))
    found = output_gradients(task, run, material, monkeypatch)
    hole = torch.zeros(32, 32, dtype=torch.bool)
    hole[SMALL_MASK] = True
    near = torch.nn.functional.max_pool2d(hole.float()[None], 3, 1, 1)[0] > 0
    expected = {"l1", "edge", "log_mse", "perceptual", "adversarial", "feature_matching"}
    assert found.keys() == {*expected, "discriminator"}
    for name in expected:
        g = found[name]
        assert (g[:, hole] > 0).float().mean() > 0.9, name
        outside = ~near if name == "edge" else ~hole  # a Sobel filter reaches one pixel farther
        assert not g[CLEAN, outside].any(), name
        everywhere = name not in ("adversarial", "feature_matching")  # those see composites
        assert bool((g[NOISY, ~hole] > 0).float().mean() > 0.9) == everywhere, name
        assert everywhere or not g[NOISY, ~hole].any(), name
    assert not found["discriminator"].any()


def test_noise_alone_is_no_affair_of_the_discriminator(
    stage2: MakeConfig, material: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = material._replace(mask=np.zeros_like(material.mask), sigma=np.full(4, 25, np.float32))
    task, run = begin(stage2(d_warm=0))
    found = output_gradients(task, run, batch, monkeypatch)
    assert not found["adversarial"].any()
    assert not found["feature_matching"].any()
    assert found["l1"].all()


def test_each_player_is_moved_by_its_own_terms_alone(stage2: MakeConfig, material: Batch) -> None:
    task, run = begin(stage2(d_warm=0))
    assert run.adversary is not None
    terms = task.terms(run, material, 0)
    players = {"net": run.net, "judge": run.adversary.net}
    moved = {}
    for term, value in terms.items():
        for player, net in players.items():
            grads = torch.autograd.grad(
                value, list(net.parameters()), retain_graph=True, allow_unused=True
            )
            moved[term, player] = [g is not None and bool(g.any()) for g in grads]
    for term in terms:
        mine, other = ("judge", "net") if term == "discriminator" else ("net", "judge")
        assert all(moved[term, mine]), term
        assert not any(moved[term, other]), term


@pytest.mark.parametrize("warm", [True, False])
def test_warm_up_leaves_the_generator_as_it_is(
    stage2: MakeConfig, material: Batch, warm: bool
) -> None:
    task, run = begin(stage2(d_warm=3, decay=0.1))
    assert run.adversary is not None
    run.step = 2 if warm else 3
    before = [p.clone() for net in (run.net, run.ema) for p in net.parameters()]
    judge = [p.clone() for p in run.adversary.net.parameters()]
    terms = task.terms(run, material, 0)
    sum(terms.values(), torch.zeros(())).backward()
    loop.set_rates(run)
    loop.update(run)
    after = [p for net in (run.net, run.ema) for p in net.parameters()]
    assert all(map(torch.equal, before, after)) == warm
    assert (terms.keys() == {"discriminator"}) == warm
    assert not any(map(torch.equal, judge, run.adversary.net.parameters()))


def test_perceptual_term_is_its_formula(stage2: MakeConfig, material: Batch) -> None:
    """On reduced pictures, with the norm and the lambdas of the config."""
    config = stage2(perceptual_norm="l1", perceptual_reduce=2, perceptual=2.0)
    task, run = begin(config)
    features = task.features
    assert features is not None
    assert features.weights == (1.0, 0.5)
    run.step = 1  # the discriminator has warmed up
    value = task.terms(run, material, 5)["perceptual"].item()
    rng = torch.Generator().manual_seed(5)
    sample = restoration.make_sample(material, rng, task.device)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            output = run.net.restore(sample.packed)  # type: ignore[operator]
        output[CLEAN] = torch.where(sample.mask > 0, output, sample.target)[CLEAN]
        maps = [features(torch.nn.functional.avg_pool2d(x, 2)) for x in (output, sample.target)]
        expected = sum(w * (a - b).abs().mean() for w, a, b in zip((1, 0.5), *maps, strict=True))
    assert value == pytest.approx(2 * float(expected), rel=0.02)  # bfloat16


def test_perceptual_term_uses_trained_features(make_config: MakeConfig, material: Batch) -> None:
    try:
        perceptual.find_weights(perceptual.VGG_FILE)
    except InputError:
        pytest.skip("no perceptual weights here; `fastrestore prepare-weights` makes them")
    task, run = begin(make_config(perceptual=1.0))
    value = task.terms(run, material, 0)["perceptual"]
    grads = torch.autograd.grad(value, list(run.net.parameters()))
    assert value > 0
    assert all(bool(g.any()) for g in grads)


def test_missing_perceptual_weights_are_said(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file") as e:
        Restoration(make_config(perceptual=1.0, perceptual_folder=str(tmp_path)))
    assert "prepare-weights" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("ablate", ["", "plain-conv", "block-33"])
def test_network_is_the_presets_ablated(make_config: MakeConfig, ablate: str) -> None:
    net = Restoration(make_config(ablate=ablate)).network()
    assert (net.preset, net.ablate) == (PRESETS["micro"], ablate)


def test_batch_follows_from_its_generator_alone(
    make_config: MakeConfig, pictures: Pictures
) -> None:
    draw = Restoration(make_config(noisy=0.5)).sampler(pictures, 32)
    a, _, b = (draw(np.random.default_rng(seed), 3) for seed in (1, 2, 1))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_draws_at_the_same_time_do_not_mix(
    make_config: MakeConfig, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2)

    class Slow:
        def __init__(self, pictures: Pictures, rng: np.random.Generator, *_: Any, **__: Any):
            self.rng = rng

        def batch(self, n: int) -> float:
            both.wait(10)
            return float(self.rng.random())

    monkeypatch.setattr(restoration, "Sampler", Slow)
    draw = Restoration(make_config()).sampler(pictures, 32)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda seed: draw(np.random.default_rng(seed), 1), (1, 2)))
    assert found == [np.random.default_rng(seed).random() for seed in (1, 2)]


@pytest.mark.parametrize(
    ("changes", "sigmas"),
    [({"noisy": 0.0}, (0, 0)), ({"noisy": 1.0, "max_sigma": 10.0}, (0.01, 10))],
    ids=["clean", "noisy"],
)
def test_config_decides_on_noise(
    make_config: MakeConfig, pictures: Pictures, changes: dict[str, float], sigmas: tuple[int, int]
) -> None:
    draw = Restoration(make_config(**changes)).sampler(pictures, 32)
    sigma = draw(np.random.default_rng(1), 20).sigma
    assert sigmas[0] <= sigma.max() <= sigmas[1]


def test_report_of_stage_1(make_config: MakeConfig, pictures: Pictures, tmp_path: Path) -> None:
    task, run = begin(make_config())
    row = task.report(run, task.cases(pictures.held_out), tmp_path)
    assert row.keys() == {"psnr", "bypass", "active"}
    assert list(row["psnr"]) == ["ff10", "ff20", "ff40", "s25"]
    assert all(3 < v < 60 for v in row["psnr"].values())
    assert list(row["bypass"]) == ["middle", "encoder.0", "decoder.0"]
    assert list(row["active"]) == BLOCKS
    assert all(0 < v < 1 for v in row["active"].values())
    assert (tmp_path / "grid.png").exists()


def test_dead_block_is_reported(
    make_config: MakeConfig, pictures: Pictures, tmp_path: Path
) -> None:
    task, run = begin(make_config())
    with torch.no_grad():
        run.ema.get_submodule("middle.0.conv3.conv").bias.fill_(-100)  # type: ignore[union-attr]
    active = task.report(run, task.cases(pictures.held_out), tmp_path)["active"]
    assert active["middle.0"] == 0
    assert active["middle.1"] > 0


@pytest.mark.parametrize("crop", [32, 64])
def test_report_of_stage_2(
    stage2: MakeConfig, material: Batch, pictures: Pictures, tmp_path: Path, crop: int
) -> None:
    """Shares of the generator's gradient and the discriminator's health; all plain JSON."""
    task, run = begin(stage2(d_warm=0, validate_every=5))
    draw = task.sampler(pictures, crop)
    batch = material if crop == 32 else draw(np.random.default_rng(0), 2)
    cases = task.cases(pictures.held_out)
    assert "judge" not in task.report(run, cases, tmp_path)  # nothing judged yet
    run.step = 4
    task.terms(run, batch, 0)
    row = json.loads(json.dumps(task.report(run, cases, tmp_path), allow_nan=False))
    names = {"l1", "edge", "log_mse", "perceptual", "adversarial", "feature_matching"}
    assert row["gradient"].keys() == names
    assert sum(row["gradient"].values()) == pytest.approx(1, abs=0.01)
    assert all(v > 0 for v in row["gradient"].values())
    assert {"real_logit", "fake_logit", "train_minus_held_out"} <= row["judge"].keys()


def test_health_of_crops_above_the_held_out_pictures(
    stage2: MakeConfig, pictures: Pictures, tmp_path: Path
) -> None:
    """Validation pictures are cut to 256 px, crops may be larger."""
    task, run = begin(stage2(d_warm=0))
    side = 96
    assert all(min(p.shape[:2]) < side for p in pictures.held_out)
    real = torch.rand(1, 3, side, side)
    mask = torch.zeros(1, 1, side, side)
    mask[..., 20:50, 20:50] = 1
    task.last = (torch.rand_like(real), real, mask)
    with pytest.MonkeyPatch.context() as patch:  # 72 px: no multiple of a patch; 64 is one
        patch.setattr(restoration.validate.make_cases, "__defaults__", (64,))
        row = task.report(run, task.cases(pictures.held_out), tmp_path)
    assert np.isfinite(row["judge"]["train_minus_held_out"])
