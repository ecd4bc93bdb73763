"""Derivatives of every operator and of GCSA: first and second, by torch.func, forward mode, and opcheck."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from layouts import LAYOUTS
from opchecks import opcheck
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap

import gcsa_ext
from gcsa_ext import functional, reference

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # torch's own rules for forward mode are compiled by its deprecated compiler
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning"),
]

SHAPE = (2, 4, 3, 2)
START, WIDTH = torch.tensor([[0, 2], [1, 1]]), torch.tensor([[1, 1], [2, 0]])


def double(*shape: int, layout: str = "contiguous") -> Tensor:
    if layout == "contiguous":
        return torch.randn(shape, dtype=torch.float64)
    return LAYOUTS[layout](shape, torch.float64)


def gate_weights() -> list[Tensor]:
    return [double(3, 4), double(3), double(4, 3), double(4)]


STATISTICS = torch.tensor([0.3, -0.2, 0.1, 0.7]).double(), torch.tensor([0.5, 1.5, 0.9, 2.0]).double()

# name: (fused, definition, arguments); every argument gets a derivative
OPERATORS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[[str], list[Tensor]]]] = {
    "channel_gate": (
        lambda *a: functional.channel_gate(*a, groups=2),
        lambda *a: reference.channel_gate(*a, groups=2),
        lambda layout: [double(*SHAPE, layout=layout), *gate_weights()],
    ),
    "channel_gate without sigmoid": (
        lambda *a: functional.channel_gate(*a, groups=4, sigmoid=False),
        lambda *a: reference.channel_gate(*a, groups=4, sigmoid=False),
        lambda layout: [double(*SHAPE, layout=layout), *gate_weights()],
    ),
    "norm_gate": (
        lambda *a: functional.norm_gate(*a, *STATISTICS),
        lambda *a: reference.norm_gate(*a, *STATISTICS, 1e-5),
        lambda layout: [double(*SHAPE, layout=layout), double(*SHAPE, layout=layout), double(4), double(4)],
    ),
    "norm_gate in training": (
        lambda *a: functional.norm_gate(*a, training=True),
        lambda *a: reference.norm_gate(*a, None, None, 1e-5),
        lambda layout: [double(*SHAPE, layout=layout), double(*SHAPE, layout=layout), double(4), double(4)],
    ),
    "conv2d_same": (
        functional.conv2d_same,
        reference.conv2d_same,
        lambda layout: [double(*SHAPE, layout=layout), double(4, 4, 5, 5) / 5, double(4)],
    ),
    "frequency_mask": (
        lambda x: functional.frequency_mask(x, START[:, None], WIDTH[:, None], 0.5),
        lambda x: reference.frequency_mask(x, START[:, None], WIDTH[:, None], 0.5),
        lambda layout: [double(*SHAPE, layout=layout)],
    ),
    "time_mask of a value": (
        lambda x, value: functional.time_mask(x, START[:, None], WIDTH[:, None], value),
        lambda x, value: reference.spectrogram_mask(x, START[:, None], WIDTH[:, None], 0.0, 2, value),
        lambda layout: [double(*SHAPE, layout=layout), double()],
    ),
}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("name", OPERATORS)
def test_first_and_second_derivatives(name: str, layout: str) -> None:
    fused, _, arguments = OPERATORS[name]
    inputs = [a.requires_grad_() for a in arguments(layout)]
    assert torch.autograd.gradcheck(fused, inputs, check_batched_grad=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(fused, inputs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_first_and_second_derivatives_of_gcsa(kernel_size: int, training: bool) -> None:
    module = gcsa_ext.GCSA(4, reduction=2, groups=2, kernel_size=kernel_size).double().train(training)
    names = [name for name, _ in module.named_parameters()]

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        return functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    inputs = [double(2, 4, 3, 2), *(p.detach().clone() for p in module.parameters())]
    for tensor in inputs:
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("training", [True, False])
def test_an_input_computed_from_another_is_not_counted_twice(training: bool) -> None:
    """In GCSA u is a convolution of z, and with tied weights w2 is a view of w1."""
    z = double(2, 4, 3, 2).requires_grad_()
    statistics = (None, None) if training else STATISTICS
    x, w = double(2, 4, 3, 2), double(3, 4).requires_grad_()
    for fused, plain, leaf in (
        (
            lambda z: functional.norm_gate(z * z, z, None, None, *statistics, training=training),
            lambda z: reference.norm_gate(z * z, z, None, None, *statistics, 1e-5),
            z,
        ),
        (
            lambda w: functional.channel_gate(x * w.sum(), w, w[:, 0], w.t(), w[0], 2),
            lambda w: reference.channel_gate(x * w.sum(), w, w[:, 0], w.t(), w[0], 2),
            w,
        ),
    ):
        found, expected = (
            torch.autograd.grad(f(leaf).pow(2).sum(), leaf, create_graph=True)[0] for f in (fused, plain)
        )
        torch.testing.assert_close(found, expected)
        found, expected = (torch.autograd.grad(g.pow(2).sum(), leaf)[0] for g in (found, expected))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_gradient_penalty_through_gcsa(kernel_size: int) -> None:
    """A gradient penalty, the norm of the input's gradient, is the usual reason for second derivatives."""
    module = gcsa_ext.GCSA(8, groups=4, kernel_size=kernel_size).double()
    grads = []
    x = double(2, 8, 5, 4)
    for backend in ("cpu", "reference"):
        with gcsa_ext.use_backend(backend):
            module.zero_grad()
            leaf = x.clone().requires_grad_()
            (g,) = torch.autograd.grad(module(leaf).pow(2).sum(), leaf, create_graph=True)
            g.pow(2).sum().backward()
            grads.append([p.grad.clone() for p in module.parameters()])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("name", OPERATORS)
def test_function_transforms(name: str) -> None:
    fused, plain, arguments = OPERATORS[name]
    inputs = tuple(arguments("contiguous"))
    tangents = tuple(torch.randn_like(a) for a in inputs)

    def loss(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *a: function(*a).sin().sum()

    everything = tuple(range(len(inputs)))
    stacked = tuple(torch.stack([a, 2 * a, a - 1]) for a in inputs)
    for transform in (
        lambda f: f(*inputs),
        lambda f: jvp(f, inputs, tangents),
        lambda f: vjp(f, *inputs)[1](tangents[0]),
        lambda f: grad(loss(f), argnums=everything)(*inputs),
        lambda f: vmap(f)(*stacked),
        lambda f: vmap(grad(loss(f), argnums=everything))(*stacked),
        lambda f: jacrev(f)(*inputs),
        lambda f: hessian(loss(f))(*inputs),
    ):
        torch.testing.assert_close(transform(fused), transform(plain))


@pytest.mark.parametrize("name", OPERATORS)
def test_dual_numbers_carry_their_tangent(name: str) -> None:
    fused, plain, arguments = OPERATORS[name]
    inputs = arguments("contiguous")
    tangents = [torch.randn_like(a) for a in inputs]
    found = []
    for function in (fused, plain):
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(a, t) for a, t in zip(inputs, tangents, strict=True)]
            found.append(forward_ad.unpack_dual(function(*duals)))
    torch.testing.assert_close(found[0].primal, found[1].primal)
    assert found[0].tangent is not None
    torch.testing.assert_close(found[0].tangent, found[1].tangent)


def test_in_place_mask_under_transforms() -> None:
    x = double(3, 2, 4, 3)
    found = vmap(lambda x: functional.frequency_mask_(x.clone(), START[0], WIDTH[0], 2.0))(x)
    assert torch.equal(found, reference.frequency_mask(x, START[0], WIDTH[0], 2.0))
    found = vmap(lambda x: functional.time_mask_(x.clone(), START[0], WIDTH[0], x.mean()))(x)
    expected = [reference.spectrogram_mask(y, START[0], WIDTH[0], float(y.mean()), 2) for y in x]
    assert torch.equal(found, torch.stack(expected))


def test_per_sample_gradients_of_gcsa() -> None:
    module = gcsa_ext.GCSA(8, groups=2, kernel_size=3).double().eval()
    x = double(3, 8, 4, 5)
    state = {k: v.detach() for k, v in module.state_dict().items()}
    parameters = {k: v for k, v in state.items() if k in dict(module.named_parameters())}
    buffers = {k: v for k, v in state.items() if k not in parameters}

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(module, {**parameters, **buffers}, (sample[None],)).pow(2).sum()

    per_sample = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for i, sample in enumerate(x):
        module.zero_grad()
        module(sample[None]).pow(2).sum().backward()
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(per_sample[name][i], parameter.grad)


def test_statistics_are_constants() -> None:
    mean = torch.zeros(4, requires_grad=True)
    out = functional.norm_gate(torch.randn(SHAPE), torch.randn(SHAPE), None, None, mean, torch.ones(4))
    with pytest.raises(RuntimeError, match="mean and var are constants"):
        out.sum().backward()


@pytest.mark.parametrize(
    ("backend", "layout", "dtype"),
    [
        ("cpu", "contiguous", torch.float32),
        ("cpu", "channels_last", torch.bfloat16),
        ("cpu", "sliced", torch.float64),
        ("triton", "contiguous", torch.float32),
        ("triton", "channels_last", torch.bfloat16),
        ("triton", "sliced", torch.float16),
        ("cuda", "contiguous", torch.float32),
        ("cuda", "channels_last", torch.bfloat16),
        ("cuda", "sliced", torch.float16),
    ],
    ids=str,
    indirect=["backend"],
)
def test_opcheck(backend: str, layout: str, dtype: torch.dtype) -> None:
    x, z, grad_out = (LAYOUTS[layout](SHAPE, dtype) for _ in range(3))
    w1, b1, w2, b2 = (w.to(dtype) for w in gate_weights())
    weight, bias = torch.randn(4), torch.randn(4)
    mean, var = (s.float() for s in STATISTICS)
    opcheck("channel_gate_backward", grad_out, x, w1, b1, w2, b2, 2, True, True, False)
    opcheck("channel_gate_backward", grad_out, x, w1, b1, w2, b2, 2, True, False, True)
    opcheck(
        "norm_gate_backward", grad_out, x, z, weight, bias, mean, var, 1e-5, True, True, False, True, False
    )
    opcheck(
        "norm_gate_backward", grad_out, x, z, None, None, mean, var, 1e-5, False, False, True, False, False
    )
    weight4, bias4 = torch.randn(3, 4, 5, 5, dtype=dtype), torch.randn(3, dtype=dtype)
    opcheck("conv2d_same_backward", grad_out[:, :3], x, weight4, True, True)
    opcheck("conv2d_same_backward", grad_out[:, :3], x, weight4, False, True)
    fill = torch.tensor(0.5, dtype=dtype)
    for time_bands in (0, 1, 2, reference.ALL_BANDS):
        for value in (None, fill):
            arguments = (START[:, None], WIDTH[:, None], 0.25, time_bands, value)
            opcheck("spectrogram_mask", x, *arguments)
            opcheck("spectrogram_mask_", x.clone(), *arguments)
    for tensor in (x, z, w1, b1, w2, b2, weight, bias, weight4, bias4, fill):
        tensor.requires_grad_()
    opcheck("conv2d_same", x, weight4, bias4)
    opcheck("conv2d_same", x, weight4, None)
    opcheck("channel_gate", x, w1, b1, w2, b2, 4, False)
    opcheck("norm_gate", x, z, weight, bias, None, None, 1e-5)
    opcheck("norm_gate", x, z, None, bias, mean, var, 1e-5)
    opcheck("spectrogram_mask", x, START[0], WIDTH[0], -1.0, 0, None)
    opcheck("spectrogram_mask", x, START[0], WIDTH[0], -1.0, 1, fill)
    opcheck("spectrogram_mask", x.detach(), START[0], WIDTH[0], -1.0, 1, fill)
