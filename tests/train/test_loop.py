"""The training loop: it learns, keeps its clock and its log, and says what is wrong."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fastrestore.errors import InputError, OutputError
from fastrestore.presets import PRESETS
from fastrestore.train import checkpoint, loop, restoration
from fastrestore.train.config import TrainConfig
from fastrestore.train.data import Pictures
from fastrestore.train.feed import Feed, Item
from fastrestore.train.loop import alone, learn, set_rates, train, update, uses_large_crops
from fastrestore.train.restoration import Restoration
from fastrestore.train.run import Run, start
from fastrestore.train.speed import matmul_flops, picture_flops

MakeConfig = Callable[..., TrainConfig]


def begin(config: TrainConfig) -> tuple[Restoration, Run]:
    torch.manual_seed(config.seed)
    task = Restoration(config)
    return task, start(config, task.network())


def items_of(task: Restoration, config: TrainConfig, n: int = 1) -> list[Item]:
    """The first step's batches, as one process of one gets them."""
    pictures = Pictures.load(config.data, config.held_out, config.large_crop)
    return Feed(task, pictures, replace(config, accumulate=n), 0, 1).step(0, lambda _: False)


def weights_of(run: Run) -> dict[str, Tensor]:
    judge = run.adversary.net.state_dict() if run.adversary else {}
    return {**run.net.state_dict(), **{f"judge.{k}": v for k, v in judge.items()}}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def gradients(net: nn.Module) -> Tensor:
    """All of them in one vector; they are cleared."""
    flat = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    net.zero_grad(set_to_none=True)
    return flat


def test_learns_a_fixed_set(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clean and noisy samples alike, and the averaged weights follow."""
    config = make_config(steps=40, lr=0.02, large_share=0.0)
    task, run = begin(config)
    (item,) = items_of(task, config)
    sigma = np.array([0, 0, 25, 25], np.float32)
    batch = item.batch._replace(sigma=sigma)
    sample = restoration.make_sample(batch, torch.Generator().manual_seed(9), task.device)
    monkeypatch.setattr(restoration, "make_sample", lambda *_: sample)

    def loss(net: nn.Module) -> float:
        with torch.no_grad():
            return float(sum(task.terms(replace(run, net=net), batch, 0).values()))

    before, trained = loss(run.net), train(config, tmp_path)
    assert loss(trained.net) < 0.75 * before
    assert loss(trained.ema) < 0.8 * before
    assert (trained.step, trained.crops) == (40, 160)


def test_finished_run_can_be_made_longer_but_is_not_run_again(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(steps=2)
    train(config, tmp_path)
    before = (tmp_path / checkpoint.NAME).read_bytes()
    assert train(config, tmp_path).step == 2
    assert (tmp_path / checkpoint.NAME).read_bytes() == before
    longer = train(replace(config, steps=3), tmp_path)
    assert longer.step == 3
    assert len(longer.history) == 2


def test_seed_decides(make_config: MakeConfig, tmp_path: Path) -> None:
    runs = [
        train(make_config(steps=1, seed=seed), tmp_path / name)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    states = [weights_of(r) for r in runs]
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


def test_what_is_watched_changes_nothing(stage2: MakeConfig, tmp_path: Path) -> None:
    """Validation more often, or threads that draw ahead: the same weights, discriminator too."""
    plain, watched = (
        train(stage2(**changes), tmp_path / name)
        for name, changes in (("a", {}), ("b", {"validate_every": 1, "workers": 2}))
    )
    assert same(weights_of(plain), weights_of(watched))


def test_accumulated_gradient_is_the_mean(stage2: MakeConfig) -> None:
    config = stage2(d_warm=0)
    task, run = begin(config)
    items = items_of(task, config, 2)
    assert [item.number for item in items] == [0, 1]
    assert run.adversary is not None
    nets = (run.net, run.adversary.net)
    found = []
    for part in ([items[0]], [items[1]], items):
        loss = learn(run, task, part)
        found.append((loss, *(gradients(net) for net in nets)))
    (l0, g0, d0), (l1, g1, d1), (both, g, d) = found
    assert both == pytest.approx((l0 + l1) / 2)
    assert not torch.allclose(g0, g1, rtol=0.1)
    torch.testing.assert_close(g, (g0 + g1) / 2, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(d, (d0 + d1) / 2, rtol=1e-5, atol=1e-6)


def broken_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the loss of one step no number, in a run that saves after every step."""
    usual = Restoration.terms

    def terms(self: Restoration, run: Run, batch: Any, seed: int) -> dict[str, Tensor]:
        found = usual(self, run, batch, seed)
        return {k: v * (math.nan if run.step == step else 1) for k, v in found.items()}

    monkeypatch.setattr(Restoration, "terms", terms)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", -1.0)


@pytest.mark.parametrize("stage", ["make_config", "stage2"])
def test_loss_that_is_no_number_stops_and_leaves_the_good_checkpoint(
    stage: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = request.getfixturevalue(stage)(steps=2, seed=5, accumulate=2)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "SAVE_EVERY_S", -1.0)
        train(config, tmp_path)
    before = (tmp_path / checkpoint.NAME).read_bytes()
    broken_at(2, monkeypatch)
    with pytest.raises(InputError, match=r"step 2, batch 0, 1 of seed 5: the loss is nan") as e:
        train(replace(config, steps=4), tmp_path)
    assert str(tmp_path) in str(e.value)
    assert "\n" not in str(e.value)
    assert (tmp_path / checkpoint.NAME).read_bytes() == before


def test_loss_that_is_no_number_at_once_writes_nothing(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_at(0, monkeypatch)
    with pytest.raises(InputError, match="step 0"):
        train(make_config(), tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("player", ["net", "judge"])
def test_blown_up_weights_never_replace_a_good_checkpoint(
    player: str, stage2: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = loop.update

    def blow_up(run: Run) -> None:
        usual(run)
        if run.step == 2:
            assert run.adversary is not None
            net = run.net if player == "net" else run.adversary.net
            with torch.no_grad():
                next(net.parameters()).fill_(math.inf)

    monkeypatch.setattr(loop, "update", blow_up)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", -1.0)
    with pytest.raises(InputError) as e:
        train(stage2(), tmp_path)
    assert "\n" not in str(e.value)
    tensors, record = checkpoint.load(tmp_path)
    assert record["step"] == 2
    assert all(torch.isfinite(v).all() for v in tensors.values())


def test_stop_saves_after_the_step_and_the_run_goes_on(
    stage2: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, stop = stage2(), threading.Event()
    whole = train(config, tmp_path / "whole")
    usual = loop.update

    def second(run: Run) -> None:
        usual(run)
        if run.step == 1:
            stop.set()

    with monkeypatch.context() as patch:
        patch.setattr(loop, "update", second)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "cut", stop=stop)
    assert checkpoint.load(tmp_path / "cut")[1]["step"] == 2
    assert same(weights_of(train(config, tmp_path / "cut")), weights_of(whole))


def test_log_and_grid(
    make_config: MakeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        run = train(make_config(steps=3, validate_every=2), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [2, 3]
    assert rows == run.history
    with Image.open(tmp_path / "grid.png") as im:
        assert im.size == (3 * 80, (2 + 1) * 72)
    assert sorted(os.listdir(tmp_path)) == [checkpoint.NAME, "grid.png", "log.jsonl"]
    assert '"step": 3' in caplog.text
    assert '"psnr"' in caplog.text


def test_a_detector_is_trained_by_the_same_loop(make_config: MakeConfig, tmp_path: Path) -> None:
    run = train(make_config(task="detector", steps=2, batch=2), tmp_path)
    assert len(run.net.head.conv.bias) == 4  # one output of 2 x 2 cells
    assert {"step", "iou"} <= run.history[-1].keys()


def test_rate_warms_up_and_falls_by_a_cosine(make_config: MakeConfig) -> None:
    config = make_config(
        steps=100, lr=0.01, muon=2.0, warm_up=0.1, adversarial=1.0, d_lr=0.02, d_warm=1
    )
    _, run = begin(config)
    assert run.adversary is not None
    rates = []
    for run.step in range(101):
        set_rates(run)
        rates.append(run.adam.param_groups[0]["lr"])
        for other in (run.muon, run.adversary.adam):
            assert other.param_groups[0]["lr"] == pytest.approx(2 * rates[-1])
    assert rates[:11] == pytest.approx([1e-5, *(0.001 * i for i in range(1, 11))])
    assert rates[55] == pytest.approx(0.005)  # half way down
    assert rates[32] == pytest.approx(0.005 * (1 + math.cos(math.pi * 22 / 90)))
    assert rates[-1] == pytest.approx(1e-5)
    assert all(a > b for a, b in itertools.pairwise(rates[10:98]))  # then a floor


def test_update_clips_the_small_gradients_and_averages(make_config: MakeConfig) -> None:
    _, run = begin(make_config(clip=0.5, ema=0.9))
    assert all(p.ndim == 4 for p in run.muon.param_groups[0]["params"])
    assert all(p.ndim != 4 for p in run.adam.param_groups[0]["params"])
    in_use = [*run.muon.param_groups[0]["params"], *run.adam.param_groups[0]["params"]]
    assert {id(p) for p in in_use} == {id(p) for p in run.net.parameters()}
    before = [p.detach().clone() for p in run.ema.parameters()]
    given = {}
    for p in run.net.parameters():
        p.grad = torch.full_like(p, 7.0)
        given[p] = p.grad
    update(run)
    small = torch.cat([given[p].flatten() for p in run.adam.param_groups[0]["params"]])
    assert float(small.norm()) == pytest.approx(0.5, rel=1e-4)
    assert all((given[p] == 7).all() for p in run.muon.param_groups[0]["params"])
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


@pytest.mark.parametrize("minutes", [0.0, 1.0], ids=["steps", "minutes"])
def test_large_crops_come_last(make_config: MakeConfig, minutes: float) -> None:
    _, run = begin(make_config(steps=0 if minutes else 8, minutes=minutes))
    if minutes:  # the clock of now decides: a later step's is not known
        found = []
        for run.seconds in (0.0, 44.9, 45.1):
            found.append(uses_large_crops(run, 99))
        assert found == [False, False, True]
    else:
        assert [uses_large_crops(run, s) for s in (0, 5, 6, 7)] == [False, False, True, True]


def test_minutes_are_counted_by_the_clock(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(10_000))
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    run = train(make_config(steps=0, minutes=0.1), tmp_path)
    assert run.step == 6  # of one second each
    assert run.seconds == 6
    assert run.done == 1


def test_progress_is_reported(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(10_000))
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: float(2 * next(ticks))))
    seen: list[tuple[float, str]] = []
    train(make_config(steps=4), tmp_path, lambda done, line: seen.append((done, line)))
    assert [done for done, _ in seen] == [0.25, 0.5, 0.75, 1]
    for _, line in seen:
        assert all(word in line for word in ("loss", "images/s", "% of peak"))
        assert "\n" not in line


def test_flops_are_counted_forward_and_twice_backward(make_config: MakeConfig) -> None:
    expected = 6 * PRESETS["micro"].macs(64, 64)
    assert picture_flops(make_config(), 64) == expected
    assert matmul_flops(torch.device("cpu"), side=32, seconds=0.01) > 1e5


def test_skipped_pictures_are_named(
    make_config: MakeConfig, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for path in folder.iterdir():
        (mixed / path.name).write_bytes(path.read_bytes())
    (mixed / "broken.png").write_bytes(b"")
    assert train(make_config(data=(str(mixed),), steps=1), tmp_path / "run").step == 1
    assert f"skipped {mixed / 'broken.png'}" in caplog.text


def test_no_pictures_are_said_before_anything_is_written(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for data in (empty, tmp_path / "absent"):
        with pytest.raises(InputError) as e:
            train(make_config(data=(str(data),)), tmp_path / "run")
        assert str(data) in str(e.value)
        assert "\n" not in str(e.value)
    assert not (tmp_path / "run").exists()


def test_a_second_training_in_the_folder_is_refused(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, said = loop.learn, []

    def learn_and_try(*arguments: Any) -> float:
        if not said:
            with pytest.raises(InputError) as e:
                train(make_config(steps=1), tmp_path)
            said.append(str(e.value))
        return usual(*arguments)

    monkeypatch.setattr(loop, "learn", learn_and_try)
    assert train(make_config(steps=2), tmp_path).step == 2
    assert said == [f"{tmp_path}: another training uses it; choose another --output"]
    assert train(make_config(steps=3), tmp_path).step == 3  # it is let go


def test_another_process_that_trains_there_is_seen_and_its_death_too(tmp_path: Path) -> None:
    code = (
        "import sys; from fastrestore.locking import lock\n"  # no torch: quicker by seconds
        "with lock(sys.argv[1]): print('trains', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run" / ".lock")]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], **pipes) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"trains\n"
        with pytest.raises(InputError, match="another training uses it"), alone(tmp_path / "run"):
            pass
        other.kill()
        other.wait()
        with alone(tmp_path / "run"):
            pass
    assert os.listdir(tmp_path / "run") == []


def test_only_the_first_process_of_torchrun_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with alone(tmp_path):
        with pytest.raises(InputError), alone(tmp_path):
            pass
        monkeypatch.setenv("RANK", "1")
        with alone(tmp_path), alone(tmp_path):
            pass
        monkeypatch.delenv("WORLD_SIZE")  # a rank alone means nothing
        with pytest.raises(InputError), alone(tmp_path):
            pass


@pytest.mark.parametrize("name", ["log.jsonl", "grid.png"])
def test_log_that_cannot_be_written_is_an_output_error(
    make_config: MakeConfig, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(OutputError, match=name) as e:
        train(make_config(steps=1), tmp_path)
    assert "\n" not in str(e.value)
