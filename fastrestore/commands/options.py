"""Options that several commands share, and the progress display."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.progress import Progress

    from fastrestore.restore import Sigma

F = TypeVar("F", bound=Callable[..., Any])


def model_options(command: F) -> F:
    """Add `--model`, `--backend` and `--threads`."""
    for option in (
        click.option("--threads", type=click.IntRange(1, 256), help="CPU threads.  [all usable]"),
        click.option(
            "--backend",
            type=click.Choice(["auto", "ort", "openvino", "tensorrt", "rtx", "triton"]),
            default="auto",
            show_default=True,
            help="What runs the model; auto is a verified engine that fits, else ort. OpenVINO "
            "pays for long videos; tensorrt, rtx (of `build-engine`) and triton need a CUDA GPU.",
        ),
        click.option(
            "--model",
            default="tiny",
            show_default=True,
            metavar="NAME|FILE",
            help="tiny, tiny-sharp, nano, or an .onnx made by `fastrestore export`.",
        ),
    ):
        command = option(command)
    return command


def engine_options(command: F) -> F:
    """Add `--device`, `--engine` and `--trust-engine`, as `Restorer` takes them."""
    for option in (
        click.option(
            "--trust-engine",
            is_flag=True,
            help="Load an engine that comes from elsewhere; it is a program.",
        ),
        click.option("--engine", metavar="FILE", help="An engine, instead of those in the cache."),
        device_option,
    ):
        command = option(command)
    return command


def device_option(command: F) -> F:
    """Add `--device`."""
    return click.option(
        "--device",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="CUDA device, among those that CUDA_VISIBLE_DEVICES leaves.",
    )(command)


class SigmaType(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.5 only
    """A noise level from 0 to 254, or `auto`."""

    name = "sigma"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Sigma:
        """Parse the command line's text."""
        if value == "auto":
            return "auto"
        try:
            sigma = float(value)
        except (TypeError, ValueError):
            self.fail(f"{value!r} is neither a number nor 'auto'", param, ctx)
        if not 0 <= sigma < 255:
            self.fail(f"{value} is not from 0 to 254", param, ctx)
        return sigma


class RateType(click.ParamType):  # type: ignore[type-arg]  # as above
    """Frames a second: `25`, `29.97` or `30000/1001`."""

    name = "rate"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Fraction:
        """Parse the command line's text."""
        try:
            rate = Fraction(value)
        except (TypeError, ValueError, ZeroDivisionError):
            rate = Fraction(0)
        if not 0 < rate <= 1000:
            self.fail(f"{value!r} is not like 25, 29.97 or 30000/1001", param, ctx)
        return rate


def repair_options(command: F) -> F:
    """Add what says which pixels are repaired, and how: all but the mask itself."""
    options = (
        click.option("--invert-mask", is_flag=True, help="Black = repair."),
        click.option(
            "--grow",
            type=click.IntRange(0, 64),
            default=1,
            show_default=True,
            help="Widen holes, px.",
        ),
        click.option(
            "--threshold",
            type=click.FloatRange(0, 1),
            help="Of --mask auto: least probability of damage.  [0.7]",
        ),
        click.option(
            "--hold",
            type=click.IntRange(0, 250),
            help="Of --mask auto in videos: frames that damage stays marked while it is not found "
            "but looks the same; 0 = every frame by itself.  [8]",
        ),
        click.option(
            "--detector",
            metavar="NAME|FILE",
            help="Of --mask auto: what finds the damage.  [the one inside]",
        ),
        click.option(
            "--clean",
            type=SigmaType(),
            is_flag=False,
            flag_value="auto",
            metavar="[SIGMA]",
            help="Remove noise everywhere; without a number it is estimated. Implied without a "
            "mask.",
        ),
        click.option(
            "--motion/--no-motion",
            default=None,
            help="Of video: move the past along with its content.  [where the network runs on the "
            "CPU]",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Progress]:
    """Show a bar on stderr, in a terminal only; nothing when quiet."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
        TimeRemainingColumn(),
    )
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, disable=hidden, transient=True) as bar:
        yield bar
