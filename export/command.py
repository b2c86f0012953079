"""`fastrestore export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from fastrestore.errors import InputError, OutputError, need
from fastrestore.presets import PRESETS

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
    write_card = need("fastrestore.export.card", "export").write_card
    export_model = need("fastrestore.export.export", "export").export_model
    checkpoint = need("fastrestore.train.checkpoint", "export")
    generator_class = need("fastrestore.train.generator", "export").Generator

    target = Path(output)
    if target.suffix != ".onnx":
        raise InputError(f"{output}: the name must end in .onnx")
    for path in (target, target.with_suffix(".md")):
        if path.exists() and not overwrite:
            raise OutputError(f"{path}: exists; use --overwrite")
    tensors, record = checkpoint.load(Path(run))
    config = need("fastrestore.train.config", "export").TrainConfig.from_json(
        record.get("config", {})
    )
    generator = generator_class(PRESETS[config.preset])
    try:
        generator.load_state_dict(checkpoint.part_of(tensors, "ema"))
    except RuntimeError as e:
        raise InputError(f"{run}: its weights do not fit preset {config['preset']}") from e
    training = summary(record)
    parity = export_model(
        generator,
        target,
        name=name or target.stem,
        track=config.track,
        licence=licence or LICENCES[config.track],
        training=training,
        metrics=_read_metrics(metrics),
        version=version,
        state=not stills,
        simplify=simplify,
    )
    card = write_card(target)
    click.echo(
        f"{target}: {parity.cases} cases, at most {parity.levels} grey level from torch on "
        f"{parity.share:.4%} of the values; card {card}",
        err=True,
    )


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """Return what the spec says of a run and of those before it: names of folders, not paths."""
    stages = []
    for run in [*record.get("earlier", []), record]:
        config = dict(run["config"])
        folders = [entry.partition("=") for entry in config.pop("data")]
        config.pop("from_weights", None)
        stages.append(
            {
                "data": {Path(f).name: float(share or 1) for f, _, share in folders},
                "steps": run["step"],
                "crops": run["crops"],
                "hours": round(run["seconds"] / 3600, 2),
                "config": config,
            }
        )
    last = record["history"][-1] if record["history"] else {}
    return {
        "stages": stages,
        "machine": record.get("machine", ""),
        "held_out_psnr": last.get("psnr", {}),
    }


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
