"""What gcsa_ext computes where torch lacks a name: for each name in a fork, where torch loses the name before
gcsa_ext is imported."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def fixed(*shape: int) -> Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float64).mul(0.37).add(len(shape)).sin().reshape(shape)


def with_gradients(
    function: Callable[..., Tensor], *inputs: Tensor, extra: tuple[Tensor, ...] = ()
) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    return [out, *torch.autograd.grad(out.double().sin().sum(), [*leaves, *extra])]


def operators(backend: str | None = None) -> list[Tensor]:
    """Results and gradients of modules and operators, also under autocast, by this or the default backend."""
    sys.modules["triton"] = None  # type: ignore[assignment]  # it would take long to import
    gcsa_ext = importlib.import_module("gcsa_ext")
    functional = gcsa_ext.functional
    module = gcsa_ext.GCSA(8, kernel_size=5).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(fixed(*parameter.shape) / math.sqrt(parameter.numel()))
    parameters = tuple(module.parameters())
    x, weight, z = fixed(2, 8, 6, 5), fixed(4, 8, 5, 5) / 14, fixed(2, 8, 6, 5).cos()
    found: list[Tensor] = []
    with gcsa_ext.use_backend(backend) if backend else contextlib.nullcontext():
        for autocast in (False, True):
            dtype = torch.float32 if autocast else torch.float64
            a, w, b = x.to(dtype), weight.to(dtype), z.to(dtype)
            masking = gcsa_ext.FrequencyMasking(5, iid_masks=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                for training in (True, False):
                    found += with_gradients(module.to(dtype).train(training), a, extra=parameters)
                torch.manual_seed(3)
                found += [masking(a), *with_gradients(masking, a)]
                found += with_gradients(lambda u, v: functional.norm_gate(u, v, training=True), a, b)
                found += with_gradients(functional.conv2d_same, a, w)
    return found


def compare(expected: list[list[float]]) -> None:
    for number, (tensor, numbers) in enumerate(zip(operators(), expected, strict=True)):
        # Under autocast, where tensors are float32 or bfloat16, products are rounded to 8 bits.
        tolerance = 1e-9 if tensor.dtype == torch.float64 else 0.02
        exact = torch.tensor(numbers, dtype=torch.float64)
        error = (tensor.detach().double().flatten() - exact).norm()
        assert error <= tolerance * (exact.norm() + 1), f"tensor {number}: {error} of {exact.norm()}"


def plain_torch() -> None:
    """An operator of torch.library and layers of torch, without gcsa_ext."""
    library = torch.library.Library("without_names", "DEF")
    library.define("double(Tensor x) -> Tensor")
    library.impl("double", lambda x: 2 * x, "CompositeExplicitAutograd")
    torch.library.register_fake("without_names::double", torch.empty_like, lib=library)
    torch.library.register_autograd("without_names::double", lambda ctx, grad: 2 * grad, lib=library)
    layers = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    x = torch.ones(2, 8, 6, 5, requires_grad=True)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            torch.ops.without_names.double(layers(x)).float().sum().backward()


def in_a_fork(call: Callable[[], Any]) -> dict[str, Any]:
    """What `call` returns, or its exception as text."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            result = {"returned": call()}
        except BaseException as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        with os.fdopen(writing, "w") as pipe:
            json.dump(result, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.wait()
    return json.loads(text) if text else {"error": "the process died"}


def without(name: str, call: Callable[[], Any]) -> dict[str, Any]:
    def deleted() -> Any:
        owner, _, attribute = name.rpartition(".")
        parent: Any = torch
        for part in owner.split(".")[1:]:
            parent = getattr(parent, part)
        if hasattr(parent, attribute):
            delattr(parent, attribute)
        return call()

    return in_a_fork(deleted)


def main(names: list[str]) -> None:
    """Print, for each name, the errors of gcsa_ext and of plain torch without it, or None."""
    expected = in_a_fork(
        lambda: [tensor.detach().double().flatten().tolist() for tensor in operators("reference")]
    )
    assert "returned" in expected, expected
    found = {}
    for name in names:
        error = without(name, lambda: compare(expected["returned"])).get("error")
        found[name] = error, None if error is None else without(name, plain_torch).get("error")
    print(json.dumps(found))
