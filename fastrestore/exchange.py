"""Other programs on the same bytes: inputs written for them, their pictures read back.

    INPUTS/clean/NAME.png               the truth; not for the program
    INPUTS/damaged/CASE/NAME.png        holes black, noise rounded and clipped
    INPUTS/masks/CASE/NAME.png          8-bit grey, white (255) = hole, where there are holes
    INPUTS/unclipped/CASE/NAME.npy      float32 (H, W, 3), 0-255 and beyond, for float noise
    INPUTS/manifest.json                settings, and the sha256 of every file

A program writes its pictures to OUTPUTS/CASE/NAME.png (any lossless format, the same size).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from fastrestore.arrays import U8
from fastrestore.atomic import label, write_file
from fastrestore.contenders import GIVEN, RAW, Contender
from fastrestore.errors import InputError, OutputError
from fastrestore.images import Picture, encode_picture, is_picture, read_picture
from fastrestore.protocol import PROTOCOL, Case, Damaged

MANIFEST = "manifest.json"
_NAMED = 5  # missing files that a message lists


def write_inputs(
    folder: Path,
    pictures: Callable[[], Iterable[tuple[str, U8]]],
    cases: Sequence[Case],
    report: Callable[[str], None] = lambda _: None,
) -> None:
    """Write every case's damaged pictures and masks, and what they are.

    Args:
        folder: Must be empty or absent: old and new inputs must not mix.
        pictures: Gives name and clean picture, uint8 `(H, W, 3)`; is asked once a case.
        cases: What is written.
        report: Is told the slug of each case before it is written.

    Raises:
        InputError: The folder has something in it.
        OutputError: It cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{label(folder)}: is not an empty folder; give a new one for the inputs")
    hashes: dict[str, str] = {}

    def write(name: str, data: bytes) -> None:
        target = folder / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise OutputError(f"{label(target.parent)}: cannot be made ({e.strerror})") from e
        write_file(target, data)
        hashes[name] = hashlib.sha256(data).hexdigest()

    for name, clean in pictures():
        write(f"clean/{name}.png", _png(clean))
    for case in cases:
        report(case.slug)
        for name, clean in pictures():
            d = case.damage(name, clean)
            write(f"damaged/{case.slug}/{name}.png", _png(d.image))
            if d.mask is not None:
                write(f"masks/{case.slug}/{name}.png", _png_mask(d.mask))
            if d.unclipped is not None:
                file = io.BytesIO()
                np.save(file, d.unclipped, allow_pickle=False)
                write(f"unclipped/{case.slug}/{name}.npy", file.getvalue())
    manifest = {
        "protocol": PROTOCOL,
        "mask": "white (255) = hole",
        "cases": {c.slug: c.to_json() for c in cases},
        "sha256": hashes,
    }
    write_file(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def outputs_contenders(
    name: str, folder: Path, cases: Sequence[Case], pictures: Sequence[str]
) -> tuple[list[Contender], list[str]]:
    """Return another program's pictures as contenders: composite and raw.

    Composite: known pixels are the input's own. Under noise there is nothing to keep, so the
    picture counts as it is. A case without a folder is left out; one with a folder must have
    every picture, or means would be of different pictures.

    Args:
        name: What the program is called in tables.
        folder: `OUTPUTS` as in the head of this file.
        cases: Those measured.
        pictures: Names.

    Returns:
        Contenders, and a line for every case that is left out.

    Raises:
        InputError: No such folder, none of the cases in it, pictures missing (they are named).
    """
    if not folder.is_dir():
        raise InputError(f"{label(folder)}: no such folder of pictures that {name} made")
    files: dict[str, dict[str, Path]] = {}
    for case in cases:
        if (folder / case.slug).is_dir():
            files[case.slug] = _match(name, folder / case.slug, pictures)
    absent = [c.slug for c in cases if c.slug not in files]
    if not files:
        raise InputError(
            f"{label(folder)}: has none of the folders {', '.join(absent[:_NAMED])}; put the "
            f"pictures that {name} made there, one folder a case"
        )
    notes = [f"{name}: not measured on {', '.join(absent)} (no such folders)"] if absent else []
    found = []
    for slug, by_name in files.items():
        identity = _identity(by_name)
        for variant in (GIVEN, RAW):
            found.append(_from_files(name, variant, slug, by_name, identity))
    return found, notes


def _from_files(
    name: str, variant: str, slug: str, files: Mapping[str, Path], identity: str
) -> Contender:
    def fits(case: Case) -> bool:
        # Without holes, or under noise, there is but one way to read the picture.
        whole = bool(case.sigma) or not case.has_holes
        return case.slug == slug and not (whole and variant == RAW)

    def run(picture: str, case: Case, d: Damaged) -> U8:
        out = read_picture(files[picture]).rgb
        if out.shape != d.clean.shape:
            h, w = d.clean.shape[:2]
            raise InputError(
                f"{label(files[picture])}: is {out.shape[1]}x{out.shape[0]}, the input {w}x{h}; "
                "bring it back to the input's size"
            )
        if variant == RAW or d.mask is None or case.sigma:
            return out
        return np.where(d.mask[..., None] > 0, out, d.image)

    return Contender(name, variant, identity, fits, run, timed=False, scope=slug)


def _match(name: str, folder: Path, pictures: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(p for p in folder.iterdir() if is_picture(p)):
        if path.stem in found:
            raise InputError(f"{label(path)}: another file has this name; leave one")
        found[path.stem] = path
    missing = [f"{p}.png" for p in pictures if p not in found]
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise InputError(
            f"{label(folder)}: {name} lacks {', '.join(missing[:_NAMED])}{more}; make them, or "
            "take the folder away"
        )
    return {p: found[p] for p in pictures}


def _identity(files: Mapping[str, Path]) -> str:
    joined = hashlib.sha256()
    for name in sorted(files):
        joined.update(name.encode() + b"\0" + files[name].read_bytes())
    return joined.hexdigest()


def _png(rgb: U8) -> bytes:
    return encode_picture(Picture(rgb=rgb), rgb, ".png")


def _png_mask(mask: U8) -> bytes:
    white = np.repeat(mask[..., None] * np.uint8(255), 3, 2)
    return encode_picture(Picture(rgb=white, gray=True), white, ".png")
