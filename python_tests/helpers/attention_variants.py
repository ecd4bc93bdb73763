"""Every kind of layers that the operator gcsa takes, as its arguments, and their results beside float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from accuracy import MODULE_FACTOR, assert_as_accurate
from layouts import LAYOUTS, expected_format
from torch import Tensor

from gcsa_ext import reference
from gcsa_ext.backends.operands import Arguments

GATE_BIASES = "b1", "b2"
NORM_VECTORS = "norm1_weight", "norm1_bias", "norm2_weight", "norm2_bias"
EVERYTHING: dict[str, Any] = {
    **{"hidden": 8, "kernel_sizes": (3, 5), "convolution_groups": (2, 4), "gate_groups": 6, "groups": 4},
    **{"sigmoid": False, "replicate": True, "missing": ("b2", "conv1_bias")},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {"convolution_groups": (4, 2)},
    "twelve groups": {"hidden": 12, "convolution_groups": (12, 12)},
    "replicate": {"replicate": True},
    "1x1 and 5x5": {"kernel_sizes": (1, 5), "replicate": True},
    "7x7 and 1x1": {"kernel_sizes": (7, 1)},
    "1x1 and 1x1": {"kernel_sizes": (1, 1), "replicate": True},
    "more hidden channels": {"hidden": 20},
    "no biases of the gate": {"missing": GATE_BIASES},
    "one bias of the gate": {"missing": ("b1",)},
    "shuffled gate": {"gate_groups": 3},
    "shuffled gate without vectors": {
        "gate_groups": 4,
        "missing": (*NORM_VECTORS, "conv1_bias", "conv2_bias"),
    },
    "gate without sigmoid": {"gate_sigmoid": False},
    "public GAM": {"convolution_groups": (4, 4), "gate_groups": 4, "groups": 1, "kernel_sizes": (7, 7)},
    "everything": EVERYTHING,
    "everything, the gate without sigmoid": {**EVERYTHING, "gate_sigmoid": False},
}


def variant_arguments(
    name: str,
    dtype: torch.dtype = torch.float32,
    training: bool = True,
    layout: str = "contiguous",
    shape: tuple[int, int, int, int] = (3, 12, 6, 5),
) -> Arguments:
    """The arguments of a variant, with the statistics of the batch in training, else with given ones."""
    C, gate_hidden = shape[1], 3
    options = {"hidden": 4, "kernel_sizes": (5, 5), "convolution_groups": (1, 1), "missing": (), "groups": 3}
    options |= VARIANTS[name]
    m, (k1, k2), (groups1, groups2) = (
        options.pop(key) for key in ("hidden", "kernel_sizes", "convolution_groups")
    )
    missing = options.pop("missing")

    def weight(*shape: int) -> Tensor:
        return (torch.randn(shape) / math.sqrt(math.prod(shape[1:]))).to(dtype)

    values: dict[str, Any] = dict.fromkeys(Arguments._fields[:17])
    values["x"] = LAYOUTS[layout](shape, dtype)
    values |= {
        "w1": weight(gate_hidden, C),
        "b1": weight(gate_hidden),
        "w2": weight(C, gate_hidden),
        "b2": weight(C),
    }
    values |= {"conv1_weight": weight(m, C // groups1, k1, k1), "conv1_bias": weight(m)}
    values |= {"conv2_weight": weight(C, m // groups2, k2, k2), "conv2_bias": weight(C)}
    for number, channels in ((1, m), (2, C)):
        values[f"norm{number}_weight"] = torch.rand(channels).to(dtype) + 0.5
        values[f"norm{number}_bias"] = torch.randn(channels).to(dtype)
        if not training:
            values[f"mean{number}"], values[f"var{number}"] = (
                torch.randn(channels),
                torch.rand(channels) + 0.3,
            )
    values |= dict.fromkeys(missing)
    values |= {"eps1": 1e-5, "eps2": 1e-3, "sigmoid": True, **options}
    return Arguments(**values)


def with_gradients(
    function: Callable[..., tuple[Tensor, ...]], a: Arguments, grad: Tensor
) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """The result of the operator, the four statistics, and the gradients by the names of the arguments."""
    leaves = {
        name: value.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        for name, value in zip(a._fields, a.differentiable, strict=False)
        if value is not None
    }
    out, *others = function(*a._replace(**leaves))
    grads = torch.autograd.grad(out, list(leaves.values()), grad.to(out.dtype))
    return out.detach(), others[-4:], dict(zip(leaves, grads, strict=True))


def check_variant(a: Arguments) -> None:
    """The operator and its gradients against the definition in float64."""
    grad = torch.randn(a.x.shape)
    exact_arguments = Arguments(*(v.double() if isinstance(v, Tensor) else v for v in a))
    found, plain, exact = (
        with_gradients(torch.ops.gcsa_ext.gcsa, a, grad),
        with_gradients(reference.gcsa, a, grad),
        with_gradients(reference.gcsa, exact_arguments, grad),
    )
    assert found[0].is_contiguous(memory_format=expected_format(a.x))
    assert_as_accurate(found[0], plain[0], exact[0], "result", MODULE_FACTOR)
    tolerance = 1e-5 if a.x.dtype == torch.float32 else 2.0**-6
    torch.testing.assert_close(
        [value.double() for value in found[1]], exact[1], rtol=tolerance, atol=tolerance
    )
    assert found[2].keys() == plain[2].keys() == exact[2].keys()
    largest = max(value.abs().max().item() for value in exact[2].values())
    for name, value in found[2].items():
        if value.dtype == torch.float32:
            # Sums of many summands may cancel, and in training those of the convolutions' biases do.
            assert_as_accurate(value, plain[2][name], exact[2][name], name, MODULE_FACTOR, largest)
        else:
            # A value next to 0 may pass the relu or not, which changes some gradients much, but few.
            error, allowed = ((g[2][name] - exact[2][name]).norm() for g in (found, plain))
            allowed = MODULE_FACTOR * allowed + 0.05 * exact[2][name].norm()
            assert error <= allowed, f"{name}: off by {error:.3g}, allowed are {allowed:.3g}"
    if a.mean1 is not None:
        with torch.no_grad():
            evaluated = torch.ops.gcsa_ext.gcsa_inference(*a)
        assert_as_accurate(evaluated, plain[0], exact[0], "inference", MODULE_FACTOR)
        assert evaluated.stride() == found[0].stride()
