"""One case: checked at its very size, then timed beside its rivals."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kernel_device import Device, OutOfTime, Run, limit
from kernel_network import network_contest
from kernel_report import summarise
from kernel_roofs import Roofs, on_tensor_cores, predict_network_us, traffic, variant
from kernel_subjects import (
    Contest,
    Subject,
    check,
    fastest,
    is_green,
    operator_contest,
    poisoned,
)

from fastrestore.errors import InputError
from fastrestore.kernels.operator import Case, Operator

RESERVE_S = 10.0  # of a run, for what is not compiling

Data = dict[str, Any]


class Item(NamedTuple):
    """One case to be measured; `operator` None = the whole network."""

    operator: Operator | None
    case: Case
    size: str

    @property
    def name(self) -> str:
        """Return the operator's name, or `network`."""
        return self.operator.name if self.operator else "network"

    @property
    def key(self) -> str:
        """Return its name in the results."""
        return " ".join(filter(None, [self.name, self.size, str(self.case)]))

    @property
    def rank(self) -> tuple[int, int]:
        """Return when it is measured: what the targets ask for first, then by size."""
        o = self.case.options
        wanted = {
            "pack": self.size == "1080p",
            "unpack": self.size == "1080p",
            "pull_push": self.size == "4K",
            "edge_loss": self.size == "1080p",
            "residual_block": self.size == "1080p" and o.get("channels") in (32, 64),
            "network": self.case.n == 1 and self.size != "720p",
        }
        return not wanted.get(self.name), -self.case.height


@dataclass
class Budget:
    """How long this run may take.

    Attributes:
        until: By the monotonic clock.
        compile_s: Most for one compilation.
        sample_s: Of timing a case.
    """

    until: float
    compile_s: float = 90.0
    sample_s: float = 1.0
    clock: Callable[[], float] = field(default=time.monotonic)

    @property
    def left(self) -> float:
        """Return the seconds that are left."""
        return self.until - self.clock()


class CutShortError(Exception):
    """The run is over: a case was cut short and is not kept."""


def measure(item: Item, device: Device, roofs: Roofs, budget: Budget) -> Data:
    """Check one case and time it.

    Returns:
        What it is, `predicted_us`, `check` (error and what is allowed, result by result), `fault`
        (empty, or why nothing was timed), `device_us` and `host_us`: summary or fault by name.

    Raises:
        CutShortError: A compilation was cut short by the end of the run.
    """
    case = item.case
    entry: Data = {
        "kind": "operator" if item.operator else "network",
        "name": item.name,
        "variant": variant(case.options),
        "options": dict(case.options),
        "size": item.size,
        **{"n": case.n, "height": case.height, "width": case.width},
        "predicted_us": _predict(item, roofs),
        **{"check": [], "fault": "", "device_us": {}, "host_us": {}},
    }
    if item.operator:
        entry["least"] = traffic(item.operator, case)._asdict()
    contest = None
    try:
        with fastest():
            contest = _contest(item, device)
            _compete(entry, contest, device, budget)
    except (OutOfTime, CutShortError):
        raise
    except Exception as e:  # out of memory, or a kernel does not fit: that is a result, too
        entry["fault"] = _reason(e)
    finally:
        if contest is not None:
            contest.close()
        del contest
        device.free()
    return entry


def _predict(item: Item, roofs: Roofs) -> dict[str, float]:
    case = item.case
    if item.operator:
        tensor = on_tensor_cores(item.operator)
        return {"kernel": round(roofs.predict_us(traffic(item.operator, case), tensor), 3)}
    return {
        blocks: round(predict_network_us(roofs, case.n, case.height, case.width, fused), 1)
        for blocks, fused in (("kernel", True), ("native", False))
    }


def _contest(item: Item, device: Device) -> Contest:
    if item.operator:
        return operator_contest(item.operator, item.case, device)
    return network_contest(item.case.n, item.case.height, item.case.width, device)


def _compete(entry: Data, contest: Contest, device: Device, budget: Budget) -> None:
    """Fill in checks and times."""
    replays: dict[str, Run] = {}
    for name, subject in contest.ours.items():
        compute = subject.make()
        with poisoned():
            rows = check(compute(), contest.goals)
        if is_green(rows):
            replays[name] = device.capture(compute)
            rows += check(replays[name](), contest.goals)
        entry["check"] += rows
        if not is_green(rows):
            worst = max(rows, key=lambda row: row["error"] / row["allowed"])
            entry["fault"] = f"{name}: wrong by {worst['error']:.3g}"
            return
    for name, subject in contest.rivals.items():
        try:
            replays[name] = _admit(subject, contest, device, budget)
        except CutShortError:
            raise
        except Exception as e:  # whatever a compiler raises
            entry["device_us"][name] = {"fault": _reason(e)}
    for name, samples in device.time(replays, budget.sample_s).items():
        entry["device_us"][name] = summarise(samples)
    if contest.host is not None:
        calls = contest.host(replays)
        for name, samples in device.time_host(calls, budget.sample_s).items():
            entry["host_us"][name] = summarise(samples)


def _admit(subject: Subject, contest: Contest, device: Device, budget: Budget) -> Run:
    """Return the replay of a rival that is right.

    Raises:
        InputError: It is wrong, or does not compile in time.
        CutShortError: The run ended first.
    """
    seconds = min(budget.compile_s, budget.left - RESERVE_S)
    try:
        with limit(seconds) if subject.compiled else nullcontext():
            replay = device.capture(subject.make())
            found = replay()
    except OutOfTime:
        if seconds < budget.compile_s:
            raise CutShortError from None
        raise InputError(f"not compiled in {budget.compile_s:.0f} s") from None
    rows = check(found, contest.goals, subject.slack)
    if not is_green(rows):
        errors = ", ".join(f"{row['error']:.3g}" for row in rows)
        raise InputError(f"computes something else (errors {errors})")
    return replay


def _reason(e: BaseException) -> str:
    """Return one line for a table."""
    text = " ".join(str(e).split()).replace("|", "/")[:160]
    return text if isinstance(e, InputError) else f"{type(e).__name__}: {text}"
