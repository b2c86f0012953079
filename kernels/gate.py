"""The gate every launch must pass on every chip, without having the chip.

No spilled registers, shared memory within the chip's limit, matrix instructions and 16-byte
accesses where promised, no more registers than committed, and PTX for TensorRT that assembles.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fastrestore.atomic import write_file
from fastrestore.errors import InputError, need
from fastrestore.kernels import compile as aot
from fastrestore.kernels.assemble import (
    ARCHS,
    SHARED_KIB,
    KernelError,
    assemble,
    instructions,
    resources,
)

if TYPE_CHECKING:
    from fastrestore.kernels.operator import Launch

COMMITTED = Path(__file__).parent / "resources.json"
Registers = dict[str, dict[str, int]]  # launch -> arch -> registers a thread
_MEND = "see what changed, or commit it by gate --update"
_MEND_FILE = "restore it, or delete it and write it anew by gate --update"


@dataclass(slots=True)
class Finding:
    """What one launch takes, and what is wrong with it."""

    registers: dict[str, int] = field(default_factory=dict)
    portable: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def inspect(launch: Launch, archs: Sequence[str]) -> Finding:
    """Compile one launch for every chip, and its portable PTX, and look at the machine code."""
    finding = Finding()
    for arch in archs:
        try:
            finding.registers[arch] = _native(launch, arch, finding.faults)
        except KernelError as e:
            finding.faults.append(str(e))
    if launch.plugin:
        try:
            _, ptx = aot.portable(launch)
            for arch in archs:
                finding.portable[arch] = _portable(launch, ptx, arch, finding.faults)
        except KernelError as e:
            finding.faults.append(str(e))
    return finding


def _native(launch: Launch, arch: str, faults: list[str]) -> int:
    """Check the form that runs just-in-time compiled; return its registers."""
    kernel = aot.build(launch, arch)
    cubin = kernel.asm["cubin"]
    used = resources(cubin)
    here = f"{launch.name} {arch}:"
    if used.stack:
        faults.append(f"{here} spills registers ({used.stack} bytes a thread)")
    if kernel.metadata.shared > SHARED_KIB[arch] * 1024:
        faults.append(
            f"{here} {kernel.metadata.shared} bytes of shared memory, the chip has"
            f" {SHARED_KIB[arch]} KiB"
        )
    if launch.tensor_cores or launch.wide_copies:  # half the time of a kernel: only where asked
        counted = instructions(cubin)
        if launch.tensor_cores and not counted.tensor:
            faults.append(f"{here} no matrix instruction")
        if launch.wide_copies and not counted.wide:
            faults.append(f"{here} no load, store or copy of 16 bytes")
    return used.registers


def _portable(launch: Launch, ptx: str, arch: str, faults: list[str]) -> int:
    """Check the form that TensorRT loads; return its registers."""
    used = resources(assemble(ptx, arch))
    here = f"{launch.name} PTX on {arch}:"
    if used.entry != launch.name:
        faults.append(f"{here} the entry is {used.entry}")
    if used.stack:
        faults.append(f"{here} spills registers ({used.stack} bytes a thread)")
    return used.registers


def compare(measured: Registers, committed: Registers, whole: bool) -> tuple[list[str], list[str]]:
    """Compare registers with the committed ones.

    Args:
        measured: Of this run.
        committed: Of the same Triton version.
        whole: Whether `measured` holds every launch and chip, so that others are left-overs.

    Returns:
        Faults (more registers, missing, left over) and notes (fewer registers).
    """
    faults, notes = [], []
    for name, archs in measured.items():
        for arch, registers in archs.items():
            before = committed.get(name, {}).get(arch)
            if before is None:
                faults.append(f"{name} {arch}: no committed registers; {_MEND}")
            elif registers > before:
                faults.append(f"{name} {arch}: {registers} registers, {before} before; {_MEND}")
            elif registers < before:
                notes.append(f"{name} {arch}: {registers} registers, {before} before")
    if whole:
        for name, archs in committed.items():
            for arch in archs.keys() - measured.get(name, {}).keys():
                faults.append(f"{name} {arch}: committed, but there is none; {_MEND}")
    return faults, notes


def read(path: Path) -> dict[str, Registers]:
    """Return the committed registers of every Triton version; empty where there is no file.

    Raises:
        InputError: The file cannot be read or is damaged.
    """
    try:
        versions = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror}); {_MEND_FILE}") from e
    except ValueError as e:
        raise InputError(f"{path}: is no JSON ({e}); {_MEND_FILE}") from e
    if not _is_nested(versions, 3):
        raise InputError(
            f"{path}: does not hold registers by version, launch and chip; {_MEND_FILE}"
        )
    found: dict[str, Registers] = versions
    return found


def _is_nested(value: object, depth: int) -> bool:
    """Return whether these are dictionaries to a depth, and integers inside."""
    if not depth:
        return type(value) is int
    return isinstance(value, dict) and all(_is_nested(v, depth - 1) for v in value.values())


def run(
    launches: Sequence[Launch],
    archs: Sequence[str],
    match: Sequence[str],
    update: bool,
    say: Callable[[str], None],
    path: Path = COMMITTED,
) -> list[str]:
    """Check launches, one line each; return what is wrong, one line each.

    Args:
        launches: All that ship.
        archs: Chips to compile for.
        match: Parts of the names to check; empty = all.
        update: Whether to write the measured registers, if nothing else is wrong.
        say: Takes a line of progress.
        path: The committed registers.

    Raises:
        InputError: No launch matches; the file is damaged.
        OutputError: The file cannot be written.
    """
    chosen = [x for x in launches if not match or any(part in x.name for part in match)]
    if not chosen:
        raise InputError(f"--match: no launch has {' or '.join(match)} in its name")
    version = need("triton", "kernels").__version__
    versions = read(path)
    measured: Registers = {}
    faults: list[str] = []
    for launch in chosen:
        if launch.name in measured:
            faults.append(f"{launch.name}: two launches have this name")
        finding = inspect(launch, archs)
        measured[launch.name] = finding.registers
        faults += finding.faults
        say(_line(launch, finding))
    whole = len(chosen) == len(launches) and set(archs) == set(ARCHS)
    committed = versions.get(version, {})
    if not update:
        rises, notes = compare(measured, committed, whole)
        for note in notes:
            say(f"note: {note}; commit the gain by gate --update")
        return faults + rises
    if not faults:
        kept = {} if whole else committed
        merged = {name: {**kept.get(name, {}), **found} for name, found in measured.items()}
        versions[version] = {**kept, **merged}
        write_file(path, _text(versions).encode())
    return faults


def _line(launch: Launch, finding: Finding) -> str:
    """Return one line: registers by chip, native and of the PTX."""
    native = " ".join(f"{a.removeprefix('sm_')}:{r}" for a, r in finding.registers.items())
    ptx = " ".join(f"{a.removeprefix('sm_')}:{r}" for a, r in finding.portable.items())
    verdict = "FAILED" if finding.faults else "ok"
    return f"{launch.name}  registers {native}{'  PTX ' + ptx if ptx else ''}  {verdict}"


def _text(versions: dict[str, Registers]) -> str:
    """Return the committed registers as JSON, sorted, a line for every launch: short diffs."""
    blocks = []
    for version, launches in sorted(versions.items()):
        lines = ",\n".join(f'  "{n}": {json.dumps(archs)}' for n, archs in sorted(launches.items()))
        blocks.append(f'"{version}": {{\n{lines}\n}}')
    return "{\n" + ",\n".join(blocks) + "\n}\n"
