"""`fastrestore train`: one option for every field of `TrainConfig`."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from fastrestore.errors import need
from fastrestore.presets import PRESETS
from fastrestore.train.config import TrainConfig

_CHOICES = {"preset": list(PRESETS), "track": ["free", "research"], "device": ["cpu", "cuda"]}
_REQUIRED = {"data", "track"}


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
        kind: Any = click.Choice(_CHOICES[f.name]) if f.name in _CHOICES else type(f.default)
        known = {} if f.name in _REQUIRED else {"default": f.default}
        many = f.name == "data"
        command = click.option(
            f"--{f.name.replace('_', '-')}",
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
@_options
def command(output: str, **values: Any) -> None:
    """Train a generator (stage 1: reconstruction), or go on with the run in the folder.

    \b
    fastrestore train --data photos/ --track free --minutes 30 --output runs/mine
    fastrestore export runs/mine -o mine.onnx
    """
    from rich.console import Console
    from rich.logging import RichHandler
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    train = need("fastrestore.train.loop", "train").train
    config = TrainConfig(**{**values, "data": tuple(values["data"])})
    console = Console(stderr=True)
    handler = RichHandler(console=console, show_path=False, markup=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    figures = TextColumn("{task.fields[figures]}", markup=False)
    columns = (BarColumn(), figures, TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("train", total=1.0, figures="reading pictures")

        def show(done: float, line: str) -> None:
            bar.update(task, completed=done, figures=line)

        stop = threading.Event()

        def interrupt(*_: object) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # the next one is not patient
            stop.set()

        signal.signal(signal.SIGINT, interrupt)
        run = train(config, Path(output), show, stop)
    click.echo(
        f"{output}: {run.step} steps, {run.crops} crops, {run.seconds / 60:.1f} min", err=True
    )
    if run.history:
        click.echo(f"held-out PSNR: {run.history[-1]['psnr']}", err=True)
