"""Every published form of GCSA and GAM is found, computes the same, is fused, and can be restored."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from accuracy import MODULE_FACTOR, assert_as_accurate
from operator_calls import Operators, calls_operator
from pairs import step
from public_attention import randomize_statistics
from published_attention import BY_LAYERS, VARIANTS
from torch import Tensor, nn

import gcsa_ext

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {"small": (2, 9, 7), "narrow": (3, 4, 11)}


def channels_of(module: nn.Module) -> int:
    """The number of channels of a module's input."""
    first = module.project if hasattr(module, "project") and not module.behind else None
    layers = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    layer = first or layers[0]
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def variant(name: str) -> nn.Module:
    module = VARIANTS[name]()
    randomize_statistics(module)
    return module


def a_map(module: nn.Module, size: str = "small", dtype: torch.dtype = torch.float32) -> Tensor:
    n, h, w = SIZES[size]
    return torch.randn(n, channels_of(module), h, w, dtype=dtype)


def assert_same_step(fused: nn.Module, plain: nn.Module, x: Tensor) -> None:
    """Compare results, all gradients and buffers of one step with plain torch in float64."""
    exact = copy.deepcopy(plain).double()
    grad = torch.randn_like(plain(x)) if not plain.training else torch.randn_like(copy.deepcopy(plain)(x))
    steps = step(fused, x, grad), step(plain, x, grad), step(exact, x.double(), grad)
    largest = max(g.abs().max().item() for g in steps[2][1:])
    names = ["result", "gradient of x", *(n for n, _ in plain.named_parameters())]
    for name, a, b, c in zip(names, *steps, strict=True):
        # The gradients of biases and norms are sums whose summands may cancel. In training a norm
        # subtracts the bias of the convolution before it: the exact gradient is 0.
        assert_as_accurate(a, b, c, name, MODULE_FACTOR, largest if c.dim() == 1 else 0.0)
    for a, b in zip(fused.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_same_results_gradients_and_buffers(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    plain = variant(name)
    fused = copy.deepcopy(plain)
    assert gcsa_ext.replace_attention(fused) == 1
    assert capsys.readouterr().out == "", "the proof does not print what the module prints"
    for training in (False, True):
        for layout in (torch.contiguous_format, torch.channels_last):
            for size in SIZES:
                x = a_map(plain, size).contiguous(memory_format=layout)
                assert_same_step(fused.train(training), plain.train(training), x)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_operator_computes(name: str) -> None:
    plain = variant(name)
    fused = copy.deepcopy(plain)
    gcsa_ext.replace_attention(fused)
    x = a_map(plain)
    around = sum(path in ("project", "norm") for path, _ in plain.named_children())
    for training in (False, True):
        for layout in (torch.contiguous_format, torch.channels_last):
            with Operators() as operators:
                fused.train(training)(x.contiguous(memory_format=layout))
            if name in BY_LAYERS:
                assert operators.counts["gcsa_ext::channel_gate"] == 1
                assert operators.counts["gcsa_ext::norm_gate"] == ("gate shuffled" not in name)
            else:
                assert operators.counts["gcsa_ext::gcsa_forward"] == 1
                assert operators.counts["aten::convolution"] == min(around, 1), "no convolution of torch"
    with torch.no_grad(), Operators() as operators:
        fused.eval()(x)
    if name not in BY_LAYERS:
        assert operators.counts["gcsa_ext::gcsa_inference"] == 1


@pytest.mark.parametrize("name", VARIANTS)
def test_the_module_stays_and_is_restored(name: str) -> None:
    module = variant(name)
    module.f, module.type = -1, "Attention"
    kind, attributes = type(module), dict(module.__dict__)
    tensors = {id(t): key for key, t in module.state_dict(keep_vars=True).items()}
    assert gcsa_ext.replace_attention(module) == 1
    assert gcsa_ext.replace_attention(module) == 0, "a second call finds nothing to fuse"
    assert type(module) is kind and "forward" in module.__dict__
    assert {key: v for key, v in module.__dict__.items() if key in attributes} == attributes
    assert {id(t): key for key, t in module.state_dict(keep_vars=True).items()} == tensors
    assert gcsa_ext.restore_attention(module) == 1
    assert module.__dict__ == attributes and module.forward.__func__ is kind.forward
    assert gcsa_ext.restore_attention(module) == 0
    assert gcsa_ext.replace_attention(module) == 1


@pytest.mark.parametrize("name", VARIANTS)
def test_copies(name: str) -> None:
    plain = variant(name).eval()
    fused = copy.deepcopy(plain)
    gcsa_ext.replace_attention(fused)
    x = a_map(plain)
    copied = copy.deepcopy(fused)
    with torch.no_grad():
        for p in copied.parameters():
            p.mul_(0.5)
        for p in plain.parameters():
            p.mul_(0.5)
        torch.testing.assert_close(copied(x), plain(x), rtol=1e-4, atol=1e-5)
    assert calls_operator(copied, x), "a copy is fused too"
    assert gcsa_ext.replace_attention(copied) == 0
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    torch.testing.assert_close(loaded(x), fused(x), rtol=1e-4, atol=1e-5)
    assert gcsa_ext.replace_attention(loaded) == 1, "what was read has the forward pass of its class"
    torch.testing.assert_close(loaded(x), fused(x))


class Network(nn.Module):
    """One module of every form, some behind another block, some in a list, one in two places."""

    def __init__(self, kinds: list[Callable[[], nn.Module]]) -> None:
        super().__init__()
        modules = [kind() for kind in kinds]
        self.entries = nn.ModuleList(nn.Conv2d(3, channels_of(m), 3, padding=1) for m in modules)
        self.attentions = nn.ModuleList(
            nn.Sequential(m, nn.ReLU()) if i % 2 else m for i, m in enumerate(modules)
        )
        self.first = nn.ModuleDict({"again": modules[0]})

    def forward(self, x: Tensor) -> Tensor:
        maps = [m(entry(x)) for entry, m in zip(self.entries, self.attentions, strict=True)]
        return torch.cat([*maps, self.first["again"](maps[0])], 1)


def test_inside_a_model() -> None:
    plain = Network([kind for name, kind in VARIANTS.items() if "attributes" not in name])
    randomize_statistics(plain)
    model = copy.deepcopy(plain)
    assert gcsa_ext.replace_attention(model) == len(VARIANTS) - 1
    report = gcsa_ext.replace_attention(model, explain=True)
    assert len(report.fused) == len(VARIANTS) - 1 and not report.left
    for training in (False, True):
        x = torch.randn(2, 3, 9, 7)
        out, expected = model.train(training)(x), plain.train(training)(x)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    out.square().mean().backward()
    expected.square().mean().backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-2, atol=1e-4)
    assert gcsa_ext.restore_attention(model) == len(VARIANTS) - 1


WORDS = {
    "grouped": ["32 channels", "7x7 convolutions", "in 4 groups", "4 shuffle groups on the spatial gate"],
    "GCSA": ["16 channels", "4 shuffle groups between the gates"],
    "GAM without sigmoid in the channel gate": ["no sigmoid in the channel gate"],
    "attributes, replicate padding": ["replicate padding"],
    "first convolution 1x1": ["1x1 and 7x7 convolutions"],
    "1x1 convolution behind": ["further layers around it: project"],
}


@pytest.mark.parametrize("name", WORDS)
def test_a_report_says_what_is_computed(name: str) -> None:
    report = gcsa_ext.replace_attention(nn.Sequential(nn.Identity(), variant(name)), explain=True)
    (found,) = report.attentions
    assert found.fused and found.name == "1"
    for words in WORDS[name]:
        assert words in found.words
    assert str(report) == f"fused  1 ({found.kind}): {found.words}"


@pytest.mark.parametrize("name", ["grouped", "GCSA", "reflect padding"])
def test_other_dtypes(name: str) -> None:
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.bfloat16, 2.0**-5)):
        plain = variant(name).eval().to(dtype)
        fused = copy.deepcopy(plain)
        assert gcsa_ext.replace_attention(fused) == 1
        x = a_map(plain, dtype=dtype)
        torch.testing.assert_close(fused(x), plain(x), rtol=tolerance, atol=tolerance)
