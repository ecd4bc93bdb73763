"""torch.compile and autocast: one graph, no recompilation for a new size, the numbers of eager."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator

import pytest
import torch
from devices import every_backend, every_device
from public_attention import PlainAttention, randomize_statistics
from torch import Tensor, nn

import gcsa_ext
from gcsa_ext import GCSA, FrequencyMasking, SpecAugment, TimeMasking, functional
from gcsa_ext.backends import cpu

# Compilers warn about themselves; what counts here is the result.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def attention(training: bool, kernel_size: int = 5) -> GCSA:
    """With a kernel_size of 3 it is several operators, else one."""
    module = GCSA(8, groups=2, kernel_size=kernel_size)
    randomize_statistics(module)
    return module.train(training)


class SmallNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mask = FrequencyMasking(4, iid_masks=True)
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.attention = GCSA(8, groups=4, kernel_size=3)
        self.head = nn.Linear(8, 3)

    def forward(self, spectrogram: Tensor) -> Tensor:
        x = self.attention(self.stem(self.mask(spectrogram)).relu())
        return self.head(x.mean((2, 3)))


def assert_same_step(compiled: nn.Module, eager: nn.Module, x: Tensor) -> None:
    results = []
    for module in (compiled, eager):
        torch.manual_seed(0)
        leaf = x.detach().clone().requires_grad_()
        out = module(leaf)
        grads = torch.autograd.grad(out.pow(2).sum(), [leaf, *module.parameters()])
        results.append((out, *grads))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    buffers = zip(compiled.state_dict().values(), eager.state_dict().values(), strict=True)
    for a, b in buffers:
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@every_device
@every_backend
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_gcsa_is_one_graph(kernel_size: int, dynamic: bool, training: bool) -> None:
    eager = attention(training, kernel_size)
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    sizes = [(2, 8, 5, 7), (3, 8, 6, 4), (4, 8, 9, 5)] if dynamic else [(2, 8, 5, 7)]
    assert_same_step(compiled, eager, torch.randn(sizes[0]))
    with torch.compiler.set_stance("fail_on_recompile"):
        for size in sizes:
            assert_same_step(compiled, eager, torch.randn(size))


@every_device
@every_backend
def test_gcsa_channels_last() -> None:
    eager = attention(True)
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 8, 5, 7).contiguous(memory_format=torch.channels_last)
    assert_same_step(compiled, eager, x)
    assert compiled(x).is_contiguous(memory_format=torch.channels_last)


@every_device
@every_backend
def test_inductor_trains_through_the_operators() -> None:
    """Inductor fuses what is between the operators. A convolution there would be compiled for each size."""

    def loss(x: Tensor, *weights: Tensor) -> Tensor:
        z = functional.channel_gate(x, *weights, groups=4)
        return functional.norm_gate(z.sin(), z, weights[1], weights[3], training=True).sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    weights = [torch.randn(shape, requires_grad=True) for shape in ((8, 8), (8,), (8, 8), (8,))]
    for size, stance in (((2, 8, 5, 7), "default"), ((3, 8, 6, 4), "fail_on_recompile")):
        x = torch.randn(size, requires_grad=True)
        with torch.compiler.set_stance(stance):
            found, expected = (torch.autograd.grad(f(x, *weights), [x, *weights]) for f in (compiled, loss))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_inductor_runs_a_net_of_any_size() -> None:
    eager = SmallNet().eval()
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, dynamic=True)
    with torch.no_grad():
        for size in ((2, 1, 12, 9), (3, 1, 7, 8)):
            x = torch.randn(size)
            torch.testing.assert_close(compiled(x), eager(x), rtol=1e-4, atol=1e-5)


@every_device
@every_backend
@pytest.mark.parametrize("training", [True, False])
def test_net_with_masking_is_one_graph(training: bool) -> None:
    eager = SmallNet().train(training)
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((2, 1, 12, 9), (3, 1, 16, 7)):
        assert_same_step(compiled, eager, torch.randn(size))


@every_device
@every_backend
@pytest.mark.parametrize("iid", [True, False])
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("kind", ["FrequencyMasking", "TimeMasking", "SpecAugment"])
def test_masking_is_one_graph(kind: str, iid: bool, inplace: bool) -> None:
    options = {"iid_masks": iid, "num_masks": 2, "value": 0.5, "inplace": inplace}
    module = {
        "FrequencyMasking": lambda: FrequencyMasking(8, **options),
        "TimeMasking": lambda: TimeMasking(8, **options),
        "SpecAugment": lambda: SpecAugment(2, 4, 1, 8, iid_masks=iid, inplace=inplace),
    }[kind]()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 2, 20, 7)
    results = []
    for call in (module, compiled):
        torch.manual_seed(4)
        argument = x.clone()
        out = call(argument)
        results.append((out, argument if inplace else x))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert (results[0][0] == (x.mean() if kind == "SpecAugment" else 0.5)).any()


@every_backend
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_compiled_under_autocast(kernel_size: int, training: bool) -> None:
    eager = attention(training, kernel_size)
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 8, 5, 7)
    results = []
    for module in (compiled, eager):
        with torch.autocast("cpu", torch.bfloat16):
            out = module(x)
        assert out.dtype == x.dtype
        results.append((out.float(), *torch.autograd.grad(out.float().sum(), list(module.parameters()))))
    torch.testing.assert_close(*results, rtol=2.0**-5, atol=2.0**-4)


def test_a_compiled_graph_chooses_its_backend_when_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    module = torch.compile(attention(True), fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 8, 5, 7, requires_grad=True)
    module(x).sum().backward()

    def fail(*_: object) -> None:
        raise AssertionError("the cpu backend was asked to compute")

    for name in ("gcsa", "gcsa_backward"):
        monkeypatch.setitem(cpu.operators, name, fail)
    with gcsa_ext.use_backend("reference"):
        module(x).sum().backward()
    with pytest.raises(AssertionError, match="was asked to compute"):
        module(x)


def test_export() -> None:
    module = attention(False)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(module, (torch.randn(2, 8, 5, 7),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 8, 5, 7)
    torch.testing.assert_close(program.module()(x), module(x))
    # The plain layers, which run where gcsa_ext is not installed
    assert not any("gcsa_ext" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("groups", "dtype"), [(1, torch.float32), (4, torch.float32), (4, torch.bfloat16)])
def test_autocast_is_as_exact_as_plain_pytorch_under_autocast(
    groups: int, dtype: torch.dtype, training: bool
) -> None:
    """The smallest error over some inputs: in others, rounding moves a value across the relu's kink."""
    errors: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for seed in range(12):
        torch.manual_seed(seed)
        plain = PlainAttention(16, groups=groups)
        randomize_statistics(plain)
        fused = GCSA(16, groups=groups)
        fused.load_state_dict(plain.state_dict())
        exact = copy.deepcopy(plain).double()
        x, grad = torch.randn(3, 16, 6, 9).to(dtype), torch.randn(3, 16, 6, 9)
        results = []
        for module in (fused, plain, exact):
            module.train(training)
            # A convolution's bias has no gradient where the batch norm behind it takes it out again.
            parameters = {n: p for n, p in module.named_parameters() if n[-6:] not in ("0.bias", "3.bias")}
            leaf = x.to(torch.float64 if module is exact else dtype).requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=module is not exact):
                out = module(leaf)
            assert out.dtype == leaf.dtype
            found = torch.autograd.grad(out, [leaf, *parameters.values()], grad.to(out.dtype))
            results.append((out.double(), *found))
        for name, a, b, c in zip(("result", "x", *parameters), *results, strict=True):
            for all_errors, r in zip(errors.setdefault(name, ([], [])), (a, b), strict=True):
                all_errors.append(torch.linalg.vector_norm(r.double() - c) / torch.linalg.vector_norm(c))
    for name, both in errors.items():
        found, allowed = (torch.stack(e).min() for e in both)
        assert found <= 2.0 * allowed + 2.0**-8, name


def test_dtypes_under_autocast() -> None:
    x, w1, b1, w2, b2 = (torch.randn(s) for s in ((2, 8, 3, 5), (2, 8), (2,), (8, 2), (8,)))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = functional.channel_gate(x.bfloat16(), w1, b1, w2.bfloat16(), b2, 2)
        assert functional.norm_gate(x, x, training=True).dtype == torch.float32
        assert functional.frequency_mask(x, torch.tensor([0]), torch.tensor([1])).dtype == torch.float32
        double = functional.channel_gate(*(t.double() for t in (x, w1, b1, w2, b2)), 2)
        with torch.autocast("cpu", enabled=False):
            assert functional.channel_gate(x, w1, b1, w2, b2, 2).dtype == torch.float32
    assert mixed.dtype == torch.bfloat16 and double.dtype == torch.float64
    expected = functional.channel_gate(*(t.bfloat16() for t in (x, w1, b1, w2, b2)), 2)
    assert torch.equal(mixed, expected)


def test_autocast_to_float16_computes_by_the_definition() -> None:
    module = attention(True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with torch.autocast("cpu", torch.float16):
            out = module(torch.randn(2, 8, 5, 7).half())
        out.float().sum().backward()
    assert out.dtype == torch.float16 and out.isfinite().all()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())
