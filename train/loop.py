"""The training loop. Read `train` from top to bottom: it is the whole recipe."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastrestore.atomic import label
from fastrestore.errors import InputError, OutputError
from fastrestore.locking import lock
from fastrestore.train import ranks, weights
from fastrestore.train.config import TrainConfig
from fastrestore.train.data import Pictures
from fastrestore.train.detection import Detection
from fastrestore.train.feed import Feed, Item
from fastrestore.train.restoration import Restoration
from fastrestore.train.run import Run, check_device, resume, save
from fastrestore.train.speed import matmul_flops, picture_flops
from fastrestore.train.task import Task

log = logging.getLogger(__name__)
Progress = Callable[[float, str], None]  # share done 0-1, one line of figures
SAVE_EVERY_S = 120.0
TASKS: dict[str, Callable[[TrainConfig], Task]] = {"restorer": Restoration, "detector": Detection}


def train(
    config: TrainConfig,
    folder: Path,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Run:
    """Train one network, or go on with the run in `folder`.

    Under `torchrun` every process takes its part of each step, and the first one writes.

    Args:
        config: The whole recipe. Going on needs the same one, apart from its length.
        folder: Checkpoint, log (JSON lines) and picture grids go here.
        progress: Called about once a second.
        stop: Set it to end after the current step; the state is saved, to go on with later.

    Returns:
        The finished run; `run.ema` is what ships.

    Raises:
        InputError: Data or an existing checkpoint does not fit, another process trains in the
            folder, or the loss is no number.
        OutputError: The folder cannot be written.
        KeyboardInterrupt: After `stop`.
    """
    check_device(config)
    torch.set_num_threads(config.threads)
    pictures = Pictures.load(config.data, config.held_out, config.large_crop)
    for line in pictures.skipped:
        log.warning("skipped %s", line)
    # both before anything goes to the device
    with alone(folder), ranks.join(config.device) as group:
        torch.manual_seed(config.seed)
        task = TASKS[config.task](config)
        run = resume(config, folder, task.network())
        if run.step == 0 and config.from_weights:
            run.earlier = weights.take(config, run.net, run.ema)
        cases = task.cases(pictures.held_out)
        peak = matmul_flops(torch.device(config.device), 8192 if config.device == "cuda" else 1024)
        last_save, last_report = time.monotonic(), 0.0
        smooth = math.nan
        if group.rank == 0 and config.from_weights and not run.history:  # what is to be bettered
            report(run, folder, task.report(run, cases, folder))
        feed = Feed(task, pictures, config, group.rank, group.size)
        try:
            while run.done < 1:
                began = time.monotonic()
                set_rates(run)
                items = feed.step(run.step, lambda step: uses_large_crops(run, step))
                loss = group.mean(learn(run, task, items))
                if not math.isfinite(loss):
                    raise InputError(_say_nan(run, group.size, loss, folder))
                group.average(run)
                update(run)

                n = group.size * sum(item.size for item in items)
                run.step, run.crops = run.step + 1, run.crops + n
                run.seconds += time.monotonic() - began
                stopped = group.agree(run, stop is not None and stop.is_set())
                smooth = loss if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss
                if group.rank == 0:
                    if run.step % config.validate_every == 0 or run.done >= 1:
                        report(run, folder, task.report(run, cases, folder))
                    if time.monotonic() - last_save > SAVE_EVERY_S or run.done >= 1 or stopped:
                        save(run, folder)
                        last_save = time.monotonic()
                    if progress and time.monotonic() - last_report > 1:
                        last_report = time.monotonic()
                        speed = n / (last_report - began)
                        share = speed * picture_flops(config, items[0].crop) / group.size / peak
                        progress(
                            run.done,
                            f"step {run.step} loss {smooth:.4f} {speed:.0f} images/s, "
                            f"{share:.0%} of peak",
                        )
                if stopped:
                    if stop is not None:
                        stop.set()  # it may have been another process that was told
                    raise KeyboardInterrupt
        finally:
            feed.close()
    return run


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other trainings out of a run's folder, which is made if absent.

    Under `torchrun` the first process holds the lock: it alone writes.

    Raises:
        InputError: Another process, or another thread of this one, trains there.
        OutputError: The folder cannot be made or written.
    """

    def refuse() -> None:
        raise InputError(f"{label(folder)}: another training uses it; choose another --output")

    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0":
        yield
        return
    with lock(folder / ".lock", refuse):
        yield


def uses_large_crops(run: Run, step: int) -> bool:
    """Tell whether a step, this one or one soon after, falls into the last phase."""
    c = run.config
    done = run.done if c.minutes else step / c.steps
    return done >= 1 - c.large_share


def learn(run: Run, task: Task, items: list[Item]) -> float:
    """Add up the gradients of all batches of a step; return the mean loss."""
    total = 0.0
    for item in items:
        terms = task.terms(run, item.batch, item.seed)
        loss: Tensor = torch.stack(list(terms.values())).sum() / len(items)
        total += loss.item()
        if not math.isfinite(total):
            break
        loss.backward()  # type: ignore[no-untyped-call]
    return total


def _say_nan(run: Run, processes: int, loss: float, folder: Path) -> str:
    """Name the step's batches, by all that they follow from. What was saved last stays."""
    numbers = ", ".join(str(number) for number in range(run.config.accumulate * processes))
    return (
        f"step {run.step}, batch {numbers} of seed {run.config.seed}: the loss is {loss}; "
        f"{folder} keeps the last good state, lower lr"
    )


def set_rates(run: Run) -> None:
    """Warm up linearly, then fall to zero by a cosine."""
    c, t = run.config, run.done
    fall = (t - c.warm_up) / (1 - c.warm_up)
    share = t / c.warm_up if t < c.warm_up else 0.5 * (1 + math.cos(math.pi * fall))
    share = max(share, 1e-3)
    run.adam.param_groups[0]["lr"] = share * c.lr
    run.muon.param_groups[0]["lr"] = share * c.lr * c.muon
    if run.adversary is not None:
        run.adversary.adam.param_groups[0]["lr"] = share * c.d_lr


def update(run: Run) -> None:
    """Step all optimisers, clear the gradients and average the weights."""
    nn.utils.clip_grad_norm_(run.adam.param_groups[0]["params"], run.config.clip)
    run.adam.step()
    run.muon.step()
    run.net.zero_grad(set_to_none=True)
    if run.adversary is not None:
        run.adversary.step()
    keep = min(run.config.ema, (1 + run.step) / (10 + run.step))  # a young average forgets faster
    with torch.no_grad():
        torch._foreach_lerp_(list(run.ema.parameters()), list(run.net.parameters()), 1 - keep)


def report(run: Run, folder: Path, figures: dict[str, Any]) -> None:
    """Append a line to the log and to the run's history.

    Raises:
        OutputError: The log cannot be written.
    """
    row = {
        "step": run.step,
        "crops": run.crops,
        "minutes": round(run.seconds / 60, 2),
        **figures,
    }
    run.history.append(row)
    try:
        with (folder / "log.jsonl").open("a") as f:
            f.write(json.dumps(row) + "\n")
    except OSError as e:
        raise OutputError(f"{folder / 'log.jsonl'}: cannot be written ({e.strerror})") from e
    log.info("%s", json.dumps({k: v for k, v in row.items() if k != "active"}))
