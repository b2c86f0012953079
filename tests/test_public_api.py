"""What others may rely on: the names of the package, their signatures, what importing costs."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastrestore

ROOT = Path(__file__).resolve().parents[1]

# A name leaves this list only after a minor version as a deprecated alias.
PUBLIC = [
    "FastRestoreError",
    "InputError",
    "MissingExtraError",
    "ModelError",
    "OutputError",
    "Restorer",
    "__version__",
]
ERRORS = {
    "FastRestoreError": (3, Exception),
    "InputError": (3, ValueError),
    "MissingExtraError": (4, ImportError),
    "ModelError": (4, Exception),
    "OutputError": (5, OSError),
}
RESTORER = {
    "__init__": [
        "model",
        "backend",
        "threads",
        "device",
        "engine",
        "trust_engine",
        "limit_px",
        "motion",
    ],
    "__call__": ["image", "mask", "sigma", "grow_px"],
    "frame": ["image", "mask", "sigma", "grow_px"],
    "video": ["frames", "mask", "sigma", "grow_px"],
    "reset": [],
    "close": [],
}
KEYWORD_ONLY = {*RESTORER["__init__"], "sigma", "grow_px"} - {"model"}
COMMANDS = [
    "restore",
    "live",
    "demo",
    "degrade",
    "models",
    "build-engine",
    "engines",
    "doctor",
    "bench",
    "evaluate",
    "prepare",
    "train",
    "export",
    "prepare-weights",
]
HEAVY = ("torch", "triton", "tensorrt", "onnx", "onnxruntime", "openvino", "cv2", "av", "PIL")


def test_names() -> None:
    assert sorted(fastrestore.__all__) == PUBLIC
    assert all(hasattr(fastrestore, name) for name in PUBLIC)


def test_nothing_else_is_imported_by_name_into_the_package() -> None:
    tree = ast.parse((ROOT / "fastrestore" / "__init__.py").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert sorted(a.asname or a.name for node in imports for a in node.names) == PUBLIC


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    code, base = ERRORS[name]
    error = getattr(fastrestore, name)
    assert issubclass(error, fastrestore.FastRestoreError)
    assert issubclass(error, base)
    assert error.exit_code == code
    assert str(error("a.png: bad; mend it")) == "a.png: bad; mend it"
    assert error.__doc__


@pytest.mark.parametrize("method", RESTORER)
def test_the_restorer(method: str) -> None:
    function = getattr(fastrestore.Restorer, method)
    parameters = list(inspect.signature(function).parameters.values())[1:]
    assert [p.name for p in parameters] == RESTORER[method]
    for p in parameters:
        wanted = p.KEYWORD_ONLY if p.name in KEYWORD_ONLY else p.POSITIONAL_OR_KEYWORD
        assert p.kind == wanted
        assert p.annotation is not p.empty
    assert function.__doc__


def test_the_restorer_is_a_context_manager_that_says_what_it_is() -> None:
    for name in ("__enter__", "__exit__", "spec", "backend"):
        assert hasattr(fastrestore.Restorer, name)


def test_version_is_the_literal_in_its_file() -> None:
    text = (ROOT / "fastrestore" / "_version.py").read_text(encoding="utf-8")
    assert f'"{fastrestore.__version__}"' in text
    assert all(part.isdigit() for part in fastrestore.__version__.split(".")[:3])


def test_commands() -> None:
    from fastrestore import cli

    assert list(cli.COMMANDS) == COMMANDS


def test_types_travel_with_the_package() -> None:
    assert (ROOT / "fastrestore" / "py.typed").is_file()


def test_importing_loads_nothing_heavy(tmp_path: Path) -> None:
    """Of the outside world only numpy; asked of the interpreter itself, away from the checkout."""
    code = "import fastrestore, sys; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(run.stdout.split())
    timed = {line.rpartition("|")[2].strip().partition(".")[0] for line in run.stderr.splitlines()}
    assert "fastrestore" in loaded & timed
    assert not loaded & set(HEAVY)
    assert not timed & set(HEAVY)
