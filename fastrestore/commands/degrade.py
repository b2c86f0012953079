"""`fastrestore degrade`."""

from __future__ import annotations

from pathlib import Path

import click

from fastrestore.errors import InputError, OutputError


@click.command("degrade", no_args_is_help=True)
@click.argument("inputs", nargs=-1, required=True, metavar="PICTURE...")
@click.option("-o", "--output", required=True, metavar="DIR", help="Folder for the results.")
@click.option(
    "--holes",
    type=click.Choice(["freeform", "rects", "center", "grid", "thin"]),
    help="Kind of holes.",
)
@click.option("--ratio", type=click.FloatRange(0, 0.95), default=0.2, show_default=True)
@click.option("--cell", type=click.IntRange(1), default=16, show_default=True, help="Of grid, px.")
@click.option("--sigma", type=click.FloatRange(0, 254), default=0.0, help="Noise, 0-255 scale.")
@click.option("--noise", type=click.Choice(["gaussian", "poisson"]), default="gaussian")
@click.option("--overwrite", is_flag=True, help="Replace results that exist.")
def command(
    inputs: tuple[str, ...],
    output: str,
    holes: str | None,
    ratio: float,
    cell: int,
    sigma: float,
    noise: str,
    overwrite: bool,
) -> None:
    """Damage pictures on purpose: black holes, noise, or both.

    Writes NAME.png, and NAME.mask.png (white = hole) where there are holes. The damage depends
    on the picture's name and the ratio alone, so that every program can be given the same.

    \b
    fastrestore degrade photo.jpg -o damaged/ --holes freeform --ratio 0.2
    fastrestore degrade photo.jpg -o noisy/ --sigma 25
    """
    import numpy as np

    from fastrestore.degrade import add_noise, make_mask, punch, seed_for
    from fastrestore.images import Picture, read_picture, write_picture

    if not holes and not sigma:
        raise InputError("nothing to do: give --holes, --sigma or both")
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"{folder}: cannot be made ({e.strerror})") from e
    targets = [folder / f"{Path(name).stem}.png" for name in inputs]
    written = targets + [t.with_suffix(".mask.png") for t in targets if holes]
    for name, target in zip(inputs, targets, strict=True):
        if written.count(target) > 1:
            raise InputError(f"{name}: another input would be written to {target}, too")
        if target.resolve() == Path(name).resolve():
            raise InputError(f"{name}: the output would replace the input; choose another -o")
        if target.exists() and not overwrite:
            raise OutputError(f"{target}: exists; use --overwrite")
    for name, target in zip(inputs, targets, strict=True):
        image = read_picture(Path(name)).rgb
        rng = seed_for(Path(name).stem, ratio)
        h, w = image.shape[:2]
        mask = make_mask(holes, rng, h, w, ratio, cell) if holes else None
        damaged = add_noise(image, sigma, rng, noise)
        if mask is not None:
            damaged = punch(damaged, mask)
            shown = np.repeat(mask[..., None] * np.uint8(255), 3, 2)
            white = Picture(rgb=shown, gray=True)
            write_picture(target.with_suffix(".mask.png"), white, shown)
        write_picture(target, Picture(rgb=damaged), damaged)
        share = "" if mask is None else f", {mask.mean():.1%} hole"
        click.echo(f"{name} -> {target} ({w}x{h}{share}, sigma {sigma:g})", err=True)
