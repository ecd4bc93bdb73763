"""Fused networks in several processes: DistributedDataParallel and FSDP2, over gloo on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from leaving import MAKERS
from subprocesses import python

# Each of two processes compares the gradients of a wrapped model with those of the plain model on the whole
# batch. The normalisations are in evaluation, since statistics of the batch differ between the processes.
TRAINING = """
import torch
import gcsa_ext
from leaving import FUSED, network, operators_called
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

def wrap(model, how):
    if how == "FSDP":
        fully_shard(model.attention)
        fully_shard(model)
        return model
    return nn.parallel.DistributedDataParallel(model)

def train(number, store, names, how):
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(store, 2)
    torch.distributed.init_process_group("gloo", store=store, rank=number, world_size=2)
    for name in names:
        compare(number, name, how)
    torch.distributed.destroy_process_group()

def compare(number, name, how):
    torch.manual_seed(0)
    plain = network(name)
    torch.manual_seed(0)
    model = network(name)
    if how == "fused in DDP":
        model = wrap(model, how)
    assert gcsa_ext.replace_attention(model) == (name in FUSED)
    if how != "fused in DDP":
        model = wrap(model, how)
    for step in range(2):
        x = torch.randn(4, 3, 11, 9, generator=torch.Generator().manual_seed(step))
        mine = x[2 * number :][:2]
        for one, images in ((plain, x), (model, mine)):
            one.zero_grad()
            one(images).square().mean().backward()
        for p, q in zip(plain.parameters(), model.parameters(), strict=True):
            grad = q.grad.full_tensor() if isinstance(q.grad, DTensor) else q.grad
            scale = p.grad.abs().max().item()
            torch.testing.assert_close(grad, p.grad, rtol=1e-3, atol=1e-4 * scale + 1e-6)
    # At the end: FSDP, also of a plain model, has other gradients after a pass without gradients.
    assert operators_called(model, mine) == ["gcsa_inference"]
"""


@pytest.mark.parametrize("how", ["DDP", "fused in DDP", "FSDP"])
def test_gradients_of_two_processes(how: str, tmp_path: Path) -> None:
    file = tmp_path / "training.py"
    file.write_text(TRAINING)
    arguments = str(tmp_path / "store"), list(MAKERS), how
    source = f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import torch, training
        torch.multiprocessing.spawn(training.train, {arguments!r}, nprocs=2)
        print("equal")
    """
    assert python(source, timeout=150) == "equal"
