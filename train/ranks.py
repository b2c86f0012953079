"""Several processes as one: gradients are averaged, the first process's clock rules.

Started by `torchrun`, which sets RANK and WORLD_SIZE; without it there is one process and nothing
to do. Gradients go in one flat buffer: a few MB at these model sizes, so that overlapping it with
the backward pass, which a wrapped module would offer, has nothing to hide.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed

from fastrestore.train.run import Run


class Group:
    """One process alone."""

    rank = 0
    size = 1

    def mean(self, loss: float) -> float:
        """Average a loss over the processes: no number in one is no number in all."""
        return loss

    def average(self, run: Run) -> None:
        """Average all gradients over the processes."""

    def agree(self, run: Run, stopped: bool) -> bool:
        """Take over the first process's clock; return whether any process was stopped."""
        return stopped


class _Processes(Group):
    def __init__(self, device: torch.device) -> None:
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.device = device

    def mean(self, loss: float) -> float:
        shared = torch.tensor(loss, dtype=torch.float64, device=self.device)
        distributed.all_reduce(shared)
        return float(shared) / self.size

    def average(self, run: Run) -> None:
        players = [run.net] + ([run.adversary.net] if run.adversary else [])
        grads = [p.grad for net in players for p in net.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        distributed.all_reduce(flat)
        flat /= self.size
        sizes = [g.numel() for g in grads]
        for grad, part in zip(grads, torch.split(flat, sizes), strict=True):
            grad.copy_(part.view_as(grad))

    def agree(self, run: Run, stopped: bool) -> bool:
        mine = [run.seconds if self.rank == 0 else 0.0, float(stopped)]
        shared = torch.tensor(mine, dtype=torch.float64, device=self.device)
        distributed.all_reduce(shared)
        run.seconds = float(shared[0])
        return bool(shared[1] > 0)


@contextmanager
def join(device: str) -> Iterator[Group]:
    """Join the processes that `torchrun` started, if it did."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Group()
        return
    here = torch.device(device)
    if device == "cuda":
        here = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(here)
    distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield _Processes(here)
        distributed.barrier()  # the first still writes; one that left early can abort its peers
    finally:
        distributed.destroy_process_group()
