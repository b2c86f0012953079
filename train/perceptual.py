"""Two frozen networks that compare pictures: VGG16 for the loss, AlexNet (LPIPS) for the verdict.

Torch only. The weights are two `.npz` files that `fastrestore prepare-weights` makes.
"""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fastrestore.atomic import label
from fastrestore.errors import InputError

VGG_FILE = "vgg16_relu4_3_fp16.npz"
LPIPS_FILE = "lpips_alex_fp16.npz"
FOLDER_VARIABLE = "FASTRESTORE_PERCEPTUAL"
_MEND = "make it with `fastrestore prepare-weights`"

# Layer -> lambda_i. Loss and gradient of 8 crops of 128 px, one core, bf16: 0.6 s and 1.2 s, which
# is 7 and 14 times the step of `tiny`.
SHALLOW: Mapping[str, float] = {"relu1_2": 1.0, "relu2_2": 1.0}
DEEP: Mapping[str, float] = {"relu1_2": 1.0, "relu2_2": 1.0, "relu3_3": 1.0, "relu4_3": 1.0}

_VGG = {  # convolution -> channels in and out; each block but the first starts with a max-pool
    "conv1_1": (3, 64),
    "conv1_2": (64, 64),
    "conv2_1": (64, 128),
    "conv2_2": (128, 128),
    "conv3_1": (128, 256),
    "conv3_2": (256, 256),
    "conv3_3": (256, 256),
    "conv4_1": (256, 512),
    "conv4_2": (512, 512),
    "conv4_3": (512, 512),
}
_ALEX = (  # channels in and out, kernel, stride, padding; a 3/2 max-pool before the second, third
    (3, 64, 11, 4, 2),
    (64, 192, 5, 1, 2),
    (192, 384, 3, 1, 1),
    (384, 256, 3, 1, 1),
    (256, 256, 3, 1, 1),
)
_LPIPS_SIDE = 31  # px: below it nothing is left after the second pool
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, on 0-1


class _Frozen(nn.Module):
    """What both have in common: ImageNet's normalisation, and weights that never train."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)

    def normalise(self, x: Tensor) -> Tensor:
        """RGB 0-1 to what ImageNet's networks read, in the memory order that is quick."""
        y = (x.to(self.mean.dtype) - self.mean) / self.std
        return y.contiguous(memory_format=torch.channels_last)


class Features(_Frozen):
    """VGG16 up to the deepest wanted layer.

    Attributes:
        names: Layers in the order given, which is that of the maps.
        weights: Their lambda_i.

    Source: Simonyan and Zisserman 2015, configuration D.
    """

    def __init__(self, layers: Mapping[str, float] | Sequence[str]) -> None:
        super().__init__()
        _check_layers(layers)
        self.names = tuple(layers)
        self.weights = (
            tuple(layers.values()) if isinstance(layers, Mapping) else (1.0,) * len(self.names)
        )
        deepest = max(list(_VGG).index(_conv(name)) for name in self.names)
        self.convs = nn.ModuleDict(
            {name: nn.Conv2d(*_VGG[name], 3, padding=1) for name in list(_VGG)[: deepest + 1]}
        )
        self.requires_grad_(False)

    @classmethod
    def load(cls, path: Path, layers: Mapping[str, float] | Sequence[str]) -> Features:
        """Read the weights of a file that `prepare-weights` made.

        Raises:
            InputError: Unknown layer; no such file, damaged, or without a layer that is needed.
        """
        network = cls(layers)
        for name, tensor in _read(path, _shapes(network.convs)).items():
            network.convs.get_parameter(name).copy_(tensor)
        return network

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps of `names`, each after its ReLU.

        Args:
            x: float, `(N, 3, H, W)`, RGB 0-1; may go beyond, as an untrained generator does.

        Returns:
            float, `(N, C, H / 2^k, W / 2^k)` each; of the autocast type inside autocast.
        """
        maps = {}
        y = self.normalise(x)
        for name, conv in self.convs.items():
            if name.endswith("_1") and name != "conv1_1":
                y = F.max_pool2d(y, 2)
            y = F.relu(conv(y), inplace=True)
            maps[name] = y
        return [maps[_conv(name)] for name in self.names]


class Lpips(_Frozen):
    """LPIPS version 0.1 with AlexNet: how different two pictures look, 0 = the same.

    It judges and is never trained on: the result has no gradient.

    Source: Zhang et al. 2018, eq. 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleDict(
            {f"conv{i}": nn.Conv2d(*shape) for i, shape in enumerate(_ALEX, 1)}
        )
        self.heads = nn.ParameterList(torch.zeros(shape[1]) for shape in _ALEX)
        self.requires_grad_(False)

    @classmethod
    def load(cls, path: Path) -> Lpips:
        """Read the weights of a file that `prepare-weights` made.

        Raises:
            InputError: No such file, damaged, or without a layer that is needed.
        """
        network = cls()
        heads = {f"lin{i}": tuple(head.shape) for i, head in enumerate(network.heads)}
        tensors = _read(path, {**_shapes(network.convs), **heads})
        for i, name in enumerate(heads):
            network.heads[i].copy_(tensors.pop(name))
        for name, tensor in tensors.items():
            network.convs.get_parameter(name).copy_(tensor)
        return network

    @torch.no_grad()
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distances, float `(N,)`, of pictures float `(N, 3, H, W)`, RGB 0-1.

        Raises:
            InputError: The shapes differ, or a side is below 31 px.
        """
        if a.shape != b.shape or min(a.shape[-2:]) < _LPIPS_SIDE:
            raise InputError(
                f"LPIPS: pictures {tuple(a.shape)} and {tuple(b.shape)}; give two of the same "
                f"size, at least {_LPIPS_SIDE} px wide and high"
            )
        with torch.autocast(a.device.type, enabled=False):
            total = a.new_zeros(len(a), dtype=self.mean.dtype)
            y = self.normalise(torch.cat([a, b]))
            for i, conv in enumerate(self.convs.values()):
                y = F.relu(conv(F.max_pool2d(y, 3, 2) if i in (1, 2) else y))
                unit = y / (y.square().sum(1, keepdim=True).sqrt() + 1e-10)
                square = (unit[: len(a)] - unit[len(a) :]).square()
                total += torch.einsum("nchw,c->nhw", square, self.heads[i]).mean((1, 2))
        return total


def parse_layers(text: str) -> dict[str, float]:
    """Read layers and their lambda_i, `relu1_2=1,relu2_2=0.5`.

    Raises:
        InputError: Not of that form, a layer twice or unknown, a weight below 0 or not finite.
    """
    layers: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (p.strip() for p in part.partition("="))
        try:
            weight = float(number)
        except ValueError as e:
            raise InputError(
                f"layers {text!r}: {part.strip()!r} is not LAYER=WEIGHT; "
                "write for example relu1_2=1,relu2_2=0.5"
            ) from e
        if name in layers:
            raise InputError(f"layers {text!r}: {name} is there twice; name it once")
        layers[name] = weight
    _check_layers(layers)
    return layers


def find_weights(name: str, folder: str = "") -> Path:
    """Return where a weights file lies: `VGG_FILE` or `LPIPS_FILE`.

    The first of these that is set decides, so that a slip is not covered up by another file: the
    given folder, the folder in the variable FASTRESTORE_PERCEPTUAL, `../shared/weights` beside a
    checkout.

    Raises:
        InputError: It is not there.
    """
    checkout = Path(__file__).resolve().parents[1]
    beside = (
        checkout.parent / "shared" / "weights" if (checkout / "pyproject.toml").is_file() else ""
    )
    place = folder or os.environ.get(FOLDER_VARIABLE) or beside
    if place and (path := Path(place) / name).is_file():
        return path
    where = label(Path(place) / name) if place else name
    raise InputError(f"{where}: no such file; {_MEND} and name its folder in {FOLDER_VARIABLE}")


def _conv(layer: str) -> str:
    return layer.replace("relu", "conv", 1)


def _check_layers(layers: Mapping[str, float] | Sequence[str]) -> None:
    if not layers:
        raise InputError("layers: none given; write for example relu1_2=1,relu2_2=1")
    known = [name.replace("conv", "relu") for name in _VGG]
    for name in layers:
        if name not in known:
            raise InputError(f"layer {name!r}: unknown; use relu1_1 to relu4_3 of VGG16")
    for name, weight in layers.items() if isinstance(layers, Mapping) else ():
        if not (math.isfinite(weight) and weight >= 0):
            raise InputError(f"layer {name}: weight {weight} must be a number of at least 0")


def _shapes(convs: nn.ModuleDict) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in convs.named_parameters()}


def _read(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Read the named arrays as float32; nothing in the file is executed."""
    tensors = {}
    try:
        with path.open("rb") as opened:  # np.load would leave a damaged file open
            file = np.load(opened, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("a single array")
            for name, shape in shapes.items():
                array = file[name]
                if array.shape != shape or array.dtype.kind != "f":
                    raise InputError(
                        f"{label(path)}: {name} is {array.dtype} {array.shape}, "
                        f"not float {shape}; {_MEND}"
                    )
                tensors[name] = torch.from_numpy(array.astype(np.float32))
    except InputError:
        raise
    except FileNotFoundError as e:
        raise InputError(f"{label(path)}: no such file; {_MEND}") from e
    except KeyError as e:
        raise InputError(f"{label(path)}: holds no {name}; {_MEND}") from e
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise InputError(f"{label(path)}: not a file of weights; {_MEND}") from e
    return tensors
