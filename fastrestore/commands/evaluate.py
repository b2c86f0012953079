"""`fastrestore evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fastrestore.commands.options import model_options, progress_bar
from fastrestore.errors import InputError


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
@click.option("--methods", help="Comma list: telea,navier_stokes,biharmonic,...  [all that fit]")
@click.option("--limit", type=click.IntRange(1), help="Only the first pictures, by name.")
@click.option("--json", "as_json", is_flag=True, help="Rows as JSON instead of a table.")
@model_options
def command(
    folder: str,
    holes: str | None,
    ratio: tuple[float, ...],
    cell: int,
    sigma: tuple[float, ...],
    methods: str | None,
    limit: int | None,
    as_json: bool,
    model: str,
    backend: str,
    threads: int | None,
) -> None:
    """Measure quality on clean pictures: damage, restore, compare.

    Every method restores the same bytes; the damage depends on a picture's name and the ratio
    alone. Gains are paired by picture, with 95 % bootstrap intervals. Biharmonic filling needs
    the extra `evaluate` and takes seconds a picture.

    \b
    fastrestore evaluate photos/ --ratio 0.1 --ratio 0.2 --methods telea,navier_stokes
    fastrestore evaluate photos/ --sigma 25
    """
    from fastrestore.environment import describe
    from fastrestore.evaluate import Damage, Score, classical_methods, markdown, score, summarise
    from fastrestore.images import is_picture, read_picture
    from fastrestore.restore import Restorer

    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder of pictures")
    paths = sorted(p for p in Path(folder).iterdir() if is_picture(p))[:limit]
    if not paths:
        raise InputError(f"{folder}: no pictures in this folder")
    if holes or ratio or not sigma:
        kinds: list[tuple[str | None, float, float]] = [
            (holes or "freeform", r, s) for r in ratio or (0.2,) for s in sigma or (0.0,)
        ]
    else:
        kinds = [(None, 0.0, s) for s in sigma]
    names = None if methods is None else [m.strip() for m in methods.split(",") if m.strip()]
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
