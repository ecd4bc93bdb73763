"""The operator gcsa: when the module calls it, values, gradients, changed weights, threads, workspace."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from accuracy import assert_as_accurate
from devices import every_backend
from gcsa_operands import SETTINGS, STATISTICS, operator_arguments
from instruction_sets import ISAS, skip_unless_it_runs
from opchecks import opcheck
from pairs import assert_same_step, pair, replace_norms, step
from subprocesses import python
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import gcsa_ext
from gcsa_ext import GCSA, functional

pytestmark = pytest.mark.usefixtures("one_thread")


def norms(module: nn.Module) -> tuple[nn.BatchNorm2d, nn.BatchNorm2d]:
    return module.spatial_attention[1], module.spatial_attention[4]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kernel_size", [5, 7, 9, 11])
def test_every_kernel_size(
    kernel_size: int, dtype: torch.dtype, layout: torch.memory_format, calls: list[str]
) -> None:
    for training in (True, False):
        fused, plain = (
            m.train(training) for m in pair(dtype, channels=20, groups=2, kernel_size=kernel_size)
        )
        x = torch.randn(3, 20, 9, 14, dtype=dtype).contiguous(memory_format=layout)
        assert_same_step(fused, plain, x)
    assert calls == 2 * ["gcsa", "gcsa_backward"]


@every_backend
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 3, 6, 5), {"channels": 3, "reduction": 3, "groups": 3}),
        ((2, 17, 3, 40), {"channels": 17, "groups": 1}),
        ((2, 33, 40, 3), {"channels": 33, "reduction": 2, "groups": 11}),
        ((1, 12, 50, 47), {"channels": 12}),
        ((40, 8, 5, 6), {"channels": 8}),
        ((2, 80, 7, 7), {"channels": 80, "kernel_size": 5}),
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False])
def test_sizes(shape: tuple[int, ...], options: dict[str, int], training: bool, calls: list[str]) -> None:
    fused, plain = (m.train(training) for m in pair(**options))
    assert_same_step(fused, plain, torch.randn(shape))
    assert calls == ["gcsa", "gcsa_backward"]


@pytest.mark.parametrize("training", [True, False])
def test_many_tiles(training: bool, calls: list[str]) -> None:
    """In several groups of tiles; the memory of grad_x holds another gradient first."""
    fused, plain = (m.train(training) for m in pair(channels=32))
    assert_same_step(fused, plain, torch.randn(2, 32, 70, 75))
    assert calls == ["gcsa", "gcsa_backward"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((5, 64, 14, 9), {"channels": 64}),  # the gated map is in the memory of the result
        ((4, 32, 56, 31), {"channels": 32}),  # the same, some images at a time
        ((2, 32, 130, 133), {"channels": 32}),  # not so: groups of tiles end within an image
        (
            (3, 16, 10, 11),
            {"channels": 16, "reduction": 1},
        ),  # not so: the second convolution loops over its inputs
        ((3, 40, 9, 8), {"channels": 40}),  # not so: channels do not fill whole blocks
    ],
    ids=str,
)
def test_evaluation_without_gradients(
    shape: tuple[int, ...], options: dict[str, int], threads: int, dtype: torch.dtype, calls: list[str]
) -> None:
    torch.set_num_threads(threads)
    fused, plain = (m.eval() for m in pair(dtype, **options))
    x = torch.randn(shape, dtype=dtype)
    with torch.no_grad():
        exact = copy.deepcopy(plain).double()(x.double())
        for _ in range(2):
            assert_as_accurate(fused(x), plain(x), exact)
    assert calls == 2 * ["gcsa"]


@pytest.mark.parametrize("kernel_size", [1, 3, 13])
def test_layers_with_other_kernels_are_called_one_by_one(kernel_size: int, calls: list[str]) -> None:
    fused, plain = pair(channels=12, kernel_size=kernel_size)
    assert_same_step(fused, plain, torch.randn(2, 12, 9, 8))
    assert calls == []


@every_backend
def test_layers_with_a_hook_are_called_one_by_one(calls: list[str]) -> None:
    fused, _ = pair(channels=12)
    x = torch.randn(2, 12, 5, 4)
    expected = fused.eval()(x)
    for name, layer in fused.named_modules():
        if not name:
            continue
        seen: list[str] = []
        handle = layer.register_forward_hook(lambda *_, seen=seen, name=name: seen.append(name))
        calls.clear()
        torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-5)
        assert seen == [name] and calls == []
        handle.remove()
        fused(x)
        assert seen == [name] and calls == ["gcsa"]


@pytest.mark.parametrize("batch", [(True, True), (True, False), (False, False)], ids=str)
@pytest.mark.parametrize(
    ("dtype", "mixed"), [(torch.float32, False), (torch.float32, True), (torch.float64, False)], ids=str
)
def test_opcheck(dtype: torch.dtype, mixed: bool, batch: tuple[bool, bool]) -> None:
    tensors = operator_arguments(dtype)
    settings = (*SETTINGS[:-1], mixed)
    given = [None if batch[i // 2] else value.to(dtype, copy=True) for i, value in enumerate(STATISTICS)]
    _, u1, u2, *used = torch.ops.gcsa_ext.gcsa(*tensors, *given, *settings)
    grad_out = torch.randn_like(tensors[0])
    for need in (13 * [True], [i % 3 == 0 for i in range(13)]):
        opcheck("gcsa_backward", grad_out, u1, u2, *batch, need, *tensors, *used, *settings)
    opcheck("gcsa", *tensors, *given, *settings)
    if batch == (False, False):
        opcheck("gcsa_inference", *tensors, *given, *settings)
    without = [*tensors[:6], None, tensors[7], None, None, None, *tensors[11:]]
    for arguments in (tensors, without):
        for tensor in arguments:
            if tensor is not None:
                tensor.requires_grad_()
        opcheck("gcsa", *arguments, *given, *settings)


@pytest.mark.parametrize(
    ("number", "value", "error", "message"),
    [
        (0, torch.ones(8, 6, 5), ValueError, r"x of shape \(N, C, H, W\), not empty, got \(8, 6, 5\)"),
        (0, torch.ones(0, 8, 6, 5), ValueError, r"got \(0, 8, 6, 5\)"),
        (0, torch.ones(2, 8, 6, 5, dtype=torch.int32), TypeError, r"floating dtype, got torch\.int32"),
        (5, torch.ones(3, 8, 13, 13), ValueError, r"odd kernel size up to 11, got \(3, 8, 13, 13\)"),
        (5, torch.ones(3, 8, 5, 7), ValueError, r"conv1_weight of shape \(3, 8, 7, 7\).* got \(3, 8, 5, 7\)"),
        (
            7,
            torch.ones(8, 2, 7, 7),
            ValueError,
            r"groups that divide 3 inputs and 8 outputs, got \(8, 2, 7, 7\)",
        ),
        (8, torch.ones(3), ValueError, r"conv2_bias of shape \(8,\).* got \(3,\)"),
        (11, torch.ones(8, dtype=torch.int64), TypeError, r"norm2_weight .* got torch\.int64"),
        (4, torch.ones(8, device="meta"), TypeError, r"b2 of a floating dtype on cpu, got .*meta"),
        (13, torch.ones(3), ValueError, r"both mean1 and var1, or neither"),
        (19, 3, ValueError, r"groups that divide C = 8, .* groups = 3"),
    ],
)
def test_bad_input(number: int, value: Any, error: type[Exception], message: str) -> None:
    arguments = [*operator_arguments(), *4 * (None,), *SETTINGS]
    arguments[number] = value
    with pytest.raises(error, match="gcsa: expected .*" + message):
        torch.ops.gcsa_ext.gcsa(*arguments)


def test_statistics_are_constants() -> None:
    given = [value.clone().requires_grad_() for value in STATISTICS]
    out = torch.ops.gcsa_ext.gcsa(*operator_arguments(), *given, *SETTINGS)[0]
    with pytest.raises(RuntimeError, match="mean and var are constants"):
        out.sum().backward()


BRANCHES = ["channel_attention", "channel_attention.2", "spatial_attention", "spatial_attention.1"]
PARAMETERS = [name for name, _ in GCSA(4).named_parameters()]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("wanted", ["x", *PARAMETERS, *BRANCHES])
def test_only_some_gradients(wanted: str, training: bool, calls: list[str]) -> None:
    fused, plain = (m.train(training) for m in pair(torch.float64, channels=12))
    x, grad = torch.randn(2, 12, 6, 5).double(), torch.randn(2, 12, 6, 5).double()
    results = []
    for module in (fused, plain):
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name.startswith(wanted))
        leaf = x.clone().requires_grad_(wanted == "x")
        module(leaf).backward(grad)
        found = {name: p.grad for name, p in module.named_parameters()}
        assert all((g is not None) == name.startswith(wanted) for name, g in found.items())
        results.append([g for g in (leaf.grad, *found.values()) if g is not None])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-10)
    assert calls == ["gcsa", "gcsa_backward"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("first", [True, False])
def test_one_norm_in_training(first: bool, dtype: torch.dtype) -> None:
    fused, plain = pair(dtype, channels=12)
    for module in (fused, plain):
        for norm, training in zip(norms(module), (first, not first), strict=True):
            norm.train(training)
    before = [norm.running_mean.clone() for norm in norms(fused)]
    assert_same_step(fused, plain, torch.randn(3, 12, 6, 5, dtype=dtype))
    changed = [not torch.equal(n.running_mean, b) for n, b in zip(norms(fused), before, strict=True)]
    assert changed == [first, not first]
    for norm in norms(fused):
        assert norm.num_batches_tracked == (1 if norm.training else 0)


OPTIONS: dict[str, Callable[[nn.Module], None]] = {
    "cumulative average": lambda m: replace_norms(m, momentum=None),
    "no running statistics": lambda m: replace_norms(m, track_running_stats=False),
    "one without": lambda m: replace_norms(m, [1], track_running_stats=False),
    "not affine": lambda m: replace_norms(m, affine=False),
    "one not affine": lambda m: replace_norms(m, [4], affine=False),
    "no bias of convolutions": lambda m: [setattr(m.spatial_attention[i], "bias", None) for i in (0, 3)],
    "one bias of convolutions": lambda m: setattr(m.spatial_attention[3], "bias", None),
    "large eps": lambda m: setattr(norms(m)[0], "eps", 0.4),
    "other eps": lambda m: setattr(norms(m)[1], "eps", 0.4),
    "momentum of 1": lambda m: setattr(norms(m)[1], "momentum", 1.0),
    "one frozen layer": lambda m: m.channel_attention[0].requires_grad_(False),
    "frozen gate and convolution": lambda m: [
        layer.requires_grad_(False) for layer in (m.channel_attention, m.spatial_attention[3])
    ],
}  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_the_layers(name: str, training: bool, calls: list[str]) -> None:
    fused, plain = pair(torch.float64, channels=12)
    for module in (fused, plain):
        OPTIONS[name](module)
        module.double().train(training)
    for _ in range(3):
        assert_same_step(fused, plain, torch.randn(3, 12, 6, 5).double() + 0.5)
    assert calls == 3 * ["gcsa", "gcsa_backward"]


@pytest.mark.parametrize("training", [True, False])
def test_reference_backend_computes_the_same(training: bool, calls: list[str]) -> None:
    fused, _ = pair(torch.float64, channels=12)
    x, grad = torch.randn(3, 12, 6, 5).double(), torch.randn(3, 12, 6, 5)
    other = copy.deepcopy(fused.train(training))
    found = step(fused, x, grad)
    calls.clear()
    with gcsa_ext.use_backend("reference"):
        expected = step(other, x, grad)
        tensors = [t.requires_grad_() for t in operator_arguments(torch.float64)]
        given = 4 * [None] if training else [value.double() for value in STATISTICS]
        plain = torch.ops.gcsa_ext.gcsa(*tensors, *given, *SETTINGS)
        plain_grads = torch.autograd.grad(plain[0].sin().sum(), tensors)
    assert calls == []
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(fused.state_dict(), other.state_dict())
    kernel = torch.ops.gcsa_ext.gcsa(*tensors, *given, *SETTINGS)
    torch.testing.assert_close((kernel[0], *kernel[3:]), (plain[0], *plain[3:]))
    assert [t.shape for t in kernel] == [t.shape for t in plain]
    torch.testing.assert_close(torch.autograd.grad(kernel[0].sin().sum(), tensors), plain_grads)


def test_tied_weights() -> None:
    """Of weights that are views of each other each gets its gradient, not the sum."""
    fused, plain = pair(torch.float64, channels=12)
    for module in (fused, plain):
        module.channel_attention[2].weight = nn.Parameter(module.channel_attention[0].weight.detach().t())
        weight = nn.Parameter(module.spatial_attention[0].weight.detach().clone())
        module.spatial_attention[0].weight = weight
    assert_same_step(fused, plain, torch.randn(2, 12, 6, 5).double())


def train(module: GCSA) -> None:
    module(torch.randn(2, 16, 6, 5)).sum().backward()
    torch.optim.SGD(module.parameters(), 5.0).step()


def update_statistics(module: GCSA) -> None:
    with torch.no_grad():
        module.train()(torch.randn(2, 16, 6, 5) + 1)
    module.eval()


def load_weights(module: GCSA) -> None:
    state = module.state_dict()
    module.load_state_dict({k: 1.5 * v if v.is_floating_point() else v for k, v in state.items()})


CHANGES: dict[str, Callable[[GCSA], object]] = {
    "load_state_dict": load_weights,
    "step of an optimiser": train,
    "data": lambda m: m.spatial_attention[0].weight.data.mul_(-1.5),
    "in place": torch.no_grad()(lambda m: m.spatial_attention[3].weight.mul_(-1.5)),
    "NumPy view": lambda m: m.spatial_attention[0].weight.detach().numpy()[1:].__imul__(-2.0),
    "NumPy view of statistics": lambda m: norms(m)[1].running_mean.numpy().__iadd__(1.0),
    "rounding to another dtype": lambda m: m.to(torch.bfloat16).to(torch.float32),
    "new parameter": lambda m: setattr(
        m.spatial_attention[0], "weight", nn.Parameter(-m.spatial_attention[0].weight.detach())
    ),
    "new statistics": update_statistics,
}


@every_backend
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_weights(change: Callable[[GCSA], object], calls: list[str]) -> None:
    fused, plain = (m.eval() for m in pair(channels=16))
    x = torch.randn(2, 16, 6, 5)
    with torch.no_grad():
        before = fused(x)
    change(fused)
    plain.load_state_dict(fused.state_dict())
    with torch.no_grad():
        after = fused(x)
        torch.testing.assert_close(after, plain(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, after, rtol=1e-4, atol=1e-5)
    assert calls.count("gcsa") >= 2


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("N", [1, 2, 5])
def test_threads(N: int, training: bool) -> None:
    """Fewer images than threads, as many, and more. The same number of threads gives the same bits."""
    fused, plain = (m.train(training) for m in pair(channels=24))
    x, grad = torch.randn(N, 24, 13, 11), torch.randn(N, 24, 13, 11)
    results = []
    for count in (1, 2, 3, 4):
        torch.set_num_threads(count)
        first, second = (step(copy.deepcopy(fused), x, grad) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), f"{count} threads"
        assert_same_step(copy.deepcopy(fused), copy.deepcopy(plain), x)
        results.append(first)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("N", [2, 40])
def test_samples_are_independent(N: int, threads: int) -> None:
    torch.set_num_threads(threads)
    fused = pair(channels=12)[0].eval()
    x, grad = torch.randn(N, 12, 9, 7), torch.randn(N, 12, 9, 7)
    out, grad_x, *_ = step(fused, x, grad)
    spoilt = x.clone()
    spoilt[1] = math.nan
    found, found_grad, *_ = step(fused, spoilt, grad)
    others = torch.arange(N) != 1
    assert found[1].isnan().all() and found_grad[1].isnan().all()
    assert torch.equal(found[others], out[others])
    assert torch.equal(found_grad[others], grad_x[others])


@pytest.mark.parametrize("threads", [1, 2])
def test_more_hidden_channels_than_channels(threads: int) -> None:
    torch.set_num_threads(threads)
    tensors = [
        torch.randn(4, 3, 9, 8),
        torch.randn(33, 3),
        torch.randn(33),
        torch.randn(3, 33),
        torch.randn(3),
    ]
    tensors += [torch.randn(33, 3, 5, 5), torch.randn(33), torch.randn(3, 33, 5, 5), torch.randn(3)]
    inputs = [t.double().requires_grad_() for t in tensors]
    results = []
    for backend in ("cpu", "reference"):
        with gcsa_ext.use_backend(backend):
            out = torch.ops.gcsa_ext.gcsa(*inputs, *8 * (None,), 1e-5, 1e-5, 1, True, False)[0]
            weights = [inputs[i] for i in (0, 1, 3, 5, 7)]
            results.append((out, *torch.autograd.grad(out.sin().sum(), weights)))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


def test_saved_outputs_get_no_zeros_as_gradients() -> None:
    called = []

    class Recorded(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(str(func))
            return func(*args, **(kwargs or {}))

    x = torch.randn(2, 8, 5, 5, requires_grad=True)
    out = GCSA(8)(x)
    with Recorded():
        out.backward(torch.ones_like(out))
    assert "gcsa_ext.gcsa_backward.default" in called
    assert not [name for name in called if "zeros" in name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics(momentum: float | None, dtype: torch.dtype) -> None:
    mean, var, batches = torch.randn(37, dtype=dtype), torch.rand(37, dtype=dtype), torch.tensor(3)
    new_mean, new_var = torch.randn(37, dtype=dtype), torch.rand(37, dtype=dtype)
    found = [t.clone() for t in (mean, var, batches)]
    functional.update_statistics(*found[:2], new_mean, new_var, 9, momentum, found[2])
    share = 0.25 if momentum is None else momentum
    torch.testing.assert_close(
        found, [mean.lerp(new_mean, share), var.lerp(new_var * 9 / 8, share), torch.tensor(4)]
    )


@pytest.mark.parametrize("momentum", [1.0, None])
def test_running_statistics_after_the_first_batch(momentum: float | None) -> None:
    mean, var, batches = torch.zeros(5), torch.ones(5), torch.tensor(0)
    new_mean, new_var = torch.randn(5), 1e-9 * (torch.rand(5) + 1)
    functional.update_statistics(mean, var, new_mean, new_var, 1000, momentum, batches)
    assert torch.equal(mean, new_mean)
    torch.testing.assert_close(var, new_var * (1000 / 999), rtol=1e-6, atol=0)


def test_workspace_is_freed() -> None:
    module = GCSA(32)
    x = torch.randn(4, 32, 20, 20, requires_grad=True)
    functional.release_workspace()
    assert functional.release_workspace() == 0
    expected = step(module.eval(), x, torch.ones_like(x))
    assert functional.release_workspace() > 0
    assert functional.release_workspace() == 0
    for a, b in zip(step(module, x, torch.ones_like(x)), expected, strict=True):
        assert torch.equal(a, b)


def test_workspace_is_bounded() -> None:
    for channels, size in ((8, 30), (32, 7), (64, 14), (16, 40), (128, 9), (32, 21)):
        for kernel_size in (5, 9):
            x = torch.randn(2, channels, size, size + 1)
            GCSA(channels, kernel_size=kernel_size)(x).sum().backward()
            functional.conv2d_same(x, torch.randn(7, channels, kernel_size, kernel_size))
    kept = functional.release_workspace()
    assert 0 < kept <= 1 << 30


def test_workspace_is_freed_while_other_threads_compute() -> None:
    module = pair(channels=24)[0].eval()
    x = torch.randn(2, 24, 13, 11)
    expected = step(module, x, torch.ones_like(x))
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(step, module, x, torch.ones_like(x)) for _ in range(20)]
        while not all(f.done() for f in running):
            functional.release_workspace()
    for future in running:
        torch.testing.assert_close(future.result(), expected)


def test_fork_after_use() -> None:
    printed = python(
        """
        import torch, gcsa_ext
        from gcsa_ext import functional
        from subprocesses import holds_in_a_fork
        torch.set_num_threads(2)
        torch.manual_seed(0)
        module = gcsa_ext.GCSA(24).eval().requires_grad_(False)
        x, weight = torch.randn(3, 24, 13, 11), torch.randn(9, 24, 7, 7) / 34
        def results():
            grads = torch.ops.gcsa_ext.conv2d_same_backward(expected_out, x, weight, True, True)
            return [module(x), functional.conv2d_same(x, weight), *grads]
        expected_out = functional.conv2d_same(x, weight)
        expected = results()
        def right():
            found = results()
            return all(torch.allclose(a, b, rtol=1e-4, atol=1e-3) for a, b in zip(found, expected))
        for _ in range(2):
            assert holds_in_a_fork(lambda: right() and functional.release_workspace() > 0 and right())
            assert right()
        print("done")
        """
    )
    assert printed == "done"


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa: str) -> None:
    skip_unless_it_runs(isa)
    printed = python(
        """
        import torch, gcsa_ext
        from gcsa_ext.backends import cpu
        from convolution_checks import arguments, check
        from pairs import assert_same_step, pair
        for dtype in (torch.float32, torch.float64):
            for kernel in (5, 7, 9, 11):
                for shape in ((3, 20, 9, 14), (1, 20, 33, 6)):
                    torch.manual_seed(0)
                    x = torch.randn(shape, dtype=dtype)
                    assert_same_step(*pair(dtype, channels=20, kernel_size=kernel), x)
        cpu.explain_convolution = lambda x, weight: ("fft", "it is forced")
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            for kernel in (3, 5, 7, 9, 11):
                for layout, shape in (
                    ("contiguous", (1, 3, 17, 1, 1)),
                    ("contiguous", (1, 3, 5, 70, 66)),
                    ("channels_last", (3, 33, 17, 13, 6)),
                    ("channels_last", (20, 4, 3, 12, 9)),
                ):
                    check(arguments(shape, kernel, dtype, layout))
        print(gcsa_ext.info()["isa"])
        """,
        GCSA_EXT_CPU_ISA=isa,
        OMP_NUM_THREADS="1",
    )
    assert printed == isa


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_large_result_keeps_its_memory(layout: torch.memory_format) -> None:
    """From 1 MiB on, a later result takes the memory of a deleted one, once its last view is deleted."""
    module = GCSA(16, kernel_size=5).eval()
    x = torch.randn(2, 16, 100, 90).contiguous(memory_format=layout)
    with torch.no_grad():
        result = module(x)
        assert result.nbytes >= 1 << 20
        assert result.is_contiguous(memory_format=layout)
        assert not result._is_view()
        kept, view = result.clone(), result[1, 3:7]
        del result
        for _ in range(4):
            functional.release_workspace()
            module(torch.randn_like(x))
        assert torch.equal(view, kept[1, 3:7])


def test_gradients_of_large_maps_keep_their_memory() -> None:
    module = GCSA(16, kernel_size=5)
    x = torch.randn(2, 16, 100, 90, requires_grad=True)
    (first,) = torch.autograd.grad(module(x).square().sum(), x)
    kept = first.clone()
    for _ in range(3):
        torch.autograd.grad(module(torch.randn_like(x)).square().sum(), list(module.parameters()))
    assert torch.equal(first, kept)
