"""Two processes learn what one learns from twice the batches, and only the first one writes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, distributed

from fastrestore.train import checkpoint, loop, ranks
from fastrestore.train.config import TrainConfig
from fastrestore.train.loop import train
from fastrestore.train.run import Run

if not distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

MakeConfig = Callable[..., TrainConfig]
ROOT = Path(__file__).parents[2]
# What `torchrun` starts: here without it, which saves importing torch a third time.
WORKER = """
import json, os, sys
from functools import partial
from pathlib import Path
from safetensors.torch import save_file
from fastrestore.errors import FastRestoreError
from fastrestore.presets import PRESETS, Preset
from fastrestore.train import loop, restoration
from fastrestore.train.config import CHOICES, TrainConfig

PRESETS["micro"] = Preset("micro", (16, 16, 32), (1, 0), 1, (2,), (1, 0))
CHOICES["preset"] = tuple(PRESETS)
restoration.Sampler = partial(restoration.Sampler, bank=10)
loop.matmul_flops = lambda *_: 1e12
place, rank, port = Path(sys.argv[1]), os.environ["RANK"], int(os.environ["MASTER_PORT"])
usual, learn = restoration.Restoration.terms, loop.learn
for name, config in json.loads(sys.argv[2]).items():
    os.environ["MASTER_PORT"] = str(port)
    port += 1
    losses = []

    def terms(self, run, batch, seed):
        bad = name == "nan" and rank == "1" and run.step == 1
        found = usual(self, run, batch, seed)
        return {k: v * float("nan") for k, v in found.items()} if bad else found

    def note(*arguments):
        losses.append(learn(*arguments))
        return losses[-1]

    restoration.Restoration.terms, loop.learn = terms, note
    found = {"losses": losses}
    try:
        tell = lambda *_: found.update(told=1)
        run = loop.train(TrainConfig.from_json(config), place / name, tell)
        judge = run.adversary.net.state_dict() if run.adversary else {}
        tensors = {**run.net.state_dict(), **{f"judge.{k}": v for k, v in judge.items()}}
        tensors |= {f"ema.{k}": v for k, v in run.ema.state_dict().items()}
        flat = {k: v.contiguous() for k, v in tensors.items()}
        save_file(flat, place / f"{name}.{rank}.safetensors")
        found |= {"crops": run.crops, "seconds": run.seconds, "history": len(run.history)}
    except FastRestoreError as e:
        found["error"] = str(e)
    (place / f"{name}.{rank}.json").write_text(json.dumps(found))
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def weights_of(run: Run) -> dict[str, Tensor]:
    judge = run.adversary.net.state_dict() if run.adversary else {}
    nets = {"": run.net.state_dict(), "ema.": run.ema.state_dict(), "judge.": judge}
    return {f"{prefix}{k}": v for prefix, state in nets.items() for k, v in state.items()}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Run every config of `CONFIGS` in two processes; return the place and the configs."""
    place = tmp_path_factory.mktemp("ranks")
    common = {
        "preset": "micro",
        "track": "free",
        "data": (str(folder),),
        "steps": 4,
        "batch": 2,
        "crop": 32,
        "large_crop": 64,
        "large_share": 0.25,
        "held_out": 2,
        "d_width": 8,
        "lr": 0.01,
    }
    changes = {
        "one": {"log_mse": 0.05, "validate_every": 2},
        "two": {"adversarial": 0.1, "feature_matching": 0.5, "d_warm": 1, "validate_every": 2},
        "nan": {"seed": 7},
    }
    configs = {name: common | change for name, change in changes.items()}
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    command = [sys.executable, "-c", WORKER, str(place), json.dumps(configs)]
    processes = [
        subprocess.Popen(command, env={**environment, "RANK": rank}, stderr=subprocess.PIPE)
        for rank in "01"
    ]
    errors = [process.communicate(timeout=120)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    return place, configs


def told(place: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads((place / f"{name}.{rank}.json").read_text()) for rank in "01"]


@pytest.mark.parametrize("name", ["one", "two"], ids=["stage 1", "stage 2"])
def test_two_processes_are_one_with_twice_the_batches(
    name: str,
    pair: tuple[Path, dict[str, Any]],
    micro: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place, configs = pair
    usual, losses = loop.learn, []

    def note(*arguments: Any) -> float:
        losses.append(usual(*arguments))
        return losses[-1]

    monkeypatch.setattr(loop, "learn", note)
    run = train(TrainConfig.from_json({**configs[name], "accumulate": 2}), tmp_path)
    found = told(place, name)
    assert all(f["crops"] == run.crops == 3 * 2 * 2 + 2 for f in found)
    shared = [(a + b) / 2 for a, b in zip(*(f["losses"] for f in found), strict=True)]
    assert shared == pytest.approx(losses, rel=1e-6)
    assert found[0]["losses"] != pytest.approx(found[1]["losses"], rel=1e-3)
    alone = weights_of(run)
    first, second = (load_file(place / f"{name}.{rank}.safetensors") for rank in "01")
    assert alone.keys() == first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)
    for key, value in alone.items():
        torch.testing.assert_close(first[key], value, rtol=0, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", ["one", "two"])
def test_only_the_first_process_writes(pair: tuple[Path, dict[str, Any]], name: str) -> None:
    place = pair[0]
    assert sorted(os.listdir(place / name)) == [checkpoint.NAME, "grid.png", "log.jsonl"]
    assert [f["history"] for f in told(place, name)] == [2, 0]
    assert len((place / name / "log.jsonl").read_text().splitlines()) == 2
    assert ["told" in f for f in told(place, name)] == [True, False]
    tensors, _ = checkpoint.load(place / name)
    final = load_file(place / f"{name}.1.safetensors")
    assert all(torch.equal(tensors[f"ema.{k[4:]}"], v) for k, v in final.items() if k[:4] == "ema.")


@pytest.mark.parametrize("name", ["one", "two"])
def test_the_first_clock_rules(pair: tuple[Path, dict[str, Any]], name: str) -> None:
    first, second = told(pair[0], name)
    assert first["seconds"] == second["seconds"] > 0


def test_loss_that_is_no_number_in_one_stops_all(pair: tuple[Path, dict[str, Any]]) -> None:
    place = pair[0]
    for f in told(place, "nan"):
        assert f["error"].startswith("step 1, batch 0, 1 of seed 7: the loss is nan")
    assert os.listdir(place / "nan") == []


def test_without_torchrun_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with ranks.join("cpu") as group:
        assert (group.rank, group.size) == (0, 1)
        assert group.mean(0.25) == 0.25
    assert not distributed.is_initialized()


@pytest.mark.slow
def test_torchrun_starts_them(folder: Path, tmp_path: Path) -> None:
    options = "--track free --preset nano --steps 2 --batch 2 --crop 32 --large-crop 32"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--master-port", str(free_port()), "-m", "fastrestore", "train"),
            *("--data", str(folder), "--output", str(tmp_path / "run"), "--held-out", "2"),
            *options.split(),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    _, record = checkpoint.load(tmp_path / "run")
    assert (record["step"], record["crops"]) == (2, 8)
