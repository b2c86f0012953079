"""Training on a CUDA device: run by `make gpu-check`, skipped in words elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from PIL import Image  # noqa: E402

from fastrestore.kernels.fusion import fuse  # noqa: E402
from fastrestore.presets import PRESETS  # noqa: E402
from fastrestore.train.config import TrainConfig  # noqa: E402
from fastrestore.train.generator import Generator  # noqa: E402
from fastrestore.train.loop import train  # noqa: E402

pytestmark = pytest.mark.gpu


def test_generator_agrees_with_the_cpu() -> None:
    torch.manual_seed(0)
    net = Generator(PRESETS["nano"])
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05)
    frame = torch.rand(2, 3, 64, 72) * 255
    mask = (torch.rand(2, 1, 64, 72) < 0.3).float()
    inputs = (frame, mask, torch.zeros(2, 4, 64, 72), torch.tensor([0.0, 25.0]).view(2, 1, 1, 1))
    with torch.no_grad():
        cpu = net.restore(fuse(*inputs).packed)
        gpu = net.cuda().restore(fuse(*(x.cuda() for x in inputs)).packed)
    assert float((cpu - gpu.cpu()).abs().max()) < 0.5 / 255


def test_a_run_trains_and_resumes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(8):
        pixels = rng.integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    common = {
        "preset": "nano",
        "track": "free",
        "data": (str(tmp_path),),
        "batch": 4,
        "device": "cuda",
    }
    sizes = {"crop": 32, "large_crop": 64, "held_out": 2}
    train(TrainConfig(**common, **sizes, steps=4), tmp_path / "run")  # type: ignore[arg-type]
    run = train(TrainConfig(**common, **sizes, steps=6), tmp_path / "run")  # type: ignore[arg-type]
    assert run.step == 6
    assert all(torch.isfinite(p).all() for p in run.ema.parameters())
