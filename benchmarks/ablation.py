"""What every part is worth: the same training with one thing left out.

    python benchmarks/ablation.py                # all that is not in the results yet
    python benchmarks/ablation.py --print        # the tables from the results alone

Parts of the network are left out of stage 1, from scratch; terms of the loss out of stage 2, from
the weights that the whole stage 1 reached with the same seed. Equal crops everywhere, two seeds;
tested on pictures that no run has seen. Scores per picture go to results/ablation.json, after every
run, so that a stopped command goes on; differences are paired by picture, over the mean of the
seeds, with 95 % bootstrap intervals. Runs this short rank parts, they do not show what is reached.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fastrestore.environment import describe
from fastrestore.images import read_picture
from fastrestore.metrics import bootstrap_interval, psnr, ssim
from fastrestore.train import validate
from fastrestore.train.config import RECIPES, TrainConfig
from fastrestore.train.loop import train
from fastrestore.train.perceptual import LPIPS_FILE, Lpips, find_weights

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("DATA", HERE.parents[1] / "shared" / "data"))
RESULTS = HERE / "results" / "ablation.json"
TESTS = {"free_faces": 24, "free_photos": 12}  # the first, by name
CASES = ("ff20", "ff40", "s25")
METRICS = {"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS"}


class Variant(NamedTuple):
    """One row: what it says, and what it changes in the config."""

    text: str
    changes: dict[str, Any]


STAGE_1 = {
    "full": Variant("everything", {}),
    "plain-conv": Variant("plain convolution for EdgeConv", {"ablate": "plain-conv"}),
    "zero-fill": Variant("zero fill for pull-push", {"ablate": "zero-fill"}),
    "no-sobel": Variant("no Sobel channel", {"ablate": "no-sobel"}),
    "block-33": Variant("block 3x3, 3x3 for 3x3, 1x1", {"ablate": "block-33"}),
    "leaky-relu": Variant("LeakyReLU for ReLU", {"ablate": "leaky-relu"}),
    "no-edge": Variant("no edge term", {"edge": 0.0}),
}
STAGE_2 = {
    "full": Variant("everything", {}),
    "no-edge": Variant("no edge term", {"edge": 0.0}),
    "no-perceptual": Variant("no perceptual term", {"perceptual": 0.0}),
    "no-adversarial": Variant(
        "no adversarial term, no feature matching", {"adversarial": 0.0, "feature_matching": 0.0}
    ),
    "no-matching": Variant("no feature matching", {"feature_matching": 0.0}),
}


def main() -> None:
    """Train and test what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--steps", type=int, nargs=2, default=(700, 300), help="of the stages")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1))
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--print", action="store_true", help="train nothing")
    a = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not a.print:
        if not DATA.is_dir():
            sys.exit(f"{DATA}: no pictures there; set DATA to their folder")
        settings = {"preset": a.preset, "steps": list(a.steps)}
        if results.setdefault("settings", settings) != settings:
            sys.exit(f"{RESULTS}: made with {results['settings']}; move it away to start anew")
        results["env"] = describe()
        cases = make_cases()
        for seed in a.seeds:
            for stage, variants in ((1, STAGE_1), (2, STAGE_2)):
                for name, variant in variants.items():
                    key = f"{stage} {name} {seed}"
                    if key not in results:
                        results[key] = measure(a, stage, name, variant, seed, cases)
                        RESULTS.write_text(json.dumps(results))
    table = "\n\n".join(report(results, s, v) for s, v in ((1, STAGE_1), (2, STAGE_2)))
    RESULTS.with_suffix(".md").write_text(table + "\n")
    print(table)


def make_cases() -> dict[str, list[validate.Case]]:
    """Damage the test pictures' centres, 256 px, in the fixed ways of the validation."""
    test = DATA / "test"
    paths = [p for f, n in TESTS.items() for p in sorted((test / f).glob("*.webp"))[:n]]
    cases = validate.make_cases([read_picture(p).rgb for p in paths], 16)
    return {k: cases[k] for k in CASES}


def configure(a: argparse.Namespace, stage: int, variant: Variant, seed: int) -> TrainConfig:
    """Return the config of one run."""
    free = (f"{DATA / 'train' / 'free_photos'}=0.6", f"{DATA / 'train' / 'free_faces'}=0.4")
    common = {
        "preset": a.preset,
        "track": "free",
        "data": free,
        "steps": a.steps[stage - 1],
        "batch": 8,
        "large_share": 0.0,
        "noisy": 0.3,
        "seed": seed,
        "validate_every": 10**9,
    }
    if stage == 2:
        whole = str(a.runs / f"1-full-{seed}")
        second = {"from_weights": whole, "lr": 5e-4, "muon": 0.5, "d_warm": 100, "noisy": 0.2}
        common |= {**RECIPES["sharp"], **second}
    return TrainConfig(**{**common, **variant.changes})


def measure(
    a: argparse.Namespace,
    stage: int,
    name: str,
    variant: Variant,
    seed: int,
    cases: dict[str, list[validate.Case]],
) -> dict[str, Any]:
    """Train one run, or go on with it, and score every test picture."""
    folder = a.runs / f"{stage}-{name}-{seed}"
    run = train(configure(a, stage, variant, seed), folder)
    judge = Lpips.load(find_weights(LPIPS_FILE))
    scores: dict[str, dict[str, list[float]]] = {}
    for kind, some in cases.items():
        columns = scores[kind] = {m: [] for m in METRICS}
        for case in some:
            out = validate.restore(run.ema, case)  # type: ignore[arg-type]
            pair = [torch.tensor(x).permute(2, 0, 1)[None] / 255 for x in (out, case.clean)]
            columns["psnr"].append(round(psnr(out, case.clean), 4))
            columns["ssim"].append(round(ssim(out, case.clean), 5))
            columns["lpips"].append(round(float(judge(*pair)), 5))
    mean = {k: round(float(np.mean(v["psnr"])), 2) for k, v in scores.items()}
    print(f"stage {stage} {name} seed {seed}: {mean}, {run.seconds:.0f} s", file=sys.stderr)
    parameters = sum(p.numel() for p in run.net.parameters())
    return {
        "scores": scores,
        "crops": run.crops,
        "seconds": round(run.seconds),
        "parameters": parameters,
    }


def report(results: dict[str, Any], stage: int, variants: dict[str, Variant]) -> str:
    """Format one stage: mean of the whole, and what each row differs from it."""
    seeds = sorted({int(k.split()[-1]) for k in results if k.startswith(f"{stage} full ")})
    if not seeds:
        return f"Stage {stage}: not measured."
    first = results[f"{stage} full {seeds[0]}"]
    n = len(first["scores"][CASES[0]]["psnr"])
    heads = [f"{METRICS[m]} {c}" for c in CASES for m in METRICS]
    settings = results["settings"]
    lines = [
        f"Stage {stage}, `{settings['preset']}`, {first['crops']} crops, seeds "
        f"{', '.join(map(str, seeds))}, n = {n} pictures. The first row is the mean, the others "
        "the difference to it.",
        "",
        "| left out | parameters | " + " | ".join(heads) + " |",
        "| --- " * (len(heads) + 2) + "|",
    ]
    for name, variant in variants.items():
        if not all(f"{stage} {name} {s}" in results for s in seeds):
            continue
        row = [variant.text, str(results[f"{stage} {name} {seeds[0]}"]["parameters"])]
        row += [_cell(results, stage, name, seeds, c, m) for c in CASES for m in METRICS]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _cell(
    results: dict[str, Any], stage: int, name: str, seeds: list[int], case: str, metric: str
) -> str:
    digits = 2 if metric == "psnr" else 4

    def scores(of: str) -> np.ndarray:
        return np.array([results[f"{stage} {of} {s}"]["scores"][case][metric] for s in seeds])

    if name == "full":
        by_seed = scores(name).mean(1)
        return (
            f"{by_seed.mean():.{digits}f} (seeds {', '.join(f'{v:.{digits}f}' for v in by_seed)})"
        )
    difference = (scores(name) - scores("full")).mean(0)
    mean, low, high = bootstrap_interval(difference, np.random.default_rng(0))
    return f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


if __name__ == "__main__":
    main()
