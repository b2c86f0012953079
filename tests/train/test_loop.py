"""The training loop: it learns, goes on to the bit where it was stopped, and says what is wrong."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastrestore.errors import InputError, OutputError
from fastrestore.presets import PRESETS, Preset
from fastrestore.train import checkpoint, loop
from fastrestore.train.config import TrainConfig
from fastrestore.train.data import Sampler
from fastrestore.train.loop import Run, generator_loss, resume, set_rates, start, train, update
from fastrestore.train.samples import Sample, make_sample

BLOCKS = ["encoder.0.0", "middle.0", "middle.1", "decoder.0.0"]


@pytest.fixture(autouse=True)
def micro(monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator and a bank of masks small enough to train in a test."""
    monkeypatch.setitem(PRESETS, "micro", Preset("micro", (16, 32), (1,), 1, (2,), (1,)))
    monkeypatch.setattr(loop, "Sampler", partial(Sampler, bank=30))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight smooth pictures with an edge each."""
    folder = tmp_path_factory.mktemp("pictures")
    y, x = np.mgrid[:72, :80] / 72
    for i in range(8):
        planes = [np.sin(4 * x + i * y + c) + (x + 0.1 * i > y + 0.4) for c in range(3)]
        picture = np.rint(90 + 60 * np.stack(planes, -1)).clip(0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{i}.png")
    return folder


def make_config(folder: Path, **changes: Any) -> TrainConfig:
    settings = {
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
    }
    return TrainConfig(**(settings | changes))


def everything(run_folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, record = checkpoint.load(run_folder)
    return tensors, {k: record[k] for k in ("step", "crops", "data_rng")}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Interrupt a run that saves after every step, as a user or a power cut would."""
    usual = loop.generator_loss

    def loss(run: Run, sample: Sample) -> Tensor:
        if run.step == step:
            raise KeyboardInterrupt
        return usual(run, sample)

    monkeypatch.setattr(loop, "generator_loss", loss)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", -1.0)


def sample_of(folder: Path, n: int) -> Sample:
    """Half clean, half noisy, all with holes."""
    pictures, rng = loop.Pictures.load((str(folder),), 1, 64), np.random.default_rng(9)
    sampler = Sampler(pictures, rng, 32, noisy=0, max_sigma=50, max_ratio=0.6, bank=20)
    batch = sampler.batch(n)._replace(sigma=np.repeat([0, 25], n // 2).astype(np.float32))
    return make_sample(batch, torch.Generator().manual_seed(9), torch.device("cpu"))


def loss_of(run: Run, sample: Sample) -> float:
    with torch.no_grad():
        return float(generator_loss(run, sample))


def test_learns_a_fixed_set(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clean and noisy samples alike, and the averaged weights follow."""
    sample = sample_of(folder, 4)
    monkeypatch.setattr(loop, "make_sample", lambda *_: sample)
    config = make_config(folder, steps=40, lr=0.02, large_share=0.0)
    run = train(config, tmp_path)
    before, after = loss_of(start(config), sample), loss_of(run, sample)
    assert after < 0.75 * before
    assert loss_of(replace(run, net=run.ema), sample) < 0.8 * before
    assert (run.step, run.crops) == (40, 160)


@pytest.mark.parametrize("step", [3, 7], ids=["small crops", "large crops"])
def test_interrupted_run_goes_on_to_the_bit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    config = make_config(folder, steps=8, decay=0.1, log_mse=0.1)
    whole = train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "cut")
    assert everything(tmp_path / "cut")[1]["step"] == step
    torch.manual_seed(1234)  # whatever else the new process did before
    resumed = train(config, tmp_path / "cut")
    for a, b in ((whole.net, resumed.net), (whole.ema, resumed.ema)):
        assert same(a.state_dict(), b.state_dict())
    (tensors, record), (others, other) = (everything(tmp_path / n) for n in ("whole", "cut"))
    assert {k.split(".")[0] for k in tensors} == {"net", "ema", "muon", "adam", "noise_rng"}
    assert same(tensors, others)
    assert record == other
    assert (record["step"], record["crops"]) == (8, 6 * 4 + 2)
    assert resumed.history[-1]["psnr"] == whole.history[-1]["psnr"]


def test_finished_run_can_be_made_longer_but_is_not_run_again(folder: Path, tmp_path: Path) -> None:
    config = make_config(folder, steps=2)
    train(config, tmp_path)
    before = (tmp_path / checkpoint.NAME).read_bytes()
    assert train(config, tmp_path).step == 2
    assert (tmp_path / checkpoint.NAME).read_bytes() == before
    longer = train(replace(config, steps=3), tmp_path)
    assert longer.step == 3
    assert len(longer.history) == 2


def test_seed_decides(folder: Path, tmp_path: Path) -> None:
    runs = [
        train(make_config(folder, steps=1, seed=seed), tmp_path / name)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    states = [r.net.state_dict() for r in runs]
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


def test_another_recipe_in_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    train(make_config(folder, steps=1), tmp_path)
    before = (tmp_path / checkpoint.NAME).read_bytes()
    for changes in ({"lr": 1e-3}, {"track": "research"}, {"seed": 5}):
        with pytest.raises(InputError, match="another recipe; choose another folder") as e:
            train(make_config(folder, **changes), tmp_path)
        assert str(tmp_path) in str(e.value)
    assert (tmp_path / checkpoint.NAME).read_bytes() == before


def test_from_weights_starts_with_the_average(folder: Path, tmp_path: Path) -> None:
    first = train(make_config(folder, steps=3), tmp_path / "first")
    config = make_config(folder, from_weights=str(tmp_path / "first"), seed=8)
    run = resume(config, tmp_path / "second")
    assert run.step == 0
    assert same(run.net.state_dict(), first.ema.state_dict())
    assert same(run.ema.state_dict(), first.ema.state_dict())
    assert not same(first.net.state_dict(), first.ema.state_dict())


@pytest.mark.parametrize("changes", [{"track": "research"}, {"preset": "nano"}], ids=str)
def test_from_weights_of_another_track_or_size_is_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    train(make_config(folder, steps=1), tmp_path / "first")
    config = make_config(folder, from_weights=str(tmp_path / "first"), **changes)
    with pytest.raises(InputError, match="holds micro of the free track, not") as e:
        train(config, tmp_path / "second")
    assert "\n" not in str(e.value)
    assert not (tmp_path / "second" / checkpoint.NAME).exists()


Record = dict[str, Any]
# Whole safetensors files that no run of this size can have written.
EDITS: dict[str, Callable[[dict[str, Tensor], Record], object]] = {
    "no config": lambda t, r: r.pop("config"),
    "unknown field": lambda t, r: r["config"].update(colour=1),
    "no weights": lambda t, r: [t.pop(k) for k in list(t) if k.startswith(("net.", "ema."))],
    "other shape": lambda t, r: t.update({k: v[:1] for k, v in t.items() if v.ndim == 4}),
    "no step": lambda t, r: r.pop("step"),
    "no generator": lambda t, r: t.pop("noise_rng"),
    "other generator": lambda t, r: r.update(data_rng={"bit_generator": "MT19937"}),
}


@pytest.mark.parametrize("what", EDITS)
def test_edited_checkpoint_is_refused_in_one_line(folder: Path, tmp_path: Path, what: str) -> None:
    config = make_config(folder, steps=1)
    train(config, tmp_path)
    tensors, record = checkpoint.load(tmp_path)
    EDITS[what](tensors, record)
    checkpoint.save(tmp_path, tensors, record)
    with pytest.raises(InputError) as e:
        train(replace(config, steps=2), tmp_path)
    assert "\n" not in str(e.value)
    if what in list(EDITS)[:4]:
        with pytest.raises(InputError) as e:
            resume(make_config(folder, from_weights=str(tmp_path)), tmp_path / "next")
        assert "\n" not in str(e.value)


def test_loss_that_is_no_number_stops_and_keeps_a_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = loop.generator_loss

    def loss(run: Run, sample: Sample) -> Tensor:
        return usual(run, sample) * (math.nan if run.step == 2 else 1)

    monkeypatch.setattr(loop, "generator_loss", loss)
    with pytest.raises(InputError, match="step 2: the loss is nan") as e:
        train(make_config(folder), tmp_path)
    assert "\n" not in str(e.value)
    tensors, record = everything(tmp_path)
    assert record["step"] == 2
    assert all(torch.isfinite(v).all() for v in tensors.values())


def test_blown_up_weights_never_replace_a_good_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = loop.update

    def blow_up(run: Run) -> None:
        usual(run)
        if run.step == 2:
            with torch.no_grad():
                next(run.net.parameters()).fill_(math.inf)

    monkeypatch.setattr(loop, "update", blow_up)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", -1.0)
    with pytest.raises(InputError) as e:
        train(make_config(folder), tmp_path)
    assert "\n" not in str(e.value)
    tensors, record = everything(tmp_path)
    assert record["step"] == 2
    assert all(torch.isfinite(v).all() for v in tensors.values())


def test_log_and_grid(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run = train(make_config(folder, steps=3, validate_every=2), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [2, 3]
    assert rows == run.history
    for row in rows:
        assert list(row["psnr"]) == ["ff10", "ff20", "ff40", "s25"]
        assert all(10 < v < 60 for v in row["psnr"].values())
        assert list(row["bypass"]) == ["middle", "encoder.0", "decoder.0"]
        assert list(row["active"]) == BLOCKS
        assert all(0 < v < 1 for v in row["active"].values())
    with Image.open(tmp_path / "grid.png") as im:
        assert im.size == (3 * 80, (2 + 1) * 72)
    assert sorted(os.listdir(tmp_path)) == [checkpoint.NAME, "grid.png", "log.jsonl"]
    assert "step 3 psnr" in caplog.text


def test_dead_block_is_reported(folder: Path, tmp_path: Path) -> None:
    config = make_config(folder, steps=1)
    run = start(config)
    with torch.no_grad():
        run.ema.get_submodule("middle.0.conv3.conv").bias.fill_(-100)
    pictures = loop.Pictures.load(config.data, 2, 64)
    loop.report(run, tmp_path, loop.validate.make_cases(pictures.held_out, 4))
    row = json.loads((tmp_path / "log.jsonl").read_text())
    assert row["active"]["middle.0"] == 0
    assert row["active"]["middle.1"] > 0


def test_rate_warms_up_and_falls_by_a_cosine(folder: Path) -> None:
    run = start(make_config(folder, steps=100, lr=0.01, muon=2.0, warm_up=0.1))
    rates = []
    for run.step in range(101):
        set_rates(run)
        rates.append(run.adam.param_groups[0]["lr"])
        assert run.muon.param_groups[0]["lr"] == pytest.approx(2 * rates[-1])
    assert rates[:11] == pytest.approx([1e-5, *(0.001 * i for i in range(1, 11))])
    assert rates[55] == pytest.approx(0.005)  # half way down
    assert rates[32] == pytest.approx(0.005 * (1 + math.cos(math.pi * 22 / 90)))
    assert rates[-1] == pytest.approx(1e-5)
    assert all(a > b for a, b in itertools.pairwise(rates[10:98]))  # then a floor


def test_update_clips_the_small_gradients_and_averages(folder: Path) -> None:
    run = start(make_config(folder, clip=0.5, ema=0.9))
    assert all(p.ndim == 4 for p in run.muon.param_groups[0]["params"])
    assert all(p.ndim != 4 for p in run.adam.param_groups[0]["params"])
    in_use = [*run.muon.param_groups[0]["params"], *run.adam.param_groups[0]["params"]]
    assert {id(p) for p in in_use} == {id(p) for p in run.net.parameters()}
    before = [p.detach().clone() for p in run.ema.parameters()]
    gradients = {}
    for p in run.net.parameters():
        p.grad = torch.full_like(p, 7.0)
        gradients[p] = p.grad
    update(run)
    small = torch.cat([gradients[p].flatten() for p in run.adam.param_groups[0]["params"]])
    assert float(small.norm()) == pytest.approx(0.5, rel=1e-4)
    assert all((gradients[p] == 7).all() for p in run.muon.param_groups[0]["params"])
    assert all(p.grad is None for p in run.net.parameters())
    # at step 0 the average keeps a tenth
    for old, new, p in zip(before, run.ema.parameters(), run.net.parameters(), strict=True):
        torch.testing.assert_close(new, 0.1 * old + 0.9 * p.detach(), rtol=1e-5, atol=1e-6)
    run.step, old = 10_000, [p.clone() for p in run.ema.parameters()]
    for p in run.net.parameters():
        p.grad = torch.ones_like(p)
    update(run)
    for a, b, p in zip(old, run.ema.parameters(), run.net.parameters(), strict=True):
        torch.testing.assert_close(b, 0.9 * a + 0.1 * p.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("term", ["l1", "edge", "log_mse"])
def test_weights_of_the_terms_are_used(folder: Path, term: str) -> None:
    off = {"l1": 0.0, "edge": 0.0, "log_mse": 0.0}
    sample = sample_of(folder, 4)
    values = [loss_of(start(make_config(folder, **(off | {term: w}))), sample) for w in (1.0, 3.0)]
    weights = loop.losses.pixel_weights(sample.mask, sample.noise)
    expected = getattr(loop.losses, term)(sample.packed[:, :3], sample.target, weights)
    assert values[0] == pytest.approx(float(expected))  # the network starts as the identity
    assert values[1] == pytest.approx(3 * values[0])


def test_minutes_are_counted_by_the_clock(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(10_000))
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    run = train(make_config(folder, steps=0, minutes=0.1), tmp_path)
    assert run.step == 6  # of one second each
    assert run.seconds == 6
    assert run.done == 1


def test_progress_is_reported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(10_000))
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: float(2 * next(ticks))))
    seen: list[tuple[float, str]] = []
    train(make_config(folder, steps=4), tmp_path, lambda done, line: seen.append((done, line)))
    assert [done for done, _ in seen] == [0.25, 0.5, 0.75, 1]
    assert all("images/s" in line and "loss" in line and "\n" not in line for _, line in seen)


def test_skipped_pictures_are_named(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for path in folder.iterdir():
        (mixed / path.name).write_bytes(path.read_bytes())
    (mixed / "broken.png").write_bytes(b"")
    assert train(make_config(mixed, steps=1), tmp_path / "run").step == 1
    assert f"skipped {mixed / 'broken.png'}" in caplog.text


def test_folder_that_cannot_be_made_is_refused_before_training(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("notes")
    for name in ("file", "file/run"):
        with pytest.raises(OutputError) as e:
            train(make_config(folder), tmp_path / name)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["log.jsonl", "grid.png"])
def test_log_that_cannot_be_written_is_an_output_error(
    folder: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(OutputError, match=name) as e:
        train(make_config(folder, steps=1), tmp_path)
    assert "\n" not in str(e.value)


def test_missing_gpu_is_said(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(InputError, match="device cuda"):
        start(make_config(folder, device="cuda"))
