"""First weights: from a checkpoint, or from a model file back into a generator that trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastrestore.errors import InputError, ModelError
from fastrestore.presets import IN_CHANNELS, PRESETS
from fastrestore.train import checkpoint, loop, weights
from fastrestore.train.config import TrainConfig
from fastrestore.train.detection import Detection
from fastrestore.train.generator import Generator
from fastrestore.train.layers import EdgeConv
from fastrestore.train.loop import train
from fastrestore.train.restoration import Restoration
from fastrestore.train.run import Run, save, start

MakeConfig = Callable[..., TrainConfig]


def speak(net: Generator) -> Generator:
    """Give the layers that start at zero something to say."""
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.normal_(std=0.3 * p[0].numel() ** -0.5)
    return net


def packed() -> Tensor:
    x = torch.rand(2, IN_CHANNELS, 32, 48, generator=torch.Generator().manual_seed(4))
    x[:, 6:] = 0
    return x


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def export(net: Generator, path: Path, **changes: Any) -> Path:
    pytest.importorskip("onnx", reason="the extra export is not installed")
    from fastrestore.export.export import export_model

    settings: dict[str, Any] = {"name": "mine", "track": "free", "licence": "CC0-1.0"}
    export_model(net, path, **(settings | changes))
    return path


@pytest.fixture
def first(make_config: MakeConfig, tmp_path: Path) -> Path:
    """The folder of a run whose average is not its last state."""
    folder = tmp_path / "first"
    train(make_config(steps=3), folder)
    return folder


@pytest.fixture
def original(micro: None) -> Generator:
    torch.manual_seed(1)
    return speak(Generator(PRESETS["micro"]))


def test_checkpoint_gives_its_average_and_its_past(
    make_config: MakeConfig, first: Path, tmp_path: Path
) -> None:
    tensors, record = checkpoint.load(first)
    config = make_config(from_weights=str(first), seed=8)
    nets = Restoration(config).network(), Restoration(config).network()
    earlier = weights.take(config, *nets)
    for net in nets:
        assert same(net.state_dict(), checkpoint.part_of(tensors, "ema"))
    assert not same(nets[0].state_dict(), checkpoint.part_of(tensors, "net"))
    assert [e["step"] for e in earlier] == [3]
    assert earlier[0]["config"] == record["config"]
    # and a run from a run from a run knows both
    second = train(config, tmp_path / "second")
    assert second.earlier == earlier
    third = make_config(from_weights=str(tmp_path / "second" / checkpoint.NAME))
    assert [e["step"] for e in weights.take(third, *nets)] == [3, 4]


def test_run_from_weights_reports_them_before_it_learns(
    make_config: MakeConfig, first: Path, tmp_path: Path
) -> None:
    _, record = checkpoint.load(first)
    run = train(make_config(from_weights=str(first)), tmp_path / "second")
    assert [row["step"] for row in run.history] == [0, 4]
    assert run.history[0]["psnr"] == record["history"][-1]["psnr"]


def test_resumed_run_does_not_take_them_again(
    make_config: MakeConfig, first: Path, tmp_path: Path
) -> None:
    config = make_config(from_weights=str(first), steps=2)
    train(config, tmp_path / "second")
    (first / checkpoint.NAME).unlink()
    assert train(replace(config, steps=3), tmp_path / "second").step == 3


def test_stage_2_starts_from_stage_1(
    stage2: MakeConfig, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the discriminator warms up, the generator stays what it was."""
    before = checkpoint.part_of(checkpoint.load(first)[0], "ema")
    unchanged = []

    def watch(run: Run, folder: Path) -> None:
        unchanged.append([same(n.state_dict(), before) for n in (run.net, run.ema)])

    monkeypatch.setattr(loop, "save", watch)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", -1.0)
    train(stage2(from_weights=str(first), steps=3, d_warm=2), tmp_path / "second")
    assert unchanged == [[True, True], [True, True], [False, False]]


@pytest.mark.parametrize("source", ["checkpoint", "model"])
@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"track": "research"}, "not a micro restorer of the research track"),
        ({"preset": "nano"}, "not a nano restorer of the free track"),
    ],
    ids=["track", "preset"],
)
def test_weights_of_another_kind_are_refused(
    make_config: MakeConfig,
    original: Generator,
    tmp_path: Path,
    source: str,
    changes: dict[str, Any],
    wanted: str,
) -> None:
    path = tmp_path / "first"
    if source == "model":
        path = export(original, tmp_path / "mine.onnx")
    else:
        save(start(make_config(), original), path)
    config = make_config(from_weights=str(path), **changes)
    with pytest.raises(InputError, match="holds a micro restorer of the free track") as e:
        train(config, tmp_path / "second")
    assert wanted in str(e.value)
    assert str(e.value).startswith(str(path))
    assert "\n" not in str(e.value)
    assert not (tmp_path / "second" / checkpoint.NAME).exists()


def test_detector_starts_from_a_restorers_body_but_not_the_other_way(
    make_config: MakeConfig, original: Generator, tmp_path: Path
) -> None:
    save(start(make_config(), original), tmp_path / "restorer")
    config = make_config(task="detector", from_weights=str(tmp_path / "restorer"))
    net = Detection(config).network()
    head = {k: v.clone() for k, v in net.head.state_dict().items()}
    weights.take(config, net)
    assert same(net.head.state_dict(), head)
    body = {k: v for k, v in original.state_dict().items() if not k.startswith("head.")}
    assert same({k: v for k, v in net.state_dict().items() if k in body}, body)

    save(start(config, net), tmp_path / "detector")
    config = make_config(from_weights=str(tmp_path / "detector"))
    with pytest.raises(InputError, match="holds a micro detector of the free track, not") as e:
        weights.take(config, Restoration(config).network())
    assert "\n" not in str(e.value)


def test_weights_that_do_not_fit_are_refused(
    make_config: MakeConfig, original: Generator, tmp_path: Path
) -> None:
    run = start(make_config(), original)
    save(run, tmp_path)
    tensors, record = checkpoint.load(tmp_path)
    edits: list[Callable[[str], bool]] = [lambda k: False, lambda k: not k.startswith("ema.head")]
    for keep in edits:
        checkpoint.save(tmp_path, {k: v for k, v in tensors.items() if keep(k)}, record)
        config = make_config(from_weights=str(tmp_path))
        with pytest.raises(InputError, match="its weights do not fit micro") as e:
            weights.take(config, Restoration(config).network())
        assert "\n" not in str(e.value)
    for other in ({}, {"config": {**record["config"], "colour": 1}}):
        checkpoint.save(tmp_path, tensors, other)
        with pytest.raises(InputError) as e:
            weights.take(config, Restoration(config).network())
        assert "\n" not in str(e.value)


def test_model_file_comes_back_as_the_generator_it_was(
    make_config: MakeConfig, original: Generator, tmp_path: Path
) -> None:
    path = export(original, tmp_path / "mine.onnx", training={"steps": 9}, version=3)
    config = make_config(from_weights=str(path), seed=5)
    torch.manual_seed(config.seed)
    run = start(config, Restoration(config).network())
    fresh = {k: v.clone() for k, v in run.net.state_dict().items()}
    earlier = weights.take(config, run.net, run.ema)
    assert earlier == [{"model": "mine", "version": 3, "steps": 9}]
    with torch.no_grad():
        expected = original(packed())
        assert expected.abs().mean() > 0.01
        for net in (run.net, run.ema):
            torch.testing.assert_close(net(packed()), expected, rtol=0, atol=1e-5)
    # The branches are there, new, and take part; both networks start as one.
    for name, value in run.net.state_dict().items():
        if name.endswith((".mix", ".scale")):
            assert torch.equal(value, fresh[name])
    assert same(run.net.state_dict(), run.ema.state_dict())
    edges = [m for m in run.net.modules() if isinstance(m, EdgeConv) and m.edge]
    assert edges
    assert all(not torch.allclose(m.weight(), m.conv.weight, atol=1e-3) for m in edges)


def test_model_file_fits_a_generator_without_branches(
    make_config: MakeConfig, original: Generator, tmp_path: Path
) -> None:
    path = export(original, tmp_path / "mine.onnx")
    config = make_config(from_weights=str(path), ablate="plain-conv")
    net = Restoration(config).network()
    weights.take(config, net)
    with torch.no_grad():
        torch.testing.assert_close(net(packed()), original(packed()), rtol=0, atol=1e-5)


def test_detector_comes_back_too(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(task="detector")
    torch.manual_seed(2)
    net = speak(Detection(config).network())
    path = export(net, tmp_path / "finder.onnx", kind="detector")
    config = replace(config, from_weights=str(path))
    again = Detection(config).network()
    weights.take(config, again)
    with torch.no_grad():
        torch.testing.assert_close(again(packed()), net(packed()), rtol=0, atol=1e-5)


def test_shipped_model_by_its_name() -> None:
    """A generator that reads it restores as ONNX Runtime does, to a level in a thousand pixels."""
    pytest.importorskip("onnx", reason="the extra export is not installed")
    import numpy as np

    from fastrestore.backend import open_backend
    from fastrestore.kernels.fusion import fuse

    config = TrainConfig(
        preset="tiny", track="free", data=("d",), steps=1, from_weights="tiny", ablate="plain-conv"
    )
    net = Restoration(config).network()
    (earlier,) = weights.take(config, net)
    assert earlier["model"] == "tiny"
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (1, 48, 64, 3), np.uint8)
    mask, sigma = np.zeros((1, 48, 64, 1), np.uint8), np.zeros(1, np.float32)
    mask[:, 9:30, 20:41] = 1
    state = np.zeros((1, 48, 64, 4), np.uint8)
    expected, _ = open_backend("tiny", "ort", 1).run(frame, mask, state, sigma)
    x = (torch.from_numpy(a).permute(0, 3, 1, 2).float() for a in (frame, mask, state))
    with torch.no_grad():
        y = net.restore(fuse(*x, torch.zeros(1, 1, 1, 1)).packed)
    levels = (y * 255).round().clamp(0, 255)[0].permute(1, 2, 0).numpy()
    difference = np.abs(levels - expected[0])
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


@pytest.mark.parametrize("name", ["runs/absent", "absent.onnx"])
def test_weights_that_are_not_there_are_named(make_config: MakeConfig, name: str) -> None:
    config = make_config(from_weights=name)
    with pytest.raises(ModelError, match=f"{name}: no such model; shipped: ") as e:
        weights.take(config, Restoration(config).network())
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["foreign.onnx", "foreign.safetensors"])
def test_foreign_file_is_refused(make_config: MakeConfig, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"no weights")
    config = make_config(from_weights=str(path))
    with pytest.raises((InputError, ModelError), match=name) as e:
        weights.take(config, Restoration(config).network())
    assert "\n" not in str(e.value)


def test_model_without_the_generators_layers_is_refused(
    make_config: MakeConfig, original: Generator, tmp_path: Path
) -> None:
    path = export(original, tmp_path / "mine.onnx")
    import onnx

    model = onnx.load(str(path))
    for w in list(model.graph.initializer):
        if w.name.startswith(("stem", "middle.0")):
            model.graph.initializer.remove(w)
    path.write_bytes(model.SerializeToString())
    config = make_config(from_weights=str(path))
    with pytest.raises((InputError, ModelError)) as e:
        weights.take(config, Restoration(config).network())
    assert str(path) in str(e.value)
    assert "\n" not in str(e.value)
