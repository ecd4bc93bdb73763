"""Forks, spawns and threads after the parent has used the operators: right results, and no deadlock."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from pairs import step
from subprocesses import python

from gcsa_ext import GCSA, functional, reference

# A forked child may neither call torch's parallel functions nor its autograd engine: with or without gcsa_ext
# these wait for ever or raise an error. So the parent computes the expected results, and a child only calls
# the operators.
SETUP = """
    import torch, gcsa_ext
    from gcsa_ext import functional, reference
    torch.set_num_threads(2)
    operators = torch.ops.gcsa_ext
    band = torch.tensor([3]), torch.tensor([4])
    def inputs(seed):
        torch.manual_seed(seed)
        x = torch.randn(3, 40, 13, 17)
        return x, torch.randn(10, 40) / 6, torch.randn(10), torch.randn(40, 10) / 3, torch.randn(40)
    def results(seed):
        x, *weights = inputs(seed)
        z = functional.channel_gate(x, *weights, 4)
        return (
            z,
            functional.norm_gate(z, x, training=True),
            functional.frequency_mask(x, *band, 2.0),
            *operators.channel_gate_backward(z, x, *weights, 4, True, True, True),
            *operators.norm_gate_backward(
                z, x, z, None, None, torch.zeros(40), torch.ones(40), 1e-5, True, True, True, False, False
            )[:2],
        )
    expected = [results(seed) for seed in range(8)]
    for seed in range(8):
        x, *weights = inputs(seed)
        assert torch.allclose(expected[seed][0], reference.channel_gate(x, *weights, 4), atol=1e-5)
    def right(seed):
        return all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(results(seed), expected[seed]))
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_loader_workers(method: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("loader")
    (folder / "clips.py").write_text(
        "import torch\n"
        "from gcsa_ext import FrequencyMasking, GCSA\n"
        "class Clips(torch.utils.data.Dataset):\n"
        "    def __init__(self):\n"
        "        torch.manual_seed(0)\n"
        "        self.mask, self.attention = FrequencyMasking(9, iid_masks=True), GCSA(16).eval()\n"
        "        self.clips = torch.randn(6, 16, 20, 33)\n"
        "    def __len__(self):\n"
        "        return 6\n"
        "    def __getitem__(self, i):\n"
        "        torch.manual_seed(i)\n"
        "        with torch.no_grad():\n"
        "            return self.attention(self.mask(self.clips[i])[None])[0]\n"
    )
    printed = python(
        f"""
        import sys
        sys.path.insert(0, {str(folder)!r})
        import torch
        from clips import Clips
        if __name__ == "__main__":
            torch.set_num_threads(2)
            clips = Clips()
            expected = torch.stack([clips[i] for i in range(6)])
            for _ in range(2):
                loader = torch.utils.data.DataLoader(
                    clips, batch_size=2, num_workers=2, multiprocessing_context={method!r}, timeout=60
                )
                found = torch.cat(list(loader))
                assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
                assert torch.allclose(clips[3], expected[3])
            print("done")
        """
    )
    assert printed == "done"


def test_fork() -> None:
    printed = python(
        SETUP
        + """
    from subprocesses import holds_in_a_fork
    for _ in range(3):
        assert holds_in_a_fork(lambda: right(2) and right(3) and holds_in_a_fork(lambda: right(4)))
        assert right(5)
    print("done")
    """
    )
    assert printed == "done"


def test_pool_of_forks() -> None:
    printed = python(
        SETUP
        + """
    import multiprocessing
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(right, range(6)) == [True] * 6
    assert right(7)
    print("done")
    """
    )
    assert printed == "done"


@pytest.mark.usefixtures("keep_threads")
@pytest.mark.parametrize("count", [1, 2])
def test_calls_from_several_python_threads(count: int) -> None:
    torch.set_num_threads(count)
    modules = [GCSA(channels).eval() for channels in (8, 24)]
    start, width = torch.randint(9, (2,)), torch.randint(9, (2,))

    def call(i: int) -> list[torch.Tensor]:
        torch.set_num_threads(count)
        x = inputs[i]
        masked = functional.frequency_mask(x, start, width)
        return [*step(modules[i % 2], x, x.cos()), masked]

    inputs = [torch.randn(1 + i % 3, (8, 24)[i % 2], 9 + i, 11) for i in range(8)]
    one_by_one = [call(i) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(call, 4 * list(range(8))))
    for found, expected in zip(together, 4 * one_by_one, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    functional.release_workspace()


def test_a_backward_pass_in_another_thread() -> None:
    arguments = [torch.randn(s, requires_grad=True) for s in ((2, 8, 5, 7), (3, 8), (3,), (8, 3), (8,))]
    out = functional.channel_gate(*arguments, 4)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: out.sum().backward()).result(timeout=60)
    expected = torch.autograd.grad(reference.channel_gate(*arguments, 4).sum(), arguments)
    torch.testing.assert_close(tuple(a.grad for a in arguments), expected, rtol=1e-4, atol=1e-5)


def test_synchronised_batch_norm_in_a_process_group() -> None:
    """torch has no SyncBatchNorm on the CPU: in training GCSA leaves it to the layer, which says so."""
    printed = python(
        """
        import tempfile, torch, gcsa_ext
        from torch import nn
        store = torch.distributed.FileStore(tempfile.mktemp(), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        module = nn.SyncBatchNorm.convert_sync_batchnorm(gcsa_ext.GCSA(8))
        x = torch.randn(2, 8, 5, 4)
        for spatial in (module.spatial_attention[1], module.spatial_attention[4]):
            spatial.train()
            try:
                spatial(torch.randn(2, spatial.num_features, 3, 3))
                layer = "works"
            except ValueError as error:
                layer = str(error)
        module.spatial_attention[1].eval()
        try:
            module(x)
            print(layer == "works")
        except ValueError as error:
            print(str(error) == layer)
        y = module.eval()(x)
        with gcsa_ext.use_backend("reference"):
            print(torch.allclose(y, module(x), atol=1e-6))
        torch.distributed.destroy_process_group()
        """
    )
    assert printed.split() == ["True", "True"]
