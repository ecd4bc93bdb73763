"""Calls of the operator gcsa with the options of published modules, compared with the definition."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from accuracy import MODULE_FACTOR, assert_as_accurate
from torch import Tensor

import gcsa_ext
from gcsa_ext.backends.operands import DIFFERENTIABLE, Arguments

STATISTICS = ("mean1", "var1", "mean2", "var2")


@dataclasses.dataclass(frozen=True)
class Variant:
    """The sizes and options of a call; see reference.gcsa."""

    shape: tuple[int, int, int, int] = (2, 16, 9, 7)
    h: int = 4
    m: int = 4
    kernels: tuple[int, int] = (5, 5)
    conv_groups: tuple[int, int] = (1, 1)
    groups: int = 1
    gate_groups: int = 1
    sigmoid: bool = True
    gate_sigmoid: bool = True
    replicate: bool = False
    biases: bool = True
    conv_biases: bool = True
    affine: bool = True
    batch: tuple[bool, bool] = (True, True)
    layout: torch.memory_format = torch.contiguous_format

    def arguments(self, dtype: torch.dtype = torch.float32) -> Arguments:
        """Random arguments. Vectors of a bfloat16 map are float32, as the norms' are under autocast."""
        (N, C, H, W), h, m, (k1, k2), (g1, g2) = self.shape, self.h, self.m, self.kernels, self.conv_groups

        def random(*shape: int, scale: float = 1.0, of: torch.dtype = dtype) -> Tensor:
            return (torch.randn(shape) * scale).to(of)

        def weight(*shape: int) -> Tensor:
            return random(*shape, scale=math.prod(shape[1:]) ** -0.5)

        def norm(channels: int, shift: float = 0.0) -> tuple[Tensor, Tensor] | tuple[None, None]:
            of = torch.promote_types(dtype, torch.float32)
            return (
                (random(channels, of=of) + 1, random(channels, of=of) + shift)
                if self.affine
                else (None, None)
            )

        def statistics(channels: int, batch: bool) -> tuple[Tensor, Tensor] | tuple[None, None]:
            of = torch.promote_types(dtype, torch.float32)
            return (None, None) if batch else (random(channels, of=of), torch.rand(channels).to(of) + 0.3)

        weights = (weight(m, C // g1, k1, k1), weight(C, m // g2, k2, k2))
        conv1, conv2 = (w.contiguous(memory_format=self.layout) for w in weights)
        return Arguments(
            random(N, C, H, W).contiguous(memory_format=self.layout),
            weight(h, C),
            random(h) if self.biases else None,
            weight(C, h),
            random(C) if self.biases else None,
            conv1,
            random(m) if self.conv_biases else None,
            conv2,
            random(C) if self.conv_biases else None,
            # Roundings of bfloat16 would turn many relus behind the first norm on or off.
            *norm(m, shift=8.0 if dtype == torch.bfloat16 else 0.0),
            *norm(C),
            *statistics(m, self.batch[0]),
            *statistics(C, self.batch[1]),
            1e-5,
            1e-3,
            self.groups,
            self.sigmoid,
            False,
            self.gate_groups,
            self.gate_sigmoid,
            self.replicate,
        )


def converted(a: Arguments, dtype: torch.dtype) -> Arguments:
    """The same call with every tensor contiguous and of a dtype of at least this precision.

    In channels_last torch's gradient of a grouped convolution's weight in float64 is wrong for some sizes.
    """
    return Arguments(
        *(v.to(torch.promote_types(v.dtype, dtype)).contiguous() if isinstance(v, Tensor) else v for v in a)
    )


def run(a: Arguments, backend: str, grad_out: Tensor, need: Sequence[bool]) -> dict[str, Tensor]:
    """The result, the statistics that it used, and the gradients of the tensors that are needed, by name."""
    inputs = [
        v.detach().requires_grad_() if i < DIFFERENTIABLE and v is not None and need[i] else v
        for i, v in enumerate(a)
    ]
    with gcsa_ext.use_backend(backend):
        out, u1, u2, *used = torch.ops.gcsa_ext.gcsa(*inputs)
        # The reference saves NaN, which proves that it was called.
        assert u1.isnan().all() == u2.isnan().all() == (backend == "reference")
        # Kernels with the widest vectors write all of the memory, with zeros for channels that do not exist.
        if backend == "cpu" and gcsa_ext.info()["isa"] in ("avx512", "amx"):
            assert u1.isfinite().all() and u2.isfinite().all()
        wanted = {
            name: v
            for name, v, needed in zip(Arguments._fields, inputs[:DIFFERENTIABLE], need, strict=False)
            if needed and v is not None
        }
        grads = torch.autograd.grad(out, list(wanted.values()), grad_out.to(out.dtype)) if wanted else ()
    results = {"result": out, **dict(zip(STATISTICS, used, strict=True))}
    return results | {f"gradient of {name}": g for name, g in zip(wanted, grads, strict=True)}


def check(
    variant: Variant, dtype: torch.dtype = torch.float32, need: Sequence[bool] = DIFFERENTIABLE * (True,)
) -> dict[str, Tensor]:
    """Compare the kernels of the CPU with the definition, in training and, with given statistics, inference.

    Returns what the kernels computed in training.
    """
    a = variant.arguments(dtype)
    grad_out = torch.randn(variant.shape)
    found = run(a, "cpu", grad_out, need)
    plain = run(converted(a, dtype), "reference", grad_out, need)
    exact = run(converted(a, torch.float64), "reference", grad_out, need)
    assert found.keys() == plain.keys() == exact.keys()
    # The gradient of a vector is a sum over positions that may cancel. That of a convolution's bias is 0
    # before statistics of the batch.
    largest = max((g.abs().max().item() for n, g in exact.items() if n.startswith("gradient")), default=0.0)
    # Rounding errors turn some relus on and off, most of all those of bfloat16.
    factor = MODULE_FACTOR * (4 if dtype == torch.bfloat16 else 1)
    for name, value in found.items():
        least_scale = largest if name.startswith("gradient") and value.dim() == 1 else 0.0
        assert_as_accurate(value, plain[name], exact[name], f"{name} of {variant}", factor, least_scale)
        if name.startswith("gradient"):
            operand = getattr(a, name.removeprefix("gradient of "))
            layout = variant.layout if operand.dim() == 4 else torch.contiguous_format
            assert value.is_contiguous(memory_format=layout)
    statistics = {name: found[name] for name in STATISTICS}
    check_inference(a._replace(**statistics), variant)
    return found


def check_inference(a: Arguments, variant: Variant) -> None:
    """Compare the operator without gradients, whose statistics are all given."""
    results: list[Any] = []
    for backend, call in (("cpu", a), ("reference", a), ("reference", converted(a, torch.float64))):
        with gcsa_ext.use_backend(backend):
            results.append(torch.ops.gcsa_ext.gcsa_inference(*call))
    assert_as_accurate(*results, f"inference of {variant}")
    assert results[0].is_contiguous(memory_format=variant.layout)
