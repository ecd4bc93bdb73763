"""GCSA against the plain public module: state dicts, numbers, batch norm, hooks, copies."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from accuracy import assert_as_accurate
from devices import every_backend, every_device
from layouts import LAYOUTS, expected_format
from pairs import assert_same_step, pair, replace_norms, step
from public_attention import PlainAttention, randomize_statistics
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gcsa_ext
from gcsa_ext import GCSA

pytestmark = pytest.mark.usefixtures("one_thread")

VARIANTS = {
    "GCSA": {"channels": 12, "groups": 4},
    "GAM": {"channels": 12, "groups": 1},
    "GAM without channel sigmoid": {"channels": 10, "reduction": 3, "groups": 1, "channel_sigmoid": False},
    "odd": {"channels": 15, "reduction": 5, "groups": 3, "kernel_size": 3},
    "one hidden channel": {"channels": 7, "reduction": 7, "groups": 7, "kernel_size": 1},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_state_dicts_are_those_of_the_public_modules(name: str) -> None:
    fused, plain = GCSA(**VARIANTS[name]), PlainAttention(**VARIANTS[name])
    shapes = [{k: (v.shape, v.dtype) for k, v in m.state_dict().items()} for m in (fused, plain)]
    assert shapes[0] == shapes[1]
    assert list(shapes[0]) == list(shapes[1])
    plain.load_state_dict(fused.state_dict())
    fused.load_state_dict(plain.state_dict())
    assert [n for n, _ in fused.named_parameters()] == [n for n, _ in plain.named_parameters()]


@every_device
@every_backend
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", VARIANTS)
def test_numbers_are_those_of_the_plain_module(name: str, training: bool, layout: str) -> None:
    fused, plain = (m.train(training) for m in pair(**VARIANTS[name]))
    x = LAYOUTS[layout]((3, VARIANTS[name]["channels"], 5, 8), torch.float32)
    # The gradients of the norm of one channel are one number each, in which summands of about 1 cancel.
    sums = ("spatial_attention.1.weight", "spatial_attention.1.bias") if name == "one hidden channel" else ()
    assert_same_step(fused, plain, x, summands=1.0 if sums else 0.0, sums=sums)
    assert fused(x).is_contiguous(memory_format=expected_format(x))


@every_device
@every_backend
@pytest.mark.parametrize("shape", [(1, 12, 7, 7), (2, 12, 1, 1), (1, 12, 1, 9), (5, 12, 13, 2)], ids=str)
def test_sizes_of_the_map(shape: tuple[int, ...]) -> None:
    for training in (True, False):
        fused, plain = (m.train(training) for m in pair(channels=12))
        # The norm turns any two values into -1 and 1: the summands of a gradient nearly cancel.
        assert_same_step(fused, plain, torch.randn(shape), summands=1.0 if shape == (2, 12, 1, 1) else 0.0)


def test_one_value_per_channel_cannot_be_trained_on() -> None:
    fused, plain = pair(channels=12)
    x = torch.randn(1, 12, 1, 1)
    for module in (fused, plain):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            module(x)
    fused.spatial_attention[1].eval()  # then the second norm raises the error
    with pytest.raises(ValueError, match=r"more than one value per channel .* u \(1, 12, 1, 1\)"):
        fused(x)


@every_device
@every_backend
@pytest.mark.parametrize("shape", [(0, 12, 4, 5), (2, 12, 0, 5), (2, 12, 4, 0)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_empty_maps(shape: tuple[int, ...], training: bool) -> None:
    fused, _ = pair(channels=12)
    before = {k: v.clone() for k, v in fused.state_dict().items() if "running" in k}
    x = torch.randn(shape, requires_grad=True)
    out = fused.train(training)(x)
    out.sum().backward()
    assert out.shape == x.grad.shape == shape
    for key, value in before.items():
        assert torch.equal(fused.state_dict()[key], value)


NORM_OPTIONS = {
    "default": {},
    "cumulative average": {"momentum": None},
    "no momentum": {"momentum": 0.0},
    "no running statistics": {"track_running_stats": False},
    "not affine": {"affine": False},
    "large eps": {"eps": 0.5},
}


@every_device
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("cpu", torch.float32), ("cpu", torch.float64), ("triton", torch.float32), ("cuda", torch.float32)],
    ids=str,
    indirect=["backend"],
)
@pytest.mark.parametrize("name", NORM_OPTIONS)
def test_batch_norm_keeps_its_full_meaning(name: str, dtype: torch.dtype, backend: str) -> None:
    fused, plain = pair(channels=12)
    for module in (fused, plain):
        replace_norms(module, **NORM_OPTIONS[name])
        module.to(dtype)
    randomize_statistics(plain)
    fused.load_state_dict(plain.state_dict())
    for module in (fused, plain):
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(module.parameters(), 0.05)
        for _ in range(4):
            optimizer.zero_grad()
            module(torch.randn(2, 12, 6, 4, dtype=dtype) + 1).pow(2).sum().backward()
            optimizer.step()
    assert dict(fused.named_buffers()).keys() == dict(plain.named_buffers()).keys()
    for (key, a), b in zip(fused.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")
    x = torch.randn(2, 12, 5, 5, dtype=dtype)
    torch.testing.assert_close(fused.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-5)


@every_device
@every_backend
def test_frozen_batch_norm_in_training() -> None:
    """As in fine-tuning: norms in evaluation and without gradient, the module in training."""
    fused, plain = pair(channels=12)
    for module in (fused, plain):
        for i in (1, 4):
            module.spatial_attention[i].eval().requires_grad_(False)
    assert_same_step(fused, plain, torch.randn(2, 12, 5, 6))


@every_device
@every_backend
@pytest.mark.parametrize("frozen", ["channel_attention", "spatial_attention", "channel_attention.0.weight"])
def test_frozen_parts_get_no_gradient(frozen: str) -> None:
    fused, plain = pair(channels=12)
    for module in (fused, plain):
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen))
    assert_same_step(fused, plain, torch.randn(2, 12, 5, 6))
    fused(torch.randn(2, 12, 5, 6)).sum().backward()
    for name, parameter in fused.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen)


@every_device
@every_backend
def test_sync_batch_norm_after_conversion() -> None:
    fused, plain = (nn.SyncBatchNorm.convert_sync_batchnorm(m) for m in pair(channels=12))
    assert type(fused.spatial_attention[4]) is nn.SyncBatchNorm
    for training in (True, False):
        assert_same_step(fused.train(training), plain.train(training), torch.randn(2, 12, 5, 6))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_compute_the_same(how: str) -> None:
    fused, _ = pair(channels=12, groups=2, channel_sigmoid=False)
    fused(torch.randn(2, 12, 5, 4)).sum().backward()
    if how == "deepcopy":
        copied = copy.deepcopy(fused)
    elif how == "pickle":
        copied = pickle.loads(pickle.dumps(fused))
    else:
        file = io.BytesIO()
        torch.save(fused, file)
        copied = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert set(copied.state_dict()) == set(GCSA(12).state_dict())
    assert (copied.groups, copied.channel_sigmoid) == (2, False)
    x = torch.randn(2, 12, 5, 4)
    assert torch.equal(copied(x), fused(x)) and torch.equal(copied.eval()(x), fused.eval()(x))
    assert copied.channel_attention[0].weight is not fused.channel_attention[0].weight


def test_state_dict_on_disk_keeps_the_bits(tmp_path: Any) -> None:
    fused, plain = pair(channels=12)
    x = torch.randn(2, 12, 5, 4)
    expected = fused.eval()(x)
    for module in (plain, fused):
        torch.save(module.state_dict(), tmp_path / "weights.pt")
        other = GCSA(12)
        other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
        assert torch.equal(other.eval()(x), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_other_dtypes(dtype: torch.dtype, training: bool) -> None:
    fused, plain = (m.train(training) for m in pair(dtype, channels=12))
    x = torch.randn(3, 12, 5, 8, dtype=dtype)
    found, plainly, exact = fused(x), plain(x), copy.deepcopy(plain).double()(x.double())
    assert found.dtype == dtype
    assert_as_accurate(found, plainly, exact)


@pytest.mark.parametrize("path", ["channel_attention.0", "channel_attention.1", "channel_attention.2",
                                  "channel_attention", "spatial_attention.0", "spatial_attention.3",
                                  "spatial_attention.4", "spatial_attention", ""])  # fmt: skip
def test_hooks_of_every_layer_are_called(path: str) -> None:
    fused, plain = pair(channels=12)
    seen: dict[str, list[Any]] = {"fused": [], "plain": []}
    for name, module in (("fused", fused), ("plain", plain)):
        layer, record = module.get_submodule(path), seen[name].append
        module.channel_attention[1].inplace = False  # torch allows no backward hook beside an in-place layer
        layer.register_forward_pre_hook(lambda m, args, record=record: record(args[0].numel()))
        layer.register_forward_hook(lambda m, args, out, record=record: record(out.detach().clone()))
        layer.register_full_backward_hook(lambda m, i, o, record=record: record(o[0].detach().clone()))
        torch.manual_seed(0)
        module(torch.randn(2, 12, 5, 4, requires_grad=True)).pow(2).sum().backward()
    assert len(seen["plain"]) == 3
    for a, b in zip(seen["fused"], seen["plain"], strict=True):
        if isinstance(a, Tensor):  # the plain module flattens the positions before the perceptron
            torch.testing.assert_close(a.flatten(), b.flatten(), rtol=1e-4, atol=1e-5)
        else:
            assert a == b


def test_a_hook_may_change_the_result() -> None:
    fused, plain = pair(channels=12)
    for module in (fused, plain):
        module.spatial_attention[4].register_forward_hook(lambda m, args, out: out * 2)
        module.channel_attention[2].register_forward_hook(lambda m, args, out: out - 1)
    assert_same_step(fused, plain, torch.randn(2, 12, 5, 4))


def test_global_hooks_see_every_layer() -> None:
    fused, plain = pair(channels=12)
    seen: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m).__name__))
    try:
        fused(torch.randn(2, 12, 5, 4))
        found, seen[:] = sorted(seen[:-1]), []
        plain(torch.randn(2, 12, 5, 4))
        assert found == sorted(seen[:-1])
    finally:
        handle.remove()


@every_device
@every_backend
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool, backend: str) -> None:
    fused, _ = pair(channels=12)
    fused.eval()  # in training the running statistics would be updated twice, as with every batch norm
    x = torch.randn(2, 12, 5, 4, requires_grad=True)
    grads = []
    for call in (fused, lambda x: checkpoint(fused, x, use_reentrant=reentrant)):
        fused.zero_grad()
        x.grad = None
        call(x).pow(2).sum().backward()
        grads.append([x.grad.clone(), *(p.grad.clone() for p in fused.parameters())])
    # Without gradients the CUDA backend computes small maps in one launch, with sums in another order.
    tolerance = 1e-5 if backend == "cuda" and reentrant else 0.0
    torch.testing.assert_close(*grads, rtol=tolerance, atol=tolerance)


@every_device
@every_backend
def test_inference_mode_and_no_grad(backend: str) -> None:
    fused, plain = (m.eval() for m in pair(channels=12))
    x = torch.randn(2, 12, 5, 4)
    expected = fused(x).detach()
    tolerance = 1e-6 if backend == "cuda" else 0.0  # see test_gradient_checkpointing
    with torch.inference_mode():
        out = fused(x)
        assert out.is_inference()
        torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        out = fused(x)
        assert not out.requires_grad
        torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(expected, plain(x))


def test_averaged_model() -> None:
    fused, plain = pair(channels=12)
    averages = [
        torch.optim.swa_utils.AveragedModel(m, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
        for m in (fused, plain)
    ]
    for module, average in zip((fused, plain), averages, strict=True):
        torch.manual_seed(2)
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        for _ in range(3):
            module(torch.randn(2, 12, 5, 4)).pow(2).mean().backward()
            optimizer.step()
            average.update_parameters(module)
    x = torch.randn(2, 12, 5, 4)
    torch.testing.assert_close(averages[0].eval()(x), averages[1].eval()(x))


def test_a_default_device_elsewhere() -> None:
    """The operators' tensors are on the device of the input, not on torch's default device."""
    fused, _ = pair(channels=12)
    x = torch.randn(2, 12, 5, 4, requires_grad=True)
    expected = step(copy.deepcopy(fused), x, torch.ones_like(x))
    torch.set_default_device("meta")
    try:
        found = step(fused, x, torch.ones_like(x))
        masked = gcsa_ext.functional.frequency_mask(
            x.detach(), torch.tensor([1], device="cpu"), torch.tensor([2], device="cpu"), 0.123
        )
    finally:
        torch.set_default_device(None)
    assert masked.device.type == "cpu" and (masked[:, :, 1:3] == 0.123).all()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_meta_device() -> None:
    module = GCSA(12).to("meta")
    assert module(torch.empty(2, 12, 5, 4, device="meta")).shape == (2, 12, 5, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels=0"),
        ({"channels": 3}, "channels=3, reduction=4"),
        ({"channels": 8, "reduction": 0}, "reduction=0"),
        ({"channels": 10}, "channels=10, groups=4"),
        ({"channels": 8, "groups": 0}, "groups=0"),
        ({"channels": 8, "kernel_size": 4}, "kernel_size=4"),
        ({"channels": 8, "kernel_size": -1}, "kernel_size=-1"),
    ],
)
def test_sizes_that_do_not_fit(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GCSA(**options)


def test_repr_has_the_options() -> None:
    assert "groups=2" in repr(GCSA(8, groups=2)) and "sigmoid" not in repr(GCSA(8, groups=2))
    assert "channel_sigmoid=False" in repr(GCSA(8, channel_sigmoid=False))
