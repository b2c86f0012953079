"""The verify gate: an engine beside ONNX Runtime's FP32 on pictures that find what goes wrong.

The fixtures need no data from outside: the package's samples with every ratio of holes, with noise
and with a past, and what breaks engines elsewhere: saturated white, black, checkerboards, nothing
known at all, sizes that are no multiple.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastrestore.arrays import F32, U8
from fastrestore.atomic import label
from fastrestore.backend import Backend, find_model, read_model, shipped_models
from fastrestore.backends.ort import OrtBackend
from fastrestore.degrade import add_noise, make_mask, punch
from fastrestore.engine_file import (
    EngineRecord,
    Verification,
    check_engine,
    write_record,
)
from fastrestore.engine_fit import rebuild, shape_text
from fastrestore.engine_record import Precision
from fastrestore.errors import EngineError, ModelError, need
from fastrestore.evaluate import CAP_DB
from fastrestore.export.forms import shipped_samples
from fastrestore.export.quality import HOLES, NOISE
from fastrestore.export.quantize import Loss
from fastrestore.metrics import psnr
from fastrestore.protocol import Damaged
from fastrestore.spec import ModelSpec

Size = tuple[int, int, int]  # frames, height, width
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
SIGMAS = (5.0, 25.0, 50.0)
SEED = 20
BRIGHT = 64  # a sample that is 0 where the reference shows at least this has been lost
LATENCY_RUNS, LATENCY_S = 30, 3.0
WILD = ("white, strongest noise", "nothing known")


class Limits(NamedTuple):
    """What an engine may differ from FP32: dB of the worst fixture, levels, samples lost.

    `is_exact`: whether the wild fixtures count as well.
    """

    psnr_db: float
    max_error: int
    lost: int
    is_exact: bool


# Measured with the shipped models, the forms run by ONNX Runtime: FP16 at least 55.7 dB from FP32
# and 1 level, INT8 41.9 dB and 14 levels. A GPU sums in another order, and FP32 convolutions run
# as TF32, which has FP16's ten bits: hence the room. BF16 has eight bits and no CPU runs it: its
# limits are INT8's. What is broken is far below: 20 levels off is 22 dB.
LIMITS: dict[Precision, Limits] = {
    "fp32": Limits(45.0, 16, 0, True),
    "fp16": Limits(45.0, 16, 0, True),
    "bf16": Limits(36.0, 48, 0, True),
    "int8": Limits(36.0, 48, 0, False),
}


@dataclass(frozen=True, slots=True, eq=False)
class Fixture:
    """One batch as `Backend.run` takes it, and what it is.

    `is_wild`: beyond what INT8 is calibrated for, and without a right answer; there only lost
    samples count (FP32 and INT8 are up to 200 levels apart).
    """

    name: str
    frame: U8
    mask: U8
    state: U8
    sigma: F32
    is_wild: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate found.

    Attributes:
        verification: For the sidecar.
        faults: Why the engine is refused, a line each; empty = it passes.
    """

    verification: Verification
    faults: tuple[str, ...]


def fixtures(size: Size) -> list[Fixture]:
    """Return the pictures of the gate at one size, every one in all frames of the batch.

    Args:
        size: Frames, height and width, as the engine takes them.
    """
    n, h, w = size
    rng = np.random.default_rng(SEED)
    samples = _samples(h, w)
    clear, holes = np.zeros((h, w), np.uint8), make_mask("freeform", rng, h, w, 0.2)
    out: list[tuple[str, U8, U8, float]] = []
    kinds = ("freeform", "rects", "grid")
    for i, ratio in enumerate(RATIOS):
        mask = make_mask(kinds[i % 3], rng, h, w, ratio)
        out.append((f"holes {ratio:.0%}", samples[i % len(samples)], mask, 0.0))
    for i, sigma in enumerate(SIGMAS):
        noisy = add_noise(samples[i % len(samples)], sigma, rng)
        out.append((f"sigma {sigma:g}", noisy, clear, sigma))
    out.append(("holes 20% and sigma 25", add_noise(samples[0], 25.0, rng), holes, 25.0))
    white = np.full((h, w, 3), 255, np.uint8)
    rows, columns = np.indices((h, w))
    fine, coarse = (((rows // p + columns // p) % 2).astype(np.uint8) for p in (1, 8))
    out += [
        ("white", white, clear, 0.0),
        ("white, strongest noise", white, holes, 254.0),
        ("black", np.zeros_like(white), holes, 0.0),
        ("checkerboard of pixels", white * fine[..., None], holes, 0.0),
        ("checkerboard of blocks", white * coarse[..., None], coarse, 25.0),
        ("nothing known", samples[0], clear + np.uint8(1), 0.0),
        ("odd size", _odd(samples[1]), _odd(holes[..., None])[..., 0], 0.0),
    ]
    found = [replace(_fixture(n, *case), is_wild=case[0] in WILD) for case in out]
    past = np.concatenate([samples[0], np.full((h, w, 1), 128, np.uint8)], 2)
    for name in ("holes 20%", "sigma 25"):
        case = next(f for f in found if f.name == name)
        found.append(replace(case, name=f"{name} with a past", state=_batch(past, n)))
    return found


def _fixture(n: int, name: str, frame: U8, mask: U8, sigma: float) -> Fixture:
    h, w = mask.shape
    shown = punch(frame, mask)
    state = np.zeros((n, h, w, 4), np.uint8)
    noise = np.full(n, sigma, np.float32)
    return Fixture(name, _batch(shown, n), _batch(mask[..., None], n), state, noise)


def _batch(image: U8, n: int) -> U8:
    return np.ascontiguousarray(np.repeat(image[None], n, 0))


def _odd(image: U8) -> U8:
    """Return an odd-sized part, its edge repeated to the old size as the runtime does."""
    h, w = image.shape[:2]
    return np.pad(image[: h - 3, : w - 5], ((0, 3), (0, 5), (0, 0)), mode="edge")


def _samples(h: int, w: int) -> list[U8]:
    """Return the package's samples at one size: cut, or continued by their mirror image."""
    found = []
    for rgb in shipped_samples():
        more = [(0, max(0, size - have)) for size, have in zip((h, w), rgb.shape, strict=False)]
        found.append(np.ascontiguousarray(np.pad(rgb, (*more, (0, 0)), mode="symmetric")[:h, :w]))
    return found


def judge(
    reference: Backend,
    candidate: Backend,
    cases: Sequence[Fixture],
    limits: Limits,
    clock: Any = time.perf_counter,
) -> Verdict:
    """Compare a backend with one that is trusted, and time it.

    Args:
        reference: Trusted; its name goes into the sidecar.
        candidate: What is judged.
        cases: See `fixtures`; the first one is timed.
        limits: What it may differ.
        clock: Seconds.
    """
    worst, largest, lost = np.inf, 0, 0
    faults: list[str] = []
    for case in cases:
        batch = (case.frame, case.mask, case.state, case.sigma)
        ours, their = reference.run(*batch), candidate.run(*batch)
        wrong = [
            f"{t.dtype} {t.shape}"
            for o, t in zip(ours, their, strict=True)
            if (o.dtype, o.shape) != (t.dtype, t.shape)
        ]
        if wrong:
            faults.append(f"{case.name}: gives {wrong[0]}")
            continue
        near, error, gone = _difference(ours, their)
        if case.is_wild and not limits.is_exact:
            near, error = np.inf, 0
        worst, largest, lost = min(worst, near), max(largest, error), lost + gone
        faults += [f"{case.name}: {fault}" for fault in _faults(limits, near, error, gone)]
    latency = _latency_ms(candidate, cases[0], clock)
    known = None if np.isinf(worst) else round(float(worst), 3)
    found = Verification(known, float(largest), lost, latency, len(cases), reference.name)
    return Verdict(found, tuple(faults))


def _difference(ours: tuple[U8, U8], their: tuple[U8, U8]) -> tuple[float, int, int]:
    """Return PSNR of the picture, largest difference of picture and state, samples lost."""
    pictures = [x[0].reshape(-1, *x[0].shape[2:]) for x in (ours, their)]
    error = max(_error(o, t) for o, t in zip(ours, their, strict=True))
    lost = int(((their[0] == 0) & (ours[0] >= BRIGHT)).sum())
    return psnr(*pictures), error, lost


def _error(a: U8, b: U8) -> int:
    return int(np.abs(a.astype(np.int16) - b).max(initial=0))


def _faults(limits: Limits, near: float, error: int, gone: int) -> Iterator[str]:
    if gone > limits.lost:
        yield f"{gone} samples are black that should not be (no number inside, mostly)"
    if near < limits.psnr_db:
        yield f"{near:.1f} dB from FP32, at least {limits.psnr_db:g} are wanted"
    if error > limits.max_error:
        yield f"{error} levels from FP32, at most {limits.max_error} are allowed"


def _latency_ms(candidate: Backend, case: Fixture, clock: Any) -> float:
    """Return the mean time of a run, copies included, for up to `LATENCY_S`."""
    batch = (case.frame, case.mask, case.state, case.sigma)
    candidate.warm_up(case.frame.shape[:3])
    runs, began = 0, clock()
    while runs < LATENCY_RUNS and (runs == 0 or clock() - began < LATENCY_S):
        candidate.run(*batch)
        runs += 1
    return round(1000 * float(clock() - began) / runs, 4)


def loss(reference: Backend, candidate: Backend, size: Size) -> Loss:
    """Return what a candidate loses of the reference's PSNR, at 20 % holes and at sigma 25.

    Args:
        reference: FP32.
        candidate: The engine.
        size: That the engine takes.
    """
    n, h, w = size
    pictures = {f"sample {i}": rgb for i, rgb in enumerate(_samples(h, w))}
    lost = []
    for case in (HOLES, NOISE):
        damaged = [case.damage(name, clean) for name, clean in pictures.items()]
        ours, their = (
            np.mean([_restored_db(b, d, n) for d in damaged]) for b in (reference, candidate)
        )
        lost.append(float(ours - their))
    return Loss(*lost)


def _restored_db(backend: Backend, damaged: Damaged, n: int) -> float:
    h, w = damaged.image.shape[:2]
    mask = np.zeros((h, w), np.uint8) if damaged.mask is None else damaged.mask
    case = _fixture(n, "", damaged.image, mask, damaged.sigma)
    restored = backend.run(case.frame, case.mask, case.state, case.sigma)[0][0]
    if not damaged.sigma:
        restored = np.where(mask[..., None] > 0, restored, damaged.image)
    return min(CAP_DB, psnr(restored, damaged.clean))


def compare(record: EngineRecord, reference: Backend, candidate: Backend) -> Verdict:
    """Judge an engine at the sizes of its profile: all fixtures at its best, three at the ends."""
    low, best, high = (dims[:3] for dims in record.profile["frame"])
    limits = LIMITS[record.precision]
    verdict = judge(reference, candidate, fixtures(_size(best)), limits)
    for end in {low, high} - {best}:
        some = [f for f in fixtures(_size(end)) if f.name in ("holes 20%", "sigma 25", "white")]
        other = judge(reference, candidate, some, limits)
        where = tuple(f"{shape_text(end)}: {fault}" for fault in other.faults)
        verdict = Verdict(_worse(verdict.verification, other.verification), verdict.faults + where)
    return verdict


def _size(dims: tuple[int, ...]) -> Size:
    n, h, w = dims
    return n, h, w


def _worse(a: Verification, b: Verification) -> Verification:
    """Return the worse of both, with the latency of the first."""
    known = [v.psnr for v in (a, b) if v.psnr is not None]
    return replace(
        a,
        psnr=min(known, default=None),
        max_error=max(a.max_error, b.max_error),
        nan_count=a.nan_count + b.nan_count,
        cases=a.cases + b.cases,
    )


def refusal(what: str, faults: Sequence[str]) -> EngineError:
    """Return the error for an engine that does not do what its model does."""
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return EngineError(
        f"{what}: refused, {faults[0]}{more}; build with --precision fp32 or bf16, or run the "
        "model with --backend ort"
    )


def open_engine(path: Path, spec: ModelSpec, device: int = 0, trust: bool = False) -> Backend:
    """Load an engine on a device; `trust` as for `check_engine`."""
    kind = need("fastrestore.backends.tensorrt", "tensorrt").TensorRtBackend
    backend: Backend = kind(path, spec, device=device, trust=trust)
    return backend


def verify_engine(
    path: str | Path, model: str | Path | None = None, device: int = 0, trust: bool = False
) -> dict[str, Any]:
    """Compare an engine with its model on this machine's device, and note it in the sidecar.

    Args:
        path: The engine, with its sidecar.
        model: The ONNX file that it was built from; None = found among those that ship.
        device: Among those that CUDA_VISIBLE_DEVICES leaves.
        trust: Although others may have changed it; see `check_engine`.

    Returns:
        The fields of `Verification`.

    Raises:
        EngineError: It is damaged, does not fit here, or is refused: then its sidecar says
            unverified.
        ModelError: The model is not here.
    """
    target = Path(path)
    record = check_engine(target, trust=trust).record
    if record is None:
        raise EngineError(f"{label(target)}: has no sidecar, so nothing tells what it should do")
    data, spec = read_model(_model_of(target, record, model), "restorer")
    reference, candidate = OrtBackend(data, spec), open_engine(target, spec, device, trust)
    try:
        verdict = compare(record, reference, candidate)
    finally:
        candidate.close()
        reference.close()
    if verdict.faults:
        write_record(target, replace(record, verification=None))
        raise refusal(label(target), verdict.faults)
    write_record(target, replace(record, verification=verdict.verification))
    return asdict(verdict.verification)


def _model_of(target: Path, record: EngineRecord, model: str | Path | None) -> Path:
    """Return the ONNX file of an engine."""
    import hashlib

    places = [find_model(model)] if model is not None else shipped_models()
    for place in places:
        if hashlib.sha256(place.read_bytes()).hexdigest() == record.model.sha256:
            return place
    if model is not None:
        mend = rebuild(record, path=target)
        raise ModelError(f"{model}: is not what the engine was built from; {mend}")
    raise ModelError(
        f"{record.model.name}: the model of this engine ({record.model.sha256[:12]}...) does not "
        "ship; add --model FILE"
    )
