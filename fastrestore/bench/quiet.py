"""What else the machine did while something was measured, and what that is worth a warning."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastrestore.bench.nvml import Nvml
from fastrestore.environment import PROC, SYS, clocks_mhz, temperatures_c
from fastrestore.probe import read

OTHERS = 0.1  # share of our cores that other processes may use
STEAL = 0.02  # share that the host of a virtual machine may take
CLOCK_FALL = 0.1  # by which the fastest core may fall behind the fastest clock that was seen
_FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


@dataclass(frozen=True, slots=True)
class Ticks:
    """Seconds since the start, over the cores that this process may use."""

    busy: float
    stolen: float
    all: float


def ticks(proc: Path = PROC, cores: frozenset[int] | None = None) -> Ticks | None:
    """Read what the cores did; None where the system does not tell.

    Args:
        proc: Where the kernel's process files are.
        cores: Numbers; None = those that this process may use.
    """
    if cores is None:
        has = hasattr(os, "sched_getaffinity")
        cores = frozenset(os.sched_getaffinity(0)) if has else frozenset(range(os.cpu_count() or 1))
    hertz = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
    busy = stolen = total = 0
    for line in read(proc / "stat").splitlines():
        name, *rest = line.split() or [""]
        if not name.startswith("cpu") or not name[3:].isdigit() or int(name[3:]) not in cores:
            continue
        spent = dict(zip(_FIELDS, (int(v) for v in rest), strict=False))
        whole = sum(spent.values())
        idle = spent.get("idle", 0) + spent.get("iowait", 0)
        stolen += spent.get("steal", 0)
        busy += whole - idle - spent.get("steal", 0)
        total += whole
    return Ticks(busy / hertz, stolen / hertz, total / hertz) if total else None


class Watch:
    """Looks at the machine from turn to turn. Nothing of it runs while something is timed."""

    def __init__(
        self,
        proc: Path = PROC,
        sys_: Path = SYS,
        card: Nvml | None = None,
        own: Callable[[], float] = lambda: sum(os.times()[:4]),
    ) -> None:
        """Begin.

        Args:
            proc: Where the kernel's process files are.
            sys_: Where its device files are.
            card: The GPU, if there is one.
            own: Processor seconds of this process and its children.
        """
        self._proc, self._sys, self._card, self._own = proc, sys_, card, own
        self._clocks: list[float] = []
        self._card_clocks: list[int] = []
        self._degrees: list[float] = []
        self._card_throttles: set[str] = set()
        self._start = self._last = self._state()
        self._worst = 0.0
        self.look()

    def look(self) -> None:
        """Look at clocks, temperatures and the cores; some milliseconds."""
        now = clocks_mhz(self._sys, self._proc)["now"]
        self._clocks += now[1:] if now else []
        self._degrees += [max(found)] if (found := temperatures_c(self._sys).values()) else []
        if self._card is not None:
            mhz = self._card.clock_mhz()
            self._card_clocks += [] if mhz is None else [mhz]
            self._card_throttles |= set(self._card.throttles())
        before, self._last = self._last, self._state()
        # a tick is 10 ms: over less than this a share would be made of a few of them
        if self._last["time"] - before["time"] >= 0.25:
            self._worst = max(self._worst, _shares(before, self._last)[0] or 0.0)
        else:
            self._last = before

    def summary(self) -> dict[str, Any]:
        """Return what was seen so far."""
        start, now = self._start, self._state()
        others, stolen = _shares(start, now)
        return {
            "seconds": now["time"] - start["time"],
            "others_cpu": others,
            "others_cpu_worst": None if others is None else max(self._worst, others),
            "stolen_cpu": stolen,
            "clock_mhz": [min(self._clocks), max(self._clocks)] if self._clocks else None,
            "gpu_clock_mhz": (
                [min(self._card_clocks), max(self._card_clocks)] if self._card_clocks else None
            ),
            "temperature_c": [self._degrees[0], max(self._degrees)] if self._degrees else None,
            "throttled": now["throttled"] - start["throttled"],
            "gpu_throttled_by": sorted(self._card_throttles),
            "swapped_pages": now["swapped"] - start["swapped"],
        }

    def _state(self) -> dict[str, Any]:
        cpus = self._sys / "devices/system/cpu"
        files = cpus.glob("cpu[0-9]*/thermal_throttle/*_throttle_count")
        swapped = 0
        for line in read(self._proc / "vmstat").splitlines():
            name, _, value = line.partition(" ")
            swapped += int(value) if name in ("pswpin", "pswpout") and value.isdigit() else 0
        counts = [read(path).strip() for path in files]
        return {
            "time": time.monotonic(),
            "ticks": ticks(self._proc),
            "own": self._own(),
            "throttled": sum(int(c) for c in counts if c.isdigit()),
            "swapped": swapped,
        }


def _shares(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return which share of our cores other processes and the host took between two states."""
    first, last = a["ticks"], b["ticks"]
    if first is None or last is None or last.all <= first.all:
        return None, None
    whole = last.all - first.all
    others = (last.busy - first.busy) - (b["own"] - a["own"])
    return max(0.0, others / whole), (last.stolen - first.stolen) / whole


def warnings(seen: Mapping[str, Any]) -> list[str]:
    """Say what makes figures doubtful.

    Args:
        seen: Of `Watch.summary`.
    """
    said = []
    if (seen["others_cpu"] or 0) > OTHERS:
        said.append(
            f"other processes used {seen['others_cpu']:.0%} of our cores meanwhile "
            f"(at worst {seen['others_cpu_worst']:.0%}): wall times are not to be trusted"
        )
    if (seen["stolen_cpu"] or 0) > STEAL:
        said.append(f"the host of this virtual machine took {seen['stolen_cpu']:.0%} of our cores")
    for name, key in (("processor's", "clock_mhz"), ("GPU's", "gpu_clock_mhz")):
        if seen[key] and seen[key][0] < (1 - CLOCK_FALL) * seen[key][1]:
            low, high = seen[key]
            said.append(
                f"the {name} clock fell from {high:.0f} to {low:.0f} MHz; lock the clocks, or cool"
            )
    if seen["throttled"]:
        said.append(f"the processor was throttled {seen['throttled']} times: it is too hot")
    if seen["gpu_throttled_by"]:
        said.append(f"the GPU was slowed down: {', '.join(seen['gpu_throttled_by'])}")
    if seen["swapped_pages"]:
        said.append(f"{seen['swapped_pages']} pages were swapped: times contain disk access")
    return said
