"""Power rails of a Jetson by `tegrastats`. Its lines are parsed as recorded; never run on a board.

    RAM 3051/7620MB ... GR3D_FREQ 0%@[305] tj@48.5C VDD_IN 4826mW/4826mW VDD_SOC 1453mW/1453mW

The first figure of a rail is that of the moment, the second the mean since the program started.
"""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fastrestore.probe import find

INTERVAL_MS = 100
# What feeds everything else, in this order; a board has one of these, or the parts below.
INPUTS = ("VDD_IN", "VIN", "POM_5V_IN", "VDD_5V_IN")
# Boards without such a rail (AGX Orin): what is fed from outside; the others are parts of these.
PARTS = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
TOTAL = " + ".join(PARTS)
_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]*)\s+(\d+)(mW)?/(\d+)(?:mW)?(?=\s|$)")
_TEMPERATURE = re.compile(r"\b([A-Za-z][A-Za-z0-9_]*)@(-?\d+(?:\.\d+)?)C\b")
_GPU = re.compile(r"\bGR3D_FREQ\s+(\d+)%(?:@\[?(\d+))?")


@dataclass(frozen=True, slots=True)
class Line:
    """What one line says.

    Attributes:
        watts: Power of each rail now.
        temperatures_c: Of each sensor that is there (one that is absent reads -256).
        gpu_percent: Load of the GPU; None if it is not told.
        gpu_mhz: Its clock; None if it is not told.
    """

    watts: Mapping[str, float] = field(default_factory=dict)
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    gpu_percent: float | None = None
    gpu_mhz: float | None = None


def parse(line: str) -> Line:
    """Read one line; what is not there stays empty."""
    gpu = _GPU.search(line)
    watts = {
        name: int(now) / 1e3
        for name, now, unit, _ in _RAIL.findall(line)
        if unit or name.startswith(("POM_", "VDD_"))  # the oldest write no unit
    }
    degrees = {name: float(c) for name, c in _TEMPERATURE.findall(line) if float(c) > -200}
    percent = None if gpu is None else float(gpu[1])
    return Line(watts, degrees, percent, float(gpu[2]) if gpu and gpu[2] else None)


def total(watts: Mapping[str, float]) -> tuple[str, float] | None:
    """Return the name and the power of what feeds the whole module; None if it is not told."""
    for name in INPUTS:
        if name in watts:
            return name, watts[name]
    if all(name in watts for name in PARTS):
        return TOTAL, sum(watts[name] for name in PARTS)
    return None


class Tegrastats:
    """Runs the program and keeps its last line."""

    name = "tegrastats"

    def __init__(self, program: str) -> None:
        """Start it.

        Raises:
            OSError: It cannot be started.
        """
        self._last = Line()
        self._process = subprocess.Popen(  # noqa: S603  # no shell; the system's own program
            [program, "--interval", str(INTERVAL_MS)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
        )
        lines = self._process.stdout or ()
        self._thread = threading.Thread(target=self._follow, args=(lines,), daemon=True)
        self._thread.start()

    @classmethod
    def here(cls) -> Tegrastats | None:
        """Return it running, None where there is no such program."""
        program = find("tegrastats")
        return None if program is None else cls(program)

    def _follow(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._last = parse(line)

    def read(self, _now_s: float) -> Mapping[str, float]:
        """See `power.Meter`."""
        return self._last.watts

    def total(self, watts: Mapping[str, float]) -> tuple[str, float] | None:
        """See `power.Meter`."""
        return total(watts)

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.wait()
        self._thread.join()
        if self._process.stdout is not None:
            self._process.stdout.close()
