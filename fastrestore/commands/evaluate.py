"""`fastrestore evaluate`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fastrestore.commands.options import model_options, progress_bar
from fastrestore.errors import InputError

_PAPER_ONLY = (
    "report",
    "quick",
    "masks",
    "noise_protocol",
    "also",
    "detector",
    "write_inputs",
    "outputs",
)


def paper_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what goes with `--protocol` alone."""
    for option in (
        click.option(
            "--outputs",
            multiple=True,
            metavar="NAME=DIR",
            help="Also score pictures that another program made of the inputs written.",
        ),
        click.option(
            "--write-inputs",
            metavar="DIR",
            help="Write damaged pictures and masks for other programs (white = hole).",
        ),
        click.option(
            "--detector", metavar="FILE", help="Finds the damage where the mask is withheld."
        ),
        click.option(
            "--also", multiple=True, metavar="NAME|FILE", help="Another of our models beside it."
        ),
        click.option(
            "--noise-protocol",
            type=click.Choice(["uint8", "float"]),
            help="Noise alone: rounded and clipped, or as in published tables.  [uint8]",
        ),
        click.option("--masks", metavar="DIR", help="Also holes from these files (white = hole)."),
        click.option("--quick", is_flag=True, help="Few ratios, families and sigmas."),
        click.option(
            "--report",
            metavar="DIR",
            help="Folder for scores, report, curve and sheets; a run that broke off goes on.",
        ),
        click.option(
            "--protocol",
            type=click.Choice(["paper"]),
            help="Measure by a protocol: every family and ratio, mask given and withheld.",
        ),
    ):
        command = option(command)
    return command


@click.command("evaluate", no_args_is_help=True)
@click.argument("folder", metavar="DIR")
@click.option(
    "--holes",
    type=click.Choice(["freeform", "rects", "center", "grid", "thin"]),
    help="Kind of holes.  [freeform, unless there is noise]",
)
@click.option(
    "--ratio",
    type=click.FloatRange(0, 0.95, min_open=True),
    multiple=True,
    help="Hole share, 0-0.95; several times for several rows.  [0.2]",
)
@click.option("--cell", type=click.IntRange(1), default=16, show_default=True, help="Of grid, px.")
@click.option(
    "--sigma",
    type=click.FloatRange(0, 254, min_open=True),
    multiple=True,
    help="Noise; several times for several rows. Ours estimates it, the others are told.",
)
@click.option(
    "--methods",
    help="Comma list: telea,navier_stokes,biharmonic,...  [all that fit; by a protocol the fast]",
)
@click.option("--limit", type=click.IntRange(1), help="Only the first pictures, by name.")
@click.option("--json", "as_json", is_flag=True, help="Rows as JSON instead of a table.")
@paper_options
@model_options
def command(folder: str, protocol: str | None, methods: str | None, **options: Any) -> None:
    """Measure quality on clean pictures: damage, restore, compare.

    Every method restores the same bytes; the damage depends on a picture's name and the ratio
    alone. Gains are paired by picture, with 95 % bootstrap intervals. Biharmonic filling needs
    the extra `evaluate` and takes seconds a picture, PatchMatch the package `pypatchmatch`.

    With `--protocol paper` the whole curve is measured, or only the holes, ratios and sigmas
    named; see docs/rivals.md for other programs.

    \b
    fastrestore evaluate photos/ --ratio 0.1 --ratio 0.2 --methods telea,navier_stokes
    fastrestore evaluate photos/ --sigma 25
    fastrestore evaluate photos/ --protocol paper --quick --report paper/ --limit 2
    fastrestore evaluate photos/ --protocol paper --ratio 0.2 --write-inputs inputs/
    """
    names = None if methods is None else [m.strip() for m in methods.split(",") if m.strip()]
    if protocol is not None:
        _by_protocol(Path(folder), names, options)
        return
    given = [n for n in _PAPER_ONLY if options.pop(n)]
    if given:
        raise click.UsageError(f"--{given[0].replace('_', '-')} goes with --protocol paper")
    _compare(Path(folder), names, **options)


def _compare(
    folder: Path,
    names: list[str] | None,
    holes: str | None,
    ratio: tuple[float, ...],
    cell: int,
    sigma: tuple[float, ...],
    limit: int | None,
    as_json: bool,
    model: str,
    backend: str,
    threads: int | None,
) -> None:
    """Print one table: the damages named, one model, classical methods."""
    from fastrestore.environment import describe
    from fastrestore.evaluate import Damage, Score, classical_methods, markdown, score, summarise
    from fastrestore.images import is_picture, read_picture
    from fastrestore.restore import Restorer

    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of pictures")
    paths = sorted(p for p in folder.iterdir() if is_picture(p))[:limit]
    if not paths:
        raise InputError(f"{folder}: no pictures in this folder")
    if holes or ratio or not sigma:
        kinds: list[tuple[str | None, float, float]] = [
            (holes or "freeform", r, s) for r in ratio or (0.2,) for s in sigma or (0.0,)
        ]
    else:
        kinds = [(None, 0.0, s) for s in sigma]
    env = describe()
    scores: list[Score] = []
    with Restorer(model, backend=backend, threads=threads) as restorer, progress_bar(False) as bar:
        ours = f"fastrestore {restorer.spec.name}"
        for kind, share, noise in kinds:
            damage = Damage(kind, share, noise, cell)
            rivals = classical_methods(damage, names)
            how = "auto" if noise else 0

            def restore(image, mask, _sigma, how=how):  # type: ignore[no-untyped-def]
                return restorer(image, mask, sigma=how)

            task = bar.add_task(damage.label, total=len(paths), figures="")
            for i, path in enumerate(paths):
                picture = (path.stem, read_picture(path).rgb)
                scores += score([picture], damage, {ours: restore, **rivals})
                bar.update(task, completed=i + 1, figures=f"{i + 1}/{len(paths)}")
    rows = summarise(scores, ours)
    if as_json:
        click.echo(json.dumps({"env": env, "rows": [r.to_json() for r in rows]}, indent=1))
    else:
        click.echo(markdown(rows))


def _by_protocol(folder: Path, names: list[str] | None, options: dict[str, Any]) -> None:
    """Measure by the paper's protocol, or write its inputs, or both."""
    from fastrestore.exchange import write_inputs
    from fastrestore.paper import DETECTOR, Entries, Pictures, run_protocol
    from fastrestore.protocol import NoiseProtocol, paper_cases, read_masks

    if not (options["report"] or options["write_inputs"]):
        raise click.UsageError("--protocol needs --report DIR or --write-inputs DIR")
    if options["cell"] != 16:
        raise click.UsageError("--cell goes without --protocol: its blocks have 16 px")
    noise: NoiseProtocol = options["noise_protocol"] or "uint8"
    cases = paper_cases(
        quick=options["quick"],
        holes=options["holes"],
        ratios=options["ratio"],
        sigmas=options["sigma"],
        noise=noise,
        masks=read_masks(Path(options["masks"])) if options["masks"] else (),
    )
    outputs = [_named_folder(text) for text in options["outputs"]]
    pictures = Pictures(folder, options["limit"])
    if options["write_inputs"]:
        target = Path(options["write_inputs"])
        write_inputs(target, lambda: pictures, cases, lambda c: click.echo(c, err=True))
        click.echo(f"{target}: {len(pictures)} pictures, {len(cases)} cases", err=True)
    if not options["report"]:
        return
    entries = Entries(
        models=(options["model"], *options["also"]),
        backend=options["backend"],
        threads=options["threads"],
        classical=names,
        outputs=outputs,
        detector=options["detector"] or DETECTOR,
        noise=noise,
    )
    with progress_bar(False) as bar:
        tasks: dict[str, Any] = {}

        def progress(case: str, done: int, total: int) -> None:
            if case not in tasks:
                tasks[case] = bar.add_task(case, total=total, figures="")
            bar.update(tasks[case], completed=done, figures=f"{done}/{total}", visible=done < total)

        found = run_protocol(Path(options["report"]), pictures, cases, entries, progress)
    for line in [*found.headline, *found.notes]:
        click.echo(line, err=True)
    if options["as_json"]:
        click.echo(json.dumps(found.report, indent=1))
    else:
        click.echo(f"{Path(options['report']) / 'report.md'}", err=True)


def _named_folder(text: str) -> tuple[str, Path]:
    name, sign, folder = text.partition("=")
    if not (sign and name.strip() and folder):
        raise click.UsageError(f"--outputs {text}: write NAME=DIR")
    return name.strip(), Path(folder)
