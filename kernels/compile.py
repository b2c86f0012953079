"""Ahead-of-time compilation: PTX for TensorRT, and the gate of what each kernel takes on each chip.

    python -m fastrestore.kernels.compile ptx [--output DIR]
    python -m fastrestore.kernels.compile gate [--update] [--arch sm_87 ...] [--match NAME ...]

Needs no GPU. One line a kernel on stdout, errors on stderr. Exit codes: 0 ok, 1 a kernel is not
what it must be, 2 usage, 3 bad input, 4 triton or torch is absent, 5 output or disk.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrestore.atomic import label, write_file
from fastrestore.errors import FastRestoreError, InputError, OutputError, need
from fastrestore.kernels import shipped
from fastrestore.kernels.assemble import ARCHS, KernelError, capability

if TYPE_CHECKING:
    from fastrestore.kernels.operator import Launch

# The oldest chip that is supported (A100; Orin is 87), and PTX that every CUDA 12 driver reads. A
# newer target would run on newer chips alone, and what it adds (tcgen05) plugins may not use.
TARGET = "sm_80"
PTX_VERSION = 80
MOST_SHARED = 48 * 1024  # bytes; more needs a call on the function, which TensorRT may not make
_OLDEST_TRITON = (3, 6)
_ENTRY = re.compile(
    r"(?P<head>.*\.visible \.entry )(?P<name>[\w$]+)\((?P<params>.*?)\)(?P<body>.*)", re.DOTALL
)
_PTX_TYPES = {"*": "u64", "i": "u32"}
Say = Callable[[str], None]


@contextlib.contextmanager
def compiler() -> Iterator[None]:
    """Make Triton compile from nothing and without source paths: the same bytes everywhere.

    Raises:
        InputError: Triton interprets in this process.
        MissingExtraError: Triton or torch is absent.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise InputError("TRITON_INTERPRET: is 1, but only real kernels compile; unset it")
    with tempfile.TemporaryDirectory() as cache:
        os.environ.update(TRITON_CACHE_DIR=cache, TRITON_DISABLE_LINE_INFO="1")
        version = need("triton", "kernels").__version__
        if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_TRITON:
            oldest = ".".join(map(str, _OLDEST_TRITON))
            raise InputError(f"triton: {version} cannot compile ahead of time; install {oldest}")
        need("torch", "kernels")
        yield


def build(launch: Launch, arch: str, ptx_version: int | None = None) -> Any:
    """Compile one launch for one chip as Triton itself would; return its `CompiledKernel`.

    Raises:
        KernelError: It does not compile.
    """
    triton = need("triton", "kernels")
    names = list(launch.kernel.arg_names)
    if names != [*launch.arguments, *launch.constants]:
        raise KernelError(f"{launch.name}: arguments and constants are not those of the kernel")
    signature = {name: launch.arguments.get(name, "constexpr") for name in names}
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in launch.divisible}
    source = triton.compiler.ASTSource(launch.kernel, signature, dict(launch.constants), attributes)
    options = {
        "num_warps": launch.warps,
        "num_stages": launch.stages,
        "enable_fp_fusion": True,  # Triton's default when just-in-time
    }
    if ptx_version is not None:
        options["ptx_version"] = ptx_version
    target = need("triton.backends.compiler", "kernels").GPUTarget("cuda", capability(arch), 32)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # Triton prints pages when ptxas fails
            return triton.compile(source, target=target, options=options)
    except Exception as e:  # the compiler's passes raise whatever they like
        lines = str(e).strip().splitlines() or [""]
        reason = f"{type(e).__name__}: {lines[-1].strip()}"
        raise KernelError(f"{launch.name} {arch}: does not compile ({reason})") from e


def portable(launch: Launch) -> tuple[dict[str, Any], str]:
    """Compile one launch for TensorRT.

    Returns:
        Its entry in the manifest, and the PTX.

    Raises:
        KernelError: It does not compile, or TensorRT could not launch it.
    """
    _check_order(launch)
    kernel = build(launch, TARGET, PTX_VERSION)
    shared = int(kernel.metadata.shared)
    if shared > MOST_SHARED:
        raise KernelError(
            f"{launch.name}: {shared} bytes of shared memory, a plugin has {MOST_SHARED}"
        )
    for scratch in ("global_scratch_size", "profile_scratch_size"):
        if getattr(kernel.metadata, scratch, 0):
            raise KernelError(f"{launch.name}: needs scratch memory, which TensorRT does not give")
    ptx = strip(kernel.asm["ptx"], launch.name, list(launch.arguments.values()))
    return {
        "name": launch.name,
        "entry": launch.name,
        "block": 32 * launch.warps,
        "shared": shared,
        "grid": [{"of": list(axis.of), "per": axis.per} for axis in launch.grid],
        "arguments": [{"name": n, "type": t} for n, t in launch.arguments.items()],
        "divisible": list(launch.divisible),
        "constants": {n: _plain(value) for n, value in launch.constants.items()},
        "sha256": shipped.digest(ptx),
    }, ptx


def strip(ptx: str, entry: str, types: Sequence[str]) -> str:
    """Return PTX with its own arguments alone, no comments, and the entry under another name.

    Triton appends pointers to scratch memory to every kernel; TensorRT knows nothing of them.

    Args:
        ptx: One kernel, without line information.
        entry: New name of the symbol.
        types: Of the arguments that stay, `*fp16` or `i32`.

    Raises:
        KernelError: The text is not as expected; dropping or renaming could break it.
    """
    text = "\n".join(line for raw in ptx.splitlines() if (line := raw.partition("//")[0].rstrip()))
    parts = _ENTRY.fullmatch(text + "\n") if text.count(".entry ") == 1 else None
    if parts is None or re.search(r"^\s*\.(?:loc|file|section|func)\b", text, re.MULTILINE):
        raise KernelError(f"{entry}: PTX has not one kernel, or line information")
    old, body = parts["name"], parts["body"]
    params = [param.strip() for param in parts["params"].split(",")]
    kept, hidden = params[: len(types)], params[len(types) :]
    fits = len(kept) == len(types) and all(
        re.fullmatch(rf"\.param \.{_PTX_TYPES[kind[0]]}\b.*\b{old}_param_{i}", param)
        for i, (param, kind) in enumerate(zip(kept, types, strict=True))
    )
    if not fits:
        raise KernelError(f"{entry}: PTX has other parameters than the launch")
    for param in hidden:
        if re.search(rf"\b{param.split()[-1]}\b", body):
            raise KernelError(f"{entry}: hidden parameter {param.split()[-1]} is used")
    body = re.sub(rf"\b{old}(?=_param_\d+\b)", entry, body)
    if re.search(rf"(?<![\w$]){old}(?![\w$])", body):
        raise KernelError(f"{entry}: {old} is more than the name of the kernel; rename that")
    lines = ",\n".join("\t" + re.sub(rf"\b{old}(?=_param_\d+$)", entry, p) for p in kept)
    return f"{parts['head']}{entry}(\n{lines}\n){body}"


def write(folder: Path, launches: Iterable[Launch], say: Say) -> None:
    """Write the PTX of every plugin launch, then the manifest; remove what only the old one names.

    Raises:
        KernelError: A launch cannot be compiled; nothing has been written.
        OutputError: Cannot be written.
    """
    entries, texts = [], {}
    for launch in launches:
        entry, texts[launch.name] = portable(launch)
        entries.append(entry)
        say(f"{launch.name}  {entry['shared']} B shared  sha256 {entry['sha256'][:12]}")
    head = {
        "triton": need("triton", "kernels").__version__,
        "target": TARGET,
        "ptx_version": f"{PTX_VERSION // 10}.{PTX_VERSION % 10}",
    }
    kernels = ",\n".join(json.dumps(entry) for entry in entries)  # a line each: short diffs
    manifest = f'{json.dumps(head)[:-1]}, "kernels": [\n{kernels}\n]}}\n'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = _named(folder)
        for name, text in texts.items():
            write_file(folder / f"{name}.ptx", text.encode())
        write_file(folder / shipped.MANIFEST, manifest.encode())
        for old in before - texts.keys():
            (folder / f"{old}.ptx").unlink(missing_ok=True)
    except OSError as e:
        if isinstance(e, OutputError):
            raise
        raise OutputError(f"{label(folder)}: cannot be written ({e.strerror})") from e


def _named(folder: Path) -> set[str]:
    """Return the kernels of the manifest that a folder has; none where it cannot be read."""
    try:
        manifest = json.loads((folder / shipped.MANIFEST).read_text(encoding="utf-8"))
        return {str(kernel["name"]) for kernel in manifest["kernels"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _check_order(launch: Launch) -> None:
    """Refuse what TensorRT cannot call: it hands over inputs, int32 scalars, outputs."""
    kinds = "".join("p" if t.startswith("*") else t[0] for t in launch.arguments.values())
    scalars = {t for t in launch.arguments.values() if not t.startswith("*")}
    if scalars - {"i32"} or not re.fullmatch(r"p+i*p+", kinds):
        raise KernelError(f"{launch.name}: arguments are not inputs, i32 scalars, outputs")
    if not re.fullmatch(r"[A-Za-z]\w*", launch.name):
        raise KernelError(f"{launch.name}: is no symbol; use letters, digits and _")


def _plain(value: Any) -> Any:
    """Return a constant as JSON has it."""
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m fastrestore.kernels.compile")
    commands = parser.add_subparsers(dest="command", required=True)
    ptx = commands.add_parser("ptx", help="write the PTX for TensorRT, with its manifest")
    ptx.add_argument("--output", type=Path, default=shipped.FOLDER, metavar="DIR")
    gate = commands.add_parser("gate", help="check what every kernel takes on every chip")
    gate.add_argument("--update", action="store_true", help="commit the measured registers")
    gate.add_argument("--arch", nargs="+", choices=ARCHS, default=ARCHS, help="only these")
    gate.add_argument("--match", nargs="+", default=(), metavar="NAME", help="only names like it")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    try:
        with compiler():
            from fastrestore.kernels import gate, registry  # after torch and triton are known

            launches = registry.launches()
            if options.command == "ptx":
                write(options.output, (x for x in launches if x.plugin), say)
                return 0
            faults = gate.run(launches, options.arch, options.match, options.update, say)
    except FastRestoreError as e:
        faults = [str(e)]
        code = e.exit_code
    else:
        code = 1 if faults else 0
    for fault in faults:
        sys.stderr.write(f"{fault}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
