"""The assembler and disassembler in the triton wheel: what the machine code of a kernel needs."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fastrestore.errors import FastRestoreError, need

# Most shared memory a program may have, in KiB. Source: CUDA programming guide, compute
# capabilities, "maximum amount of shared memory per thread block".
SHARED_KIB = {
    "sm_80": 163, "sm_87": 163, "sm_89": 99, "sm_90": 227, "sm_110": 227, "sm_120": 99,
}  # fmt: skip
ARCHS = tuple(SHARED_KIB)
# mma.sync; wgmma of sm_90; tcgen05 of sm_100 and sm_110.
_TENSOR = re.compile(r"\b(?:HMMA|HGMMA|UTCHMMA)\b")
_WIDE = re.compile(r"\b(?:LDG|STG|LDGSTS)\.E\S*\.(?:128|256)\b")
_RESOURCES = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+)\b.*?\bLOCAL:(\d+)")


class KernelError(FastRestoreError):
    """A kernel does not compile, or not to what it must be."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class Resources:
    """What one kernel takes on one chip."""

    entry: str
    registers: int  # a thread
    stack: int  # bytes a thread: spilled registers


@dataclass(frozen=True, slots=True)
class Instructions:
    """Counts in the machine code."""

    tensor: int  # matrix instructions
    wide: int  # loads, stores and asynchronous copies of 16 bytes or more


def capability(arch: str) -> int:
    """Return 87 for `sm_87`."""
    return int(arch.removeprefix("sm_"))


def assemble(ptx: str, arch: str) -> bytes:
    """Turn PTX into machine code, by the assembler that Triton takes for this chip.

    Raises:
        KernelError: The assembler refuses.
    """
    compiler = need("triton.backends.nvidia.compiler", "kernels")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx, encoding="utf-8")
        ptxas = compiler.get_ptxas(capability(arch)).path
        _run(ptxas, f"--gpu-name={arch}", str(source), "-o", str(target))
        return target.read_bytes()


def resources(cubin: bytes) -> Resources:
    """Read what machine code of one kernel says of itself."""
    text = _inspect("cuobjdump", cubin, "-res-usage")
    found = _RESOURCES.search(text)
    if found is None:
        raise KernelError(f"cuobjdump: no resources in {text[:80]!r}; use a tested Triton")
    registers, stack, local = (int(number) for number in found.groups()[1:])
    return Resources(found[1], registers, stack + local)


def instructions(cubin: bytes) -> Instructions:
    """Count the instructions that matter."""
    text = _inspect("nvdisasm", cubin, "-c", "-ndf")  # no data flow: a fifth less time
    return Instructions(len(_TENSOR.findall(text)), len(_WIDE.findall(text)))


def _inspect(tool: str, cubin: bytes, *options: str) -> str:
    """Run a tool of the wheel on machine code."""
    knobs = need("triton.knobs", "kernels")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return _run(getattr(knobs.nvidia, tool).path, *options, file.name)


def _run(*command: str) -> str:
    """Run a tool and return what it prints."""
    run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if run.returncode:
        said = (run.stderr or run.stdout).strip().splitlines()
        last = said[-1] if said else f"exit code {run.returncode}"
        raise KernelError(f"{Path(command[0]).name}: {last}")
    return run.stdout
