"""GCSA in one step past the dispatcher (csrc/attention.h): the same numbers, only where nobody notices."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pairs import PassedOn, pair, step
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from gcsa_ext import GCSA, backends, functional, use_backend


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The steps, forward and backward, that were not left to the long way."""
    seen: list[str] = []
    before = torch.get_num_threads()
    torch.set_num_threads(1)

    def recorded(name: str) -> Callable[..., Any]:
        function = getattr(backends.native.extension, name)

        def record(*args: Any) -> Any:
            result = function(*args)
            if result is not None:
                seen.append(name)
            return result

        return record

    for name in ("attend", "differentiate"):
        monkeypatch.setattr(backends.native.extension, name, recorded(name))
    yield seen
    torch.set_num_threads(before)


def no_biases(module: GCSA) -> None:
    module.spatial_attention[0].bias = module.spatial_attention[3].bias = None


def not_affine(module: GCSA) -> None:
    module.spatial_attention[1] = nn.BatchNorm2d(len(module.spatial_attention[1].weight), affine=False)
    module.spatial_attention[4].bias = None


def frozen(module: GCSA) -> None:
    module.channel_attention.requires_grad_(False)
    module.spatial_attention[3].weight.requires_grad_(False)


def half_frozen(module: GCSA) -> None:
    module.channel_attention[0].requires_grad_(False)


def cumulative(module: GCSA) -> None:
    module.spatial_attention[1].momentum = None


def exactly(module: GCSA) -> None:
    module.spatial_attention[4].momentum = 1.0


def mixed_training(module: GCSA) -> None:
    module.spatial_attention[1].train(not module.spatial_attention[1].training)


CHANGES = (no_biases, not_affine, frozen, half_frozen, cumulative, exactly, mixed_training)


def assert_same_both_ways(
    module: GCSA,
    x: Tensor,
    grad: Tensor,
    steps: list[str],
    context: Callable[[], Any] = contextlib.nullcontext,
) -> None:
    other = copy.deepcopy(module)
    for _ in range(2):  # the second time by what was noted in the first
        steps.clear()
        with context():
            past = step(module, x, grad)
        assert steps == ["attend", "differentiate"]
        steps.clear()
        with PassedOn(), context():
            by = step(other, x, grad)
        assert not steps
        for a, b in zip(past, by, strict=True):
            assert a.dtype == b.dtype and a.stride() == b.stride()
            assert torch.equal(a, b) and a.isfinite().all()
    for a, b in zip(module.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_same_numbers(
    dtype: torch.dtype, layout: torch.memory_format, training: bool, steps: list[str]
) -> None:
    module = pair(torch.float32 if dtype == torch.bfloat16 else dtype, channels=20)[0].train(training)
    x, grad = (torch.randn(3, 20, 9, 8, dtype=dtype).to(memory_format=layout) for _ in range(2))
    rounded = dtype == torch.bfloat16
    context = (lambda: torch.autocast("cpu", torch.bfloat16)) if rounded else contextlib.nullcontext
    assert_same_both_ways(module, x, grad, steps, context)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_same_numbers_of_other_layers(
    change: Callable[[GCSA], None], training: bool, steps: list[str]
) -> None:
    module = pair(channels=12)[0].train(training)
    change(module)
    assert_same_both_ways(module, torch.randn(2, 12, 6, 7) + 1, torch.randn(2, 12, 6, 7), steps)


def test_same_numbers_of_a_float32_map_under_autocast(steps: list[str]) -> None:
    def autocast() -> Any:
        return torch.autocast("cpu", torch.bfloat16)

    module = pair(channels=32)[0]
    assert_same_both_ways(module, torch.randn(2, 32, 9, 8), torch.randn(2, 32, 9, 8), steps, autocast)


@pytest.mark.parametrize("channels", [20, 32, 68])
@pytest.mark.parametrize("kernel_size", [5, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_weights_in_channels_last(
    dtype: torch.dtype, kernel_size: int, channels: int, steps: list[str]
) -> None:
    """They are read as they lie, and so are their gradients written; by the dispatcher they are converted."""
    module = GCSA(channels, kernel_size=kernel_size).to(memory_format=torch.channels_last)
    if dtype == torch.float64:
        module.double()
    other = copy.deepcopy(module).to(memory_format=torch.contiguous_format)
    x, grad = (torch.randn(4, channels, 9, 7, dtype=dtype) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16, dtype == torch.bfloat16):
        found, expected = step(module, x, grad), step(other, x, grad)
    assert steps == 2 * ["attend", "differentiate"]
    for a, b, p in zip(found, expected, (x, x, *module.parameters()), strict=True):
        assert torch.equal(a, b) and a.isfinite().all()
        assert a.stride() == p.stride()


def test_a_module_of_bfloat16(steps: list[str]) -> None:
    module = pair(channels=16)[0].bfloat16().eval()
    x, grad = (torch.randn(2, 16, 7, 7).bfloat16() for _ in range(2))
    assert_same_both_ways(module, x, grad, steps)
    steps.clear()
    module.train()(x)  # its running statistics would be moved in bfloat16: by torch
    assert not steps


@pytest.mark.parametrize("of", ["expanded", "another layout", "a slice"])
def test_gradients_that_lie_otherwise(of: str, steps: list[str]) -> None:
    module, x = pair(channels=8)[0], torch.randn(2, 8, 6, 5)
    grad = {
        "expanded": torch.tensor(0.3).expand(2, 8, 6, 5),
        "another layout": torch.randn(2, 8, 6, 5).to(memory_format=torch.channels_last),
        "a slice": torch.randn(4, 8, 6, 10)[::2, :, :, ::2],
    }[of]
    expected = step(copy.deepcopy(module), x, grad.clone(memory_format=torch.contiguous_format))
    steps.clear()
    for a, b in zip(step(module, x, grad), expected, strict=True):
        assert torch.equal(a, b)
    assert steps == ["attend", "differentiate"]


def test_inference_mode(steps: list[str]) -> None:
    module, x = pair(channels=8)[0].eval(), torch.randn(2, 8, 6, 5)
    expected = module(x).detach()
    steps.clear()
    with torch.inference_mode():
        for map_ in (x, x.clone()):
            found = module(map_)
            assert found.is_inference() and torch.equal(found, expected)
    assert steps == ["attend", "attend"]
    module(x.requires_grad_()).sum().backward()


def test_maps_for_the_long_way(steps: list[str]) -> None:
    module = pair(channels=8)[0].eval()
    x = torch.randn(2, 8, 6, 6)
    expected = module(x).detach()
    steps.clear()

    class Own(Tensor):
        pass

    with torch.inference_mode():
        of_inference = x.clone()
    maps = (x.as_subclass(Own), x.transpose(2, 3).contiguous().transpose(2, 3), of_inference)
    for map_ in maps:
        with torch.no_grad():
            found = module(map_)
        torch.testing.assert_close(found.as_subclass(Tensor), expected)
    assert not steps
    with pytest.raises(TypeError, match="dtype"):
        module(x.double())
    with pytest.raises(ValueError, match="expected"):
        module(x[0])


@pytest.mark.parametrize("training", [True, False])
def test_a_profiler_sees_the_operator(training: bool, steps: list[str]) -> None:
    module, x = pair(channels=8)[0].train(training), torch.randn(2, 8, 6, 5, requires_grad=True)
    out = module(x)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
        module(x)
        out.sum().backward()
    names = [event.name for event in seen.events()]
    assert "gcsa_ext::gcsa" in names and "gcsa_ext::gcsa_backward" in names
    assert steps == ["attend"]


def test_this_backend_forced(steps: list[str]) -> None:
    module = pair(channels=8)[0]
    assert_same_both_ways(
        module, torch.randn(2, 8, 6, 5), torch.randn(2, 8, 6, 5), steps, lambda: use_backend("cpu")
    )


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_forced_backend(where: str, steps: list[str]) -> None:
    module = pair(channels=8)[0]
    x, grad = torch.randn(2, 8, 6, 5), torch.randn(2, 8, 6, 5)
    expected = step(copy.deepcopy(module), x, grad)
    steps.clear()
    x.requires_grad_()
    wanted = [x, *module.parameters()]
    with use_backend("reference") if where == "forward" else contextlib.nullcontext():
        out = module(x)
    with use_backend("reference") if where == "backward" else contextlib.nullcontext():
        grads = torch.autograd.grad(out, wanted, grad)
    assert steps == (["attend"] if where == "backward" else [])
    torch.testing.assert_close([out, *grads], expected, rtol=1e-4, atol=1e-5)


def test_weights_of_another_shape_or_kind_under_the_same_name(steps: list[str]) -> None:
    module, x = pair(channels=8)[0].eval(), torch.randn(2, 8, 6, 5)
    module(x)
    steps.clear()
    weight = module.spatial_attention[0].weight
    own = weight.data
    weight.data = own[:, :, :5, :5].contiguous()
    with pytest.raises((ValueError, RuntimeError)):
        module(x)
    weight.data = own.transpose(2, 3).contiguous().transpose(2, 3)
    found = module(x)
    assert not steps
    weight.data = own
    assert torch.equal(found, module(x)) and steps == ["attend"]


def test_what_was_saved_must_not_change() -> None:
    module, x = pair(channels=8)[0], torch.randn(2, 8, 6, 5, requires_grad=True)
    out = module(x)
    with torch.no_grad():
        module.spatial_attention[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_graph_is_freed_once() -> None:
    x = torch.randn(2, 8, 6, 5, requires_grad=True)
    out = pair(channels=8)[0](x).sum()
    (first,) = torch.autograd.grad(out, x, retain_graph=True)
    (second,) = torch.autograd.grad(out, x)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out, x)


def test_checkpoints(steps: list[str]) -> None:
    module, x = pair(channels=8)[0].eval(), torch.randn(2, 8, 6, 5)
    expected = step(copy.deepcopy(module), x, x)

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = checkpoint(self.inner, x, use_reentrant=False)
            return out

    steps.clear()
    found = step(Checkpointed(), x, x)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert steps == ["attend", "attend", "differentiate"]


@pytest.mark.parametrize("observed", ["forward", "backward"])
def test_a_checkpoint_of_which_a_profiler_sees_one_pass(observed: str) -> None:
    """Both ways save the same."""
    module, x = pair(channels=8)[0].eval(), torch.randn(2, 8, 6, 5, requires_grad=True)
    (expected,) = torch.autograd.grad(module(x).sum(), x)

    def seen(name: str) -> Any:
        watched = profile(activities=[ProfilerActivity.CPU], acc_events=True)
        return watched if name == observed else contextlib.nullcontext()

    with seen("forward"):
        out = checkpoint(module, x, use_reentrant=False)
    with seen("backward"):
        (found,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_saved_are_numbers(dtype: torch.dtype) -> None:
    """Hooks may compress them."""
    seen = []

    def pack(t: Tensor) -> Tensor:
        seen.append(t)
        return t

    module, x = pair(channels=16)[0], torch.randn(2, 16, 6, 5, dtype=dtype)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        out = module(x)
    assert len(seen) == 19 and all(t.isfinite().all() for t in seen)
    out.sum().backward()


def freed(tensor: Tensor) -> None:
    tensor.untyped_storage().resize_(0)


@pytest.mark.parametrize(
    "name",
    ["channel_attention.0.bias", "spatial_attention.0.weight", "spatial_attention.1.weight", "running_mean"],
)
def test_tensors_whose_memory_was_taken_away(name: str, steps: list[str]) -> None:
    module, x = pair(channels=8)[0].eval(), torch.randn(2, 8, 6, 5)
    module(x)
    out = module(x)
    if name == "running_mean":
        freed(module.spatial_attention[1].running_mean)
        freed(module.spatial_attention[1].running_var)
    else:
        freed(module.get_parameter(name).data)
    steps.clear()
    with pytest.raises(ValueError, match=r"gcsa_ext\._C: expected no null address"):
        module(x)
    if name != "running_mean":  # of which the graph has a copy
        with pytest.raises(ValueError, match=r"gcsa_ext\._C: expected no null address"):
            out.sum().backward()
    freed(x)
    with pytest.raises(ValueError, match=r"gcsa_ext\._C: expected no null address"):
        functional.random_frequency_mask(x, 3)
    assert not steps


def test_statistics_have_no_gradient(steps: list[str]) -> None:
    module, x = pair(channels=8)[0].eval(), torch.randn(2, 8, 6, 5)
    module.spatial_attention[1].running_mean.requires_grad_()
    out = module(x)
    assert not steps
    with pytest.raises(RuntimeError, match="mean and var are constants"):
        out.sum().backward()


def test_running_statistics_move_and_say_so(steps: list[str]) -> None:
    module = pair(channels=8)[0]
    norm = module.spatial_attention[1]
    module(torch.randn(2, 8, 6, 5))
    steps.clear()
    before = [(t.clone(), t._version) for t in norm.buffers()]
    with torch.no_grad():
        module(torch.randn(2, 8, 6, 5))
    assert steps == ["attend"]
    assert all(
        t._version > v and not torch.equal(t, old) for t, (old, v) in zip(norm.buffers(), before, strict=True)
    )
    norm.momentum = torch.tensor(0.25)  # which only the long way knows
    module(torch.randn(2, 8, 6, 5))
    assert steps == ["attend"]


def strided(t: Tensor) -> Tensor:
    return torch.stack([t, t], -1)[..., 0]


def channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else strided(t)


@pytest.mark.parametrize("which", [*range(19), "all"])
@pytest.mark.parametrize("layout", [strided, channels_last], ids=lambda f: f.__name__)
def test_saved_tensors_that_come_back_laid_out_otherwise(
    which: int | str, layout: Callable[[Tensor], Tensor]
) -> None:
    module, x = pair(channels=20)[0].eval(), torch.randn(2, 20, 6, 5)
    grad = torch.randn_like(x)
    expected = step(module, x, grad)
    count = 0

    def pack(t: Tensor) -> tuple[int, Tensor]:
        nonlocal count
        count += 1
        return count - 1, t

    def unpack(packed: tuple[int, Tensor]) -> Tensor:
        number, t = packed
        return layout(t) if which in (number, "all") else t

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        found = step(module, x, grad)
    assert count == 19
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("which", [13, 14])
def test_what_is_kept_that_comes_back_in_another_dtype(which: int) -> None:
    module, x = pair(channels=20)[0].eval(), torch.randn(2, 20, 6, 5)
    grad = torch.randn_like(x)
    expected = step(module, x, grad)
    numbers = itertools.count()

    def unpack(packed: tuple[int, Tensor]) -> Tensor:
        number, t = packed
        return t.double() if number == which else t

    with torch.autograd.graph.saved_tensors_hooks(lambda t: (next(numbers), t), unpack):
        found = step(module, x, grad)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_batched_gradients(steps: list[str]) -> None:
    module, x = pair(torch.float64, channels=8)[0].eval(), torch.randn(2, 8, 6, 5).double().requires_grad_()
    module(x)
    steps.clear()
    out, grads = module(x), torch.randn(3, 2, 8, 6, 5).double()
    assert steps == ["attend"]
    wanted = [x, *module.parameters()]
    found = torch.autograd.grad(out, wanted, grads, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(out, wanted, grad, retain_graph=True) for grad in grads]
    torch.testing.assert_close(list(found), [torch.stack(g) for g in zip(*each, strict=True)])


def test_gradients_that_are_enabled_where_autograd_is_not(steps: list[str]) -> None:
    module, x = pair(channels=8)[0].eval(), torch.randn(2, 8, 6, 5)
    expected = module(x).detach()
    steps.clear()
    with torch.inference_mode(), torch.enable_grad():
        within = module(x)
    with torch._C._AutoDispatchBelowAutograd():
        below = module(x)
    assert steps == ["attend", "attend"]
    for found in (within, below):
        assert torch.equal(found, expected) and not found.requires_grad


def test_compiled_autograd() -> None:
    module, x = pair(channels=8)[0].eval(), torch.randn(2, 8, 6, 5, requires_grad=True)
    (expected,) = torch.autograd.grad(module(x).sin().sum(), x)
    out = module(x).sin().sum()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
        out.backward()
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("channels", [1, 4])
def test_gradients_of_weights_with_one_input_have_their_strides(channels: int, steps: list[str]) -> None:
    module = GCSA(channels, reduction=channels, groups=1).to(memory_format=torch.channels_last)
    module(torch.randn(2, channels, 6, 5))
    steps.clear()
    module(torch.randn(2, channels, 6, 5)).sum().backward()
    assert steps == ["attend", "differentiate"]
    for i in (0, 3):
        weight = module.spatial_attention[i].weight
        assert weight.grad.stride() == weight.stride()
