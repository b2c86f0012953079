"""What a form of a model costs in quality: each beside the FP32 graph and beside the truth.

Four damages, the same bytes as in every other measurement of the package: free-form holes of 20 %
and 40 %, noise of sigma 25, and 20 % with sigma 25. Pictures are composed as users get them: with
clean input only the hole changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from fastrestore.arrays import F32, U8
from fastrestore.errors import InputError
from fastrestore.evaluate import CAP_DB
from fastrestore.export.overflow import exact_session
from fastrestore.metrics import hole_psnr, psnr
from fastrestore.presets import PYRAMID_LEVELS
from fastrestore.protocol import Case, Damaged

HOLES, HOLES_40, NOISE, BOTH = CASES = (
    Case("freeform", (("freeform", 0.2),)),
    Case("freeform", (("freeform", 0.4),)),
    Case("noise", sigma=25.0),
    Case("all", (("freeform", 0.2),), 25.0),
)
UNMEASURED = "unmeasured"
_GRID_PX = 2**PYRAMID_LEVELS  # a multiple of every preset's

# As `Backend.run`: frame, mask, state, sigma to restored and the next state.
Runner: TypeAlias = Callable[[U8, U8, U8, F32], tuple[U8, U8]]
Distance: TypeAlias = Callable[[U8, U8], float]


@dataclass(frozen=True, slots=True)
class Row:
    """One artefact in one case: means over the pictures. PSNR in dB, at most `CAP_DB` a picture.

    Attributes:
        artefact: Its name.
        case: The case's label.
        pictures: How many.
        psnr: Against the truth.
        hole_psnr: Over the hole alone, against the truth; None without holes.
        lpips: Against the truth; None where it was not measured.
        psnr_lost: PSNR of the reference less this one's.
        hole_psnr_lost: Likewise over the hole.
        lpips_lost: LPIPS of this one less the reference's.
        psnr_to_reference: Of this one's picture against the reference's.
        levels_to_reference: Largest difference to the reference's picture, in grey levels.
    """

    artefact: str
    case: str
    pictures: int
    psnr: float
    hole_psnr: float | None
    lpips: float | None
    psnr_lost: float
    hole_psnr_lost: float | None
    lpips_lost: float | None
    psnr_to_reference: float
    levels_to_reference: int


@dataclass(frozen=True, slots=True)
class Report:
    """The rows, and what LPIPS was measured with, or why it was not."""

    reference: str
    rows: tuple[Row, ...]
    lpips: str

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def markdown(self) -> str:
        """Return a table for a README: figures, and in brackets what is lost."""
        lines = [
            "| case | form | PSNR dB (lost) | hole PSNR dB (lost) | LPIPS (added) "
            f"| dB to {self.reference} |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for r in self.rows:
            hole = _figure(r.hole_psnr, r.hole_psnr_lost, ".3f", "-")
            lpips = _figure(r.lpips, r.lpips_lost, ".4f", UNMEASURED)
            own = r.artefact == self.reference
            lines.append(
                f"| {r.case} | {r.artefact} | {_figure(r.psnr, r.psnr_lost, '.3f', '-')} | {hole} "
                f"| {lpips} | {'-' if own else format(r.psnr_to_reference, '.1f')} |"
            )
        return "\n".join(lines) + "\n"


def _figure(value: float | None, lost: float | None, form: str, absent: str) -> str:
    if value is None or lost is None:
        return absent
    return format(value, form) + (f" ({lost:+{form}})" if lost else "")


def ort_runner(model: ModelProto) -> Runner:
    """Open a form of a model in ONNX Runtime, as written: one thread, no optimisation."""
    session = exact_session(model)
    inputs = [i.name for i in session.get_inputs()]
    outputs = [o.name for o in session.get_outputs()]

    def run(frame: U8, mask: U8, state: U8, sigma: F32) -> tuple[U8, U8]:
        feeds = {"frame": frame, "mask": mask, "state": state, "sigma": sigma}
        got = dict(zip(outputs, session.run(None, {n: feeds[n] for n in inputs}), strict=True))
        return got["restored"], got.get("state_out", np.zeros_like(state))

    return run


def composed(run: Runner, damaged: Damaged) -> U8:
    """Restore a still and compose it: with clean input, known pixels are the input's own."""
    image, mask = damaged.image, damaged.mask
    h, w = image.shape[:2]
    hole = np.zeros((h, w), np.uint8) if mask is None else mask
    pad = ((0, -h % _GRID_PX), (0, -w % _GRID_PX), (0, 0))
    frame = np.ascontiguousarray(np.pad(image, pad, mode="edge")[None])
    holes = np.ascontiguousarray(np.pad(hole[..., None], pad, mode="edge")[None])
    state = np.zeros((*holes.shape[:3], 4), np.uint8)
    restored = run(frame, holes, state, np.full(1, damaged.sigma, np.float32))[0][0, :h, :w]
    return restored if damaged.sigma else np.where(hole[..., None] > 0, restored, image)


def mean_psnr(run: Runner, damaged: Iterable[Damaged]) -> float:
    """Return the mean PSNR against the truth, in dB."""
    return float(np.mean([min(CAP_DB, psnr(composed(run, d), d.clean)) for d in damaged]))


def report(
    artefacts: Mapping[str, Runner],
    reference: str,
    pictures: Mapping[str, U8],
    *,
    cases: Sequence[Case] = CASES,
    distance: Distance | None = None,
    lpips: str = UNMEASURED,
) -> Report:
    """Measure every artefact against the truth and against one of them.

    Args:
        artefacts: What runs, by name.
        reference: The name of the FP32 one among them.
        pictures: Undamaged, uint8 RGB, by name; the name seeds the damage.
        cases: Kinds of damage.
        distance: LPIPS, the first result of `fastrestore.measure.open_lpips`.
        lpips: The second one: the hash of its weights, or why there is none.

    Raises:
        InputError: No pictures, or the reference is not among the artefacts.
    """
    if reference not in artefacts:
        raise InputError(f"{reference}: not among {', '.join(artefacts)}; name the FP32 one")
    if not pictures:
        raise InputError("no pictures to measure on; give some")
    rows = []
    for case in cases:
        damaged = [case.damage(name, clean) for name, clean in pictures.items()]
        theirs = [composed(artefacts[reference], d) for d in damaged]
        base = _means(theirs, damaged, distance)
        for name, run in artefacts.items():
            ours = theirs if name == reference else [composed(run, d) for d in damaged]
            rows.append(_row(name, case, base, _means(ours, damaged, distance), ours, theirs))
    return Report(reference, tuple(rows), lpips)


def _means(
    pictures: Sequence[U8], damaged: Sequence[Damaged], distance: Distance | None
) -> tuple[float, float | None, float | None]:
    pairs = list(zip(pictures, damaged, strict=True))
    whole = np.mean([min(CAP_DB, psnr(p, d.clean)) for p, d in pairs])
    holes = [hole_psnr(p, d.clean, d.mask) for p, d in pairs if d.mask is not None]
    far = None if distance is None else np.mean([distance(p, d.clean) for p, d in pairs])
    hole = float(np.minimum(holes, CAP_DB).mean()) if holes else None
    return float(whole), hole, None if far is None else float(far)


def _row(
    name: str,
    case: Case,
    base: tuple[float, float | None, float | None],
    own: tuple[float, float | None, float | None],
    ours: Sequence[U8],
    theirs: Sequence[U8],
) -> Row:
    hole = None if base[1] is None or own[1] is None else base[1] - own[1]
    lpips = None if base[2] is None or own[2] is None else own[2] - base[2]
    pairs = list(zip(ours, theirs, strict=True))
    near = float(np.mean([min(CAP_DB, psnr(a, b)) for a, b in pairs]))
    levels = max(_levels(a, b) for a, b in pairs)
    n = len(pairs)
    return Row(name, case.label, n, *own, base[0] - own[0], hole, lpips, near, levels)


def _levels(a: U8, b: U8) -> int:
    difference: npt.NDArray[np.int16] = np.abs(a.astype(np.int16) - b)
    return int(difference.max())
