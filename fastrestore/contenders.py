"""Who is measured: our models in every mode, classical methods, and other programs' pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastrestore.arrays import U8
from fastrestore.batch import GROW_PX
from fastrestore.errors import InputError
from fastrestore.masks import grow
from fastrestore.protocol import Case, Damaged, NoiseProtocol

if TYPE_CHECKING:
    from fastrestore.backend import Backend
    from fastrestore.detect import Detector
    from fastrestore.restore import Restorer, Sigma

GIVEN, RAW, WITHHELD, TOLD = "", "raw", "mask withheld", "sigma told"  # variants
OURS = "fastrestore "  # how names of our models begin
FAST = ("telea", "navier_stokes", "bilateral", "non_local_means")
# Not among them, for they take seconds for a picture of 256x256: biharmonic, patchmatch.
_SPOKEN = {
    "telea": "Telea",
    "navier_stokes": "Navier-Stokes",
    "patchmatch": "PatchMatch",
    "non_local_means": "non-local means",
}


@dataclass(frozen=True, slots=True, eq=False)
class Contender:
    """One way of restoring.

    Attributes:
        method: Name in tables.
        variant: How it is run: `GIVEN` (the usual way), `RAW`, `WITHHELD` or `TOLD`.
        identity: All that its results depend on beside the input: versions, hashes.
        fits: Whether it can do a case.
        run: Takes the picture's name, the case and the damaged picture; returns uint8
            `(H, W, 3)`. It must not look at the truth.
        timed: Whether the time it takes is its own.
        scope: The only case that the identity is about; "" = all.
    """

    method: str
    variant: str
    identity: str
    fits: Callable[[Case], bool]
    run: Callable[[str, Case, Damaged], U8]
    timed: bool = True
    scope: str = ""

    @property
    def title(self) -> str:
        """Method and variant in one, for tables."""
        return titled(self.method, self.variant)


def titled(method: str, variant: str) -> str:
    """Name a method and its variant as people do: `fastrestore tiny, raw`, `Navier-Stokes`."""
    name = " + ".join(_SPOKEN.get(part, part) for part in method.split(" + "))
    return f"{name}, {variant}" if variant else name


def untouched() -> Contender:
    """Return the damaged picture as it is: what the others have to beat."""
    return Contender("input", GIVEN, "input", lambda _: True, lambda _n, _c, d: d.image)


def our_contenders(
    stack: ExitStack,
    model: str,
    *,
    backend: str = "auto",
    threads: int | None = None,
    noise: NoiseProtocol = "uint8",
    detector: Detector | None = None,
    detector_identity: str = "",
    raw: bool = True,
) -> list[Contender]:
    """Open one of our models in every mode.

    With holes: mask given, composite (the usual way) and raw; mask withheld. Without: sigma
    estimated (the usual way) and told. Under all damages at once sigma is estimated.

    Args:
        stack: Closes the model.
        model: A shipped model's name, or the path of an ONNX file.
        backend: See `open_backend`.
        threads: CPU threads.
        noise: `float` also opens the model for float frames.
        detector: Finds the damage where the mask is withheld; None: that is left out.
        detector_identity: What the detector's results depend on.
        raw: Measure the model's own output, too.

    Raises:
        ModelError, MissingExtraError, InputError: As for `open_backend` and `open_float`.
    """
    from fastrestore.backend import find_model, open_backend
    from fastrestore.restore import Restorer
    from fastrestore.whole import open_float

    path = find_model(model)
    restorer = stack.enter_context(Restorer(model, backend=backend, threads=threads))
    name = OURS + path.stem
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    identity = f"{sha} {restorer.backend}"
    found = [
        Contender(name, GIVEN, identity, lambda c: c.has_holes, _given(restorer)),
        Contender(name, GIVEN, identity, _rounded_noise, _denoised(restorer, told=False)),
        Contender(name, TOLD, identity, _rounded_noise, _denoised(restorer, told=True)),
    ]
    if raw:
        # An engine takes batches of its own sizes alone
        has_sizes = restorer.backend in ("tensorrt", "rtx")
        whole = open_backend(model, "ort" if has_sizes else backend, threads)
        stack.callback(whole.close)
        found.append(Contender(name, RAW, identity, _holes_alone, _raw(whole)))
    if detector is not None:
        both = f"{identity} {detector_identity}"
        found.append(
            Contender(name, WITHHELD, both, lambda c: c.has_holes, _withheld(restorer, detector))
        )
    if noise == "float":
        floats = open_float(model, threads)
        stack.callback(floats.close)
        for variant in (GIVEN, TOLD):
            run = _denoised_float(floats, told=variant == TOLD)
            found.append(Contender(name, variant, identity, _float_noise, run))
    return found


def classical_contenders(names: Sequence[str] | None = None) -> tuple[list[Contender], list[str]]:
    """Return classical methods, and a line for each that cannot run here.

    Denoisers are told the true sigma. Under all damages at once an inpainter fills and a denoiser
    then cleans the whole picture: every pair of those chosen.

    Args:
        names: Of `classical`; None = the fast ones.

    Raises:
        InputError: An unknown name.
    """
    from fastrestore.classical import (
        DENOISERS,
        INPAINTERS,
        OPTIONAL,
        bilateral_float,
        has_patchmatch,
    )

    inpainters, skipped = {**INPAINTERS, **OPTIONAL}, []
    wanted = list(FAST if names is None else dict.fromkeys(names))
    for name in wanted:
        if name not in inpainters and name not in DENOISERS:
            known = ", ".join([*inpainters, *DENOISERS])
            raise InputError(f"method {name}: not known; choose from {known}")
    if "biharmonic" in wanted and not _installed("skimage"):
        wanted.remove("biharmonic")
        skipped.append("biharmonic: left out, pip install 'fastrestore[evaluate]'")
    if "patchmatch" in wanted and not has_patchmatch():
        wanted.remove("patchmatch")
        skipped.append("patchmatch: left out, pip install pypatchmatch")
    fills = {n: inpainters[n] for n in wanted if n in inpainters}
    cleans = {n: DENOISERS[n] for n in wanted if n in DENOISERS}
    found = []
    for name, fill in fills.items():
        found.append(Contender(name, GIVEN, _version(name), _holes_alone, _filled(fill)))
        for second, clean in cleans.items():
            both = f"{_version(name)}, {_version(second)}"
            run = _filled(fill, clean)
            found.append(Contender(f"{name} + {second}", GIVEN, both, _both, run))
    for name, clean in cleans.items():
        run = _cleaned(clean, bilateral_float if name == "bilateral" else None)
        found.append(Contender(name, GIVEN, _version(name), _noise_alone, run))
    return found, skipped


def check_names(contenders: Sequence[Contender], cases: Sequence[Case]) -> None:
    """Refuse two contenders of one name in one case.

    Raises:
        InputError: There are two.
    """
    for case in cases:
        seen = set()
        for c in fitting(contenders, case):
            if (c.method, c.variant) in seen:
                raise InputError(f"{c.method}: two methods have this name; rename one")
            seen.add((c.method, c.variant))


def identities(contenders: Sequence[Contender]) -> dict[str, str]:
    """Return what the results of each depend on, for the settings of a ledger."""
    return {c.title + (f" ({c.scope})" if c.scope else ""): c.identity for c in contenders}


def fitting(contenders: Sequence[Contender], case: Case) -> Iterator[Contender]:
    """Yield those that can do a case."""
    return (c for c in contenders if c.fits(case))


def _holes_alone(case: Case) -> bool:
    return case.has_holes and not case.sigma


def _both(case: Case) -> bool:
    return case.has_holes and bool(case.sigma)


def _noise_alone(case: Case) -> bool:
    return not case.has_holes


def _rounded_noise(case: Case) -> bool:
    return not case.has_holes and case.noise == "uint8"


def _float_noise(case: Case) -> bool:
    return not case.has_holes and case.noise == "float"


_Run = Callable[[str, Case, Damaged], U8]


def _given(restorer: Restorer) -> _Run:
    def run(_name: str, case: Case, d: Damaged) -> U8:
        return restorer(d.image, d.mask, sigma="auto" if case.sigma else 0)

    return run


def _withheld(restorer: Restorer, detector: Detector) -> _Run:
    def run(_name: str, case: Case, d: Damaged) -> U8:
        found = detector.mask(d.image)
        if grow(found, GROW_PX).all():
            found[:] = 0  # what `restore` would refuse; the picture stays as it is
        noise: Sigma = "auto" if case.sigma else 0
        return restorer(d.image, found, sigma=noise, grow_px=GROW_PX)  # as `restore` does

    return run


def _raw(backend: Backend) -> _Run:
    from fastrestore.whole import run_whole

    return lambda _name, _case, d: run_whole(backend, d.image, d.mask, 0)


def _denoised(restorer: Restorer, *, told: bool) -> _Run:
    return lambda _name, _case, d: restorer(d.image, sigma=d.sigma if told else "auto")


def _denoised_float(backend: Backend, *, told: bool) -> _Run:
    from fastrestore.noise import estimate_sigma
    from fastrestore.whole import run_whole

    def run(_name: str, _case: Case, d: Damaged) -> U8:
        frame = d.image if d.unclipped is None else d.unclipped
        # The estimate skips clipped blocks by itself, so it is taken from the rounded picture.
        return run_whole(backend, frame, None, d.sigma if told else estimate_sigma(d.image))

    return run


def _filled(fill: Callable[[U8, U8], U8], clean: Callable[[U8, float], U8] | None = None) -> _Run:
    def run(_name: str, _case: Case, d: Damaged) -> U8:
        whole = d.image if d.mask is None else fill(d.image, d.mask)
        return whole if clean is None else clean(whole, d.sigma)

    return run


def _cleaned(
    clean: Callable[[U8, float], U8], clean_float: Callable[..., U8] | None = None
) -> _Run:
    def run(_name: str, _case: Case, d: Damaged) -> U8:
        if clean_float is not None and d.unclipped is not None:
            return clean_float(d.unclipped, d.sigma)
        return clean(d.image, d.sigma)

    return run


def _installed(module: str) -> bool:
    from importlib.util import find_spec

    try:
        return find_spec(module) is not None
    except ValueError:  # a module that was blocked by hand has no spec
        return False


def _version(name: str) -> str:
    """Name the library behind a classical method, with its version."""
    from fastrestore.environment import package_version

    if name == "biharmonic":
        return f"scikit-image {package_version('scikit-image')}"
    if name == "patchmatch":
        return f"pypatchmatch {package_version('pypatchmatch')}"
    import cv2

    return f"{name} opencv {cv2.__version__}"
