"""What was measured, as the report keeps it: one `Run` a line, all of them in a `Report`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from fastrestore.arrays import F64
from fastrestore.atomic import label
from fastrestore.bench.machine import line
from fastrestore.bench.stats import Percentiles, ratio_in_turns, ratio_of_reports
from fastrestore.bench.timing import Samples
from fastrestore.errors import InputError

SCHEMA = 2
UNSTABLE_CV = 0.2
FEW = 10  # samples below which percentiles say little

Level = Literal["engine", "host", "pipeline"]
Scenario = Literal["single-stream", "multi-stream", "offline"]
METRICS: dict[Scenario, str] = {  # what MLPerf's scenarios are judged by
    "single-stream": "p90",
    "multi-stream": "p99",
    "offline": "per_second",
}
WHO = ("backend", "model", "precision")
_PARTS = {"env": dict, "options": dict, "runs": list, "ratios": list, "quiet": dict}
_PARTS |= {"notes": list, "warnings": list}
_OF_A_RUN = ("items", "metric", "per_second", "device", "sha256", "power", "notes", "n")
_NUMBERS = re.compile(r"\[[-+.eE\d\s,]+\]")  # a list of them goes into one line


class Labels(NamedTuple):
    """What ran, for the report; two runs are compared when level, shape and these agree.

    Attributes:
        backend: What computed.
        model: Or the name of the method.
        precision: Of the convolutions.
        task: `fill` (a hole), `denoise` (the whole picture) or, of a pipeline, its clip.
        scenario: How pictures come.
        streams: Pictures that are restored at the same time.
    """

    backend: str
    model: str
    precision: str = "fp32"
    task: str = ""
    scenario: Scenario = "single-stream"
    streams: int = 1


@dataclass(frozen=True, slots=True)
class Run:
    """One measured line.

    Attributes:
        level: Never compared with another one.
        labels: What ran.
        shape: Of the input, `(N, H, W, 3)`, or a picture's `(H, W, 3)`.
        samples: Of every call; of a pipeline, from each frame to the next.
        items: Pictures in one call.
        per_second: Pictures a second where it is not `items` over p50 (see `rate`).
        device: Device time, in ms, by TensorRT's words; empty without a device.
        sha256: Of the model's file, and of the engine if there is one.
        power: Power and energy, one entry a rail; see `power.summary`.
        notes: What the reader must know of this line.
    """

    level: Level
    labels: Labels
    shape: tuple[int, ...]
    samples: Samples
    items: int = 1
    per_second: float | None = None
    device: Mapping[str, Percentiles] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    power: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()

    @property
    def rate(self) -> float | None:
        """Pictures a second: 1 / p50 of a single stream, else all pictures over all the time.

        None of a multi-stream run, whose pictures are not wanted as fast as they go.
        """
        if self.per_second is not None:
            return self.per_second
        ms = self.samples.wall_ms
        if self.labels.scenario == "multi-stream":
            return None
        if self.labels.scenario == "single-stream" and self.items == 1:
            return 1e3 / Percentiles.of(ms).p50
        return 1e3 * self.items * len(ms) / float(ms.sum())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "level": self.level,
            **self.labels._asdict(),
            "shape": list(self.shape),
            "items": self.items,
            "n": len(self.samples.wall_ms),
            "metric": METRICS[self.labels.scenario],
            "per_second": self.rate,
            "ms": asdict(Percentiles.of(self.samples.wall_ms)),
            "cpu_ms": asdict(Percentiles.of(self.samples.cpu_ms)),
            "device": {k: asdict(v) for k, v in self.device.items()},
            "sha256": dict(self.sha256),
            "power": [dict(p) for p in self.power],
            "notes": list(self.notes),
            "turns": list(self.samples.turns),
            "samples_ms": self.samples.wall_ms.tolist(),
            "cpu_samples_ms": self.samples.cpu_ms.tolist(),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """All runs of one measurement, and the machine they ran on.

    Attributes:
        env: Of `machine.describe`, taken before the runs: afterwards the load average is the
            measurement's own.
        options: The plan, so that it can be run again; see `plan.Plan`.
        runs: What was measured.
        quiet: What else the machine did meanwhile; see `quiet.Watch`.
        notes: What was left out and why.
        warnings: What makes the figures doubtful.
    """

    env: Mapping[str, Any]
    options: Mapping[str, Any]
    runs: Sequence[Run]
    quiet: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; `warnings` has those of the environment and the runs as well."""
        runs = [run.to_dict() for run in self.runs]
        report = {
            "schema": SCHEMA,
            "env": dict(self.env),
            "options": dict(self.options),
            "runs": runs,
            "ratios": ratios(runs),
            "quiet": dict(self.quiet),
            "notes": list(self.notes),
            "warnings": [*self.env.get("warnings", ()), *self.warnings, *_doubts(runs)],
        }
        return dict(_rounded(report))


def to_json(report: Mapping[str, Any]) -> str:
    """Return a report's text."""
    text = json.dumps(report, indent=1, allow_nan=False)
    return _NUMBERS.sub(lambda found: " ".join(found[0].split()), text) + "\n"


def read_report(path: str | Path) -> dict[str, Any]:
    """Read a report from a file.

    Raises:
        InputError: It is none, or of another version.
    """
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or e
        raise InputError(
            f"{label(path)}: not a report ({reason}); make one with `fastrestore bench --output`"
        ) from e
    return check_report(report, label(path))


def check_report(report: Any, name: str) -> dict[str, Any]:
    """Return a report that was read, if it is one.

    Raises:
        InputError: It is none, or of another version.
    """
    again = f"measure again with `fastrestore bench --output {name}`"
    if not isinstance(report, dict) or "schema" not in report:
        raise InputError(f"{name}: not a report of `fastrestore bench`; {again}")
    if report["schema"] != SCHEMA:
        raise InputError(
            f"{name}: has schema {report['schema']}, this version reads {SCHEMA}; {again}"
        )
    wrong = [k for k, kind in _PARTS.items() if not isinstance(report.get(k), kind)]
    try:
        if not wrong:
            line(report["env"]), dict(report["env"]["models"])
        for run in report["runs"] if not wrong else ():
            key(run)
            wrong += [name for name in _OF_A_RUN if name not in run]
            if sum(run["turns"]) != len(run["samples_ms"]) or not min(run["samples_ms"]) > 0:
                wrong.append("times")
            Percentiles(**run["ms"]), Percentiles(**run["cpu_ms"])
    except (KeyError, TypeError, ValueError) as e:
        wrong.append(f"{type(e).__name__}: {e}")
    if wrong:
        raise InputError(f"{name}: a damaged report, see {', '.join(wrong)}; {again}")
    return report


def key(run: Mapping[str, Any]) -> str:
    """Return what names a run among those of a report."""
    return " ".join((group(run), who(run)))


def group(run: Mapping[str, Any]) -> str:
    """Return what a run has in common with those that were measured beside it."""
    *batch, height, width, _ = run["shape"]
    words = [run["level"], f"{width}x{height}", run["task"]]
    words += [f"batch {n}" for n in batch if n > 1]
    if run["scenario"] != "single-stream" or run["streams"] > 1:
        words += [run["scenario"], f"streams {run['streams']}"]
    return " ".join(w for w in words if w)


def groups(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the runs by their group, in the order of the report."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        found.setdefault(group(run), []).append(run)
    return found


def who(run: Mapping[str, Any]) -> str:
    """Return what ran."""
    return " ".join(str(run[k]) for k in WHO if run[k])


def turns_of(run: Mapping[str, Any]) -> list[F64]:
    """Return the samples of a run, turn by turn."""
    ends = np.cumsum(run["turns"])[:-1]
    return list(np.split(np.asarray(run["samples_ms"], np.float64), ends))


def ratios(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compare each run with the first of its group, round by round."""
    rng = np.random.default_rng(0)
    first: dict[str, Mapping[str, Any]] = {}
    found = []
    for run in runs:
        base = first.setdefault(group(run), run)
        if base is run:
            continue
        in_turns = ratio_in_turns(turns_of(run), turns_of(base), rng)
        b, a = (np.asarray(r["samples_ms"], np.float64) for r in (run, base))
        ratio = in_turns or ratio_of_reports(b, a, rng)
        found.append(
            {
                "run": key(run),
                "over": key(base),
                "ratio": ratio.value,
                "low": ratio.low,
                "high": ratio.high,
                "paired": in_turns is not None,
                "cpu_ratio": run["cpu_ms"]["p50"] / (base["cpu_ms"]["p50"] or math.nan),
            }
        )
    return found


def _doubts(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    said = [
        f"{key(run)}: {run['n']} samples alone; take a larger --seconds"
        for run in runs
        if run["n"] < FEW
    ]
    unstable = [run for run in runs if run["n"] >= FEW and run["ms"]["cv"] > UNSTABLE_CV]
    if unstable:
        worst = max(unstable, key=lambda run: run["ms"]["cv"])
        said.append(
            f"{len(unstable)} of {len(runs)} lines are unstable (cv above {UNSTABLE_CV}), most of "
            f"all {key(worst)} with {worst['ms']['cv']:.2f}"
        )
    return said


def _rounded(value: Any) -> Any:
    """Round every number to 10 ns, if it is ms: the clock is not finer, and files stay small."""
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list | tuple) else value
