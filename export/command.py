"""`fastrestore export`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from fastrestore.errors import InputError, OutputError, need
from fastrestore.presets import PRESETS
from fastrestore.spec import Kind

OUTPUTS: dict[Kind, int] = {"restorer": 3, "detector": 1}
_CONFIG = "fastrestore.train.config"
LICENCES = {
    "free": "Apache-2.0",
    "research": "non-commercial research and education only",
}


@click.command("export", no_args_is_help=True)
@click.argument("run", metavar="RUN")
@click.option("-o", "--output", required=True, metavar="FILE.onnx")
@click.option("--name", help="What the model calls itself.  [the file's name]")
@click.option("--version", type=click.IntRange(1), default=1, show_default=True)
@click.option("--licence", help="Who may use the weights.  [by the run's track]")
@click.option("--metrics", metavar="FILE", help="JSON object to store in the file and the card.")
@click.option("--stills", is_flag=True, help="Without state: pictures only, 20 % faster on a CPU.")
@click.option("--simplify", is_flag=True, help="Run onnxsim; needs the extra simplify.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def command(
    run: str,
    output: str,
    name: str | None,
    version: int,
    licence: str | None,
    metrics: str | None,
    stills: bool,
    simplify: bool,
    overwrite: bool,
) -> None:
    """Write a run's averaged weights as one verified ONNX file, and a model card beside it.

    The graph is compared with the generator on random pictures; if they differ by more than one
    grey level, nothing is written.

    \b
    fastrestore export runs/mine -o mine.onnx
    fastrestore restore photo.jpg --mask holes.png --model mine.onnx
    """
    export_run(
        Path(run),
        Path(output),
        name=name,
        version=version,
        licence=licence,
        metrics=_read_metrics(metrics),
        state=not stills,
        simplify=simplify,
        overwrite=overwrite,
    )


def export_run(
    run: Path,
    target: Path,
    *,
    name: str | None = None,
    version: int = 1,
    licence: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    state: bool = True,
    simplify: bool = False,
    overwrite: bool = False,
) -> None:
    """Export one run with its card, and say on stderr how close it came to torch.

    Raises:
        InputError: The run is none, or of a kind that cannot be exported.
        ModelError: The graph failed a check.
        OutputError: The file exists or cannot be written.
    """
    write_card = need("fastrestore.export.card", "export").write_card
    export_model = need("fastrestore.export.export", "export").export_model
    checkpoint = need("fastrestore.train.checkpoint", "export")
    generator_class = need("fastrestore.train.generator", "export").Generator
    check_target(target, overwrite)
    tensors, record = checkpoint.load(run)
    config = need(_CONFIG, "export").TrainConfig.from_json(record.get("config", {}))
    if config.ablate:
        raise InputError(f"{run}: is an ablation ({config.ablate}); export a full run")
    kind: Kind = config.task
    if kind == "detector" and not state:
        raise InputError(f"{run}: is a detector, which has no state; leave --stills away")
    generator = generator_class(PRESETS[config.preset], outputs=OUTPUTS[kind])
    try:
        generator.load_state_dict(checkpoint.part_of(tensors, "ema"))
    except RuntimeError as e:
        raise InputError(f"{run}: its weights do not fit preset {config.preset}") from e
    parity = export_model(
        generator,
        target,
        name=name or target.stem,
        track=config.track,
        licence=licence or LICENCES[config.track],
        training=summary(record),
        metrics=metrics,
        version=version,
        kind=kind,
        state=state,
        simplify=simplify,
    )
    card = write_card(target)
    click.echo(
        f"{target}: {parity.cases} cases, at most {parity.levels} grey level from torch on "
        f"{parity.share:.4%} of the values; card {card}",
        err=True,
    )


def check_target(target: Path, overwrite: bool = False, mend: str = "use --overwrite") -> None:
    """Refuse a name that is no model's, or a place where none can be written.

    Raises:
        InputError: It does not end in .onnx.
        OutputError: The file or its card exists, or its folder does not.
    """
    if target.suffix != ".onnx":
        raise InputError(f"{target}: the name must end in .onnx")
    if not target.parent.is_dir():
        raise OutputError(f"{target.parent}: no such folder; make it")
    for path in (target, target.with_suffix(".md")):
        if path.is_dir():
            raise OutputError(f"{path}: is a folder; choose another name")
        if path.exists() and not overwrite:
            raise OutputError(f"{path}: exists; {mend}")


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """Return what the spec says of a run and of those before it: names of folders, not paths."""
    stages: list[dict[str, Any]] = []
    for run in [*record.get("earlier", []), record]:
        if "model" in run:  # a model file, which tells of all its own runs
            stages += run.get("stages", [])
            continue
        config = _unusual(run["config"])
        shares: dict[str, float] = {}
        for entry in config.pop("data"):
            name, share = _data_name(entry)
            shares[name] = shares.get(name, 0.0) + share
        config.pop("from_weights", None)
        config.pop("perceptual_folder", None)
        stages.append(
            {
                "data": shares,
                "steps": run["step"],
                "crops": run["crops"],
                "hours": round(run["seconds"] / 3600, 2),
                "config": config,
            }
        )
    last = record["history"][-1] if record["history"] else {}
    figures = {"held_out_psnr": last.get("psnr", {})}
    if record["config"].get("task") == "detector":
        alarms = "false_alarms_percent"
        figures = {"held_out_iou": last.get("iou", {}), alarms: last.get(alarms, {})}
    return {"stages": stages, "machine": record.get("machine", ""), **figures}


def _data_name(entry: str) -> tuple[str, float]:
    """Split `PLACE@LIST=WEIGHT` into the place's name, without its path, and the weight."""
    place, equals, share = entry.rpartition("=")
    try:
        weight = float(share) if equals else 1.0
    except ValueError:  # a place that has the sign in its name
        place, weight = entry, 1.0
    return Path((place or entry).partition("@")[0]).name, weight


def _unusual(config: dict[str, Any]) -> dict[str, Any]:
    """Leave out the fields that stand at their defaults."""
    usual = {f.name: f.default for f in fields(need(_CONFIG, "export").TrainConfig)}
    return {k: v for k, v in config.items() if k not in usual or v != usual[k]}


def _read_metrics(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise InputError(f"{path}: not a JSON file ({e})") from e
    if not isinstance(found, dict):
        raise InputError(f"{path}: must hold one JSON object")
    return found
