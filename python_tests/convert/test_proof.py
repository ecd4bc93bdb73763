"""What computes something else than the attention is found out, or goes on working as it did."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import pickle
import random
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import subprocesses
import torch
import torch.nn.functional as F
from operator_calls import calls_operator
from public_attention import randomize_statistics
from published_attention import Attributes, TwoSequentials
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

import gcsa_ext
from gcsa_ext.convert import Attention

pytestmark = pytest.mark.usefixtures("one_thread")


class Base(nn.Module):
    """A plain attention whose parts the classes below change."""

    C = 8

    def __init__(self) -> None:
        super().__init__()
        c, h = self.C, max(1, self.C // 4)
        self.fc1, self.fc2 = nn.Linear(c, h), nn.Linear(h, c)
        self.conv1, self.conv2 = nn.Conv2d(c, h, 7, padding=3), nn.Conv2d(h, c, 7, padding=3)
        self.norm1, self.norm2 = nn.BatchNorm2d(h), nn.BatchNorm2d(c)

    def channel(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x.permute(0, 2, 3, 1)).relu()).permute(0, 3, 1, 2).sigmoid()

    def spatial(self, z: Tensor) -> Tensor:
        return self.norm2(self.conv2(self.norm1(self.conv1(z)).relu())).sigmoid()

    def attention(self, x: Tensor) -> Tensor:
        z = x * self.channel(x)
        return z * self.spatial(z)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x)


def reason(module: nn.Module) -> str:
    """Why a module is left as it is; it must be left."""
    before = dict(module.__dict__)
    (found,) = gcsa_ext.replace_attention(module, explain=True).attentions
    assert not found.fused and module.__dict__ == before
    return found.words


def assert_same(fused: nn.Module, plain: nn.Module, steps: int = 3, x: Tensor | None = None) -> None:
    """Train two modules alike; compare results, gradients and the state in every step."""
    for training in (True, False):
        fused.train(training)
        plain.train(training)
        for _ in range(steps):
            given = torch.randn(2, Base.C, 6, 5) if x is None else x
            maps = [given.detach().clone().requires_grad_() for _ in range(2)]
            seed = torch.randint(1 << 30, ()).item()
            outs = []
            for module, one in zip((fused, plain), maps, strict=True):
                torch.manual_seed(seed)
                outs.append(module(one))
            torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-5)
            for module, out in zip((fused, plain), outs, strict=True):
                module.zero_grad()
                out.square().sum().backward()
            torch.testing.assert_close(maps[0].grad, maps[1].grad, rtol=1e-3, atol=1e-4)
            with torch.no_grad():
                for p, q in zip(fused.parameters(), plain.parameters(), strict=True):
                    assert (p.grad is None) == (q.grad is None)
                    if p.grad is not None:
                        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-3)
                        p.sub_(0.01 * p.grad)
                        q.sub_(0.01 * q.grad)
            for a, b in zip(fused.buffers(), plain.buffers(), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# Modules that compute something else, with words of the reason.

ELSE: dict[str, tuple[type[nn.Module], str]] = {}


def computes_else(words: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    def register(kind: type[nn.Module]) -> type[nn.Module]:
        ELSE[kind.__name__] = kind, words
        return kind

    return register


@computes_else("no_grad or detached")
class GateUnderNoGrad(Base):
    @torch.no_grad()
    def channel(self, x: Tensor) -> Tensor:
        return super().channel(x)


@computes_else("no_grad or detached")
class GateOfDetachedMap(Base):
    def channel(self, x: Tensor) -> Tensor:
        return super().channel(x.detach())


@computes_else("no_grad or detached")
class SpatialGateDetachedInTraining(Base):
    def spatial(self, z: Tensor) -> Tensor:
        gate = super().spatial(z)
        return gate.detach() if self.training else gate


@computes_else("changes its input in place")
class WritesInput(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = x.mul_(self.channel(x))
        return x * self.spatial(x)


@computes_else("")
class WritesInputThenReadsIt(Base):
    def forward(self, x: Tensor) -> Tensor:
        gate = self.channel(x)
        x.add_(1)
        z = x * gate
        return z * self.spatial(z)


for limit in (6.0, 1e4, 65504.0):

    @computes_else("for values of about")
    class Clamps(Base):
        limit = limit

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x).clamp(-self.limit, self.limit)

    ELSE[f"ClampsAt{limit:g}"] = ELSE.pop("Clamps")


@computes_else("not finite")
class ReplacesNaN(Base):
    def forward(self, x: Tensor) -> Tensor:
        return torch.nan_to_num(self.attention(x), posinf=torch.inf, neginf=-torch.inf)


@computes_else("for a map of torch.float16")
class ClampsInHalfPrecision(Base):
    def forward(self, x: Tensor) -> Tensor:
        out = self.attention(x)
        return out.clamp(-50, 50) if x.dtype == torch.float16 else out


@computes_else("from a map of")
class BranchesOnSize(Base):
    def forward(self, x: Tensor) -> Tensor:
        out = self.attention(x)
        return out if x.shape[-1] < 14 else out * 2


@computes_else("for a batch of 1")
class BranchesOnBatch(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.shape[0] == 1 else self.attention(x)


@computes_else("for a map of torch.float32")
class EnablesAutocast(Base):
    def channel(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().channel(x)

    def spatial(self, z: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().spatial(z)


@computes_else("random numbers in training")
class Dropout(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.attention(x), 0.1, self.training)


@computes_else("random numbers in training")
class DropoutOfThePerceptron(Base):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(1e-6)

    def channel(self, x: Tensor) -> Tensor:
        return self.drop(super().channel(x))


@computes_else("random numbers in training")
class DropPath(Base):
    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.rand(()) < 1e-9:
            return x
        return self.attention(x)


@computes_else("random numbers in evaluation")
class DropPathOfPython(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x if random.random() < 1e-9 else self.attention(x)


@computes_else("random numbers in training")
class DropPathOfNumPy(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and np.random.rand() < 1e-9 else self.attention(x)


@computes_else("its attribute generator draws random numbers")
class DropPathOfItsOwnGenerator(Base):
    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        return x if self.generator.random() < 1e-9 else self.attention(x)


@computes_else("")
class ScaleOfOne(Base):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.attention(x)


@computes_else("")
class ResidualOfZero(Base):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x) + self.gamma * x


@computes_else("")
class BufferOfOne(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones(1, 8, 1, 1))

    def channel(self, x: Tensor) -> Tensor:
        return super().channel(x * self.temperature)


@computes_else("depends on its buffer active")
class Flag(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("active", torch.tensor(True))

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x) if self.active else x


@computes_else("depends on its buffer step")
class WarmUp(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x) + self.step * x


@computes_else("sets the attribute gate")
class KeepsGate(Base):
    def spatial(self, z: Tensor) -> Tensor:
        self.gate = super().spatial(z)
        return self.gate


@computes_else("sets the attribute maps")
class KeepsAllMaps(Base):
    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.maps.append(x)
        return self.attention(x)


@computes_else("backward pass sets the attribute gradient")
class KeepsGradient(Base):
    gradient: Tensor

    def forward(self, x: Tensor) -> Tensor:
        out = self.attention(x)
        if out.requires_grad:
            out.register_hook(lambda grad: setattr(self, "gradient", grad))
        return out


@computes_else("sets last differently in training")
class KeepsInEvaluationAlone(Base):
    def forward(self, x: Tensor) -> Tensor:
        out = self.attention(x)
        if not self.training:
            self.last = out
        return out


@computes_else("sets the attribute count")
class Counts(Base):
    count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.attention(x)


@computes_else("sets the attribute ready")
class SetsAnAttributeOnce(Base):
    ready = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.ready = True
        return self.attention(x)


@computes_else("in evaluation from a map of")
class ChangesAParameter(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.norm1.weight.clamp_(0.0, 0.1)
        return self.attention(x)


@computes_else("sets the attribute norm1.momentum")
class ChangesASetting(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.norm1.momentum *= 0.9
        return self.attention(x)


@computes_else("")
class AppliedTwice(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.attention(x))


@computes_else("")
class PadsTheMap(Base):
    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        return self.attention(F.pad(x, (0, -w % 4, 0, -h % 4)))[..., :h, :w]


@computes_else("sets the attribute size")
class KeepsSize(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.size = x.shape[2:]
        return self.attention(x)


@computes_else("converts its map to torch.float32")
class Casts(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x.float()).type_as(x)


@computes_else("converts its map to torch.float32")
class CastsGate(Base):
    def channel(self, x: Tensor) -> Tensor:
        pre = self.fc2(self.fc1(x.permute(0, 2, 3, 1)).relu()).permute(0, 3, 1, 2)
        return torch.softmax(torch.stack([pre.float(), 0 * pre.float()]), 0)[0].type_as(x)


@computes_else("converts its map to torch.float32")
class NormalisesInSinglePrecision(Base):
    def spatial(self, z: Tensor) -> Tensor:
        v = self.conv2(self.norm1(self.conv1(z)).relu())
        return self.norm2(v.float()).to(z.dtype).sigmoid()


@computes_else("the dtype torch.float32 for a map of torch.bfloat16")
class CastsResult(Base):
    def forward(self, x: Tensor) -> Tensor:
        out = self.attention(x)
        return out.float() if out.dtype in (torch.float16, torch.bfloat16) else out


@computes_else("its result is tuple")
class GivesTwo(Base):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention(x), x


class _DoubledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


@computes_else("gradients differ")
class ChangesGradient(Base):
    def forward(self, x: Tensor) -> Tensor:
        return _DoubledGradient.apply(self.attention(x))


@computes_else("backward pass (of gradient checkpointing?) changes its buffer norm1.running_mean")
class CheckpointsNorms(Base):
    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        return (
            checkpoint(self.attention, x, use_reentrant=self.reentrant)
            if self.training
            else self.attention(x)
        )


@computes_else("backward pass (of gradient checkpointing?) changes its buffer norm1.running_mean")
class CheckpointsNormsReentrant(CheckpointsNorms):
    reentrant = True


@computes_else("pooled")
class Pooled(Base):
    def channel(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x.mean((2, 3))).relu())[:, :, None, None].sigmoid()


@computes_else("pooled")
class PooledByLayers(Base):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)

    def channel(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(self.pool(x)).relu()).sigmoid()


@computes_else("parallel")
class Parallel(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.channel(x) * self.spatial(x)


@computes_else("adds its input")
class Residual(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x)


@computes_else("adds the gated map")
class InnerResidual(Base):
    def forward(self, x: Tensor) -> Tensor:
        z = x * self.channel(x)
        return z + z * self.spatial(z)


@computes_else("channel gate has GELU where ReLU is expected")
class Gelu(Base):
    def channel(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2).sigmoid()


@computes_else("spatial gate has no activation where ReLU is expected")
class NoActivation(Base):
    def spatial(self, z: Tensor) -> Tensor:
        return self.norm2(self.conv2(self.norm1(self.conv1(z)))).sigmoid()


@computes_else("norm2 is GroupNorm where BatchNorm2d is expected")
class GroupNorm(Base):
    def __init__(self) -> None:
        super().__init__()
        self.norm2 = nn.GroupNorm(2, 8)


@computes_else("norm1 is InstanceNorm2d where BatchNorm2d is expected")
class InstanceNorm(Base):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.InstanceNorm2d(2)


@computes_else("conv1 is not one of stride 1")
class Stride(Base):
    def __init__(self) -> None:
        super().__init__()
        self.conv1.stride = 2, 2

    def spatial(self, z: Tensor) -> Tensor:
        return F.interpolate(super().spatial(z), z.shape[2:])


@computes_else("the spatial gate comes first")
class SpatialFirst(Base):
    def forward(self, x: Tensor) -> Tensor:
        z = x * self.spatial(x)
        return z * self.channel(z)


@computes_else("its result has the shape")
class Upsampled(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.attention(x), scale_factor=2.0)


@computes_else("read the same map")
class SelfAttention(Base):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        return x + (v @ torch.softmax(q.mT @ k, -1)).reshape(x.shape)


@computes_else("")
class ReadsWeights(Base):
    def channel(self, x: Tensor) -> Tensor:
        rows = F.linear(x.permute(0, 2, 3, 1), self.fc1.weight, self.fc1.bias).relu()
        return F.linear(rows, self.fc2.weight, self.fc2.bias).permute(0, 3, 1, 2).sigmoid()


@computes_else("")
class ReadsOneWeight(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x) * self.conv1.weight.norm()


@computes_else("not one of stride 1 and 'same' padding")
class StrideInFrontOfInterpolation(Base):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(8, 2, 1, stride=2), nn.Conv2d(2, 8, 1)

    def channel(self, x: Tensor) -> Tensor:
        return F.interpolate(self.fc2(self.fc1(x).relu()), x.shape[2:]).sigmoid()


@computes_else("its convolution fc1 does not read all channels")
class GroupedPerceptron(Base):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(8, 2, 1, groups=2), nn.Conv2d(2, 8, 1, groups=2)

    def channel(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x).relu()).sigmoid()


@computes_else("cannot be copied")
class CopyIsItself(Base):
    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        return self


@computes_else("cannot be copied")
class CopySharesLayers(Base):
    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        other = type(self)()
        other.fc1, other.conv1 = self.fc1, self.conv1
        return other


class _Locked:
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        raise RuntimeError("a lock has no copy")


@computes_else("cannot be copied: a lock has no copy")
class CannotBeCopied(Base):
    def __init__(self) -> None:
        super().__init__()
        self.lock = _Locked()


@computes_else("its forward pass raises RuntimeError: only on Sundays")
class Raises(Base):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("only on Sundays")


@pytest.mark.parametrize("name", ELSE)
def test_what_computes_something_else_is_left(name: str) -> None:
    kind, words = ELSE[name]
    module = kind()
    state = {key: value.clone() for key, value in module.state_dict().items()}
    assert words in reason(module)
    for key, value in module.state_dict().items():
        assert torch.equal(value, state[key]), "the proof does not change the module"
    assert all(p.grad is None for p in module.parameters())


def test_a_warning_names_the_module_and_the_reason() -> None:
    model = nn.Sequential(nn.Identity(), Residual())
    with pytest.warns(UserWarning, match="leaves 1 alone: Residual: it adds its input") as caught:
        assert gcsa_ext.replace_attention(model) == 0
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gcsa_ext.replace_attention(nn.Sequential(Pooled(), SelfAttention()))  # nothing like the attention
        gcsa_ext.replace_attention(model, explain=True)


class SqueezeExcitation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(8, 2), nn.ReLU(), nn.Linear(2, 8), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


def test_the_report_has_modules_that_are_only_called_attention() -> None:
    class SEBlock(SqueezeExcitation):
        pass

    class CBAM(Pooled):
        pass

    class Other(SqueezeExcitation):
        pass

    report = gcsa_ext.replace_attention(nn.Sequential(SEBlock(), CBAM(), Other(), Base()), explain=True)
    words = {a.name: a.words for a in report.left}
    assert set(words) == {"0", "1"} and all("pooled" in text for text in words.values())
    assert report.fused == (Attention("3", "Base", True, "8 channels, 7x7 convolutions"),)
    assert str(report).count("\n") == 2


# Modules that are fused and go on working where the proof does not hold.


class FreezesNorms(Base):
    """train() keeps the statistics of the norms."""

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.norm1.eval()
        self.norm2.eval()
        return self


class OptionalArgument(Base):
    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        out = self.attention(x) * scale if scale != 1 else self.attention(x)
        return out if mask is None else out * mask


class CheckpointsGate(Base):
    reentrant = False

    def channel(self, x: Tensor) -> Tensor:
        return checkpoint(super().channel, x, use_reentrant=self.reentrant)


class CheckpointsGateReentrant(CheckpointsGate):
    reentrant = True


class ConvertedToItsOwnDtype(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x.to(self.fc1.weight.dtype))


class UnusedParts(Base):
    """Parameters and buffers that the forward pass does not read, and a layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("index", torch.arange(4))
        self.register_buffer("flag", torch.tensor(False))
        self.alias = self.conv1
        self.act = torch.sigmoid


class OneNormTwice(Base):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 8)
        self.conv1, self.conv2 = (nn.Conv2d(8, 8, 7, padding=3) for _ in range(2))
        self.norm1 = self.norm2 = nn.BatchNorm2d(8)


class WithGetAttr(Base):
    def __getattr__(self, name: str) -> Any:
        return 3 if name == "three" else super().__getattr__(name)


class WithProperty(Base):
    @property
    def gain(self) -> float:
        return 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x) * self.gain


class FourChannels(Base):
    C = 4


class ShufflesByIndex(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor([0, 4, 1, 5, 2, 6, 3, 7]))

    def attention(self, x: Tensor) -> Tensor:
        z = (x * self.channel(x))[:, self.order]
        return z * self.spatial(z)


class PartOfTheChannels(Base):
    """The last of more than 8 channels pass unchanged."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.attention(x[:, :8]), x[:, 8:]], 1)


KEPT = [
    Base,
    FreezesNorms,
    OptionalArgument,
    CheckpointsGate,
    CheckpointsGateReentrant,
    ConvertedToItsOwnDtype,
    UnusedParts,
    OneNormTwice,
    WithGetAttr,
    WithProperty,
    FourChannels,
    ShufflesByIndex,
    PartOfTheChannels,
]


def pair(kind: type[nn.Module]) -> tuple[nn.Module, nn.Module]:
    """A fused and a plain module with the same parameters."""
    plain = kind()
    randomize_statistics(plain)
    fused = copy.deepcopy(plain)
    assert gcsa_ext.replace_attention(fused) == 1
    return fused, plain


@pytest.mark.parametrize("kind", KEPT)
def test_these_are_fused_and_equal(kind: type[Base]) -> None:
    fused, plain = pair(kind)
    x = torch.randn(2, kind.C, 6, 5, requires_grad=True)
    assert calls_operator(fused, x) and not calls_operator(plain, x)
    plain.load_state_dict(fused.state_dict())
    assert_same(fused, plain, x=x)


def test_other_arguments_get_the_forward_pass_of_the_class() -> None:
    fused, plain = pair(OptionalArgument)
    x, mask = torch.randn(2, 8, 6, 5), torch.rand(2, 1, 6, 5)
    for args, kwargs in (((x, mask), {}), ((x,), {"scale": 3.0}), ((), {"x": x})):
        torch.testing.assert_close(fused.eval()(*args, **kwargs), plain.eval()(*args, **kwargs))
    assert inspect.signature(fused.forward) == inspect.signature(plain.forward)
    for args in ((), (x, mask, 3), ("text",)):
        errors = []
        for module in (fused, plain):
            with pytest.raises((TypeError, AttributeError)) as error:
                module(*args)
            errors.append(str(error.value))
        assert errors[0] == errors[1]


class Rank(Base):
    """Takes sequences of frames as well."""

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x.flatten(0, 1)).reshape(x.shape) if x.dim() == 5 else self.attention(x)


def test_other_maps_get_the_forward_pass_of_the_class() -> None:
    fused, plain = pair(Rank)
    for module in (fused, plain):
        module.eval()
    frames = torch.randn(2, 3, 8, 6, 5)
    torch.testing.assert_close(fused(frames), plain(frames))
    assert torch.equal(fused(torch.zeros(0, 8, 6, 5)), plain(torch.zeros(0, 8, 6, 5)))
    with torch.autocast("cpu", torch.bfloat16):
        x = torch.randn(2, 8, 6, 5)
        torch.testing.assert_close(fused(x).float(), plain(x).float(), rtol=0.05, atol=0.05)
    one = torch.randn(1, 8, 1, 1)
    torch.testing.assert_close(fused(one), plain(one))
    for wrong in (torch.randn(8, 6, 5).long(), torch.randn(2, 7, 6, 5), x.double(), x.half(), one):
        errors = []
        for module in (fused.train(), plain.train()):
            with pytest.raises((RuntimeError, ValueError)) as error:
                module(wrong)
            errors.append(str(error.value))
        assert errors[0] == errors[1]


def test_more_channels_get_the_forward_pass_of_the_class() -> None:
    fused, plain = pair(PartOfTheChannels)
    x = torch.randn(2, 12, 6, 5)
    torch.testing.assert_close(fused.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("detached", [False, True])
def test_a_kept_map_is_set(detached: bool) -> None:
    class Keeps(Base):
        def forward(self, x: Tensor) -> Tensor:
            self.given, self.last = x, None
            out = self.attention(x)
            self.last = out.detach() if detached else out
            return out

    module = Keeps()
    module(torch.randn(1, 8, 4, 4))  # a module that holds a tensor with a gradient
    assert gcsa_ext.replace_attention(module) == 1
    x = torch.randn(2, 8, 6, 5, requires_grad=True)
    out = module(x)
    assert module.given is x and torch.equal(module.last, out) and module.last.requires_grad != detached
    assert calls_operator(module, x)
    assert gcsa_ext.replace_attention(module) == 0 and gcsa_ext.restore_attention(module) == 1


ATTRIBUTES: dict[str, Callable[[Any], object]] = {
    "number": lambda m: setattr(m, "scale", 2.0),
    "flag": lambda m: setattr(m, "shuffled", True),
    "function": lambda m: setattr(m, "squash", torch.tanh),
    "drop path that is switched on": lambda m: setattr(m.path, "p", 0.5),
}


class Settings(Base):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shuffled, self.squash = 1.0, False, torch.sigmoid
        self.path = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flip(1) if self.shuffled else x
        z = x * self.squash(self.fc2(self.fc1(x.permute(0, 2, 3, 1)).relu())).permute(0, 3, 1, 2)
        return z * self.spatial(z) * self.scale if self.path.p == 0 else self.path(x)


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_attribute_that_changes_afterwards(name: str) -> None:
    fused, plain = pair(Settings)
    fused.unread = "a new attribute"
    x = torch.randn(2, 8, 6, 5)
    assert calls_operator(fused.eval(), x)
    for module in (fused, plain):
        ATTRIBUTES[name](module)
    assert not calls_operator(fused, x)
    plain.load_state_dict(fused.state_dict())
    assert_same(fused, plain, x=x)


def test_a_class_whose_forward_pass_changes_afterwards() -> None:
    class Local(Base):
        pass

    fused, x = Local(), torch.randn(2, 8, 6, 5)
    gcsa_ext.replace_attention(fused)
    assert gcsa_ext.replace_attention(Local) == 1 and calls_operator(fused, x)
    assert gcsa_ext.restore_attention(Local) == 1 and calls_operator(fused, x)
    Local.forward = lambda self, x: 2 * x
    assert torch.equal(fused(x), 2 * x)
    fused.__class__ = Residual
    torch.testing.assert_close(fused.eval()(x), x + fused.attention(x))


def test_a_layer_under_two_names_of_which_one_is_exchanged() -> None:
    fused, plain = pair(OneNormTwice)
    other = nn.BatchNorm2d(8)
    randomize_statistics(other)
    fused.norm2, plain.norm2 = other, copy.deepcopy(other)
    assert_same(fused, plain)


def test_two_attentions_that_share_a_layer() -> None:
    plain = nn.Sequential(Base(), Base())
    plain[1].conv1 = plain[0].conv1
    plain[1].fc2.weight = plain[0].fc2.weight
    randomize_statistics(plain)
    fused = copy.deepcopy(plain)
    assert gcsa_ext.replace_attention(fused) == 2
    assert calls_operator(fused, torch.randn(2, 8, 6, 5))
    plain.load_state_dict(fused.state_dict())
    assert_same(fused, plain)


# Weights that are computed


def old_weight_norm(layer: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(layer)


def each(function: Callable[..., object], *names: str, **options: Any) -> Callable[[nn.Module], object]:
    """Apply a function to layers of a module."""
    return lambda module: [function(module.get_submodule(name), **options) for name in names]


COMPUTED: dict[str, Callable[[nn.Module], object]] = {
    "pruned": each(prune.l1_unstructured, "fc1", "conv2", "norm1", name="weight", amount=0.4),
    "pruned biases": each(prune.random_unstructured, "fc2", "conv2", "norm2", name="bias", amount=2),
    "pruned channels": each(prune.ln_structured, "conv1", "fc1", name="weight", amount=1, n=2, dim=1),
    "weight norm": each(parametrizations.weight_norm, "conv1", "fc2"),
    "old weight norm": each(old_weight_norm, "conv2", "fc1"),
    "spectral norm": each(parametrizations.spectral_norm, "conv1", "conv2", "fc1"),
    "old spectral norm": each(nn.utils.spectral_norm, "conv1", "conv2", "fc2"),
}


def with_computed_weights(name: str, size: int) -> nn.Module:
    module = Base()
    if size == 3:
        module.conv1, module.conv2 = nn.Conv2d(8, 2, 3, padding=1), nn.Conv2d(2, 8, 3, padding=1)
    COMPUTED[name](module)
    return module


@pytest.mark.parametrize("size", [7, 3])
@pytest.mark.parametrize("name", COMPUTED)
def test_weights_that_are_computed(name: str, size: int) -> None:
    fused, plain = (with_computed_weights(name, size) for _ in range(2))
    randomize_statistics(fused)
    fused(torch.randn(2, 8, 6, 5)).sum().backward()  # Its weights have a history now and cannot be copied.
    plain.load_state_dict(fused.state_dict())
    assert gcsa_ext.replace_attention(fused) == 1
    assert_same(fused, plain)
    assert calls_operator(fused, torch.randn(2, 8, 6, 5))
    assert gcsa_ext.restore_attention(fused) == 1


def test_a_parametrisation_that_is_removed() -> None:
    fused = with_computed_weights("weight norm", 7)
    gcsa_ext.replace_attention(fused)
    x = torch.randn(2, 8, 6, 5)
    expected = fused.eval()(x)
    nn.utils.parametrize.remove_parametrizations(fused.conv1, "weight")
    torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        fused.conv1.weight.mul_(-1)
    assert not torch.allclose(fused(x), expected, rtol=1e-4, atol=1e-5)


# Hooks and wrappers


def test_hooks_on_inner_layers_are_called() -> None:
    fused, plain = pair(Base)
    x, seen = torch.randn(2, 8, 6, 5, requires_grad=True), []
    handles = [
        fused.conv1.register_forward_hook(lambda *_: seen.append("forward")),
        fused.norm2.register_forward_pre_hook(lambda *_: seen.append("pre")),
        fused.fc1.register_full_backward_hook(lambda *_: seen.append("backward")),
    ]
    fused(x).sum().backward()
    assert seen == ["forward", "pre", "backward"] and not calls_operator(fused, x)
    handles[0].remove()
    handles.append(fused.conv2.register_forward_hook(lambda m, args, out: 2 * out))
    plain.conv2.register_forward_hook(lambda m, args, out: 2 * out)
    plain.load_state_dict(fused.state_dict())
    torch.testing.assert_close(fused(x), plain(x))
    for handle in handles:
        handle.remove()
    assert calls_operator(fused, x)


def test_hooks_of_before_the_call() -> None:
    module = Base()
    seen: list[str] = []
    inner = module.norm1.register_forward_hook(lambda *_: seen.append("inner"))
    module.register_forward_pre_hook(lambda *_: seen.append("pre"))
    module.register_forward_hook(lambda *_: seen.append("forward"))
    module.register_full_backward_hook(lambda *_: seen.append("backward"))
    assert gcsa_ext.replace_attention(module) == 1 and not seen
    x = torch.randn(2, 8, 6, 5, requires_grad=True)
    module(x).sum().backward()
    assert seen == ["pre", "inner", "forward", "backward"]
    inner.remove()
    assert calls_operator(module, x)


def test_a_forward_that_was_replaced_on_the_object() -> None:
    module = Base()
    module.forward = functools.partial(lambda forward, x: 2 * forward(x), module.forward)
    x = torch.randn(2, 8, 6, 5)
    expected = module.eval()(x)
    assert "replaced on the object" in reason(module)
    assert torch.equal(module(x), expected)
    fused = Base()
    gcsa_ext.replace_attention(fused)
    fused.forward = functools.partial(lambda forward, x: 2 * forward(x), fused.forward)
    assert gcsa_ext.restore_attention(fused) == 0 and calls_operator(fused, x)


def test_a_compiled_model() -> None:
    with pytest.raises(ValueError, match="the model is compiled already"):
        gcsa_ext.replace_attention(torch.compile(Base(), backend="eager"))
    model = nn.Sequential(Base(), nn.ReLU())
    model[0].compile(backend="eager")
    with pytest.raises(ValueError, match="its module 0 is compiled already"):
        gcsa_ext.replace_attention(model)


def test_a_model_in_a_wrapper(tmp_path: Any) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        fused, plain = Base(), Base()
        plain.load_state_dict(fused.state_dict())
        wrapped = nn.parallel.DistributedDataParallel(fused)
        assert gcsa_ext.replace_attention(wrapped) == 1
        assert calls_operator(wrapped, torch.randn(2, 8, 6, 5))
        plain.load_state_dict(fused.state_dict())
        assert_same(wrapped, nn.parallel.DistributedDataParallel(plain))
    finally:
        torch.distributed.destroy_process_group()


def test_a_replica_computes_with_its_own_layers() -> None:
    """As nn.DataParallel makes one for each device."""
    fused, plain = pair(Base)
    fused.eval()
    replica = fused._replicate_for_data_parallel()
    for name, child in plain.eval().named_children():
        other = copy.deepcopy(child)
        for p in other.parameters():
            nn.init.normal_(p, std=0.1)
        setattr(plain, name, other)
        replica._modules[name] = other
    x = torch.randn(2, 8, 6, 5)
    torch.testing.assert_close(replica(x), plain(x), rtol=1e-4, atol=1e-5)
    assert calls_operator(replica, x)
    assert gcsa_ext.restore_attention(fused) == 1 and not calls_operator(fused, x)


# What a call leaves as it was


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


CONTEXTS: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default dtype": lambda: default_dtype(torch.bfloat16),
    "meta device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_in_any_context(name: str) -> None:
    module = Attributes(8, 8)
    with CONTEXTS[name]():
        assert gcsa_ext.replace_attention(module) == 1
    assert calls_operator(module, torch.randn(2, 8, 6, 5))


def test_the_caller_is_not_disturbed() -> None:
    torch.set_num_threads(2)
    module = TwoSequentials(8)
    module.eval()
    module.spatial_attention[1].train()
    module.spatial_attention[0].weight.requires_grad_(False)
    module.channel_attention[0].weight.grad = torch.ones(2, 8)
    modes = [m.training for m in module.modules()]
    flags = [p.requires_grad for p in module.parameters()]
    state = {key: value.clone() for key, value in module.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gcsa_ext.replace_attention(module) == 1
        filters = list(warnings.filters)
    assert filters[0][0] == "error"
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]
    assert torch.get_num_threads() == 2
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
    assert [m.training for m in module.modules()] == modes
    assert [p.requires_grad for p in module.parameters()] == flags
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    assert torch.equal(module.channel_attention[0].weight.grad, torch.ones(2, 8))


def test_frozen_layers() -> None:
    plain = Base()
    plain.requires_grad_(False)
    plain.norm2.weight.requires_grad_(True)
    fused = copy.deepcopy(plain)
    assert gcsa_ext.replace_attention(fused) == 1
    assert_same(fused, plain)


def test_a_model_on_the_meta_device() -> None:
    with torch.device("meta"):
        module = Base()
    assert gcsa_ext.replace_attention(module) == 1
    module.to_empty(device="cpu")
    plain = Base()
    module.load_state_dict(plain.state_dict())
    assert_same(module, plain)


MEMORY = """
import resource
import torch
from published_attention import TwoSequentials
import gcsa_ext
gcsa_ext.replace_attention(TwoSequentials(64))
with torch.device("meta"):
    module = TwoSequentials(2048)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert gcsa_ext.replace_attention(module) == 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_the_proof_needs_little_memory() -> None:
    """At 2048 channels the weights alone would have 400 MiB in float64. The unit on Linux is KiB."""
    scale = 1024 if sys.platform == "darwin" else 1
    assert int(subprocesses.python(MEMORY, timeout=300)) / scale < 200 * 1024


# Classes


def new_class() -> type[Base]:
    class Local(Base):
        """The documentation."""

        def __init__(self, gain: float = 1.0) -> None:
            super().__init__()
            self.gain = gain

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            out = self.attention(x) * self.gain
            return out if mask is None else out * mask

    return Local


def test_a_class() -> None:
    kind = new_class()
    init, forward, signatures = kind.__init__, kind.forward, [*map(inspect.signature, (kind, kind.forward))]
    earlier = kind()
    assert gcsa_ext.replace_attention(kind) == 1
    assert gcsa_ext.replace_attention(kind) == 0
    assert [*map(inspect.signature, (kind, kind.forward))] == signatures
    assert kind.__doc__ == "The documentation."
    later = kind()
    assert inspect.signature(later.forward) == inspect.signature(types.MethodType(forward, later))
    x = torch.randn(2, 8, 6, 5)
    for module in (earlier, later):
        plain = new_class()()
        plain.load_state_dict(module.state_dict())
        assert calls_operator(module, x)
        plain.load_state_dict(module.state_dict())
        assert_same(module, plain, x=x)
        mask = torch.rand(2, 1, 6, 5)
        torch.testing.assert_close(module(x, mask=mask), plain(x, mask))
    assert gcsa_ext.replace_attention(nn.Sequential(earlier, later)) == 0
    assert gcsa_ext.restore_attention(kind) == 1
    assert gcsa_ext.restore_attention(kind) == 0
    assert kind.__init__ is init and kind.forward is forward
    assert not calls_operator(kind(), x)
    assert gcsa_ext.restore_attention(nn.Sequential(earlier, later)) == 2
    assert not calls_operator(later, x)


def test_a_class_that_inherits_both_methods() -> None:
    class Heir(Base):
        pass

    assert gcsa_ext.replace_attention(Heir) == 1
    assert calls_operator(Heir(), torch.randn(2, 8, 6, 5))
    assert not calls_operator(Base(), torch.randn(2, 8, 6, 5))
    assert gcsa_ext.restore_attention(Heir) == 1
    assert not {"__init__", "forward"} & set(Heir.__dict__)


def test_subclasses_of_a_class() -> None:
    kind = new_class()

    class Same(kind):
        def __init__(self) -> None:
            super().__init__()
            self.norm2 = nn.BatchNorm2d(8, eps=0.1)

    class Calls(kind):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    gcsa_ext.replace_attention(kind)
    x = torch.randn(2, 8, 6, 5)
    assert calls_operator(Same(), x)
    assert not calls_operator(Calls(), x)
    assert gcsa_ext.replace_attention(Same) == 1
    assert calls_operator(Same(), x)


def test_an_object_of_a_class_that_was_restored_stays_so() -> None:
    kind = new_class()
    gcsa_ext.replace_attention(kind)
    module, x = kind(), torch.randn(2, 8, 6, 5)
    assert gcsa_ext.restore_attention(module) == 1
    assert not calls_operator(module, x)
    assert gcsa_ext.replace_attention(module) == 1
    assert calls_operator(module, x)


def test_a_model_with_earlier_objects_of_a_class() -> None:
    kind = new_class()
    model = nn.Sequential(kind(), kind())
    gcsa_ext.replace_attention(kind)
    assert gcsa_ext.replace_attention(model) == 2
    assert gcsa_ext.replace_attention(model) == 0


class Pickled(Base):
    pass


def test_pickled_objects() -> None:
    """A fused object is read with the forward pass of its class, which may be fused."""
    module, x = Pickled().eval(), torch.randn(2, 8, 6, 5)
    gcsa_ext.replace_attention(module)
    expected = module(x)
    loaded = pickle.loads(pickle.dumps(module))
    assert b"gcsa_ext" not in pickle.dumps(module)
    assert not calls_operator(loaded, x)
    torch.testing.assert_close(loaded(x), expected, rtol=1e-4, atol=1e-5)
    assert gcsa_ext.replace_attention(loaded) == 1 and torch.equal(loaded(x), expected)
    assert gcsa_ext.restore_attention(loaded) == 1
    try:
        gcsa_ext.replace_attention(Pickled)
        again = pickle.loads(pickle.dumps(module))
        assert calls_operator(again, x) and torch.equal(again(x), expected)
    finally:
        gcsa_ext.restore_attention(Pickled)


def test_a_class_under_compile() -> None:
    kind = new_class()
    gcsa_ext.replace_attention(kind)
    module = kind().eval()
    plain = new_class()().eval()
    plain.load_state_dict(module.state_dict())
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    x = torch.randn(2, 8, 6, 5)
    torch._dynamo.reset()
    out = torch.compile(module, backend=backend, fullgraph=True)(x)
    torch.testing.assert_close(out, plain(x), rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1 and "gcsa_ext.gcsa" in graphs[0].print_readable(print_output=False)


def test_refused_objects_of_a_class_warn_once() -> None:
    class Refused(Residual):
        pass

    module = Refused()
    gcsa_ext.replace_attention(Refused)
    x = torch.randn(2, 8, 6, 5)
    for one in (module, Refused()):
        plain = Residual()
        plain.load_state_dict(one.state_dict())
        with pytest.warns(UserWarning, match="leaves a Refused alone: it adds its input") as caught:
            one(x)
            one(x)
        assert len(caught) == 1
        plain.load_state_dict(one.state_dict())
        torch.testing.assert_close(one.eval()(x), plain.eval()(x))
        assert gcsa_ext.restore_attention(one) == 0


def test_a_class_with_lazy_layers() -> None:
    class Lazy(Base):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.conv1 = nn.LazyLinear(2), nn.LazyConv2d(2, 7, padding=3)

    gcsa_ext.replace_attention(Lazy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = Lazy()
        x = torch.randn(2, 8, 6, 5)
        expected = module(x)
    assert expected.shape == x.shape


def test_what_is_no_module() -> None:
    for wrong in (3, Base.forward, int, "gam"):
        with pytest.raises(TypeError, match="expected a module or a class of modules"):
            gcsa_ext.replace_attention(wrong)
    with pytest.raises(ValueError, match="a class has no report"):
        gcsa_ext.replace_attention(Base, explain=True)
    assert gcsa_ext.replace_attention(nn.Linear(2, 2)) == 0
