"""`fastrestore engines`: what was built, whether it still fits, and what may go."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastrestore.atomic import label
from fastrestore.commands.options import device_option
from fastrestore.errors import EngineError, need

if TYPE_CHECKING:
    from fastrestore.engine_cache import Entry

SCHEMA = 1
COLUMNS = ("name", "model", "precision", "sizes", "device", "version", "verified", "MB", "age")


@click.group("engines")
def command() -> None:
    """List, verify, show and prune the engines that `build-engine` made.

    \b
    fastrestore engines list
    fastrestore engines verify tiny-fp16-1x736x1280-sm87-10.3.0-0123abcd
    fastrestore engines show my.engine --layers
    fastrestore engines prune --dry-run
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def list_command(as_json: bool) -> None:
    """List the engines of the cache, the newest first."""
    from fastrestore.engine_cache import entries, root

    rows = [_row(entry) for entry in entries()]
    if as_json:
        report = {"schema": SCHEMA, "folder": str(root() / "engines"), "engines": rows}
        click.echo(json.dumps(report, indent=1))
        return
    if not rows:
        place = label(root() / "engines")
        click.echo(f"{place}: no engines; `fastrestore build-engine tiny` makes one", err=True)
        return
    table = [(*COLUMNS, "fits here"), *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


@command.command("verify")
@click.argument("engine")
@click.option("--model", metavar="FILE", help="What it was built from, if that does not ship.")
@device_option
@click.option("--trust-engine", is_flag=True, help="Although others may have changed it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def verify_command(
    engine: str, model: str | None, device: int, trust_engine: bool, as_json: bool
) -> None:
    """Check an engine against its sidecar, and on its GPU against another backend.

    ENGINE is a name that `list` shows, or a path. Exit code 4 if it is damaged, does not fit, or
    cannot be run here.
    """
    from fastrestore.engine_file import check_engine
    from fastrestore.engine_fit import refuse_other
    from fastrestore.engine_here import expected_of

    path = _find(engine)
    record = check_engine(path, trust=trust_engine).record
    if record is not None:
        here = expected_of(record.product, device)
        refuse_other(path, record, here)
        if here.device is None:
            raise EngineError(
                f"{label(path)}: is as it was built; unverified: no device here; verify it where "
                f"its GPU is"
            )
    gate = need("fastrestore.export.gate", "tensorrt")
    figures = gate.verify_engine(path, model, device, trust_engine)
    if as_json:
        click.echo(json.dumps(figures, indent=1))
        return
    told = ", ".join(f"{k} {v}" for k, v in figures.items())
    click.echo(f"{label(path)}: verified: {told}")


@command.command("show")
@click.argument("engine")
@click.option("--layers", is_flag=True, help="Also what it runs, layer by layer; needs its GPU.")
@device_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def show_command(engine: str, layers: bool, device: int, as_json: bool) -> None:
    """Show what an engine's sidecar says of it.

    ENGINE is a name that `list` shows, or a path.
    """
    from fastrestore.engine_file import read_record

    path = _find(engine)
    shown = asdict(read_record(path))
    if layers:
        runtime = need("fastrestore.backends.tensorrt", "tensorrt")
        shown["layers"] = runtime.layers(path, device)
    if as_json:
        click.echo(json.dumps(shown, indent=1))
        return
    found = shown.pop("layers", [])
    for name, value in shown.items():
        for line in _lines(name, value):
            click.echo(line)
    for number, layer in enumerate(found):
        click.echo(f"layer {number}: {layer if isinstance(layer, str) else json.dumps(layer)}")


@command.command("prune")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--all", "everything", is_flag=True, help="Whether it fits or not.")
def prune_command(dry_run: bool, everything: bool) -> None:
    """Remove engines of other versions and other GPUs, and damaged ones.

    What cannot be told here (no GPU, no TensorRT, another model file than the one that ships) is
    kept. Exit code 1 if something could not be removed.
    """
    from fastrestore.engine_cache import prune
    from fastrestore.engine_here import of_another_model, stale

    reasons: dict[Path, str] = {}
    strangers: list[Path] = []

    def keep(entry: Entry) -> bool:
        reasons[entry.path] = "all go" if everything else stale(entry)
        if not reasons[entry.path] and of_another_model(entry):
            strangers.append(entry.path)
        return not reasons[entry.path]

    gone, faults = prune(keep, dry_run)
    for entry in gone:
        verb = "would be removed" if dry_run else "removed"
        click.echo(f"{label(entry.path.name)}: {verb}: {reasons[entry.path]}", err=True)
    for path in strangers:
        told = "kept: of another model file than the one that ships; --all removes all"
        click.echo(f"{label(path.name)}: {told}", err=True)
    freed_mb = sum(entry.size_bytes for entry in gone) / 1e6
    click.echo(
        f"{len(gone)} of {len(reasons)} engines, {freed_mb:.1f} MB"
        + (" would be removed" if dry_run else " removed"),
        err=True,
    )
    for fault in faults:
        click.echo(fault, err=True)
    if faults:
        click.get_current_context().exit(1)


def _find(engine: str) -> Path:
    """Turn a name of the cache, its beginning, or a path into an engine's path.

    Raises:
        EngineError: Nothing or several of that name.
    """
    from fastrestore.engine_cache import SUFFIX, entries
    from fastrestore.engine_file import sidecar

    path = Path(engine.removesuffix(".json") if engine.endswith(f"{SUFFIX}.json") else engine)
    if path.exists() or path.is_symlink() or sidecar(path).exists():
        return path
    paths = [entry.path for entry in entries()]
    exact = [p for p in paths if engine in (p.name, p.stem)]
    found = exact or [p for p in paths if p.name.startswith(engine)]
    if len(found) > 1:
        raise EngineError(f"{label(engine)}: {len(found)} engines begin so; write more of the name")
    if not found:
        raise EngineError(f"{label(engine)}: no such engine; `fastrestore engines list` shows all")
    return found[0]


def _row(entry: Entry) -> dict[str, Any]:
    from fastrestore.engine_here import fits_here

    fit = fits_here(entry)
    return {
        "name": entry.path.stem,
        "path": str(entry.path),
        "fits": fit.fits,
        "why": fit.why,
        "device": fit.device,
        "size_bytes": entry.size_bytes,
        "age_s": round(entry.age_s),
        "record": None if entry.record is None else asdict(entry.record),
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return one line of the table."""
    fits = {True: "yes", False: "no", None: "not known"}[row["fits"]]
    why = row["why"] or (f"on device {row['device']}" if row["device"] else "")
    verdict = fits + (f": {why}" if why else "")
    size, age = f"{row['size_bytes'] / 1e6:.1f}", _age(row["age_s"])
    r = row["record"]
    if r is None:
        return (label(row["name"]), "?", "?", "?", "?", "?", "?", size, age, verdict)
    device = r["device"]["name"] if r["device"] else "sm " + ", ".join(r["compute_capabilities"])
    product = "RTX " if r["product"] == "tensorrt_rtx" else ""
    return (
        label(row["name"]),
        f"{r['model']['name']} v{r['model']['version']}",
        r["precision"],
        _sizes(r["profile"]),
        device,
        product + r["product_version"],
        "yes" if r["verification"] else "no",
        size,
        age,
        verdict,
    )


def _sizes(profile: dict[str, Any]) -> str:
    """Return what sizes of frames a profile takes, `1x736x1280` or smallest to largest."""
    from fastrestore.engine_fit import shape_text

    low, _, high = (shape_text(dims[:3]) for dims in profile["frame"])
    return low if low == high else f"{low} to {high}"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _lines(name: str, value: Any) -> list[str]:
    """Return a value of a sidecar as lines `name: value`, nested names with a dot."""
    if isinstance(value, dict) and value:
        return [line for k, v in value.items() for line in _lines(f"{name}.{k}", v)]
    if name == "reasons" and value:
        return [f"reasons: {line}" for line in value]
    if name.startswith("profile."):
        from fastrestore.engine_fit import shape_text

        return [f"{name}: " + ", ".join(map(shape_text, value))]
    if isinstance(value, (list, tuple, dict)):
        return [f"{name}: {', '.join(map(str, value)) or '-'}"]
    return [f"{name}: {'-' if value is None else value}"]
