"""Stage 1: reconstruction. Read `train` from top to bottom: it is the whole recipe."""

from __future__ import annotations

import copy
import json
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastrestore.environment import cpu_model
from fastrestore.errors import InputError, OutputError
from fastrestore.presets import PRESETS
from fastrestore.train import checkpoint, losses, validate
from fastrestore.train.config import TrainConfig
from fastrestore.train.data import Pictures, Sampler
from fastrestore.train.generator import Generator
from fastrestore.train.muon import Muon
from fastrestore.train.samples import Sample, make_sample

log = logging.getLogger(__name__)
Progress = Callable[[float, str], None]  # share done 0-1, one line of figures
SAVE_EVERY_S = 120.0


@dataclass(slots=True)
class Run:
    """Everything that changes while training; what a checkpoint holds."""

    config: TrainConfig
    net: Generator
    ema: Generator
    muon: Muon
    adam: torch.optim.AdamW
    data_rng: np.random.Generator
    noise_rng: torch.Generator
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


def train(
    config: TrainConfig,
    folder: Path,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Run:
    """Train one generator, or go on with the run in `folder`.

    Args:
        config: The whole recipe. Going on needs the same one, apart from its length.
        folder: Checkpoint, log (JSON lines) and picture grids go here.
        progress: Called about once a second.
        stop: Set it to end after the current step; the state is saved, to go on with later.

    Returns:
        The finished run; `run.ema` is what ships.

    Raises:
        InputError: Data or an existing checkpoint does not fit, or the loss is no number.
        OutputError: The folder cannot be written.
        KeyboardInterrupt: After `stop`.
    """
    torch.set_num_threads(config.threads)
    pictures = Pictures.load(config.data, config.held_out, config.large_crop)
    for line in pictures.skipped:
        log.warning("skipped %s", line)
    run = resume(config, folder)
    cases = validate.make_cases(pictures.held_out, PRESETS[config.preset].multiple)
    device, last_save, last_report = torch.device(config.device), time.monotonic(), 0.0
    sampler: Sampler | None = None
    smooth = math.nan
    while run.done < 1:
        began = time.monotonic()
        large = run.done >= 1 - config.large_share
        crop = config.large_crop if large else config.crop
        if sampler is None or sampler.crop != crop:
            sampler = Sampler(
                pictures,
                run.data_rng,
                crop,
                noisy=config.noisy,
                max_sigma=config.max_sigma,
                max_ratio=config.max_ratio,
            )
        n = max(1, config.batch // 4) if large else config.batch
        set_rates(run)

        sample = make_sample(sampler.batch(n), run.noise_rng, device)
        loss = generator_loss(run, sample)
        if not math.isfinite(loss.item()):
            save(run, folder)
            raise InputError(
                f"step {run.step}: the loss is {loss.item()}; the last state is saved, lower lr"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        update(run)

        run.step, run.crops = run.step + 1, run.crops + n
        run.seconds += time.monotonic() - began
        smooth = loss.item() if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss.item()
        if run.step % config.validate_every == 0 or run.done >= 1:
            report(run, folder, cases)
        if time.monotonic() - last_save > SAVE_EVERY_S or run.done >= 1:
            save(run, folder)
            last_save = time.monotonic()
        if stop is not None and stop.is_set():
            save(run, folder)
            raise KeyboardInterrupt
        if progress and time.monotonic() - last_report > 1:
            last_report = time.monotonic()
            speed = n / (last_report - began)
            progress(run.done, f"step {run.step} loss {smooth:.4f} {speed:.0f} images/s")
    return run


def generator_loss(run: Run, sample: Sample) -> Tensor:
    """Sum the terms of L_total that stage 1 uses; adversarial and perceptual terms join here."""
    c = run.config
    with torch.autocast(c.device, torch.bfloat16):
        output = run.net.restore(sample.packed)
    weights = losses.pixel_weights(sample.mask, sample.noise)
    loss = torch.zeros((), device=output.device)
    for weight, term in ((c.l1, losses.l1), (c.edge, losses.edge), (c.log_mse, losses.log_mse)):
        if weight:
            loss = loss + weight * term(output, sample.target, weights)
    return loss


def set_rates(run: Run) -> None:
    """Warm up linearly, then fall to zero by a cosine."""
    c, t = run.config, run.done
    fall = (t - c.warm_up) / (1 - c.warm_up)
    rate = c.lr * (t / c.warm_up if t < c.warm_up else 0.5 * (1 + math.cos(math.pi * fall)))
    rate = max(rate, 1e-3 * c.lr)
    run.adam.param_groups[0]["lr"] = rate
    run.muon.param_groups[0]["lr"] = rate * c.muon


def update(run: Run) -> None:
    """Step both optimisers, clear the gradients and average the weights."""
    nn.utils.clip_grad_norm_(run.adam.param_groups[0]["params"], run.config.clip)
    run.adam.step()
    run.muon.step()
    run.net.zero_grad(set_to_none=True)
    keep = min(run.config.ema, (1 + run.step) / (10 + run.step))  # a young average forgets faster
    with torch.no_grad():
        torch._foreach_lerp_(list(run.ema.parameters()), list(run.net.parameters()), 1 - keep)


def report(run: Run, folder: Path, cases: dict[str, list[validate.Case]]) -> None:
    """Validate the averaged weights, append a line to the log and write a picture grid."""
    few = cases["ff20"][:8]
    row: dict[str, Any] = {
        "step": run.step,
        "crops": run.crops,
        "minutes": round(run.seconds / 60, 2),
        "psnr": {k: round(validate.mean_psnr(run.ema, v), 3) for k, v in cases.items()},
        "bypass": validate.bypass_losses(run.ema, few),
        "active": validate.active_fractions(run.ema, few[0]),
    }
    run.history.append(row)
    try:
        with (folder / "log.jsonl").open("a") as f:
            f.write(json.dumps(row) + "\n")
    except OSError as e:
        raise OutputError(f"{folder / 'log.jsonl'}: cannot be written ({e.strerror})") from e
    validate.write_grid(folder / "grid.png", run.ema, [*few[:4], cases["s25"][0]])
    log.info("step %d psnr %s bypass %s", run.step, row["psnr"], row["bypass"])


def start(config: TrainConfig) -> Run:
    """Make a run at step 0."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: this torch finds no CUDA device; use --device cpu")
    torch.manual_seed(config.seed)
    net = Generator(PRESETS[config.preset])
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
        np.random.default_rng(config.seed),
        torch.Generator(device).manual_seed(config.seed),
    )


def save(run: Run, folder: Path) -> None:
    """Write the checkpoint from which `resume` goes on to the bit.

    Raises:
        InputError: The weights are no numbers; the checkpoint before them stays.
        OutputError: The folder cannot be written.
    """
    if not all(bool(p.isfinite().all()) for p in run.net.parameters()):
        raise InputError(
            f"step {run.step}: the weights are no numbers; the checkpoint before stays, lower lr"
        )
    tensors = {f"net.{k}": v for k, v in run.net.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in run.ema.state_dict().items()}
    for name, optimiser in (("muon", run.muon), ("adam", run.adam)):
        for i, state in optimiser.state_dict()["state"].items():
            tensors |= {f"{name}.{i}.{k}": v for k, v in state.items()}
    tensors["noise_rng"] = run.noise_rng.get_state()
    record = {
        "config": run.config.to_json(),
        "step": run.step,
        "crops": run.crops,
        "seconds": run.seconds,
        "history": run.history,
        "earlier": run.earlier,
        "data_rng": run.data_rng.bit_generator.state,
        "machine": machine(run.config),
    }
    checkpoint.save(folder, tensors, record)


def machine(config: TrainConfig) -> str:
    """Name what trains: the GPU, or the CPU and the threads in use."""
    if config.device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{cpu_model()}, {config.threads} thread(s), torch {torch.__version__}"


def resume(config: TrainConfig, folder: Path) -> Run:
    """Start a run, or load the one that the folder holds.

    Raises:
        InputError: The folder holds a run with another recipe, or a damaged one.
        OutputError: The folder cannot be made.
    """
    run = start(config)
    if not (folder / checkpoint.NAME).exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise OutputError(f"{folder}: cannot be made ({e.strerror}); choose another") from e
        if config.from_weights:
            _take_weights(run, config)
        return run
    tensors, record = checkpoint.load(folder)
    if not config.same_run(TrainConfig.from_json(record.get("config", {}))):
        raise InputError(f"{folder}: holds a run with another recipe; choose another folder")
    try:
        _restore(run, tensors, record)
    except (KeyError, RuntimeError, TypeError, ValueError) as e:
        raise InputError(f"{folder}: its checkpoint does not fit this version") from e
    return run


def _take_weights(run: Run, config: TrainConfig) -> None:
    """Start from the averaged weights of another run of the same preset and track."""
    tensors, record = checkpoint.load(Path(config.from_weights))
    theirs = TrainConfig.from_json(record.get("config", {}))
    if (theirs.preset, theirs.track) != (config.preset, config.track):
        raise InputError(
            f"{config.from_weights}: holds {theirs.preset} of the {theirs.track} track, "
            f"not {config.preset} of the {config.track} track"
        )
    try:
        for net in (run.net, run.ema):
            net.load_state_dict(checkpoint.part_of(tensors, "ema"))
    except RuntimeError as e:
        raise InputError(f"{config.from_weights}: its weights do not fit {config.preset}") from e
    before = {k: record.get(k) for k in ("config", "step", "crops", "seconds")}
    run.earlier = [*record.get("earlier", []), before]


def _restore(run: Run, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    run.net.load_state_dict(checkpoint.part_of(tensors, "net"))
    run.ema.load_state_dict(checkpoint.part_of(tensors, "ema"))
    for name, optimiser in (("muon", run.muon), ("adam", run.adam)):
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in checkpoint.part_of(tensors, name).items():
            i, _, what = key.partition(".")
            states.setdefault(int(i), {})[what] = value
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": states, "param_groups": groups})
    run.noise_rng.set_state(tensors["noise_rng"])
    run.data_rng.bit_generator.state = record["data_rng"]
    run.step, run.crops, run.seconds = record["step"], record["crops"], record["seconds"]
    run.history, run.earlier = record["history"], record.get("earlier", [])
