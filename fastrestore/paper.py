"""The whole protocol in one go: pictures in, scores, report, curve and sheets out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastrestore.arrays import U8
from fastrestore.atomic import label, write_file
from fastrestore.contenders import (
    GIVEN,
    OURS,
    RAW,
    TOLD,
    WITHHELD,
    Contender,
    check_names,
    classical_contenders,
    fitting,
    identities,
    our_contenders,
    untouched,
)
from fastrestore.errors import InputError, MissingExtraError, ModelError
from fastrestore.exchange import outputs_contenders
from fastrestore.ledger import Ledger
from fastrestore.measure import LEAST_PX, Distance, Line, measure, open_lpips
from fastrestore.protocol import PROTOCOL, Case, NoiseProtocol, digest, digest_all
from fastrestore.reporting import (
    RESAMPLES,
    SEED,
    Result,
    headline,
    markdown_report,
    summarise_cases,
)
from fastrestore.sheets import RATIOS, SHEETS, Cell, choose, draw
from fastrestore.tiles import LIMIT_PX

KEEP_BYTES = 2**28  # of decoded pictures; beyond it they are read again for every case
DETECTOR = "detector"
Progress = Callable[[str, int, int], None]  # case, pictures done, pictures in all


class Pictures:
    """Clean pictures of a folder by name (the file's stem), decoded as they are needed.

    Attributes:
        hashes: Name to sha256 of the samples, sorted by name.
        largest: Pixels of the largest one.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        """List and check the pictures of a folder.

        Args:
            folder: Subfolders are not looked into.
            limit: Only the first ones, by file name; None = all.

        Raises:
            InputError: No such folder, no pictures, one that cannot be read or is too small, or
                two of one name.
        """
        from fastrestore.images import is_picture

        if not folder.is_dir():
            raise InputError(f"{label(folder)}: no such folder of pictures")
        paths = sorted(p for p in folder.iterdir() if is_picture(p))[:limit]
        if not paths:
            raise InputError(f"{label(folder)}: no pictures in this folder")
        self._paths: dict[str, Path] = {}
        self._kept: dict[str, U8] = {}
        self._kept_bytes = 0
        self.hashes: dict[str, str] = {}
        self.largest = 0
        for path in paths:
            if path.stem in self._paths:
                raise InputError(f"{label(path)}: two pictures have this name; rename one")
            self._paths[path.stem] = path
            clean = self.read(path.stem)
            if min(clean.shape[:2]) < LEAST_PX:
                raise InputError(
                    f"{label(path)}: the metrics need at least {LEAST_PX} px a side; leave it out"
                )
            self.hashes[path.stem] = digest(clean)
            self.largest = max(self.largest, clean.shape[0] * clean.shape[1])

    def __len__(self) -> int:
        """Return their number."""
        return len(self._paths)

    def __iter__(self) -> Iterator[tuple[str, U8]]:
        """Yield name and picture, uint8 `(H, W, 3)`."""
        return ((name, self.read(name)) for name in self._paths)

    def read(self, name: str) -> U8:
        """Return one picture."""
        from fastrestore.images import read_picture

        if name in self._kept:
            return self._kept[name]
        clean = read_picture(self._paths[name]).rgb
        if self._kept_bytes + clean.nbytes <= KEEP_BYTES:
            self._kept[name] = clean
            self._kept_bytes += clean.nbytes
        return clean


@dataclass(frozen=True, slots=True)
class Entries:
    """Who takes part.

    Attributes:
        models: Ours; gains belong to the first.
        backend: Of ours.
        threads: Likewise.
        classical: Names; None = the fast ones.
        outputs: Other programs: name and folder of their pictures.
        detector: Model that finds the damage where the mask is withheld.
        noise: As in `Case`.
        variants: How they are run; see `Contender`.
    """

    models: Sequence[str] = ("tiny",)
    backend: str = "auto"
    threads: int | None = None
    classical: Sequence[str] | None = None
    outputs: Sequence[tuple[str, Path]] = ()
    detector: str = DETECTOR
    noise: NoiseProtocol = "uint8"
    variants: Sequence[str] = (GIVEN, RAW, WITHHELD, TOLD)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run found.

    Attributes:
        headline: The result in a few lines.
        notes: Lines on what was left out.
        report: What report.json holds.
    """

    headline: list[str]
    notes: list[str]
    report: dict[str, Any]


def run_protocol(
    folder: Path,
    pictures: Pictures,
    cases: Sequence[Case],
    entries: Entries,
    progress: Progress = lambda _c, _d, _n: None,
) -> Outcome:
    """Measure what is not measured yet, and write report, curve and sheets.

    Args:
        folder: Takes `scores.csv`, `settings.json`, `report.md`, `report.json`, `curve.png` and
            `sheet-*.png`; a folder of an earlier run is gone on with.
        pictures: Clean ones.
        cases: What is done to them.
        entries: Who takes part.
        progress: Is told how far it is.

    Raises:
        FastRestoreError: See the parts.
    """
    from fastrestore.environment import describe

    environment = describe()
    with ExitStack() as stack:
        contenders, notes = _open(stack, pictures, cases, entries)
        ours = next(c.method for c in contenders if c.method != "input")
        distance, lpips = open_lpips(entries.threads)
        if distance is None:
            notes.append(lpips)
        settings: dict[str, Any] = {
            "pictures": pictures.hashes,
            "lpips": None if distance is None else lpips,
            "cases": {c.slug: c.to_json() for c in cases},
            "methods": identities(contenders),
        }
        with Ledger(folder, settings) as ledger:
            _score(ledger, pictures, cases, contenders, distance, progress)
            settings, lines = ledger.settings, ledger.lines
        results, left_out = summarise_cases(lines, settings["cases"], len(pictures), ours)
        notes += left_out
        # An earlier run into this folder may have measured more of ours.
        models = list(dict.fromkeys(r.method for r in results if r.method.startswith(OURS)))
        about = _about(pictures, settings, environment)
        notes += _draw_curve(folder, results, models, len(pictures))
        if any(c.family == "freeform" for c in cases) or not any(
            c["family"] == "freeform" for c in settings["cases"].values()
        ):
            _draw_sheets(folder, pictures, cases, contenders, lines, ours)
    text = markdown_report(results, ours=ours, models=models, about=about, notes=notes)
    write_file(folder / "report.md", text.encode())
    report = _report(results, ours, notes, settings, environment)
    write_file(folder / "report.json", (json.dumps(report, indent=1) + "\n").encode())
    return Outcome(headline(results, ours, models), notes, report)


def _score(
    ledger: Ledger,
    pictures: Pictures,
    cases: Sequence[Case],
    contenders: Sequence[Contender],
    distance: Distance | None,
    progress: Progress,
) -> None:
    """Measure what the ledger lacks, case by case."""
    for case in cases:
        for i, (name, clean) in enumerate(pictures):
            keys = [(name, case.slug, c.method, c.variant) for c in fitting(contenders, case)]
            if not all(ledger.has(key) for key in keys):
                damaged = case.damage(name, clean)
                for line in measure(name, case, damaged, contenders, distance, ledger.has):
                    ledger.add(line)
            progress(case.label, i + 1, len(pictures))


def _report(
    results: Sequence[Result],
    ours: str,
    notes: Sequence[str],
    settings: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "settings": settings,
        "environment": environment,
        "ours": ours,
        "ssim": {"window": "gaussian 11x11, sigma 1.5", "channels": "rgb"},
        "bootstrap": {"resamples": RESAMPLES, "seed": SEED, "interval": 0.95},
        "notes": notes,
        "results": [r.to_json() for r in results],
    }


def _open(
    stack: ExitStack, pictures: Pictures, cases: Sequence[Case], entries: Entries
) -> tuple[list[Contender], list[str]]:
    """Open everyone who takes part, and say who cannot."""
    from fastrestore.backend import find_model
    from fastrestore.detect import Detector

    notes, detector, identity = [], None, ""
    try:
        detector = stack.enter_context(Detector(entries.detector, entries.threads))
        identity = digest_all({"": find_model(entries.detector).read_bytes().hex()})
    except ModelError as e:
        if entries.detector != DETECTOR:
            raise
        notes.append(f"mask withheld: left out ({e})")
    raw = pictures.largest <= LIMIT_PX
    if not raw:
        notes.append("raw output: left out, the pictures are too large to run in one piece")
    contenders = [untouched()]
    for model in entries.models:
        contenders += our_contenders(
            stack,
            model,
            backend=entries.backend,
            threads=entries.threads,
            noise=entries.noise,
            detector=detector,
            detector_identity=identity,
            raw=raw,
        )
    classical, skipped = classical_contenders(entries.classical)
    contenders += classical
    notes += skipped
    for name, folder in entries.outputs:
        theirs, absent = outputs_contenders(name, folder, cases, list(pictures.hashes))
        contenders += theirs
        notes += absent
    contenders = [c for c in contenders if c.variant in entries.variants]
    check_names(contenders, cases)
    return contenders, notes


def _about(
    pictures: Pictures, settings: Mapping[str, Any], environment: Mapping[str, Any]
) -> list[str]:
    commit = environment.get("commit")
    return [
        f"{len(pictures)} pictures, sha256 of all {digest_all(pictures.hashes)[:16]}; protocol "
        f"{PROTOCOL}; fastrestore {environment['version']}"
        + (f" at {commit[:12]}" if commit else "")
        + f"; {environment['cpu']}, {environment['python']}",
        "Damage depends on a picture's name and the case alone, and every method gets the same "
        "bytes. The hole's share is met within 1 point; the tables give its mean as drawn.",
        "The usual way with holes: mask given, known pixels are the input's own (composite). "
        "`raw`: the network's output everywhere. `mask withheld`: our detector finds the damage.",
        "Noise: ours estimates sigma, unless it says `sigma told`; the classical denoisers are "
        "told. Under all damages at once our output counts everywhere, ours estimates sigma, and "
        "an inpainter is followed by a denoiser. Non-local means takes 8 bits only: of unclipped "
        "noise it sees the rounded picture; ours and bilateral get the float samples, ours "
        "with sigma estimated from the rounded ones.",
        "PSNR: RGB, 8 bits, mean of the pictures' own. SSIM: Gaussian 11x11, RGB. LPIPS: version "
        "0.1, AlexNet. Edge F1: Canny, 1 px of tolerance, in the hole. Intervals: 95 %, paired by "
        f"picture, {RESAMPLES} bootstrap resamples, seed {SEED}.",
        *(f"Machine: {warning}" for warning in environment["warnings"]),
        *(["LPIPS: weights " + settings["lpips"][:16]] if settings["lpips"] else []),
    ]


def _draw_curve(folder: Path, results: list[Result], models: list[str], n: int) -> list[str]:
    """Write curve.png; return a line where that cannot be."""
    from fastrestore.figure import curve

    caption = f"n = {n} pictures; bands: 95 % bootstrap intervals of the mean"
    try:
        write_file(folder / "curve.png", curve(results, models, caption))
    except (MissingExtraError, InputError) as e:
        return [f"curve.png: left out ({e})"]
    return []


def _draw_sheets(
    folder: Path,
    pictures: Pictures,
    cases: Sequence[Case],
    contenders: Sequence[Contender],
    lines: Sequence[Line],
    ours: str,
) -> None:
    """Write the sheets of the free-form cases (or the first family there is)."""
    holes = [c for c in cases if c.has_holes and not c.sigma]
    family = [c for c in holes if c.family == "freeform"] or holes
    wanted = [c for c in family if c.ratio in RATIOS] or family[:1]
    if not wanted:
        return
    scores = {line.key: line for line in lines}
    for which in SHEETS:
        rows, columns = [], ["damaged"]
        for case in wanted:
            here = [c for c in fitting(contenders, case) if c.variant not in (RAW, TOLD)]
            here = [c for c in here if c.method != "input"]
            columns += [c.title for c in here if c.title not in columns]
            mine = [n for n in lines if (n.case, n.method, n.variant) == (case.slug, ours, GIVEN)]
            for line in choose(mine, which):
                damaged = case.damage(line.picture, pictures.read(line.picture))
                cells = {"damaged": Cell(damaged.image)}
                for c in here:
                    reached = scores[line.picture, case.slug, c.method, c.variant].hole_psnr
                    below = "" if reached is None else f"hole {reached:.1f} dB"
                    cells[c.title] = Cell(c.run(line.picture, case, damaged), below)
                cells["truth"] = Cell(damaged.clean)
                rows.append(
                    (f"{label(line.picture)}, {case.label}: our {which} by hole PSNR", cells)
                )
        write_file(folder / f"sheet-{which}.png", draw([*columns, "truth"], rows))
