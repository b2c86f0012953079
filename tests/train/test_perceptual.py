"""The perceptual networks against plain numpy, and LPIPS against its authors' own code.

The pinned distances were computed once, in float64, by the published package `lpips` 0.1.4 (its
code and heads) on AlexNet in float32; the pictures are formulas.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from fastrestore.errors import InputError
from fastrestore.train import losses, perceptual
from fastrestore.train.perceptual import DEEP, SHALLOW, Features, Lpips, find_weights, parse_layers

F64 = npt.NDArray[np.float64]
SHARED = Path(__file__).parents[3] / "shared" / "weights"
needs_weights = pytest.mark.skipif(
    not (SHARED / perceptual.LPIPS_FILE).is_file(),
    reason="no perceptual weights beside the checkout",
)
ALEX = ((64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3))
VGG = {"conv1_1": (64, 3), "conv1_2": (64, 64), "conv2_1": (128, 64)}


def scene() -> F64:
    """Waves, a disc and a bar, `(64, 64, 3)`, whole levels over 255."""
    y, x = np.mgrid[:64, :64] / 64.0
    waves = (0.3 * np.sin(7 * x + 3 * np.sin(5 * y)), 0.3 * np.cos(6 * y - 2 * x))
    image = 0.5 + np.stack([*waves, 0.4 * np.sin(9 * x * y)], 2)
    image[(x - 0.6) ** 2 + (y - 0.4) ** 2 < 0.05] = (0.9, 0.2, 0.1)
    image[20:24] = 0.05
    rounded: F64 = np.round(255 * image) / 255
    return rounded


def blurred(image: F64) -> F64:
    """Six passes of 1-2-1 along both axes, in whole levels."""
    for axis in (0, 1):
        n = image.shape[axis]
        for _ in range(6):
            border = [(int(k == axis),) * 2 for k in range(3)]
            p = np.pad(image, border, mode="edge")
            sides = np.take(p, range(n), axis) + np.take(p, range(2, n + 2), axis)
            image = (sides + 2 * image) / 4
    rounded: F64 = np.round(255 * image) / 255
    return rounded


def noisy(image: F64) -> F64:
    noise = np.random.default_rng(5).integers(-40, 41, image.shape)
    return (image + noise / 255).clip(0, 1)


def batch(*images: F64) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()


def convolve(x: F64, weight: F64, bias: F64, stride: int, pad: int) -> F64:
    """`(C, H, W)` -> `(O, h, w)`, by windows."""
    k = weight.shape[-1]
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), (1, 2))[:, ::stride, ::stride]
    result: F64 = np.einsum("cyxab,ocab->oyx", windows, weight, optimize=True)
    return result + bias[:, None, None]


def pool(x: F64, kernel: int) -> F64:
    windows = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), (1, 2))
    largest: F64 = windows[:, ::2, ::2].max((3, 4))
    return largest


def normalised(image: F64) -> F64:
    """As LPIPS puts it: -1 to 1, then its own shift and scale."""
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    result: F64 = ((2 * image - 1 - shift) / scale).transpose(2, 0, 1)
    return result


def lpips_oracle(a: F64, b: F64, weights: dict[str, F64]) -> float:
    total = 0.0
    x, y = normalised(a), normalised(b)
    for i, (stride, pad) in enumerate(((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))):
        if i in (1, 2):
            x, y = pool(x, 3), pool(y, 3)
        w, bias = weights[f"conv{i + 1}.weight"], weights[f"conv{i + 1}.bias"]
        x, y = (convolve(v, w, bias, stride, pad).clip(0) for v in (x, y))
        u, v = (m / (np.sqrt((m**2).sum(0)) + 1e-10) for m in (x, y))
        total += float((weights[f"lin{i}"][:, None, None] * (u - v) ** 2).sum(0).mean())
    return total


def random_layer(rng: np.random.Generator, cout: int, cin: int, kernel: int) -> tuple[Any, Any]:
    weight = rng.standard_normal((cout, cin, kernel, kernel), np.float32)
    weight *= (2 / (cin * kernel**2)) ** 0.5
    return weight.astype(np.float16), rng.uniform(-0.1, 0.1, cout).astype(np.float32)


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the first three convolutions: enough for what is asked of it."""
    rng, arrays = np.random.default_rng(0), {}
    for name, (cout, cin) in VGG.items():
        arrays[f"{name}.weight"], arrays[f"{name}.bias"] = random_layer(rng, cout, cin, 3)
    path = tmp_path_factory.mktemp("weights") / perceptual.VGG_FILE
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def alex(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng, arrays = np.random.default_rng(1), {}
    for i, shape in enumerate(ALEX):
        arrays[f"conv{i + 1}.weight"], arrays[f"conv{i + 1}.bias"] = random_layer(rng, *shape)
        arrays[f"lin{i}"] = rng.uniform(0, 1, shape[0]).astype(np.float32)
    path = tmp_path_factory.mktemp("weights") / perceptual.LPIPS_FILE
    np.savez(path, **arrays)
    return path


def wide(path: Path) -> dict[str, F64]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name].astype(np.float64) for name in file}


def test_features_are_vggs(vgg: Path) -> None:
    """Order as given, normalised like ImageNet, pooled before the second block."""
    image, weights = scene()[:17, :22], wide(vgg)  # an odd side: the pool drops the last row
    net = Features.load(vgg, {"relu2_1": 0.5, "relu1_1": 2.0})
    assert net.names == ("relu2_1", "relu1_1")
    assert net.weights == (0.5, 2.0)
    x, expected = normalised(image), {}
    for name in VGG:
        x = pool(x, 2) if name == "conv2_1" else x
        x = convolve(x, weights[f"{name}.weight"], weights[f"{name}.bias"], 1, 1).clip(0)
        expected[name] = x
    maps = net(batch(image))
    for found, name in zip(maps, ("conv2_1", "conv1_1"), strict=True):
        np.testing.assert_allclose(found[0].numpy(), expected[name], rtol=1e-4, atol=1e-4)


def test_features_stop_at_the_deepest_layer_and_are_frozen(vgg: Path) -> None:
    net = Features.load(vgg, ["relu1_2"])
    assert list(net.convs) == ["conv1_1", "conv1_2"]
    assert net.weights == (1.0,)
    assert not any(p.requires_grad for p in net.parameters())
    x = torch.rand(1, 3, 16, 16, requires_grad=True)
    net(x)[0].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0


def test_gradient_of_the_perceptual_loss_through_the_network(vgg: Path) -> None:
    net = Features.load(vgg, {"relu1_1": 1.0, "relu2_1": 0.3}).double()
    rng = np.random.default_rng(3)
    x, y = (torch.tensor(rng.uniform(0, 1, (1, 3, 4, 4))) for _ in range(2))
    target = net(y)
    assert torch.autograd.gradcheck(
        lambda v: losses.perceptual(net(v), target, net.weights), x.requires_grad_(), eps=1e-7
    )


def test_features_run_in_bf16(vgg: Path) -> None:
    net = Features.load(vgg, ["relu2_1"])
    x = batch(scene()[:16, :16])
    with torch.autocast("cpu", torch.bfloat16):
        (small,) = net(x)
    assert small.dtype == torch.bfloat16
    torch.testing.assert_close(small.float(), net(x)[0], rtol=0.1, atol=0.1)


def test_lpips_is_the_formula(alex: Path) -> None:
    net, a = Lpips.load(alex), scene()
    others = [blurred(a), noisy(a), a]
    expected = [lpips_oracle(a, other, wide(alex)) for other in others]
    with torch.autocast("cpu", torch.bfloat16):  # a metric does not depend on how one trains
        found = net(batch(a, a, a), batch(*others))
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    assert min(expected[:2]) > 0.01
    assert found[2] == 0


def test_lpips_cannot_be_trained_on(alex: Path) -> None:
    net = Lpips.load(alex)
    x = batch(scene()).requires_grad_()
    assert not net(x, 1 - x).requires_grad
    assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("shapes", [((1, 3, 64, 64), (2, 3, 64, 64)), ((1, 3, 30, 64),) * 2])
def test_lpips_refuses_other_sizes(alex: Path, shapes: tuple[tuple[int, ...], ...]) -> None:
    net = Lpips.load(alex)
    with pytest.raises(InputError, match="the same size, at least 31 px"):
        net(*(torch.zeros(s) for s in shapes))
    assert net(torch.zeros(1, 3, 31, 31), torch.ones(1, 3, 31, 31)).isfinite()


@needs_weights
def test_lpips_is_the_published_one() -> None:
    net, a = Lpips.load(SHARED / perceptual.LPIPS_FILE), scene()
    others = [blurred(a), noisy(a), np.roll(a, 1, 1), a]
    found = net(batch(*[a] * 4), batch(*others)).tolist()
    assert found == pytest.approx([0.209602, 0.245690, 0.006428, 0], abs=3e-5)  # float16 kernels
    fed_wrongly = net(batch(a) / 2 + 0.5, batch(others[0]) / 2 + 0.5)  # 0-1 taken for -1 to 1
    assert abs(float(fed_wrongly) - found[0]) > 0.005


@needs_weights
def test_reference_pictures_of_lpips() -> None:
    names = ("ex_ref.png", "ex_p0.png", "ex_p1.png")
    if not all((SHARED / name).is_file() for name in names):
        pytest.skip("no reference pictures beside the weights")
    from PIL import Image

    ref, p0, p1 = (np.asarray(Image.open(SHARED / n).convert("RGB")) / 255.0 for n in names)
    net = Lpips.load(SHARED / perceptual.LPIPS_FILE)
    assert net(batch(ref, ref), batch(p0, p1)).tolist() == pytest.approx([0.7219, 0.1376], abs=1e-4)


@needs_weights
def test_the_true_files_load_as_deep_as_asked() -> None:
    path = SHARED / perceptual.VGG_FILE
    assert len(Features.load(path, SHALLOW).convs) == 4
    maps = Features.load(path, DEEP)(batch(scene()))
    assert [m.shape[1] for m in maps] == [64, 128, 256, 512]
    assert all(float(m.mean()) > 0.05 for m in maps)


def test_parse_layers() -> None:
    assert parse_layers("relu1_2=1,relu2_2=0.5") == {"relu1_2": 1.0, "relu2_2": 0.5}
    assert list(parse_layers(" relu4_3 = 2 , relu1_1=0")) == ["relu4_3", "relu1_1"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is not LAYER=WEIGHT"),
        ("relu1_2", "'relu1_2' is not LAYER=WEIGHT"),
        ("relu1_2=1,", "'' is not LAYER=WEIGHT"),
        ("relu1_2=much", "'relu1_2=much' is not LAYER=WEIGHT"),
        ("relu1_2=1,relu1_2=2", "relu1_2 is there twice"),
        ("relu5_1=1", "'relu5_1': unknown; use relu1_1 to relu4_3"),
        ("conv1_1=1", "'conv1_1': unknown"),
        ("relu1_2=-1", "weight -1.0 must be"),
        ("relu1_2=nan", "weight nan must be"),
        ("relu1_2=inf", "weight inf must be"),
    ],
)
def test_wrong_layers_are_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as e:
        parse_layers(text)
    assert "\n" not in str(e.value)


def test_no_layers_are_refused() -> None:
    with pytest.raises(InputError, match="none given"):
        Features([])


def change(path: Path, source: Path, **arrays: Any) -> Path:
    with np.load(source, allow_pickle=False) as file:
        kept = {k: file[k] for k in file if k not in arrays}
    np.savez(path, **kept, **{k: v for k, v in arrays.items() if v is not None})
    return path


def array_file(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_foreign_files_are_refused(vgg: Path, tmp_path: Path) -> None:
    """One line each, and nothing in them is executed."""
    path, name = tmp_path / "w.npz", "conv1_2.weight"
    cases: list[tuple[Any, str]] = [
        (lambda: None, "no such file"),
        (lambda: path.write_bytes(b""), "not a file of weights"),
        (lambda: path.write_bytes(vgg.read_bytes()[:50_000]), "not a file of weights"),
        (lambda: path.write_bytes(pickle.dumps({name: 1})), "not a file of weights"),
        (lambda: path.write_bytes(array_file(np.zeros(3))), "not a file of weights"),
        (lambda: zipfile.ZipFile(path, "w").close(), "holds no conv1_1.weight"),
        (lambda: change(path, vgg, **{name: None}), f"holds no {name}"),
        (lambda: change(path, vgg, **{name: np.zeros((64, 64, 3))}), r"not float \(64, 64, 3, 3\)"),
        (lambda: change(path, vgg, **{name: np.zeros((64, 64, 3, 3), int)}), "is int64"),
        (lambda: change(path, vgg, **{name: np.array([{}])}), "not a file of weights"),
    ]
    for make, words in cases:
        make()
        with pytest.raises(InputError, match=words) as e:
            Features.load(path, ["relu1_2"])
        assert str(e.value).startswith(f"{path}: ")
        assert "fastrestore prepare-weights" in str(e.value)
        assert "\n" not in str(e.value)


def test_a_damaged_byte_is_noticed(vgg: Path, tmp_path: Path) -> None:
    data = bytearray(vgg.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "w.npz").write_bytes(data)
    with pytest.raises(InputError, match="not a file of weights"):
        Features.load(tmp_path / "w.npz", ["relu2_1"])


def test_find_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given folder, variable, beside a checkout; what is set and empty is not passed over."""
    name = perceptual.VGG_FILE
    places = [tmp_path / p for p in ("given", "variable", "shared/weights", "empty")]
    for place in places:
        place.mkdir(parents=True)
        if place.name != "empty":
            (place / name).touch()
    given, variable, beside, empty = places
    (tmp_path / "repository" / "train").mkdir(parents=True)
    (tmp_path / "repository" / "pyproject.toml").touch()
    module = tmp_path / "repository" / "train" / "perceptual.py"
    monkeypatch.setattr(perceptual, "__file__", str(module))
    monkeypatch.setenv(perceptual.FOLDER_VARIABLE, str(variable))
    assert find_weights(name, str(given)) == given / name
    assert find_weights(name) == variable / name
    with pytest.raises(InputError, match=r"empty.*no such file; .*prepare-weights"):
        find_weights(name, str(empty))
    monkeypatch.setenv(perceptual.FOLDER_VARIABLE, str(empty))
    with pytest.raises(InputError, match="no such file"):
        find_weights(name)
    monkeypatch.delenv(perceptual.FOLDER_VARIABLE)
    assert find_weights(name) == beside / name
    (tmp_path / "repository" / "pyproject.toml").unlink()
    with pytest.raises(InputError, match=rf"^{name}: no such file; .*{perceptual.FOLDER_VARIABLE}"):
        find_weights(name)
