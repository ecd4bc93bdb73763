"""Copies of fused networks: deep copies, averages, replicas, pickles and files, also without gcsa_ext."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from leaving import CHANNELS, FUSED, MAKERS, network, operators_called, plain_and_fused, same_steps
from public_attention import GroupedAttention, PlainAttention, randomize_statistics
from subprocesses import HELPERS, python
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import gcsa_ext

pytestmark = pytest.mark.usefixtures("one_thread")
every_network = pytest.mark.parametrize("name", list(MAKERS))
fused_networks = pytest.mark.parametrize("name", FUSED)


def images() -> Tensor:
    return torch.randn(2, 3, 11, 9, generator=torch.Generator().manual_seed(3))


def through_pickle(model: nn.Module) -> nn.Module:
    copied: nn.Module = pickle.loads(pickle.dumps(model))
    return copied


def through_torch(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copied: nn.Module = torch.load(file, weights_only=False)
    return copied


@every_network
def test_deep_copies_are_independent_and_fused(name: str) -> None:
    plain, fused = plain_and_fused(name)
    x = images()
    expected = fused(x)
    copied = copy.deepcopy(copy.deepcopy(fused))
    assert operators_called(copied, x) == ["gcsa_inference"]
    same_steps(copied, plain, x)
    with torch.no_grad():
        for p in copied.parameters():
            p.zero_()
    assert torch.equal(fused.eval()(x), expected) and not torch.equal(copied.eval()(x), expected)
    if name in FUSED:
        assert gcsa_ext.restore_attention(copied) == 1
        assert operators_called(copied, x) == []
        assert operators_called(fused, x) == ["gcsa_inference"]


@every_network
def test_averages(name: str) -> None:
    """The average of a fused model is fused, and computes with the averaged weights."""
    averages = []
    for model in plain_and_fused(name):
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
        for step in range(3):
            with torch.no_grad():
                for i, p in enumerate(model.parameters()):
                    p.add_(0.1 * torch.cos(torch.arange(p.numel()) + step + i).reshape(p.shape))
            average.update_parameters(model)
        averages.append(average.eval())
    plain, fused = averages
    x = images()
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-4, atol=1e-5)
    assert operators_called(fused, x) == ["gcsa_inference"]


@pytest.mark.parametrize("through", [through_pickle, through_torch])
@every_network
def test_a_pickled_model_can_be_fused_again(name: str, through: Callable[[nn.Module], nn.Module]) -> None:
    plain, fused = plain_and_fused(name)
    x = images()
    expected = plain(x)
    copied = through(fused)
    if name in FUSED:
        assert operators_called(copied, x) == []
        torch.testing.assert_close(copied(x), expected)
        copied = copy.deepcopy(copied)
        assert gcsa_ext.replace_attention(copied) == 1
    with torch.no_grad():
        for p in fused.parameters():  # of which the copy has none
            p.zero_()
    assert operators_called(copied, x) == ["gcsa_inference"]
    same_steps(copied, plain, x)


def test_an_object_of_a_fused_class_is_fused_where_it_is_read() -> None:
    plain, fused = plain_and_fused("plain GCSA")
    data = pickle.dumps(fused)
    assert gcsa_ext.replace_attention(PlainAttention) == 1
    try:
        copied = pickle.loads(data)
        torch.testing.assert_close(copied(images()), plain(images()), rtol=1e-5, atol=1e-5)
        assert operators_called(copied, images()) == ["gcsa_inference"]
    finally:
        gcsa_ext.restore_attention(PlainAttention)


READ = """
    import sys
    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "gcsa_ext":
                raise ModuleNotFoundError("No module named 'gcsa_ext'", name="gcsa_ext")
    if {blocked}:
        sys.meta_path.insert(0, Blocker())
    import pickle, torch
    with open({folder!r} + "/pickle", "rb") as file:
        models = [pickle.load(file), torch.load({folder!r} + "/saved", weights_only=False)]
    x, expected = torch.load({folder!r} + "/tensors")
    for model in models:
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
        model.train()(x).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
    print("gcsa_ext" in sys.modules, sorted(models[0][1].__dict__) == sorted(models[1][1].__dict__))
    if not {blocked}:
        import gcsa_ext
        print([gcsa_ext.replace_attention(model) for model in models])
"""


@pytest.mark.parametrize("kind", [PlainAttention, GroupedAttention])
@pytest.mark.parametrize("blocked", [True, False], ids=["without gcsa_ext", "with gcsa_ext"])
def test_files_in_another_process(kind: type[nn.Module], blocked: bool, tmp_path: Path) -> None:
    """A file of a whole fused model needs no gcsa_ext where it is read, and can be fused there."""
    model = nn.Sequential(nn.Conv2d(3, CHANNELS, 1), kind(CHANNELS)).eval()
    randomize_statistics(model)
    x = images()
    expected = model(x).detach()
    assert gcsa_ext.replace_attention(model) == 1
    (tmp_path / "pickle").write_bytes(pickle.dumps(model))
    torch.save(model, tmp_path / "saved")
    torch.save((x, expected), tmp_path / "tensors")
    source = READ.format(blocked=blocked, folder=str(tmp_path))
    printed = python(source, path=HELPERS) if blocked else python(source)
    assert printed.splitlines() == ["False True"] if blocked else ["False True", "[1, 1]"]


@every_network
def test_state_dicts_from_before(name: str) -> None:
    """Also through hooks that rename the keys of an older version."""
    plain, fused = plain_and_fused(name)
    other = network(name)
    state = {f"old.{key}": value for key, value in other.attention.state_dict().items()}
    seen: list[str] = []

    def rename(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
        seen.append(type(module).__name__)
        for key in list(state_dict):
            if key.startswith(f"{prefix}old."):
                state_dict[prefix + key.removeprefix(f"{prefix}old.")] = state_dict.pop(key)

    for model in (plain, fused):
        model.attention.register_load_state_dict_pre_hook(rename)
        model.attention.load_state_dict(dict(state))
    assert seen == 2 * [type(plain.attention).__name__]
    x = torch.randn(2, CHANNELS, 9, 8)
    found, expected = fused.attention(x), other.attention(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert operators_called(fused.attention, x) == ["gcsa_inference"]
    assert list(fused.state_dict()) == list(plain.state_dict())


def replica(module: nn.Module, factor: float) -> nn.Module:
    """What nn.DataParallel makes for another device: layers of its own, with plain tensors for parameters."""
    copied: nn.Module = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        if child is not None:
            copied._modules[name] = replica(child, factor)
    for name, p in module._parameters.items():
        setattr(copied, name, None if p is None else factor * p.detach())
    for name, buffer in module._buffers.items():
        copied._buffers[name] = None if buffer is None else buffer.clone()
    return copied


@every_network
def test_replicas_compute_with_their_own_weights(name: str) -> None:
    plain, fused = plain_and_fused(name)
    x = images()
    with torch.no_grad():
        before = fused(x)
        of_plain, of_fused = (replica(replica(model, 0.5), 1.5) for model in (plain, fused))
        torch.testing.assert_close(of_fused(x), of_plain(x), rtol=1e-4, atol=1e-5)
        assert operators_called(of_fused, x) == ["gcsa_inference"]
        assert torch.equal(fused(x), before) and not torch.allclose(of_fused(x), before)
        mean = fused.get_buffer(
            next(n for n, _ in fused.named_buffers() if n.endswith("running_mean"))
        ).clone()
        of_fused.train()(x)
    torch.testing.assert_close(
        fused.get_buffer(next(n for n, _ in fused.named_buffers() if n.endswith("running_mean"))), mean
    )
    if name in FUSED:
        assert gcsa_ext.restore_attention(fused) == 1
        assert fused.attention.__dict__.keys() == plain.attention.__dict__.keys()
