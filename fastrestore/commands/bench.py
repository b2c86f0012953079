"""`fastrestore bench`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from fastrestore.atomic import label, write_file
from fastrestore.bench.plan import LEVELS, SCENARIOS, TASKS, Plan
from fastrestore.commands.options import device_option
from fastrestore.errors import InputError, OutputError


@click.command("bench")
@click.option(
    "--model", "models", multiple=True, default=("tiny",), show_default=True, metavar="NAME|FILE"
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    type=click.Choice(["ort", "openvino", "tensorrt", "rtx", "triton"]),
    help="Several times for several.  [all that run here]",
)
@click.option("--threads", type=click.IntRange(1, 256), help="CPU threads.  [all usable]")
@device_option
@click.option(
    "--level",
    "levels",
    multiple=True,
    type=click.Choice(LEVELS),
    default=LEVELS,
    show_default=True,
    help="engine: the model alone (device time on a GPU); host: a picture from memory to memory; "
    "pipeline: a clip from file to file.",
)
@click.option(
    "--size",
    "sizes",
    multiple=True,
    default=("512x512",),
    show_default=True,
    metavar="WxH",
    help="Of pictures; several times for several.",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(1, 1024),
    default=(1,),
    show_default=True,
    help="Pictures in one call, at level engine.",
)
@click.option(
    "--task",
    "tasks",
    multiple=True,
    type=click.Choice(TASKS),
    default=TASKS,
    show_default=True,
    help="At level host: fill a hole, or clean the whole picture of noise.",
)
@click.option(
    "--hole",
    type=click.FloatRange(0, 0.9, min_open=True),
    default=0.05,
    show_default=True,
    help="Share of the picture, one square in its middle.",
)
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    type=click.Choice(SCENARIOS),
    default=("single-stream",),
    show_default=True,
    help="At level host, as MLPerf names them: judged by p90, p99, pictures a second.",
)
@click.option(
    "--streams",
    type=click.IntRange(0, 256),
    default=0,
    help="Pictures at the same time, each on a model of its own.  [multi-stream 8, offline 1]",
)
@click.option("--clip", metavar="FILE", help="For level pipeline.  [a noisy clip is made]")
@click.option("--video-size", default="1280x720", show_default=True, metavar="WxH")
@click.option(
    "--frames", type=click.IntRange(0), default=0, help="Of a clip.  [as many as go in --seconds]"
)
@click.option(
    "--rival",
    "rivals",
    multiple=True,
    metavar="NAME|FILE.onnx",
    help="Timed beside ours at level host: telea, navier-stokes, biharmonic (fill), nlm, bilateral "
    "(denoise), or an ONNX file.",
)
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="NAME|FILE.json",
    help="How the ONNX files are called: lama, migan, or JSON with inputs (name: image, mask, "
    "mask+image), output, layout, image_range, mask_values, hole_value, output_range, size, "
    "multiple.",
)
@click.option(
    "--rival-provider", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True
)
@click.option(
    "--seconds", type=click.FloatRange(0.01), default=3.0, show_default=True, help="For each line."
)
@click.option(
    "--rounds", type=click.IntRange(1, 1000), default=10, show_default=True, help="Turns of each."
)
@click.option("--output", metavar="FILE", help="Write the full report as JSON.")
@click.option("--json", "as_json", is_flag=True, help="The full report on stdout.")
@click.option("--csv", "csv_file", metavar="FILE", help="Write the table as CSV.")
@click.option("--plot", metavar="FILE.svg|png", help="Draw distributions and courses.")
@click.option(
    "--from",
    "source",
    metavar="REPORT",
    help="Show a report again, or what --level, --size and --task name of it; nothing is run.",
)
@click.option("--compare", nargs=2, metavar="A B", help="Compare two reports; nothing is run.")
@click.option(
    "--check",
    metavar="REPORT",
    help="Run what a report ran, with its options; ends with 1 if something is slower now, with 3 "
    "on another machine or with another model.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    default=0.1,
    show_default=True,
    help="Of --check: p50 may be slower by this share.",
)
@click.option("--busy-ok", is_flag=True, help="Compare and check although the machine was busy.")
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> int:
    """Measure latency and throughput on this machine, everything in turn, after a warm-up.

    \b
    fastrestore bench
    fastrestore bench --model nano --backend ort --output ort.json
    fastrestore bench --level host --size 512x512 --rival telea --rival lama.onnx --adapter lama
    fastrestore bench --from ort.json --plot ort.svg
    fastrestore bench --compare ort.json openvino.json
    fastrestore bench --check ort.json --tolerance 0.1
    """
    from fastrestore.bench.table import comparison

    if given["compare"]:
        click.echo(comparison(_compared(given["compare"], given["busy_ok"])), nl=False)
        return 0
    plot = _check_targets(given)
    if given["source"]:
        from fastrestore.bench.record import read_report

        _show(_part(read_report(given["source"]), _named(ctx, given)), given, plot)
        return 0
    if given["check"]:
        return _check(_named(ctx, given), given, plot)
    plan = Plan(**{f.name: given[f.name] for f in fields(Plan)})
    _show(_measured(plan), given, plot)
    return 0


def _named(ctx: click.Context, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a plan that were given, not left as they are."""
    names = (f.name for f in fields(Plan))
    default = ParameterSource.DEFAULT
    return {n: given[n] for n in names if ctx.get_parameter_source(n) is not default}


def _part(report: dict[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Return the runs of a report that have the levels, sizes and tasks named.

    Raises:
        InputError: There are none.
    """

    def is_wanted(run: Mapping[str, Any]) -> bool:
        *_, height, width, _ = run["shape"]
        has = {"levels": run["level"], "sizes": f"{width}x{height}", "tasks": run["task"]}
        return all(v in named[k] for k, v in has.items() if k in named)

    runs = [run for run in report["runs"] if is_wanted(run)]
    if not runs:
        raise InputError("--from: the report has none of these; leave --level, --size, --task away")
    return {**report, "runs": runs}


def _measured(plan: Plan) -> dict[str, Any]:
    from fastrestore.bench.session import run_plan

    shown = sys.stderr.isatty()
    return run_plan(plan, lambda line: click.echo(f"... {line}", err=True) if shown else None)


def _show(report: Mapping[str, Any], given: Mapping[str, Any], plot: str | None) -> None:
    """Print the report and write its files."""
    from fastrestore.bench.record import to_json
    from fastrestore.bench.table import sheet, text

    if given["output"]:
        write_file(given["output"], to_json(report).encode())
    if given["csv_file"]:
        write_file(given["csv_file"], sheet(report).encode())
    if plot is not None:
        from fastrestore.bench.plot import draw

        write_file(given["plot"], draw(report, plot))
    click.echo(to_json(report) if given["as_json"] else text(report), nl=False)
    for note in report["notes"]:
        click.echo(note, err=True)
    for warning in report["warnings"]:
        click.echo(f"warning: {warning}", err=True)


def _check_targets(given: Mapping[str, Any]) -> str | None:
    """Refuse what cannot be written before anything is measured; return the plot's format."""
    for name in ("output", "csv_file", "plot"):
        path = given[name]
        if path and not Path(path).absolute().parent.is_dir():
            raise OutputError(f"{label(path)}: its folder does not exist; make the folder first")
    if not given["plot"]:
        return None
    from fastrestore.bench.plot import check_format

    return check_format(given["plot"])


def _compared(paths: tuple[str, str], busy_ok: bool) -> list[Any]:
    from fastrestore.bench.compare import compare
    from fastrestore.bench.record import read_report

    a, b = (read_report(path) for path in paths)
    return compare(a, b, (label(paths[0]), label(paths[1])), busy_ok=busy_ok)


def _check(chosen: Mapping[str, Any], given: Mapping[str, Any], plot: str | None) -> int:
    """Measure what the baseline measured, but for options given now; return the exit code."""
    from fastrestore.bench.compare import compare, refuse_others, too_slow
    from fastrestore.bench.record import key, read_report
    from fastrestore.bench.table import comparison

    name = label(given["check"])
    baseline = read_report(given["check"])
    report = _measured(replace(Plan.from_dict(baseline["options"], name), **chosen))
    _show(report, given, plot)
    if chosen:  # it may be a part of what the baseline has
        here = {key(run) for run in report["runs"]}
        baseline = {**baseline, "runs": [r for r in baseline["runs"] if key(r) in here]}
        if not baseline["runs"]:
            raise InputError(f"{name}: has none of these runs; leave {', '.join(chosen)} away")
    refuse_others(baseline, report, name)
    rows = compare(baseline, report, (name, "this run"), busy_ok=given["busy_ok"])
    click.echo("\n" + comparison(rows), nl=False, err=given["as_json"])
    slower = too_slow(rows, given["tolerance"])
    for row, ratio, low in slower:
        click.echo(
            f"{row.run}: slower by {ratio - 1:.0%}, at least by {low - 1:.0%}; "
            f"{given['tolerance']:.0%} is allowed",
            err=True,
        )
    return 1 if slower else 0
