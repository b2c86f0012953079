"""`fastrestore models`."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import click

SIZES = {"256": (256, 256), "720p": (720, 1280), "1080p": (1088, 1920)}


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(as_json: bool) -> None:
    """List shipped models and the sizes a generator can have.

    Latencies are predicted by a roofline from the boards' data sheets; none was measured.

    \b
    fastrestore models
    fastrestore models --json
    """
    found = {"shipped": _shipped(), "presets": _presets()}
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for s in found["shipped"]:
        what = "" if s["kind"] == "restorer" else "finds damage (--mask auto), "
        click.echo(
            f"{s['name']}: {what}{s['preset']}, {s['track']} track, {s['licence']}, "
            f"{s['bytes'] / 1e6:.1f} MB, SHA-256 {s['sha256'][:12]}..."
        )
    for p in found["presets"]:
        macs = ", ".join(f"{n} {v:.2f}" for n, v in p["gmac"].items())
        click.echo(
            f"\n{p['name']}: {p['parameters'] / 1e6:.2f} M parameters, GMAC {macs};\n  "
            f"{p['kflop_per_pixel']:.1f} kFLOP a pixel, sees {p['receptive_field_px']} px across"
        )
        for board, ms in p["predicted_ms_1080p"].items():
            click.echo(
                f"  {board:20} 1080p predicted: FP16 {ms['fp16']:.2f} ms, INT8 {ms['int8']:.2f} ms"
            )


def _shipped() -> list[dict[str, Any]]:
    from fastrestore.backend import shipped_models
    from fastrestore.spec import read_spec

    out = []
    for path in shipped_models():
        data = path.read_bytes()
        spec = read_spec(data, path.name)
        out.append(
            {
                "name": path.stem,
                "kind": spec.kind,
                "preset": spec.preset,
                "track": spec.track,
                "licence": spec.licence,
                "version": spec.version,
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "training": dict(spec.training),
                "metrics": dict(spec.metrics),
            }
        )
    return out


def _presets() -> list[dict[str, Any]]:
    from fastrestore.presets import PRESETS
    from fastrestore.roofline import BOARDS, Precision, predict_ms

    precisions: tuple[Precision, ...] = ("fp16", "int8")
    out = []
    for p in PRESETS.values():
        out.append(
            {
                "name": p.name,
                "parameters": p.parameters,
                "gmac": {n: p.macs(*size) / 1e9 for n, size in SIZES.items()},
                "kflop_per_pixel": 2 * p.macs(256, 256) / 256**2 / 1e3,
                "receptive_field_px": p.receptive_field,
                "multiple_px": p.multiple,
                "predicted_ms_1080p": {
                    b.name: {k: predict_ms(p, b, *SIZES["1080p"], precision=k) for k in precisions}
                    for b in BOARDS
                },
            }
        )
    return out
