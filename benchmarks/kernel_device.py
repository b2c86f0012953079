"""The card that is measured: CUDA graphs, events, a flushed cache, its own roofs.

`Device` is what the benchmark asks of it; tests put something else in its place.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
import triton
from kernel_roofs import Roofs

LEAST, MOST = 100, 1000  # samples of a subject
_DROPPED = 3  # first rounds: clocks and caches settle
_MATMUL = 8192

Run = Callable[[], object]
Samples = dict[str, list[float]]


class OutOfTime(BaseException):
    """A time limit is over. No Exception: the compiler goes on after those."""


class Device(Protocol):
    """Where it is measured."""

    torch_device: torch.device

    def describe(self) -> dict[str, Any]:
        """Tell what stays the same from call to call: the card, the driver, the versions."""

    def clocks(self) -> dict[str, str] | None:
        """Tell clocks, power and temperature of this moment; None where the driver does not."""

    def roofs(self) -> tuple[Roofs, float]:
        """Measure the roofs, and the least time that a replay takes, in us."""

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function as torch.compile makes it for one shape."""

    def capture(self, run: Run) -> Run:
        """Run it some times, then return what repeats it without the host."""

    def time(self, replays: Mapping[str, Run], seconds: float, least: int = LEAST) -> Samples:
        """Time replays in turn, each from memory: the cache is flushed before. In us."""

    def time_host(self, calls: Mapping[str, Run], seconds: float) -> Samples:
        """Time calls in turn by the clock of the host. In us."""

    def free(self) -> None:
        """Give memory back that nothing uses."""


class Cuda:
    """A CUDA device."""

    def __init__(self) -> None:
        self.torch_device = torch.device("cuda", torch.cuda.current_device())
        card = torch.cuda.get_device_properties(self.torch_device)
        self._card = card
        cache = getattr(card, "L2_cache_size", None) or 64 << 20
        size = max(64 << 20, 4 * cache)
        self._flushed = torch.empty(size, dtype=torch.uint8, device=self.torch_device)
        self._stream = torch.cuda.Stream(self.torch_device)

    def describe(self) -> dict[str, Any]:
        """See `Device`."""
        card = self._card
        return {
            "name": card.name,
            "capability": f"{card.major}.{card.minor}",
            "multiprocessors": card.multi_processor_count,
            "memory_mb": card.total_memory >> 20,
            "l2_mb": self._l2_mb(),
            "driver": (self._ask("driver_version") or {}).get("driver_version"),
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }

    def _l2_mb(self) -> float | None:
        size = getattr(self._card, "L2_cache_size", None)
        return round(size / 2**20, 1) if size else None

    def clocks(self) -> dict[str, str] | None:
        """See `Device`."""
        return self._ask(
            "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit", "temperature.gpu"
        )

    def _ask(self, *questions: str) -> dict[str, str] | None:
        """Ask the driver's program; boards without it tell nothing."""
        command = ["nvidia-smi", f"--query-gpu={','.join(questions)}", "--format=csv,noheader"]
        if uuid := getattr(self._card, "uuid", None):
            command += ["-i", f"GPU-{str(uuid).removeprefix('GPU-')}"]
        try:
            said = subprocess.run(  # noqa: S603
                command, capture_output=True, text=True, check=True, timeout=20
            ).stdout
        except (OSError, subprocess.SubprocessError):
            return None
        lines = said.strip().splitlines() or [""]
        return dict(zip(questions, (x.strip() for x in lines[0].split(",")), strict=False))

    def roofs(self) -> tuple[Roofs, float]:
        """See `Device`. Copy of 256 MiB or more, cuBLAS in float16 and in float32."""
        room = torch.cuda.mem_get_info(self.torch_device)[0]
        size = (1 << 30) if room > 8 << 30 else (256 << 20)
        copy = self._copy(size)
        side = _MATMUL // 2
        one = torch.zeros(1, device=self.torch_device)
        floor = self._median("floor", lambda: one.add_(1))
        return Roofs(
            self._card.name,
            2 * size / copy / 1e3,
            2 * _MATMUL**3 / self._matmul(_MATMUL, torch.float16) / 1e6,
            2 * side**3 / self._matmul(side, torch.float32) / 1e6,
        ), floor

    def _copy(self, size: int) -> float:
        source = torch.zeros(size, dtype=torch.uint8, device=self.torch_device)
        target = torch.empty_like(source)
        return self._median("copy", lambda: target.copy_(source))

    def _matmul(self, side: int, dtype: torch.dtype) -> float:
        a, b = (torch.randn(side, side, device=self.torch_device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        return self._median("matmul", lambda: torch.mm(a, b, out=out))

    def _median(self, name: str, run: Run) -> float:
        samples = self.time({name: self.capture(run)}, 1.0, 20)[name]
        self.free()
        return float(np.median(samples))

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """See `Device`.

        The mode `max-autotune` is this one and CUDA graphs of torch's own, which copy the inputs;
        here the graph is captured as those of the others are.
        """
        torch.compiler.reset()  # a second shape would be compiled for any shape
        compiled: Callable[..., Any] = torch.compile(
            function, mode="max-autotune-no-cudagraphs", dynamic=False
        )
        return compiled

    def capture(self, run: Run) -> Run:
        """See `Device`."""
        torch.cuda.synchronize(self.torch_device)  # the inputs come from another stream
        with torch.cuda.stream(self._stream):
            for _ in range(3):
                run()
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream):
                results = run()

        def replay() -> object:
            graph.replay()
            return results

        return replay

    def time(self, replays: Mapping[str, Run], seconds: float, least: int = LEAST) -> Samples:
        """See `Device`. While the cache is flushed, the host gets ahead of the device."""
        samples: Samples = {name: [] for name in replays}
        order = list(replays)
        until = time.monotonic() + seconds
        rounds = -_DROPPED
        with torch.cuda.stream(self._stream):
            while rounds < MOST and (rounds < least or time.monotonic() < until):
                order = [*order[1:], order[0]]
                events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in order]
                for name, (start, end) in zip(order, events, strict=True):
                    self._flushed.zero_()
                    start.record()
                    replays[name]()
                    end.record()
                self._stream.synchronize()
                rounds += 1
                if rounds > 0:
                    for name, (start, end) in zip(order, events, strict=True):
                        samples[name].append(start.elapsed_time(end) * 1e3)
        return samples

    def time_host(self, calls: Mapping[str, Run], seconds: float) -> Samples:
        """See `Device`."""
        samples: Samples = {name: [] for name in calls}
        order = list(calls)
        until = time.monotonic() + seconds
        rounds = -_DROPPED
        while rounds < MOST and (rounds < LEAST // 2 or time.monotonic() < until):
            order = [*order[1:], order[0]]
            rounds += 1
            for name in order:
                start = time.perf_counter()
                calls[name]()
                if rounds > 0:
                    samples[name].append((time.perf_counter() - start) * 1e6)
        return samples

    def free(self) -> None:
        """See `Device`."""
        torch.cuda.empty_cache()


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Stop what runs after this many seconds.

    Raises:
        OutOfTime: They are over.
    """

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    # Again and again, in case a clean-up swallows the first one
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), 5.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
