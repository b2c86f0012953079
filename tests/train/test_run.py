"""A run's state: taken up to the bit, and refused in words where it does not fit."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastrestore.errors import InputError, OutputError
from fastrestore.train import checkpoint, loop, run
from fastrestore.train.config import TrainConfig
from fastrestore.train.generator import Generator
from fastrestore.train.loop import train
from fastrestore.train.restoration import Restoration
from fastrestore.train.run import Run, resume, save, start

MakeConfig = Callable[..., TrainConfig]
Record = dict[str, Any]


def network(config: TrainConfig) -> Generator:
    return Restoration(config).network()


def everything(run_folder: Path) -> tuple[dict[str, Tensor], Record]:
    tensors, record = checkpoint.load(run_folder)
    for row in record["history"]:
        row.pop("minutes")
    return tensors, {k: record[k] for k in ("step", "crops", "history", "earlier")}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def cut_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Interrupt a run that saves after every step, as a power cut would."""
    usual = Restoration.terms

    def terms(self: Restoration, run: Run, batch: Any, seed: int) -> dict[str, Tensor]:
        if run.step == step:
            raise KeyboardInterrupt
        return usual(self, run, batch, seed)

    monkeypatch.setattr(Restoration, "terms", terms)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", -1.0)


def check_interrupted(
    config: TrainConfig, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> set[str]:
    """Compare a whole run with one that is cut at a step; return the checkpoint's parts."""
    whole = train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        cut_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "cut")
    assert everything(tmp_path / "cut")[1]["step"] == step
    torch.manual_seed(1234)  # whatever else the new process did before
    resumed = train(config, tmp_path / "cut")
    for a, b in ((whole.net, resumed.net), (whole.ema, resumed.ema)):
        assert same(a.state_dict(), b.state_dict())
    (tensors, record), (others, other) = (everything(tmp_path / n) for n in ("whole", "cut"))
    assert same(tensors, others)
    assert record == other
    assert (record["step"], record["crops"]) == (8, 6 * 4 + 2)
    return {k.split(".")[0] for k in tensors}


@pytest.mark.parametrize("step", [3, 7], ids=["small crops", "large crops"])
def test_interrupted_run_goes_on_to_the_bit(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    config = make_config(steps=8, decay=0.1, log_mse=0.1)
    parts = check_interrupted(config, step, tmp_path, monkeypatch)
    assert parts == {"net", "ema", "muon", "adam"}


@pytest.mark.parametrize(
    ("step", "changes"),
    [(1, {}), (7, {}), (5, {"r1": 1.0, "r1_every": 2}), (5, {"workers": 2})],
    ids=["warm-up", "large crops", "penalty", "threads"],
)
def test_interrupted_stage_2_goes_on_to_the_bit(
    stage2: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    changes: Record,
) -> None:
    """With the discriminator, its optimiser, and the vectors of its spectral norms."""
    config = stage2(steps=8, d_warm=2, **changes)
    parts = check_interrupted(config, step, tmp_path, monkeypatch)
    assert parts == {"net", "ema", "muon", "adam", "judge", "judge_adam"}
    tensors, record = everything(tmp_path / "cut")
    assert any(k.endswith("exp_avg_sq") for k in tensors if k.startswith("judge_adam."))
    assert any(k.endswith("._u") for k in tensors if k.startswith("judge.")) == (
        "r1" not in changes
    )
    assert "judge" in record["history"][-1]


def test_another_recipe_in_the_folder_is_refused(
    make_config: MakeConfig, stage2: MakeConfig, tmp_path: Path
) -> None:
    train(make_config(steps=1), tmp_path)
    before = (tmp_path / checkpoint.NAME).read_bytes()
    others = [
        make_config(lr=1e-3),
        make_config(track="research"),
        make_config(seed=5),
        make_config(preset="nano"),
        make_config(task="detector"),
        make_config(ablate="plain-conv"),
        stage2(),
    ]
    for config in others:
        with pytest.raises(InputError, match="another recipe; choose another folder") as e:
            train(config, tmp_path)
        assert str(tmp_path) in str(e.value)
        assert "\n" not in str(e.value)
    assert (tmp_path / checkpoint.NAME).read_bytes() == before


# Whole safetensors files that no run of this kind can have written.
EDITS: dict[str, Callable[[dict[str, Tensor], Record], object]] = {
    "no config": lambda t, r: r.pop("config"),
    "unknown field": lambda t, r: r["config"].update(colour=1),
    "no weights": lambda t, r: [t.pop(k) for k in list(t) if k.startswith(("net.", "ema."))],
    "other shape": lambda t, r: t.update({k: v[:1] for k, v in t.items() if v.ndim == 4}),
    "no step": lambda t, r: r.pop("step"),
    "no discriminator": lambda t, r: [t.pop(k) for k in list(t) if k.startswith("judge.")],
    "odd optimiser": lambda t, r: t.update({"judge_adam.x.exp_avg": torch.zeros(1)}),
}


@pytest.mark.parametrize("what", EDITS)
def test_edited_checkpoint_is_refused_in_one_line(
    stage2: MakeConfig, tmp_path: Path, what: str
) -> None:
    config = stage2(steps=2)
    train(config, tmp_path)
    tensors, record = checkpoint.load(tmp_path)
    EDITS[what](tensors, record)
    checkpoint.save(tmp_path, tensors, record)
    before = (tmp_path / checkpoint.NAME).read_bytes()
    with pytest.raises(InputError) as e:
        train(replace(config, steps=3), tmp_path)
    assert "\n" not in str(e.value)
    assert (tmp_path / checkpoint.NAME).read_bytes() == before


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("trapped",))


def test_pickle_posing_as_a_checkpoint_is_not_run(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / checkpoint.NAME).write_bytes(pickle.dumps(Trap()))
    config = make_config()
    with pytest.raises(InputError, match="not a fastrestore checkpoint") as e:
        resume(config, tmp_path, network(config))
    assert "\n" not in str(e.value)
    assert not (tmp_path / "trapped").exists()


def test_full_disk_leaves_the_old_checkpoint(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(steps=1)
    train(config, tmp_path)
    before = (tmp_path / checkpoint.NAME).read_bytes()

    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(before[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(OutputError, match="No space left on device") as e:
            train(replace(config, steps=2), tmp_path)
    assert "\n" not in str(e.value)
    assert (tmp_path / checkpoint.NAME).read_bytes() == before
    assert not list(tmp_path.glob("*.part"))
    assert train(replace(config, steps=2), tmp_path).step == 2


@pytest.mark.parametrize("player", ["net", "ema", "judge"])
def test_weights_that_are_no_numbers_are_not_saved(
    stage2: MakeConfig, tmp_path: Path, player: str
) -> None:
    config = stage2()
    state = start(config, network(config))
    save(state, tmp_path)
    before = (tmp_path / checkpoint.NAME).read_bytes()
    assert state.adversary is not None
    nets = {"net": state.net, "ema": state.ema, "judge": state.adversary.net}
    with torch.no_grad():
        list(nets[player].parameters())[-1].fill_(torch.nan)
    with pytest.raises(InputError, match="step 0: the weights are no numbers"):
        save(state, tmp_path)
    assert (tmp_path / checkpoint.NAME).read_bytes() == before


def test_folder_that_cannot_be_made_is_refused_before_training(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("notes")
    for name in ("file", "file/run"):
        with pytest.raises(OutputError) as e:
            train(make_config(), tmp_path / name)
        assert "\n" not in str(e.value)


def test_record_says_what_trained(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    save(start(config, network(config)), tmp_path)
    _, record = checkpoint.load(tmp_path)
    assert TrainConfig.from_json(record["config"]) == config
    assert f"1 thread(s), torch {torch.__version__}" in record["machine"]
    assert (record["step"], record["crops"], record["seconds"]) == (0, 0, 0)


def test_missing_gpu_is_said(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run.torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="device cuda"):
        train(make_config(device="cuda"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
