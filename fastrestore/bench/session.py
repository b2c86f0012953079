"""Runs a plan: level by level, and at each point everything that is compared, in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any, TypeVar

from fastrestore.bench import machine
from fastrestore.bench.engine import Engine
from fastrestore.bench.host import Host
from fastrestore.bench.nvml import Nvml
from fastrestore.bench.pipeline import clip, fitting_frames, measure_clip, size_of
from fastrestore.bench.plan import Plan, pixels
from fastrestore.bench.power import PowerLog, meters
from fastrestore.bench.quiet import Watch, warnings
from fastrestore.bench.record import Report, Run, Scenario
from fastrestore.bench.rivals import Rivals
from fastrestore.bench.scene import scene
from fastrestore.bench.subject import Subject, measure
from fastrestore.bench.timing import Limits
from fastrestore.environment import has_cuda_device, usable_cores
from fastrestore.errors import FastRestoreError, ModelError

WARM_UP_S = 0.2
PATIENCE = 10  # times `seconds` that a slow subject may take
CPU = ("ort", "openvino")

Say = Callable[[str], None]
_Loaded = TypeVar("_Loaded", Engine, Host)


def run_plan(plan: Plan, say: Say = lambda _: None) -> dict[str, Any]:
    """Measure everything in a plan and return the report as JSON values.

    Args:
        plan: What is measured.
        say: Told what begins, one line each.

    Raises:
        FastRestoreError: A model, backend or rival that was asked for by name is not there, or
            nothing could be measured.
    """
    plan.check()
    say("looking at the machine")
    by_name = bool(plan.backends)
    backends, notes = usable(plan)
    plan = replace(plan, backends=backends)
    with ExitStack() as held:
        found = Nvml.here(plan.device)
        card = None if isinstance(found, str) else found
        if card is not None:
            held.callback(card.close)
        env = {**machine.describe(card, plan.models), "threads": plan.threads}
        gauges, absent = meters(plan.device)
        power = PowerLog(gauges)
        held.callback(power.close)
        if not gauges:
            notes.append(f"power: {', '.join(absent)}")
        power.start()
        session = _Session(plan, by_name, Watch(card=card), power, say)
        runs = session.runs()
        seen = session.watch.summary()
    notes += session.notes
    if plan.streams and set(plan.scenarios) == {"single-stream"}:
        notes.append("--streams: single-stream has one; add --scenario multi-stream or offline")
    if not runs:
        raise session.first_error or ModelError("bench: nothing to measure; see --level and --size")
    report = Report(env, session.plan.to_dict(), runs, seen, notes, warnings(seen))
    return report.to_dict()


def usable(plan: Plan) -> tuple[tuple[str, ...], list[str]]:
    """Return the backends that a plan names, else all that run here; and why others do not."""
    from fastrestore.backends.engine_choice import with_engines

    if plan.backends:
        return tuple(plan.backends), []
    names, notes = ["ort"], []
    if find_spec("openvino"):
        names.append("openvino")
    else:
        notes.append("openvino: not installed: pip install 'fastrestore[openvino]'")
    engines = with_engines(plan.models, plan.device)
    names += engines
    if not engines:
        notes.append(f"tensorrt: no engine: fastrestore build-engine {plan.models[0]}")
    has_device = has_cuda_device()
    if has_device and find_spec("torch") and find_spec("triton"):
        names.append("triton")
    elif has_device:
        notes.append("triton: not installed: pip install 'fastrestore[kernels]'")
    else:
        notes.append("triton: no CUDA device")
    return tuple(names), notes


class _Session:
    """One run of a plan."""

    def __init__(self, plan: Plan, by_name: bool, watch: Watch, power: PowerLog, say: Say) -> None:
        self.plan, self.watch, self._power, self._say = plan, watch, power, say
        self._by_name = by_name  # the user named the backends: each must be there
        self._limits = Limits(
            plan.seconds,
            plan.rounds,
            min(WARM_UP_S, plan.seconds),
            patience_s=PATIENCE * plan.seconds,
        )
        self._sources = [(m, b) for b in plan.backends for m in plan.models]
        self.notes: list[str] = []
        self.first_error: FastRestoreError | None = None

    def runs(self) -> list[Run]:
        """Measure everything."""
        levels = {"engine": self._engine, "host": self._host, "pipeline": self._pipeline}
        return [run for level in self.plan.levels for run in levels[level]()]

    def _engine(self) -> Iterator[Run]:
        plan = self.plan
        with ExitStack() as held:
            self._say("engine: loading")
            engines = self._opened(held, lambda m, b: Engine(m, b, plan.threads, plan.device))
            for size in plan.sizes:
                for batch in plan.batches:
                    title = f"engine {size}" + (f", batch {batch}" if batch > 1 else "")
                    make = [partial(e.subject, pixels(size), batch) for e in engines]
                    yield from self._measured(title, make)

    def _host(self) -> Iterator[Run]:
        plan = self.plan
        with ExitStack() as held:
            self._say("host: loading")
            rivals = Rivals(plan.rivals, plan.adapters, plan.threads, plan.rival_provider)
            held.callback(rivals.close)
            for scenario in plan.scenarios:
                yield from self._scenario(scenario, rivals)

    def _scenario(self, scenario: Scenario, rivals: Rivals) -> Iterator[Run]:
        plan, streams = self.plan, self.plan.streams_of(scenario)
        self._crowded(scenario, streams)
        if plan.rivals and scenario != "single-stream":
            self.notes.append(f"{scenario}: rivals run in single-stream alone")
        with ExitStack() as held:
            hosts = self._opened(held, lambda m, b: Host(m, b, plan.threads, plan.device, streams))
            for task in plan.tasks:
                for size in plan.sizes:
                    view = scene(task, *pixels(size), plan.hole)
                    make: list[Callable[[], Subject]] = [
                        partial(host.subject, view, scenario) for host in hosts
                    ]
                    if scenario == "single-stream":
                        make += rivals.subjects(view)
                    yield from self._measured(f"host {size} {task}, {scenario}", make)

    def _pipeline(self) -> Iterator[Run]:
        plan = self.plan
        self._say(f"pipeline: {plan.clip or f'made clip {plan.video_size}'}")
        height, width = pixels(plan.video_size) if plan.clip is None else size_of(plan.clip)
        with ExitStack() as held:
            hosts = self._opened(held, lambda m, b: Host(m, b, plan.threads, plan.device))
            frames = plan.frames or fitting_frames(hosts, height, width, plan.seconds)
            self.plan = replace(plan, frames=frames)
            made = held.enter_context(clip(height, width, frames, plan.clip))
            yield from measure_clip(hosts, made, watch=self.watch, power=self._power)

    def _opened(self, held: ExitStack, load: Callable[[str, str], _Loaded]) -> list[_Loaded]:
        """Load every model on every backend; a backend that nobody named may fail, in words."""
        found = []
        for model, backend in self._sources:
            try:
                found.append(load(model, backend))
            except FastRestoreError as e:
                if self._by_name or backend == "ort":
                    raise
                self._left_out(e)
                continue
            held.callback(found[-1].close)
        return found

    def _left_out(self, e: FastRestoreError) -> None:
        self.first_error = self.first_error or e
        if f"left out: {e}" not in self.notes:
            self.notes.append(f"left out: {e}")

    def _measured(self, title: str, makers: Sequence[Callable[[], Subject]]) -> list[Run]:
        """Prepare and measure; what does not go at this point alone is left out, in words."""
        subjects = []
        for make in makers:
            try:
                subjects.append(make())
            except FastRestoreError as e:
                self._left_out(e)
        if not subjects:
            return []
        about = len(subjects) * (self.plan.seconds + 0.3)
        self._say(f"{title}: {len(subjects)} in turn, about {about:.0f} s")
        return measure(subjects, self._limits, watch=self.watch, power=self._power)

    def _crowded(self, scenario: str, streams: int) -> None:
        threads = self.plan.threads or usable_cores()
        if streams > threads and any(b in CPU for b in self.plan.backends):
            self.notes.append(f"{scenario}: {streams} streams share {threads} CPU threads")
