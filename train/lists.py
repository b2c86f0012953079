"""Text files that choose pictures by name: plain lists and the official parts of CelebA."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from fastrestore.atomic import label
from fastrestore.errors import InputError

PARTITION = "list_eval_partition.txt"
_CODES = {"train": "0", "val": "1", "test": "2"}
_MAPPING = ["idx", "orig_idx", "orig_file"]
_NUMBER = re.compile(r"(?:\d+-|\D*)0*(\d+)")


def read_list(path: Path, part: str) -> list[str | int]:
    """Return the names that a list asks for.

    Args:
        path: One name a line; or CelebA's partition file (`NAME 0|1|2`, also with commas); or
            the mapping of CelebA-HQ (columns `idx orig_idx orig_file`), whose pictures belong
            to the part of their original in the partition file beside it.
        part: `train`, `val`, `test` or, for a plain list, empty.

    Returns:
        Names; numbers for CelebA-HQ.

    Raises:
        InputError: Absent, not text, not of such a form, or a part is named where there is none.
    """
    lines = _lines(path)
    if lines and lines[0].split() == _MAPPING:
        return [*_from_mapping(path, lines[1:], part)]
    rows = [re.split(r"[,\s]+", line) for line in lines]
    if rows and rows[0] == ["image_id", "partition"]:
        rows = rows[1:]
    is_partition = bool(rows) and all(len(r) == 2 and r[1] in _CODES.values() for r in rows)
    if part and not is_partition:
        raise InputError(f"{label(path)}: has no lines `NAME 0|1|2`; leave out :{part}")
    if is_partition and not part:
        raise InputError(f"{label(path)}: has three parts; write :train, :val or :test behind it")
    if is_partition:
        return [name for name, code in rows if code == _CODES[part]]
    return [*lines]


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as e:
        raise InputError(f"{label(path)}: no such list of names ({e.strerror}); mend it") from e
    except UnicodeDecodeError as e:
        raise InputError(f"{label(path)}: is no text; name a list, one picture a line") from e
    return [stripped for line in text.splitlines() if (stripped := line.strip())]


def _from_mapping(path: Path, lines: list[str], part: str) -> list[int]:
    if not part:
        raise InputError(f"{label(path)}: write :train, :val or :test behind it")
    originals = set(read_list(path.with_name(PARTITION), part))
    try:
        return [int(i) for i, _, original in map(str.split, lines) if original in originals]
    except ValueError as e:
        raise InputError(f"{label(path)}: a line is not `idx orig_idx orig_file`") from e


def choose(names: Iterable[str], wanted: list[str | int], where: str) -> tuple[list[str], str]:
    """Find the wanted pictures.

    A name fits by its whole path, else without its folders, else without its suffix, too (a list
    of JPEG names serves their PNG copies); a number fits `12`, `00012`, `256-00012`.

    Args:
        names: What there is.
        wanted: What the list asks for.
        where: What messages call the place.

    Returns:
        What was found, in the order of `names`, and a line on what was not, or nothing.

    Raises:
        InputError: Nothing is found, or a name fits two pictures.
    """
    names = list(names)
    index: dict[str | int, set[str]] = {}
    for name in names:
        path = PurePosixPath(name)
        number = _NUMBER.fullmatch(path.stem)
        for key in {name, path.name, path.stem}:
            index.setdefault(key, set()).add(name)
        if number:
            index.setdefault(int(number[1]), set()).add(name)
    found, absent = set(), []
    for want in wanted:
        fits = _fits(index, want)
        if len(fits) > 1:
            raise InputError(
                f"{label(where)}: {want!r} fits {' and '.join(sorted(fits)[:2])}; "
                "write the folder in the list, too"
            )
        found |= fits
        if not fits:
            absent.append(want)
    if not found:
        raise InputError(f"{label(where)}: holds none of the {len(wanted)} names in the list")
    line = f"{len(absent)} of {len(wanted)} names are not in {label(where)}"
    return [n for n in names if n in found], f"{line}, such as {absent[0]!r}" if absent else ""


def _fits(index: dict[str | int, set[str]], want: str | int) -> set[str]:
    if isinstance(want, int):
        return index.get(want, set())
    path = PurePosixPath(want)
    for key in (want, path.name, path.stem):
        if key in index:
            return index[key]
    return set()
