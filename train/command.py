"""`fastrestore train`: one option for every field of `TrainConfig`."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from statistics import fmean
from typing import Any

import click

from fastrestore.errors import InputError, need
from fastrestore.train.config import CHOICES, RECIPES, TrainConfig

_REQUIRED = {"data", "track"}
_FLAGS = {"from_weights": "--from"}


def _help(name: str) -> str:
    """Return the sentence that the config's docstring gives a field."""
    lines = (TrainConfig.__doc__ or "").splitlines()
    at = next(i for i, line in enumerate(lines) if line.strip().startswith(f"{name}: "))
    text = [lines[at].strip().removeprefix(f"{name}: ")]
    indent = len(lines[at]) - len(lines[at].lstrip())
    for line in lines[at + 1 :]:
        if len(line) - len(line.lstrip()) <= indent:
            break
        text.append(line.strip())
    return " ".join(text)


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for f in reversed(fields(TrainConfig)):
        kind: Any = click.Choice(CHOICES[f.name]) if f.name in CHOICES else type(f.default)
        known = {} if f.name in _REQUIRED else {"default": f.default}
        many = f.name == "data"
        command = click.option(
            _FLAGS.get(f.name, f"--{f.name.replace('_', '-')}"),
            f.name,
            type=str if many else kind,
            multiple=many,
            **known,
            required=f.name in _REQUIRED,
            show_default=f.name not in _REQUIRED,
            help=_help(f.name),
        )(command)
    return command


@click.command("train", no_args_is_help=True)
@click.option("--output", required=True, metavar="DIR", help="Run folder; going on is automatic.")
@click.option(
    "--recipe",
    type=click.Choice(list(RECIPES)),
    default="psnr",
    show_default=True,
    help="psnr: stage 1; tune: go on from --from; paper, sharp: stage 2. Options override.",
)
@click.option(
    "--slice",
    "slice_minutes",
    type=click.FloatRange(0, 1e6, min_open=True),
    metavar="MINUTES",
    help="Stop after this long; the same command goes on.  [run to the end]",
)
@click.option(
    "--export", "model", metavar="FILE.onnx", help="Write the result as a model, with its card."
)
@_options
def command(
    output: str, recipe: str, slice_minutes: float | None, model: str | None, **values: Any
) -> int:
    """Train a network, or go on with the run in the folder.

    Stage 1 (reconstruction), then stage 2 (adversarial) from its weights; or a shipped model, tuned
    on pictures of your own and kept if it became better on some held back from training.

    \b
    fastrestore train --data photos/ --track free --minutes 60 --output runs/one
    fastrestore train --data photos/ --track free --minutes 60 --output runs/two \\
        --recipe sharp --from runs/one --export mine.onnx
    fastrestore train --data photos/ --track free --minutes 30 --output runs/own \\
        --recipe tune --from tiny --export own.onnx
    """
    train = need("fastrestore.train.loop", "train").train
    source, ctx = click.core.ParameterSource.DEFAULT, click.get_current_context()
    given = {k: v for k, v in values.items() if ctx.get_parameter_source(k) is not source}
    config = TrainConfig.of(recipe, {**given, "data": tuple(values["data"])})
    if model:  # before an hour of training, not after it
        need("fastrestore.export.export", "export")
        need("fastrestore.export.command", "export").check_target(
            Path(model), mend="choose another"
        )
        if config.ablate:
            raise InputError(f"{model}: an ablation cannot be exported; leave --export away")
    stop = threading.Event()
    over = threading.Timer(60 * slice_minutes, stop.set) if slice_minutes else None
    with _progress() as show, _patience(stop) as interrupted:
        try:
            if over:
                over.start()
            run = train(config, Path(output), show, stop)
        except KeyboardInterrupt:
            if interrupted.is_set() or not stop.is_set():
                raise
            click.echo(f"{output}: the slice is over; the same command goes on", err=True)
            return 1
        finally:
            if over:
                over.cancel()
    if os.environ.get("RANK", "0") != "0":  # the first process of torchrun tells and exports
        return 0
    click.echo(
        f"{output}: {run.step} steps, {run.crops} crops, {run.seconds / 60:.1f} min", err=True
    )
    better = _say_figures(config, run.history)
    if model:
        if not better:
            click.echo(
                f"{model}: not written; {config.from_weights} stays the better one", err=True
            )
            return 1
        need("fastrestore.export.command", "export").export_run(Path(output), Path(model))
    return 0


def _say_figures(config: TrainConfig, history: list[dict[str, Any]]) -> bool:
    """Print the held-out figures; return False where tuning made a model worse.

    Stage 2 gives PSNR away on purpose and is never called worse.
    """
    before, last = history[0], history[-1]
    keys = [k for k in ("psnr", "iou", "false_alarms_percent") if k in last]
    click.echo(f"held out: { {k: last[k] for k in keys} }", err=True)
    if before["step"]:  # from scratch: there is no before
        return True
    shown = {k: before[k] for k in keys}
    click.echo(f"before: {shown}, on {config.held_out} held-out pictures", err=True)
    return config.adversarial > 0 or _merit(last) > _merit(before)


def _merit(row: dict[str, Any]) -> float:
    """Mean PSNR in dB; of a detector mean overlap less the share of false alarms."""
    if "psnr" in row:
        return fmean(row["psnr"].values())
    return fmean(row["iou"].values()) - fmean(row["false_alarms_percent"].values()) / 100


@contextmanager
def _progress() -> Iterator[Callable[[float, str], None]]:
    """Show a bar in a terminal, and log lines everywhere."""
    from rich.console import Console
    from rich.logging import RichHandler
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    handler = RichHandler(console=console, show_path=False, markup=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    figures = TextColumn("{task.fields[figures]}", markup=False)
    columns = (BarColumn(), figures, TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("train", total=1.0, figures="reading pictures")

        def show(done: float, line: str) -> None:
            bar.update(task, completed=done, figures=line)

        yield show


@contextmanager
def _patience(stop: threading.Event) -> Iterator[threading.Event]:
    """Let the first Ctrl+C end the run after its step; the next one is not patient."""
    interrupted = threading.Event()

    def interrupt(*_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        interrupted.set()
        stop.set()

    before = {n: signal.signal(n, interrupt) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
