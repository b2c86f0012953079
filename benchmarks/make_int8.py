"""Make NAME.int8.onnx of shipped models, with the report that goes with it: NAME.int8.json.

Where the U8 form is 1.2 times as fast as FP32 on this CPU at every size, NAME-u8.onnx is made too:
a model like any other, for CPUs.

    python benchmarks/make_int8.py [MODEL...] [--out DIR] [-n 48] [--tests 12]

Calibration: `free_photos` and `free_faces` of TRAIN (default ../shared/data/train), degraded crops.
Which layers stay float is decided on other pictures of the same folders. Quality, LPIPS and the
INT8 gate: Kodak24, `free_faces` and `free_photos` of TEST (default ../shared/data/test), middle
256x256, never seen before; ONNX Runtime with its optimisations off. Then the speed of this CPU: one
thread, processor time of the whole process, the forms in turn. Needs the extras export, train and
openvino. Standard output: tables.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, helper

from fastrestore.arrays import U8
from fastrestore.atomic import write_file
from fastrestore.backend import find_model, read_model
from fastrestore.backends.openvino import OpenVinoBackend
from fastrestore.backends.ort import OrtBackend
from fastrestore.environment import describe
from fastrestore.errors import FastRestoreError
from fastrestore.export import quantize as q
from fastrestore.export.card import write_card
from fastrestore.export.overflow import check_fp16, saturated_inputs
from fastrestore.export.precision import to_fp16
from fastrestore.export.quality import Report, Runner, ort_runner, report
from fastrestore.export.u8 import to_u8
from fastrestore.images import read_picture
from fastrestore.measure import open_lpips
from fastrestore.spec import KEY, ModelSpec

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TRAIN = Path(os.environ.get("TRAIN", DATA / "train"))
TEST = Path(os.environ.get("TEST", DATA / "test"))
SIDE_PX = 256
SIZES = {"256x256": (256, 256), "1280x720": (720, 1280)}
WINS = 1.2  # the CPU runs the U8 form only where it is that much faster
REFERENCE = "FP32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["nano", "tiny"])
    parser.add_argument("--out", type=Path, default=find_model("nano").parent)
    parser.add_argument("-n", type=int, default=48, help="calibration crops")
    parser.add_argument("--tests", type=int, default=12, help="test pictures per set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=9, help="timed calls per form and size")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    train = [spread(TRAIN / d, a.n) for d in ("free_photos", "free_faces")]
    pictures = [x for pair in zip(*(t.values() for t in train), strict=False) for x in pair]
    calibration = pictures[: a.n]
    tune = {f"tune-{i}": middle(x) for i, x in enumerate(pictures[a.n : a.n + a.tests * 2])}
    sets = ("kodak24", "free_faces", "free_photos")
    tests = {k: middle(v) for s in sets for k, v in spread(TEST / s, a.tests).items()}
    for name in a.models:
        make(name, a, calibration, tune, tests)


def spread(folder: Path, n: int) -> dict[str, U8]:
    """Read n pictures, evenly spread over the sorted names."""
    paths = sorted(p for p in folder.iterdir() if p.suffix in (".webp", ".png", ".jpg"))
    chosen = [paths[i * len(paths) // n] for i in range(n)] if n < len(paths) else paths
    return {p.stem: read_picture(p).rgb for p in chosen}


def middle(picture: U8) -> U8:
    h, w = picture.shape[:2]
    y, x = (h - SIDE_PX) // 2, (w - SIDE_PX) // 2
    return np.ascontiguousarray(picture[y : y + SIDE_PX, x : x + SIDE_PX])


def make(
    name: str,
    a: argparse.Namespace,
    calibration: list[U8],
    tune: Mapping[str, U8],
    tests: Mapping[str, U8],
) -> None:
    began = time.process_time()
    data, spec = read_model(name, "restorer")
    model = onnx.load_from_string(data)
    batches = list(q.calibration_inputs(calibration, a.n, a.seed, model=model))
    peaks = check_fp16(model, chain(batches, saturated_inputs()))
    method, losses, worst, choice = decide(model, batches, tune)
    int8 = q.quantize(model, batches, method=method, keep=choice.keep)
    u8 = to_u8(int8)
    forms = {REFERENCE: model, "FP16": to_fp16(model), "INT8": int8}
    forms |= {"INT8, FP16 base": to_fp16(int8)}
    file = int8.SerializeToString()
    runners: dict[str, Runner] = {k: ort_runner(v) for k, v in forms.items()}
    # These two as they run: with the optimisations of their library.
    runners["INT8 as U8 in ONNX Runtime"] = OrtBackend(u8.SerializeToString(), spec, 1).run
    runners["INT8 in OpenVINO"] = OpenVinoBackend(file, spec, 1).run
    distance, lpips = open_lpips(1)
    quality = report(runners, REFERENCE, tests, distance=distance, lpips=lpips)
    gate = judged(quality)
    speed = {size: timed(name, data, file, u8, hw, a.rounds) for size, hw in SIZES.items()}
    found = {
        "model": spec.name,
        "version": spec.version,
        "fp32_sha256": hashlib.sha256(data).hexdigest(),
        "int8_sha256": hashlib.sha256(file).hexdigest(),
        "int8": {"method": method, "batches": a.n, "keep": choice.keep},
        "seed": a.seed,
        "gate": gate,
        "methods": {m: loss._asdict() for m, loss in losses.items()},
        "sensitivity": {k: v._asdict() for k, v in worst.items()},
        "keep_steps": [{"kept": k, **loss._asdict()} for k, loss in choice.steps],
        "quality": quality.to_json(),
        "fp16_peaks": [p._asdict() for p in peaks if p.in_network][:10],
        "cpu_ms": speed,
        "cpu_runs_u8": all(
            s["ORT FP32"]["min"] >= WINS * s["ORT U8"]["min"] for s in speed.values()
        ),
        "environment": describe(),
    }
    stem = a.out / find_model(name).stem
    write_file(f"{stem}.int8.onnx", file)
    write_file(f"{stem}.int8.json", (json.dumps(found, indent=1) + "\n").encode())
    if found["cpu_runs_u8"]:
        write_u8(Path(f"{stem}-u8.onnx"), u8, spec, quality)
    show(found, quality, time.process_time() - began)


def write_u8(path: Path, u8: ModelProto, spec: ModelSpec, quality: Report) -> None:
    """Write the CPU's form under its own name, with its card."""
    lost = {r.case: r.psnr_lost for r in quality.rows if r.artefact == "INT8 as U8 in ONNX Runtime"}
    metrics = {
        "form": f"INT8 of {spec.name} for CPUs with VNNI (activations U8, weights S8); no engine "
        "can be built from it, take the other one for that",
        "lost against FP32, dB": ", ".join(f"{v:.3f} at {k}" for k, v in lost.items()),
    }
    named = dataclasses.replace(spec, name=path.stem, metrics=metrics)
    helper.set_model_props(u8, {KEY: named.to_json()})
    write_file(path, u8.SerializeToString())
    write_card(path)


def decide(
    model: ModelProto, batches: list[dict[str, Any]], tune: Mapping[str, U8]
) -> tuple[q.Method, dict[q.Method, q.Loss], dict[str, q.Loss], q.Choice]:
    """Take the better method, then the layers that stay float."""
    methods: dict[q.Method, q.Judge] = {
        m: q.Judge(model, q.ranges(model, batches, m), tune) for m in ("max", "percentile")
    }
    losses = {m: judge.loss(q.layers(model)) for m, judge in methods.items()}
    method = min(losses, key=lambda m: losses[m].of_gate)
    worst = q.sensitivity(methods[method])
    return method, losses, worst, q.choose_keep(methods[method], worst)


def judged(quality: Report) -> dict[str, Any]:
    """Hold the INT8 rows against the gate, LPIPS too where it was measured."""
    rows = {r.case: r for r in quality.rows if r.artefact == "INT8"}
    cases = list(rows)
    loss = q.Loss(rows[cases[0]].psnr_lost, rows[cases[2]].psnr_lost)
    lpips = [r.lpips_lost for r in rows.values() if r.lpips_lost is not None]
    far = max(lpips) if lpips else None
    passed = loss.of_gate <= 1 and (far is None or far <= q.GATE_LPIPS)
    return {**loss._asdict(), "lpips_lost": far, "passed": passed}


def timed(
    name: str, data: bytes, int8: bytes, u8: ModelProto, hw: tuple[int, int], rounds: int
) -> dict[str, dict[str, float]]:
    """Time the forms in turn; ms of processor time."""
    spec = read_model(name, "restorer")[1]
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (1, *hw, 3), np.uint8)
    mask = (rng.random((1, *hw, 1)) < 0.2).astype(np.uint8)
    batch = (frame, mask, np.zeros((1, *hw, 4), np.uint8), np.zeros(1, np.float32))
    forms: dict[str, Callable[[], Any]] = {
        "ORT FP32": lambda: OrtBackend(data, spec, 1),
        "ORT S8": lambda: OrtBackend(int8, spec, 1),
        "ORT U8": lambda: OrtBackend(u8.SerializeToString(), spec, 1),
        "OpenVINO FP32": lambda: OpenVinoBackend(data, spec, 1),
        "OpenVINO S8": lambda: OpenVinoBackend(int8, spec, 1),
    }
    backends = {}
    for form, open_form in forms.items():
        try:
            backends[form] = open_form()
            for _ in range(4):  # OpenVINO compiles a shape that comes for the third time
                backends[form].run(*batch)
        except FastRestoreError as e:
            print(f"{form}: {e}")
            backends.pop(form, None)
    samples: dict[str, list[float]] = {form: [] for form in backends}
    for _ in range(rounds):
        for form, backend in backends.items():
            before = time.process_time()
            backend.run(*batch)
            samples[form].append(1e3 * (time.process_time() - before))
    for backend in backends.values():
        backend.close()
    return {k: {"min": min(v), "median": float(np.median(v))} for k, v in samples.items()}


def show(found: Mapping[str, Any], quality: Report, seconds: float) -> None:
    print(f"\n## {found['model']} ({seconds:.0f} s of processor time)\n")
    for m, loss in found["methods"].items():
        print(f"{m}: {loss['holes_db']:+.4f} dB at 20 % holes, {loss['noise_db']:+.4f} at sigma 25")
    print(f"{found['int8']['method']}; float: {', '.join(found['int8']['keep']) or 'none more'}")
    worst = list(found["sensitivity"].items())[:6]
    print("worst:", ", ".join(f"{k} {v['holes_db']:.4f}/{v['noise_db']:.4f}" for k, v in worst))
    print(f"gate: {found['gate']}\nLPIPS: {quality.lpips}\n\n{quality.markdown()}")
    print("| size | form | minimum ms | median ms |\n| --- | --- | --- | --- |")
    for size, forms in found["cpu_ms"].items():
        for form, ms in forms.items():
            print(f"| {size} | {form} | {ms['min']:.1f} | {ms['median']:.1f} |")


if __name__ == "__main__":
    main()
