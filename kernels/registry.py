"""Every operator and every compiled form, for tests, benchmarks and the ahead-of-time gate."""

from __future__ import annotations

from fastrestore.kernels import edge_loss, pack, pull_push, residual_block, sobel, unpack
from fastrestore.kernels.operator import Launch, Operator

OPERATORS: dict[str, Operator] = {
    module.OPERATOR.name: module.OPERATOR
    for module in (pull_push, pack, unpack, sobel, edge_loss, residual_block)
}


def launches() -> list[Launch]:
    """Return every launch of every operator."""
    return [launch for operator in OPERATORS.values() for launch in operator.launches()]
