"""Our Triton kernels against eager torch, torch.compile and the roofline of the card they run on.

    python benchmarks/bench_kernels.py --minutes 9     # measures what is missing (make gpu-bench)
    python benchmarks/bench_kernels.py --arithmetic    # predicted times of known cards; no GPU
    python benchmarks/bench_kernels.py --readme        # tables of kernels/README.md; no GPU
    python benchmarks/bench_kernels.py --report FILE   # table and plot of results; no GPU

Every operator and variant at 256x256, 720p and 1080p, and the whole `tiny` network, batch 1 and 8,
on the device and from host memory to host memory. A case is checked first, at its very size; what
is wrong gets no number. Everything is replayed as a CUDA graph, in turn, with the cache flushed.

Results go to results/kernels/CARD.json after every case, so that the same command goes on; what
was measured with other kernels is measured again. Beside it a table (.md) and the roofline (.png).
Exit codes: 0 all is measured and right, 1 something is left or wrong, 2 usage, 3 bad input, 4 no
CUDA device, torch or triton, 5 output.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    import torch
    import triton  # noqa: F401  # of all that follows
except ImportError as e:
    if __name__ != "__main__":
        raise
    sys.stderr.write(f"{e.name} is not installed: pip install 'fastrestore[kernels]'\n")
    sys.exit(4)

import kernel_report
from kernel_device import Cuda, Device
from kernel_measure import RESERVE_S, Budget, CutShortError, Data, Item, measure
from kernel_readme import write_readme
from kernel_roofs import LARGEST, SIZES, Roofs, all_arithmetic

from fastrestore.atomic import label, write_file
from fastrestore.environment import describe
from fastrestore.errors import FastRestoreError, InputError, OutputError
from fastrestore.kernels import launch
from fastrestore.kernels.operator import Case
from fastrestore.kernels.registry import OPERATORS

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "kernels"
SCHEMA = 1
BATCHES = (1, 8)
# What may change a number: the kernels with their tables, and how it is measured
CODE = (*sorted((HERE.parent / "kernels").glob("*.py")), HERE / "kernel_device.py")
CODE += (*sorted((HERE.parent / "kernels" / "tuned").glob("*.json")), HERE / "kernel_subjects.py")
_MARGIN_S = 60.0  # of a run, beside the longest compilation: else it might get nowhere

Say = Callable[[str], None]


def plan(only: Sequence[str] = ()) -> list[Item]:
    """Return every case in the order of measuring; `only` names operators, or `network`."""
    items = []
    for operator in OPERATORS.values():
        for options in operator.variants:
            sizes: dict[str, tuple[int, int]] = {**SIZES}
            if operator.name == "pull_push":
                sizes |= LARGEST
            for size, (height, width) in sizes.items():
                items.append(Item(operator, Case(1, height, width, options), size))
    for size, (height, width) in SIZES.items():
        for n in BATCHES:  # as the restorer pads it
            items.append(Item(None, Case(n, -(-height // 16) * 16, width), size))
    if unknown := set(only) - {item.name for item in items}:
        raise InputError(f"--only {min(unknown)}: no such operator; see kernels/registry.py")
    chosen = [item for item in items if not only or item.name in only]
    return sorted(chosen, key=lambda item: item.rank)


def code() -> str:
    """Return a digest of what may change a number."""
    found = hashlib.sha256()
    for path in CODE:
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


def read(path: Path, card: Mapping[str, Any]) -> Data:
    """Return the results of a card, empty where there are none.

    Raises:
        InputError: They are of another card or of other versions, or damaged.
    """
    if not path.exists():
        return {"schema": SCHEMA, "card": dict(card), "cases": {}}
    data = load(path)
    others = [k for k, v in card.items() if data["card"].get(k) != v]
    if others:
        raise InputError(
            f"{label(path)}: made with another {others[0]} ({data['card'].get(others[0])}); "
            "move it away, or give --fresh"
        )
    return data


def load(path: Path) -> Data:
    """Read results.

    Raises:
        InputError: The file is absent or damaged, or of another version.
    """
    try:
        data: Data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA or not data["card"]["name"]:
            raise ValueError(f"schema {data['schema']}, this version reads {SCHEMA}")
        if data["cases"]:
            Roofs(**data["roofs"])
        for entry in data["cases"].values():
            entry["fault"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        reason = f"{type(e).__name__}: {e}"
        raise InputError(f"{label(path)}: are no results ({reason}); move it away") from e
    return data


def run(
    device: Device, items: Sequence[Item], budget: Budget, folder: Path, fresh: bool, say: Say
) -> tuple[Data, int]:
    """Measure what is missing, case by case on disk; return all results and how many are left.

    Raises:
        InputError: Results of another machine are there.
        OutputError: Results cannot be written.
    """
    env, card, version = describe(), device.describe(), code()  # the load of before
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"{label(folder)}: cannot be made ({e.strerror}); choose --output") from e
    path = folder / f"{slug(card['name'])}.json"
    data: Data = {"schema": SCHEMA, "card": card, "cases": {}} if fresh else read(path, card)
    # What went wrong is tried again
    of_now = (e for e in data["cases"].items() if e[1].get("code") == version and not e[1]["fault"])
    data["cases"] = cases = dict(of_now)
    todo = [item for item in items if item.key not in cases]
    if "roofs" not in data:  # those of the first run, for all that follow
        measured, floor = device.roofs()
        data |= {"roofs": measured._asdict(), "floor_us": round(floor, 2)}
        say(f"{card['name']}: copy {measured.bandwidth:.0f} GB/s, {measured.tensor:.1f} TFLOPS")
    roofs = Roofs(**data["roofs"])
    data |= {"clocks": device.clocks(), "env": env}
    left = len(todo)
    for item in todo:
        if budget.left < 2 * RESERVE_S:
            break
        try:
            entry = measure(item, device, roofs, budget)
        except CutShortError:
            break
        cases[item.key] = {**entry, "code": version}
        left -= 1
        write_file(path, (json.dumps(data, indent=1) + "\n").encode())
        say(f"{item.key}: {_one_line(entry)}")
    return data, left


def _one_line(entry: Data) -> str:
    if entry["fault"]:
        return str(entry["fault"])
    times = {k: v.get("median", "-") for k, v in entry["device_us"].items()}
    return ", ".join(f"{k} {v}" for k, v in times.items()) + " us"


def slug(name: str) -> str:
    """Return a card's name as a file has it."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def write_report(data: Data, folder: Path) -> str:
    """Write table and plot beside the results; return the table."""
    text, stem = kernel_report.report(data), slug(data["card"]["name"])
    write_file(folder / f"{stem}.md", text.encode())
    write_file(folder / f"{stem}.png", kernel_report.plot(data))
    return text


def open_device() -> Device:
    """Return the card.

    Raises:
        InputError: Triton interprets.
    """
    if launch.INTERPRETED:
        raise InputError("TRITON_INTERPRET: is 1, but only real kernels have times; unset it")
    return Cuda()


def say(line: str) -> None:
    """Print progress."""
    print(line, file=sys.stderr, flush=True)


def choices() -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield the options of the command line."""
    yield ("--minutes",), {"type": float, "default": 9.0, "help": "stop after so many"}
    yield ("--only",), {"nargs": "+", "default": (), "metavar": "NAME", "help": "operators"}
    yield ("--compile-limit",), {"type": float, "default": 90.0, "metavar": "SECONDS"}
    yield ("--fresh",), {"action": "store_true", "help": "forget earlier results of this card"}
    yield ("--output",), {"type": Path, "default": RESULTS, "metavar": "DIR"}
    yield ("--arithmetic",), {"action": "store_true", "help": "print predicted times alone"}
    yield ("--readme",), {"action": "store_true", "help": "write the tables of the README"}
    yield ("--report",), {"type": Path, "metavar": "FILE", "help": "print results again"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    begin = time.monotonic()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for names, options in choices():
        parser.add_argument(*names, **options)
    a = parser.parse_args(arguments)
    try:
        if a.arithmetic:
            print(all_arithmetic())
            return 0
        if a.readme:
            write_readme()
            return 0
        if a.report:
            print(write_report(load(a.report), a.report.parent))
            return 0
        if not a.compile_limit + _MARGIN_S <= 60 * a.minutes < math.inf or a.compile_limit < 0:
            raise InputError(f"--minutes {a.minutes:g}: too short for --compile-limit; give more")
        items = plan(a.only)
        if not torch.cuda.is_available():
            say("bench_kernels: no CUDA device; --arithmetic prints predicted times")
            return 4
        budget = Budget(begin + 60 * a.minutes, a.compile_limit)
        data, left = run(open_device(), items, budget, a.output, a.fresh, say)
        if data["cases"]:
            print(write_report(data, a.output))
    except FastRestoreError as e:
        say(str(e))
        return e.exit_code
    wrong = [k for k, e in data["cases"].items() if e["fault"]]
    for key in wrong:
        say(f"{key}: {data['cases'][key]['fault']}")
    if left:
        say(f"{left} cases are left; the same command goes on")
    return 1 if left or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
