"""Wide holes, coarse to fine, against one plain pass and OpenCV: quality, lattice, time, memory.

    python benchmarks/bench_big_holes.py           # writes results/big-holes.json and big-holes.md
    python benchmarks/bench_big_holes.py --look DIR    # also writes crops to look at

Small: holes 256 px across in Kodak24. Large: 4000x3000, Kodak pictures enlarged by Lanczos and a
mosaic of four of them; they are softer than a camera's 12 megapixels. Plain is one run of at most
2 megapixels of the hole and as much on each side, reduced where it is larger, enlarged by cubic
interpolation. Every large case runs in a process of its own, whose peak memory is reported.
Pictures come from DATA (default ../shared/data/test).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fastrestore import restore as restore_module
from fastrestore.arrays import U8
from fastrestore.classical import navier_stokes, telea
from fastrestore.coarse import around
from fastrestore.degrade import make_mask, punch
from fastrestore.environment import describe
from fastrestore.images import read_picture
from fastrestore.metrics import bootstrap_interval, hole_psnr, ssim
from fastrestore.restore import Restorer
from fastrestore.tiles import LIMIT_PX, distance, plan

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("DATA", HERE.parents[1] / "shared" / "data" / "test")) / "kodak24"
METHODS = ("coarse to fine", "plain", "telea", "navier_stokes")
KINDS = ("square", "blob", "strokes", "edge", "corner")
LARGE = ("kodim05", "kodim13", "kodim23", "mosaic")
SIDES = (200, 400, 800, 1500)
SIDE = 256
DEEP_PX = 48  # farther from what is known no method can know detail: what is there is its own


def small_mask(kind: str, height: int, width: int, seed: int) -> U8:
    """Return a hole about `SIDE` px across; `strokes` is a free-form mask of 70 % in the square."""
    rng = np.random.default_rng(seed)
    y, x = (height - SIDE) // 2, (width - SIDE) // 2
    mask = np.zeros((height, width), np.uint8)
    if kind == "edge":
        mask[:200, x : x + SIDE] = 1
    elif kind == "corner":
        mask[:SIDE, :SIDE] = 1
    else:
        square = mask[y : y + SIDE, x : x + SIDE]
        square[:] = 1 if kind == "square" else blob(rng) if kind == "blob" else 0
        if kind == "strokes":
            square[:] = make_mask("freeform", rng, SIDE, SIDE, 0.7)
    return mask


def blob(rng: np.random.Generator) -> U8:
    """Draw one free-form hole with a soft outline that fills 55 % of a square."""
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    noise = rng.standard_normal((SIDE, SIDE)).astype(np.float32)
    bumps = cv2.GaussianBlur(noise, (0, 0), SIDE / 8)
    height = 0.15 * bumps / bumps.std() - np.hypot(y, x) * 2 / SIDE
    return (height > np.quantile(height, 0.45)).astype(np.uint8)


def large_picture(name: str) -> U8:
    """Make 4000x3000 (or 3000x4000) from Kodak pictures."""
    if name == "mosaic":
        parts = [read_picture(DATA / f"kodim{n}.webp").rgb for n in ("01", "08", "20", "24")]
        rows = [np.hstack(parts[:2]), np.hstack(parts[2:])]
        image = np.vstack(rows)
    else:
        image = read_picture(DATA / f"{name}.webp").rgb
    size = (4000, 3000) if image.shape[1] > image.shape[0] else (3000, 4000)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LANCZOS4), np.uint8)


def plain(restorer: Restorer, image: U8, mask: U8) -> U8:
    """Fill holes in one pass."""
    window = around(mask)
    part, hole = image[window], mask[window]
    h, w = hole.shape
    scale = min(1.0, (LIMIT_PX / hole.size) ** 0.5)
    size = (round(w * scale), round(h * scale))
    seen, hole = reduced(part, hole, size)
    kept = restore_module.wide_holes, restore_module.plan
    restore_module.wide_holes = lambda *_: None  # type: ignore[assignment]
    restore_module.plan = lambda h, w, _m, spec, _l: plan(h, w, None, spec, h * w)  # type: ignore[assignment]
    try:
        filled = cv2.resize(restorer(seen, hole), (w, h), interpolation=cv2.INTER_CUBIC)
    finally:
        restore_module.wide_holes, restore_module.plan = kept
    out = image.copy()
    np.copyto(out[window], filled, where=mask[window][..., None] > 0)
    return out


def reduced(image: U8, mask: U8, size: tuple[int, int]) -> tuple[U8, U8]:
    """Average what is known; a pixel is a hole where most of its sources are."""
    known = (mask == 0).astype(np.float32)
    weight = cv2.resize(known, size, interpolation=cv2.INTER_AREA)
    colour = cv2.resize(image * known[..., None], size, interpolation=cv2.INTER_AREA)
    small = np.rint(colour / np.maximum(weight, 1e-3)[..., None]).clip(0, 255)
    return small.astype(np.uint8), (weight < 0.5).astype(np.uint8)


def fill(method: str, restorer: Restorer, image: U8, mask: U8) -> U8:
    """Run one method on a damaged picture."""
    if method == "coarse to fine":
        return restorer(image, mask)
    if method == "plain":
        return plain(restorer, image, mask)
    return telea(image, mask) if method == "telea" else navier_stokes(image, mask)


def roughness(image: U8, mask: U8) -> float:
    """Return the mean deviation, in levels, from a blur of 8 px, deep inside the hole."""
    deep = distance(mask) > DEEP_PX
    rough = np.abs(image - cv2.GaussianBlur(image.astype(np.float32), (0, 0), 8))
    return float(rough[deep].mean()) if deep.any() else 0.0


def small(restorer: Restorer, look: Path | None) -> list[dict[str, Any]]:
    """Score every method on every picture and kind of hole."""
    out: list[dict[str, Any]] = []
    for seed, path in enumerate(sorted(DATA.glob("*.webp"))):
        clean = read_picture(path).rgb
        for kind in KINDS:
            mask = small_mask(kind, *clean.shape[:2], seed)
            damaged = punch(clean, mask)
            filled = {m: fill(m, restorer, damaged, mask) for m in METHODS}
            for method, image in filled.items():
                row = {"picture": path.stem, "kind": kind, "method": method}
                row["psnr"] = round(hole_psnr(image, clean, mask), 3)
                row["ssim"] = round(ssim(image, clean), 5)
                row["roughness"] = round(roughness(image, mask), 3)
                out.append(row)
            if look and seed % 6 == 1:
                save(look / f"{kind}-{path.stem}.png", [clean, *filled.values()])
        print(f"{path.stem} done", file=sys.stderr)
    return out


def save(path: Path, images: list[U8]) -> None:
    """Write pictures side by side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.hstack(images)[..., ::-1])


def large(side: int, method: str, look: Path | None) -> dict[str, Any]:
    """Score one method on all large pictures; run it in a process of its own."""
    row: dict[str, Any] = {"side": side, "method": method, "psnr": [], "seconds": [], "cpu": []}
    with Restorer("tiny", backend="ort") as restorer:
        for name in LARGE:
            clean = large_picture(name)
            h, w = clean.shape[:2]
            y, x = (h - side) // 2, (w - side) // 2
            mask = np.zeros((h, w), np.uint8)
            mask[y : y + side, x : x + side] = 1
            damaged = punch(clean, mask)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            start, cpu = time.perf_counter(), time.process_time()
            image = fill(method, restorer, damaged, mask)
            row["seconds"].append(round(time.perf_counter() - start, 2))
            row["cpu"].append(round(time.process_time() - cpu, 2))
            row.setdefault("before_mb", before // 1024)
            row["psnr"].append(round(hole_psnr(image, clean, mask), 3))
            if method == "coarse to fine":
                row.setdefault("seam", []).append(seam(image, damaged, mask))
            if look:
                crop = image[max(0, y - 100) : y + side + 100, max(0, x - 100) : x + side + 100]
                save(look / f"large-{side}-{name}-{method.replace(' ', '-')}.png", [crop])
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return row


def seam(image: U8, damaged: U8, mask: U8) -> float:
    """Return the largest difference, in levels, to a result whose tiles are cut elsewhere."""
    with Restorer("tiny", backend="ort", limit_px=LIMIT_PX // 3) as other:
        return int(np.abs(other(damaged, mask).astype(np.int16) - image).max())


def report(results: dict[str, Any]) -> str:
    """Format the tables."""
    rng = np.random.default_rng(0)
    env = results["env"]
    lines = [
        f"`tiny`, {env['cpu']}, {env['usable_cores']} cores.",
        "",
        "Kodak24, n = 24, holes of 256 px (edge: 200x256). Roughness: mean deviation in levels "
        f"from a blur of 8 px, farther than {DEEP_PX} px from what is known.",
        "",
        "| hole | method | hole PSNR | coarse to fine gains, 95 % | SSIM | roughness |",
        "| --- " * 6 + "|",
    ]
    for kind in KINDS:
        rows = [r for r in results["small"] if r["kind"] == kind]
        of = {m: [r for r in rows if r["method"] == m] for m in METHODS}
        ours = np.array([r["psnr"] for r in of[METHODS[0]]])
        for method in METHODS:
            mean = {k: np.mean([r[k] for r in of[method]]) for k in ("psnr", "ssim", "roughness")}
            gains = ours - [r["psnr"] for r in of[method]]
            gain = "{:+.2f} ({:+.2f} to {:+.2f})".format(*bootstrap_interval(gains, rng))
            lines.append(
                f"| {kind} | {method} | {mean['psnr']:.2f} | {gain if gains.any() else ''} "
                f"| {mean['ssim']:.4f} | {mean['roughness']:.2f} |"
            )
    lines += [
        "",
        f"4000x3000, square holes, n = {len(LARGE)} (Kodak pictures enlarged by Lanczos: "
        f"{', '.join(LARGE)}). Memory: peak of the process, of it before the first fill. Seam: "
        "largest difference in levels to the result of tiles a third the size. Load average at the "
        f"start {env['load_average'][0]:.1f}: read the processor time, not the wall time.",
        "",
        "| hole | method | hole PSNR | s, median | processor s | peak MB | MB before | seam |",
        "| --- " * 8 + "|",
    ]
    for r in results["large"]:
        lines.append(
            f"| {r['side']} px | {r['method']} | {np.mean(r['psnr']):.2f} "
            f"| {np.median(r['seconds']):.1f} | {np.median(r['cpu']):.1f} "
            f"| {r['peak_mb']} | {r['before_mb']} | {max(r['seam']) if 'seam' in r else ''} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--look", type=Path, help="folder for crops")
    a = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"{DATA}: no test pictures there; set DATA to the folder above it")
    results: dict[str, Any] = {"env": describe(), "large": []}
    for side in SIDES:
        for method in METHODS:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                results["large"].append(pool.submit(large, side, method, a.look).result())
            print(results["large"][-1], file=sys.stderr)
    with Restorer("tiny", backend="ort") as restorer:
        results["small"] = small(restorer, a.look)
    folder = HERE / "results"
    (folder / "big-holes.json").write_text(json.dumps(results) + "\n")
    (folder / "big-holes.md").write_text(report(results))
    print(report(results))


if __name__ == "__main__":
    main()
