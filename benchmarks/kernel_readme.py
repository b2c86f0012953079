"""The tables of kernels/README.md that follow from the code: arithmetic and registers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kernel_roofs import SIZES, arithmetic, network_arithmetic, table

from fastrestore.atomic import write_file
from fastrestore.errors import InputError
from fastrestore.kernels import gate, shipped
from fastrestore.kernels.assemble import ARCHS
from fastrestore.kernels.operator import Launch, Operator
from fastrestore.kernels.registry import OPERATORS

README = Path(gate.__file__).parent / "README.md"
SIZE = {"1080p": SIZES["1080p"]}


def tables() -> dict[str, str]:
    """Return every table by its marker."""
    found = {}
    for name, operator in OPERATORS.items():
        found[f"arithmetic {name}"] = arithmetic(operator, SIZE)
        found[f"registers {name}"] = registers(operator)
    found["arithmetic network"] = network_arithmetic(SIZES)
    return found


def registers(operator: Operator) -> str:
    """Return registers a thread as committed, and shared memory of what ships as PTX.

    One row a kernel; one a width where tiles depend on it. Several forms: least to most.
    """
    versions = gate.read(gate.COMMITTED)
    if not versions:
        return "No registers are committed."
    version = max(versions, key=lambda v: [int(part) for part in v.split(".")])
    committed = versions[version]
    shared = {kernel.name: kernel.shared for kernel in shipped.read_manifest()}
    groups: dict[str, list[Launch]] = {}
    for launch in operator.launches():
        name = launch.kernel.__name__
        if launch.tensor_cores:
            name += f", C = {launch.constants['channels']}"
        groups.setdefault(name, []).append(launch)
    rows = []
    for name, launches in groups.items():
        counts = [committed.get(x.name, {}) for x in launches]
        ptx = [shared[x.name] for x in launches if x.name in shared]
        rows.append(
            [f"`{name}`" if "," not in name else name, len(launches)]
            + [_span(32 * x.warps for x in launches)]
            + [_span(c[arch] for c in counts if arch in c) for arch in ARCHS]
            + [_span(ptx)]
        )
    heads = ["kernel", "forms", "threads", *ARCHS, "PTX: shared, bytes"]
    return f"Registers a thread, Triton {version}; none spills.\n\n{table(heads, rows)}"


def _span(values: Iterable[int]) -> str:
    found = sorted(set(values))
    if not found:
        return "-"
    return str(found[0]) if len(found) == 1 else f"{found[0]}-{found[-1]}"


def render(text: str) -> str:
    """Return the README with every table as it is now.

    Raises:
        InputError: A marker is absent.
    """
    for marker, content in tables().items():
        head, start, rest = text.partition(f"<!-- {marker} -->\n")
        _, end, tail = rest.partition(f"<!-- /{marker} -->")
        if not (start and end):
            raise InputError(f"README.md: has no place for {marker}; put its two markers back")
        text = f"{head}{start}{content}\n{end}{tail}"
    return text


def write_readme() -> None:
    """Bring the README's tables up to date.

    Raises:
        InputError: A marker is absent.
        OutputError: It cannot be written.
    """
    write_file(README, render(README.read_text(encoding="utf-8")).encode())
