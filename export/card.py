"""The model card: one page of Markdown beside every model file, made from its spec."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from fastrestore.atomic import write_file
from fastrestore.presets import PRESETS, UNSHUFFLE
from fastrestore.spec import ModelSpec, read_spec

_DATA = {
    "free_photos": "photographs under CC0, CC BY or in the public domain",
    "free_faces": "official portraits, works of the US government, public domain",
    "faces": "CelebA-HQ portraits (non-commercial research)",
    "general": "BSDS500 training pictures (non-commercial research)",
}


def write_card(model: Path) -> Path:
    """Write `NAME.md` beside `NAME.onnx` from the file's own spec, and return its path."""
    data = model.read_bytes()
    card = model.with_suffix(".md")
    text = _text(read_spec(data, model.name), hashlib.sha256(data).hexdigest(), len(data))
    write_file(card, text.encode())
    return card


def _text(spec: ModelSpec, sha256: str, size: int) -> str:
    t: dict[str, Any] = dict(spec.training)
    lines = [
        f"# {spec.name}, version {spec.version}",
        "",
        f"Generator preset `{spec.preset}` ({_parameters(spec) / 1e6:.2f} M parameters), "
        f"track `{spec.track}`. {_purpose(spec)}",
        "",
        f"- SHA-256: {sha256}",
        f"- Size: {size} bytes; written by fastrestore {spec.code}",
        f"- Licence: {spec.licence}",
    ]
    if t:
        lines += ["", f"## Training, on {t['machine'] or 'a machine that was not recorded'}", ""]
        for number, stage in enumerate(t["stages"], 1):
            lines += _stage(number, stage)
        lines += _held_out(t)
    if spec.metrics:
        lines += ["", "## Test figures", ""]
        lines += [f"- {name}: {value}" for name, value in spec.metrics.items()]
    lines += ["", "## Limits", "", *_limits(spec)]
    return "\n".join(lines) + "\n"


def _is_adversarial(spec: ModelSpec) -> bool:
    return any(s["config"].get("adversarial") for s in spec.training.get("stages", []))


def _purpose(spec: ModelSpec) -> str:
    if spec.kind == "detector":
        return "Finds damage in a picture without a mask (`--mask auto`)."
    if _is_adversarial(spec):
        return "Stages 1 and 2: reconstruction, then adversarial training."
    return "Stage 1: reconstruction, no adversarial training."


def _parameters(spec: ModelSpec) -> int:
    """Count weights and biases; a detector's head has one output instead of three."""
    preset = PRESETS[spec.preset]
    *body, head = preset.convs(preset.multiple, preset.multiple)
    if spec.kind == "detector":
        head = head._replace(cout=UNSHUFFLE**2)
    return sum(c.parameters for c in (*body, head))


def _held_out(t: dict[str, Any]) -> list[str]:
    where = "on pictures held out from the training folders"
    if "held_out_psnr" in t:
        return [
            f"- PSNR {where}, dB: {_flat(t['held_out_psnr'])} (ffN = free-form holes of N %, "
            "composite; s25 = noise of sigma 25)"
        ]
    return [
        f"- Intersection over union {where}, threshold 0.5: {_flat(t['held_out_iou'])}",
        f"- False alarms there, percent of the pixels: {_flat(t['false_alarms_percent'])}",
    ]


def _limits(spec: ModelSpec) -> list[str]:
    if spec.kind == "detector":
        return [
            "- It learned synthetic damage; what looks like it on purpose (text, wires, plain "
            "rectangles, specks) may be taken for damage: look at what `--mask-out` writes.",
            "- Noise over the whole picture is no damage to it.",
        ]
    return [
        "- What fills a hole is invented. It is plausible, not evidence: do not use it to identify "
        "people, read plates or settle disputes.",
        "- Texture in holes is made up to look real, at the cost of pixel accuracy: where figures "
        "count, take the model of stage 1."
        if _is_adversarial(spec)
        else "- Wide holes come out smooth: trained for pixel accuracy, the model gives the mean "
        "of what could be there.",
        _faces(spec),
        "- Noise is taken to be independent from pixel to pixel. Compression artefacts, blur and "
        "film grain of large size are not removed.",
    ]


def _stage(number: int, stage: dict[str, Any]) -> list[str]:
    data = "; ".join(
        f"`{name}` (weight {share:g}): {_DATA.get(name, 'own pictures')}"
        for name, share in stage["data"].items()
    )
    return [
        f"- Run {number}: {stage['steps']} steps, {stage['crops']} crops, {stage['hours']} h",
        f"  - Data: {data}",
        f"  - Settings: {_flat(stage['config'])}",
    ]


def _faces(spec: ModelSpec) -> str:
    if spec.track == "research":
        return (
            "- Faces are biased by the data: celebrities, mostly young, frontal, with make-up and "
            "studio light."
        )
    return (
        "- Faces are biased by the data: mostly officials over forty in studio light before a "
        "plain background; no children."
    )


def _flat(values: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in values.items())
