"""One engine from start to end: look whether it is there, build, verify, choose, write.

The old engine stays until the new one is verified. Two processes that build the same engine: one
builds, the other waits and takes the result.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from onnx import ModelProto

from fastrestore import jetson
from fastrestore._version import __version__
from fastrestore.atomic import label
from fastrestore.backends.ort import OrtBackend
from fastrestore.engine_cache import build_lock, engine_path, key
from fastrestore.engine_file import (
    EngineRecord,
    Expected,
    Verification,
    check_engine,
    private_folder,
    write_engine,
)
from fastrestore.engine_fit import asked_level, differences, lowered, shape_text
from fastrestore.engine_record import Precision, system
from fastrestore.errors import EngineError, ModelError, need
from fastrestore.export import gate
from fastrestore.export.build_host import Host
from fastrestore.export.builder import Settings, Size, build, flag_names, profile_of
from fastrestore.export.candidates import AUTO, Candidate, Tried, choose
from fastrestore.export.engine_output import refuse_folder
from fastrestore.export.forms import Source, is_overflow
from fastrestore.export.precision import inline, to_fp16
from fastrestore.export.progress import Progress, open_display
from fastrestore.export.quantize import Loss
from fastrestore.export.toolkit import PORTABLE, Toolkit
from fastrestore.locking import lock

PluginChoice = Literal["auto", "on", "off"]
CURRENT = "current"  # the compute capability of the device at hand
INSTEAD = f"{AUTO}bf16 instead of fp16 and int8"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What is to be built.

    Attributes:
        source: The model.
        toolkit: What builds.
        host: Where.
        sizes: Smallest, best and largest; all the same = static.
        precision: One, or `auto` = the fastest within the gates.
        plugins: Our kernels inside the engine.
        settings: The rest, without workspace.
        workspace_mb: See `Host.workspace_bytes`.
        output: The file; None = the cache.
        rebuild: Build even if it is there.
        quiet: No progress.
    """

    source: Source
    toolkit: Toolkit
    host: Host
    sizes: tuple[Size, Size, Size]
    precision: Precision | Literal["auto"] = "auto"
    plugins: PluginChoice = "off"
    settings: Settings = field(default_factory=Settings)
    workspace_mb: int | None = None
    output: Path | None = None
    rebuild: bool = False
    quiet: bool = False


class Made(NamedTuple):
    """An engine: where it lies, its sidecar, and whether it was there already."""

    path: Path
    record: EngineRecord
    is_reused: bool


class Plan(NamedTuple):
    """One candidate: its sidecar so far, and the graph with plugin nodes if it has such."""

    candidate: Candidate
    record: EngineRecord
    prepared: Any | None  # fastrestore.export.plugins.Prepared


class Result(NamedTuple):
    """A candidate that was built: the engine, its sidecar, and how it did."""

    plan: Plan
    data: bytes
    record: EngineRecord
    tried: Tried


def make(request: Request, say: Say) -> Made:
    """Build an engine, unless it is there already.

    Args:
        request: What.
        say: Takes lines for the user.

    Raises:
        EngineError: It cannot be built, or no candidate passes its gates; nothing is written.
        InputError: See `Source.form`.
        ModelError: FP16 cannot hold the model.
        OutputError: It cannot be written.
        KeyboardInterrupt: Cancelled; nothing is written.
    """
    plans, notes = _plans(request)
    path = request.output or engine_path(plans[0].record)
    if not request.rebuild:  # also from a folder that cannot be written
        there = _existing(request, plans)
        if there is not None:
            return there
    private_folder(path.parent)  # before the lock's file, whose folder would be anybody's to read
    refuse_folder(path.parent, say)
    waited: list[bool] = []

    def wait() -> None:
        say(f"{label(path.name)}: another process builds it; waiting")
        waited.append(True)

    with lock(build_lock(path), wait):
        if waited or not request.rebuild:
            there = _existing(request, plans)
            if there is not None:
                return there
        results = _try_all(request, plans, notes, say)
        kept, reasons = _choose(request, results, notes)
        target = request.output or engine_path(kept.plan.record)
        record = replace(kept.record, reasons=reasons)
        return Made(target, write_engine(target, kept.data, record), is_reused=False)


def _plans(request: Request) -> tuple[list[Plan], list[str]]:
    """Return what to build, and why, a line each."""
    source, notes = request.source, list[str]()
    first: list[Precision] = [request.precision] if request.precision != "auto" else []
    if not first and source.is_int8:
        first = ["int8"]
        notes.append(f"{AUTO}int8: the file is INT8 already")
    elif not first:
        first = ["fp16"]
        probe = _record(request, Candidate("fp16"), None)
        if not _can_run(request, probe):
            notes.append(f"{AUTO}fp16: nothing can be measured here, {_unverified(request, probe)}")
        elif source.no_int8:
            notes.append(f"{AUTO}int8: not tried, {source.no_int8}")
        else:
            first.append("int8")
    plans = []
    for precision in first:
        plain = Plan(Candidate(precision), _record(request, Candidate(precision), None), None)
        more = _with_plugins(request, plain, notes) if request.plugins != "off" else None
        plans += [plain] if more is None else [more] if request.plugins == "on" else [plain, more]
    return plans, notes


def _with_plugins(request: Request, plain: Plan, notes: list[str]) -> Plan | None:
    """Return the same candidate with our kernels, or None with a note why not.

    Raises:
        EngineError: They were asked for and cannot be used.
    """
    kit, device = request.toolkit, request.host.device
    plugins = need("fastrestore.export.plugins", "tensorrt")
    reason = plugins.unavailable(kit.product, kit.trt, device.sm if device else None)
    if reason is None and plain.candidate.precision != "fp16":
        reason = f"plugins: not in {plain.candidate.precision}, the kernels are FP16"
    if reason is None and request.plugins == "auto" and not _can_run(request, plain.record):
        reason = "plugins: not tried, nothing can be measured here"
    prepared = None if reason else plugins.prepare(to_fp16(request.source.model))
    if prepared is not None and not prepared.wanted:
        reason = f"plugins: none fits ({'; '.join(prepared.inlined) or 'no such node'})"
    if reason is None:
        candidate = Candidate(plain.candidate.precision, True)
        return Plan(candidate, _record(request, candidate, prepared), prepared)
    if request.plugins == "on" and (
        request.precision != "auto" or plain.candidate.precision == "fp16"
    ):
        raise EngineError(f"{reason}; leave --plugins off")
    notes.append(reason)
    return None


def _record(request: Request, candidate: Candidate, prepared: Any | None) -> EngineRecord:
    """Return the sidecar as far as it is known before the build: all that is in the key."""
    kit, settings = request.toolkit, request.settings
    os, arch = ("windows", "x86_64") if settings.windows else system()
    is_tuned = not kit.is_portable or CURRENT in settings.capabilities
    source = request.source
    is_made_int8 = candidate.precision == "int8" and not source.is_int8
    return EngineRecord(
        product=kit.product,
        product_version=kit.version,
        os=os,
        arch=arch,
        model=source.record,
        precision=candidate.precision,
        profile=profile_of(source.model, *request.sizes),
        opt_level=settings.opt_level,
        build_seconds=0.0,
        code_version=__version__,
        device=request.host.device if is_tuned else None,
        compute_capabilities=() if is_tuned else settings.capabilities or PORTABLE,
        plugins={} if prepared is None else prepared.records,
        workspace_mb=request.workspace_mb,
        int8_sha256=source.int8_sha256 if is_made_int8 else None,
        calibration=source.calibration if is_made_int8 else None,
        flags=flag_names(prepared is not None),
        jetpack=f"L4T {release}" if (release := jetson.release()) else None,
    )


def _expected(request: Request) -> Expected:
    kit = request.toolkit
    return Expected(kit.product, kit.version, request.host.device, index=request.host.index)


def _can_run(request: Request, record: EngineRecord) -> bool:
    """Tell whether the engine could be loaded on this machine."""
    is_here = request.host.device is not None
    return is_here and not any(differences(record, _expected(request)))


def _unverified(request: Request, record: EngineRecord) -> str:
    """Say why an engine is not verified here."""
    if request.host.device is None:
        return f"no device here ({request.host.why})"
    return f"it {next(differences(record, _expected(request)))}"


def _existing(request: Request, plans: Sequence[Plan]) -> Made | None:
    """Return an engine that was built before and is what would be built now."""
    compared = [f"{AUTO}{p.candidate} " for p in plans] if len(plans) > 1 else []
    lookups = [(p, compared) for p in plans] + [(p, [INSTEAD]) for p in _instead(request)]
    for plan, needed in lookups:
        path = request.output or engine_path(plan.record)
        try:
            record = check_engine(path, Expected(os=None, arch=None)).record
        except EngineError:  # absent, or what must be built anew
            continue
        if record is None:
            continue
        same = replace(record, opt_level=asked_level(record))
        is_checked = record.verification is not None or not _can_run(request, record)
        is_told = all(any(r.startswith(n) for r in record.reasons) for n in needed)
        if key(same) == key(plan.record) and is_checked and is_told:
            return Made(path, record, is_reused=True)
    return None


def _instead(request: Request) -> list[Plan]:
    """Return what `auto` builds where FP16 cannot hold the model."""
    if request.precision != "auto" or request.source.is_int8:
        return []
    return [Plan(Candidate("bf16"), _record(request, Candidate("bf16"), None), None)]


def _try_all(
    request: Request, plans: Sequence[Plan], notes: list[str], say: Say
) -> list[Result | Tried]:
    """Build and verify every candidate; where there are several, one that fails is only noted."""
    found: list[Result | Tried] = []
    for plan in _held_by_half(request, plans, notes):
        try:
            result = _try_one(request, plan, say)
        except EngineError as e:
            if len(plans) == 1:
                raise
            found.append(Tried(plan.candidate, fault=str(e)))
            say(f"{plan.candidate}: {e}")
            continue
        found.append(result)
        if result.tried.latency_ms:
            say(f"{plan.candidate}: {result.tried.latency_ms:.3f} ms on {request.host.name}")
    return found


def _held_by_half(request: Request, plans: Sequence[Plan], notes: list[str]) -> list[Plan]:
    """Replace FP16 and INT8, whose rest is FP16, by BF16 where `auto` finds that FP16 overflows."""
    if request.precision != "auto" or request.source.is_int8:
        return list(plans)
    try:
        request.source.check_half()
    except ModelError as e:
        if not is_overflow(e):
            raise
        notes.append(f"{INSTEAD}: {e}")
        return _instead(request)
    return list(plans)


def _try_one(request: Request, plan: Plan, say: Say) -> Result:
    """Build one candidate, and verify it if it can run here.

    Raises:
        EngineError: It cannot be built, or the gate refuses it.
    """
    best = shape_text(request.sizes[1])
    title = f"{request.source.spec.name} {plan.candidate} {best}"
    settings = replace(
        request.settings,
        workspace_bytes=request.host.workspace_bytes(request.workspace_mb, say),
        plugins=plan.prepared.wanted if plan.prepared is not None else (),
    )
    model = _graph(request, plan)
    with open_display(title, say, request.quiet) as display:
        watch = Progress(display)
        try:
            built = build(
                request.toolkit, model, plan.record.profile, settings, watch, request.host.active
            )
        except EngineError as e:
            raise EngineError(f"{title}: {e}") from e
    for line in built.heard:
        say(f"{title}: {line}")
    record = replace(
        plan.record,
        opt_level=built.opt_level,
        build_seconds=round(built.seconds, 3),
        driver=jetson.driver_version(),
        power_mode=str(mode.number) if (mode := jetson.power_mode()) else None,
    )
    if not _can_run(request, record):
        return Result(plan, built.data, record, Tried(plan.candidate))
    verification, loss = _verify(request, title, record, built.data)
    tried = Tried(plan.candidate, verification.mean_latency_ms, loss)
    return Result(plan, built.data, replace(record, verification=verification), tried)


def _graph(request: Request, plan: Plan) -> ModelProto:
    """Return the graph for the parser; plugins are registered first."""
    form = request.source.form(plan.candidate.precision)
    if plan.prepared is None:
        return inline(form)
    plugins = need("fastrestore.export.plugins", "tensorrt")
    plugins.register(plugins.load(), plan.prepared.wanted)
    model: ModelProto = plan.prepared.model
    return model


def _verify(
    request: Request, title: str, record: EngineRecord, data: bytes
) -> tuple[Verification, Loss | None]:
    """Compare an engine with ONNX Runtime before it is anywhere where it could be used."""
    reference = OrtBackend(request.source.data, request.source.spec)
    with tempfile.TemporaryDirectory(prefix="fastrestore-") as folder:
        path = Path(folder) / "new.engine"
        written = write_engine(path, data, record)
        candidate = gate.open_engine(path, request.source.spec, request.host.index)
        try:
            verdict = gate.compare(written, reference, candidate)
            if verdict.faults:
                raise gate.refusal(title, verdict.faults)
            is_int8 = record.precision == "int8"
            loss = gate.loss(reference, candidate, request.sizes[1]) if is_int8 else None
        finally:
            candidate.close()
            reference.close()
    return verdict.verification, loss


def _choose(
    request: Request, results: Sequence[Result | Tried], notes: Sequence[str]
) -> tuple[Result, tuple[str, ...]]:
    """Return what is kept, and the reasons for the sidecar."""
    built = [r for r in results if isinstance(r, Result)]
    reasons = list(notes)
    if len(results) == 1 and built:
        kept = built[0]
    else:
        chosen = choose([r.tried if isinstance(r, Result) else r for r in results])
        kept = next(r for r in built if r.tried.candidate == chosen.candidate)
        reasons += chosen.reasons
    if kept.record.opt_level != request.settings.opt_level:
        reasons.append(lowered(request.settings.opt_level, kept.record.opt_level))
    if kept.record.verification is None:
        reasons.append(f"unverified: {_unverified(request, kept.record)}")
    return kept, tuple(" ".join(r.split()) for r in reasons)
