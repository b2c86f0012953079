"""A run's state: everything that changes while training, made, saved and taken up again."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastrestore.environment import cpu_model
from fastrestore.errors import InputError, OutputError
from fastrestore.train import checkpoint
from fastrestore.train.adversary import Adversary
from fastrestore.train.config import TrainConfig
from fastrestore.train.muon import Muon


@dataclass(slots=True)
class Run:
    """Everything that changes while training; what a checkpoint holds.

    There is no state of a random generator: every sample follows from the seed, the step and the
    number of its batch (`feed`).
    """

    config: TrainConfig
    net: nn.Module
    ema: nn.Module
    muon: Muon
    adam: torch.optim.AdamW
    adversary: Adversary | None = None
    step: int = 0
    crops: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    earlier: list[dict[str, Any]] = field(default_factory=list)  # runs these weights come from

    @property
    def done(self) -> float:
        """Share of the run that is over, 0-1, by the clock or by steps."""
        c = self.config
        return min(1.0, self.seconds / (60 * c.minutes) if c.minutes else self.step / c.steps)


def start(config: TrainConfig, net: nn.Module) -> Run:
    """Make a run at step 0 around a network in its initial state."""
    device = torch.device(config.device)
    net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    big = [p for p in net.parameters() if p.ndim == 4]
    small = [p for p in net.parameters() if p.ndim != 4]
    return Run(
        config,
        net,
        copy.deepcopy(net).requires_grad_(False),
        Muon(big, config.lr, decay=config.decay),
        torch.optim.AdamW(small, config.lr, betas=(0.9, 0.99), weight_decay=1e-4),
        Adversary(config) if config.adversarial else None,
    )


def check_device(config: TrainConfig) -> None:
    """Refuse a device that is not there.

    Raises:
        InputError: `cuda` without one.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: this torch finds no CUDA device; use --device cpu")


def machine(config: TrainConfig) -> str:
    """Name what trains: the GPU, or the CPU and the threads in use."""
    if config.device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{cpu_model()}, {config.threads} thread(s), torch {torch.__version__}"


def save(run: Run, folder: Path) -> None:
    """Write the checkpoint from which `resume` goes on to the bit.

    Raises:
        InputError: The weights are no numbers; the checkpoint before them stays.
        OutputError: The folder cannot be written.
    """
    learned = (p for module in _modules(run).values() for p in module.parameters())
    if not all(bool(p.isfinite().all()) for p in learned):
        raise InputError(
            f"step {run.step}: the weights are no numbers; the checkpoint before stays, lower lr"
        )
    tensors: dict[str, Tensor] = {}
    for part, module in _modules(run).items():
        tensors |= {f"{part}.{k}": v for k, v in module.state_dict().items()}
    for name, optimiser in _optimisers(run).items():
        for i, state in optimiser.state_dict()["state"].items():
            tensors |= {f"{name}.{i}.{k}": v for k, v in state.items()}
    record = {
        "config": run.config.to_json(),
        "step": run.step,
        "crops": run.crops,
        "seconds": run.seconds,
        "history": run.history,
        "earlier": run.earlier,
        "machine": machine(run.config),
    }
    checkpoint.save(folder, tensors, record)


def resume(config: TrainConfig, folder: Path, net: nn.Module) -> Run:
    """Start a run around `net`, or load the one that the folder holds.

    Raises:
        InputError: The folder holds a run with another recipe, or a damaged one.
        OutputError: The folder cannot be made.
    """
    run = start(config, net)
    if not (folder / checkpoint.NAME).exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise OutputError(f"{folder}: cannot be made ({e.strerror}); choose another") from e
        return run
    tensors, record = checkpoint.load(folder)
    if not config.same_run(TrainConfig.from_json(record.get("config", {}))):
        raise InputError(f"{folder}: holds a run with another recipe; choose another folder")
    try:
        _restore(run, tensors, record)
    except (KeyError, RuntimeError, TypeError, ValueError) as e:
        raise InputError(f"{folder}: its checkpoint does not fit this version") from e
    return run


def _modules(run: Run) -> dict[str, nn.Module]:
    judge = {} if run.adversary is None else {"judge": run.adversary.net}
    return {"net": run.net, "ema": run.ema, **judge}


def _optimisers(run: Run) -> dict[str, torch.optim.Optimizer]:
    judge = {} if run.adversary is None else {"judge_adam": run.adversary.adam}
    return {"muon": run.muon, "adam": run.adam, **judge}


def _restore(run: Run, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    for part, module in _modules(run).items():
        module.load_state_dict(checkpoint.part_of(tensors, part))
    for name, optimiser in _optimisers(run).items():
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in checkpoint.part_of(tensors, name).items():
            i, _, what = key.partition(".")
            states.setdefault(int(i), {})[what] = value
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": states, "param_groups": groups})
    run.step, run.crops, run.seconds = record["step"], record["crops"], record["seconds"]
    run.history, run.earlier = record["history"], record.get("earlier", [])
