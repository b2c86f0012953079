"""A detector whose answers are known: damage is a linear function of a pixel's colour."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def magenta_detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file whose logit is `400 * (r - g + b - 1.97)`, colours 0-1: it sees pure magenta.

    (255, 7, 255) has a probability of 0.74, (255, 8, 255) of 0.37, and any farther colour 0.
    """
    torch = pytest.importorskip("torch", reason="the extra export is not installed")
    pytest.importorskip("onnx", reason="the extra export is not installed")
    from fastrestore.export.export import export_model
    from fastrestore.presets import PRESETS
    from fastrestore.train.generator import Generator

    generator = Generator(PRESETS["nano"], outputs=1).fuse()
    with torch.no_grad():
        for p in generator.parameters():
            p.zero_()
        stem, head = generator.stem.conv.weight, generator.head.conv
        for cell in range(4):
            for channel, gain in enumerate((1.0, -1.0, 1.0)):
                stem[cell, channel * 4 + cell, 1, 1] = gain
            head.weight[cell, cell, 1, 1] = 400.0
        head.bias.fill_(-400.0 * 1.97)
    path = tmp_path_factory.mktemp("detector") / "magenta.onnx"
    export_model(generator, path, name="magenta", track="free", licence="CC0-1.0", kind="detector")
    return path
