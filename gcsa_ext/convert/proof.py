"""The proof that a module computes an attention by a recipe, on random copies of it (copies.py).

Compared are results, the gradients of the input and of every parameter, buffers and attributes: in training and
evaluation, at two sizes of the map and in both memory layouts, and in evaluation also for very small, very large
and not finite values.
"""

from __future__ import annotations

import contextlib
import copy
import random
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from gcsa_ext import reference
from gcsa_ext.convert.copies import (
    converted,
    duplicate,
    equal_attributes,
    is_linear_map,
    parameters,
    random_copy,
)
from gcsa_ext.convert.recognition import NotAttentionError, Recipe, equal, recognise

SMALL = 5, 6
"""Height and width of the map that modules are recognised on."""


def _large(channels: int) -> tuple[int, int]:
    """Height and width of a larger map, of about 1 MiB in float64 where the channels allow that."""
    for height, width in ((66, 65), (34, 33), (18, 17), (10, 9)):
        if channels * height * width * 8 <= 1 << 20:
            break
    return height, width


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep the caller's random state, modes, warnings and number of threads as they are."""
    states, threads = (random.getstate(), np.random.get_state()), torch.get_num_threads()
    torch.set_num_threads(1)  # the maps are too small for more
    with (
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            random.setstate(states[0])
            np.random.set_state(states[1])


def _random_state() -> tuple[Any, ...]:
    numpy_state = cast("tuple[Any, ...]", np.random.get_state())
    return torch.get_rng_state().tolist(), random.getstate(), numpy_state[1].tolist(), numpy_state[2]


def prove(module: nn.Module) -> Recipe:
    """The recipe by which a module computes an attention.

    The module is not changed, and neither are its mode and the random state. Its forward pass runs on copies.

    Raises:
        NotAttentionError: the module computes something else; the message says what.
    """
    with _undisturbed():
        generator = torch.Generator().manual_seed(0)
        try:
            copied = random_copy(module, generator).eval()
        except Exception as error:  # __deepcopy__ of an attribute may raise any exception
            raise NotAttentionError(f"it cannot be copied: {error}") from error
        first_error: Exception | None = None
        difference: NotAttentionError | None = None
        for channels in _possible_channels(copied):
            x = torch.randn((2, channels, *SMALL), generator=generator, dtype=torch.float64, device="cpu")
            try:
                return _Proof(copied, recognise(copied, x), channels, generator).recipe()
            except NotAttentionError as error:
                if difference is None or error.progress > difference.progress:
                    difference = error
            except Exception as error:  # the module's forward pass may raise any exception
                first_error = first_error or error
        if difference is not None:
            raise difference
        raise NotAttentionError(f"its forward pass raises {type(first_error).__name__}: {first_error}")


def _possible_channels(copied: nn.Module) -> list[int]:
    """The numbers of channels that the module's input may have."""
    sizes = [
        layer.in_features if isinstance(layer, nn.Linear) else cast("nn.Conv2d", layer).in_channels
        for layer in copied.modules()
        if is_linear_map(layer)
    ]
    return list(dict.fromkeys(sizes))


class _Proof:
    """One module's proof. `copied` is a random copy in evaluation, and `recipe` how it computes there."""

    def __init__(self, copied: nn.Module, recipe: Recipe, channels: int, generator: torch.Generator) -> None:
        self._copied, self._recipe, self._channels, self._generator = copied, recipe, channels, generator

    def recipe(self) -> Recipe:
        """The recipe with the attributes that the forward pass sets, or NotAttentionError."""
        contiguous, channels_last, large = (
            torch.contiguous_format,
            torch.channels_last,
            _large(self._channels),
        )
        for training, size, layout in (
            (False, SMALL, contiguous),
            (False, SMALL, channels_last),
            (False, large, contiguous),
            (True, SMALL, contiguous),
            (True, SMALL, channels_last),
            (True, large, channels_last),
        ):
            self._compare(training, self._map(*size).contiguous(memory_format=layout))
        for scale in (1e-8, 1e4, 1e9):
            self._compare_values(scale * self._map(*SMALL), f"for values of about {scale:g}")
        special = self._map(*SMALL)
        special[0, :, 1, 2], special[1, 0, 3, 3] = torch.nan, torch.inf
        self._compare_values(special, "for values that are not finite")
        for dtype in (torch.float32, torch.bfloat16):
            out = converted(self._copied, dtype)(self._map(*SMALL).to(dtype))
            if out.dtype != dtype:
                raise NotAttentionError(f"its result has the dtype {out.dtype} for a map of {dtype}")
        return self._recipe

    def _map(self, height: int, width: int) -> Tensor:
        shape = 2, self._channels, height, width
        return torch.randn(shape, generator=self._generator, dtype=torch.float64, device="cpu")

    def _compare_values(self, x: Tensor, when: str) -> None:
        with torch.no_grad():
            if not equal(self._copied(x.clone()), self._formula(self._copied, x.clone())):
                raise NotAttentionError(f"it computes something else {when}")

    def _compare(self, training: bool, x: Tensor) -> None:
        """Compare all that a forward and a backward pass compute and change."""
        mode = "training" if training else "evaluation"
        module, formula = (duplicate(self._copied).train(training) for _ in range(2))
        weight = torch.randn(x.shape, generator=self._generator, dtype=torch.float64, device="cpu")
        given, also_given = (x.clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2))
        before = [
            {
                name: copy.copy(value) if type(value) in (list, dict, set) and name[0] != "_" else value
                for name, value in part.__dict__.items()
            }
            for part in module.modules()
        ]
        state = _random_state()
        entering = given * 1.0  # no leaf, so that a module that works in place does not raise
        out = module(entering)
        if _random_state() != state:
            raise NotAttentionError(f"it draws random numbers in {mode} (dropout or drop path)")
        if not torch.equal(entering, x):
            raise NotAttentionError("it changes its input in place")
        expected = self._formula(formula, also_given * 1.0)
        if not isinstance(out, Tensor) or not equal(out, expected):
            height, width = x.shape[2:]
            raise NotAttentionError(f"it computes something else in {mode} from a map of {height}x{width}")
        self._keep(module, before, out, entering)
        if not out.requires_grad:
            raise NotAttentionError("its result has no gradient")
        for result, w in ((out, weight), (expected, weight)):
            result.backward(w)
        pairs = zip((given, *parameters(module)), (also_given, *parameters(formula)), strict=True)
        for mine, theirs in pairs:
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in (mine, theirs)]
            if theirs.requires_grad and not equal_gradients(*gradients):
                raise NotAttentionError(
                    f"its gradients differ in {mode}: a part of it is computed under no_grad or detached"
                )
        for (name, mine), theirs in zip(module.named_buffers(), formula.buffers(), strict=True):
            same = equal(mine, theirs) if mine.is_floating_point() else torch.equal(mine, theirs)
            if not same:
                raise NotAttentionError(f"its forward pass changes its buffer {name}")

    def _keep(self, module: nn.Module, before: list[dict[str, Any]], out: Tensor, x: Tensor) -> None:
        """Put the attributes that the forward pass has set into the recipe."""
        kept = {}
        for (path, part), earlier in zip(module.named_modules(), before, strict=True):
            for name, value in part.__dict__.items():
                if name in earlier and equal_attributes(earlier[name], value):
                    continue
                if name.startswith("_") and name in nn.Module().__dict__:
                    continue
                source = next(
                    (
                        key
                        for key, tensor in (("output", out), ("input", x))
                        if isinstance(value, Tensor)
                        and value.shape == tensor.shape
                        and torch.equal(value, tensor)
                    ),
                    None,
                )
                if path or source is None:
                    raise NotAttentionError(
                        f"its forward pass sets the attribute {f'{path}.{name}' if path else name}, which a "
                        "fused one would not"
                    )
                kept[name] = source if value.requires_grad else f"{source} detached"
        self._recipe = replace(self._recipe, kept=kept)

    def _formula(self, copied: nn.Module, x: Tensor) -> Tensor:
        """What the recipe says that the module computes, by the same layers."""
        recipe, settings = self._recipe, self._recipe.settings

        def call(name: str | None, value: Tensor) -> Tensor:
            return value if name is None else cast("Tensor", copied.get_submodule(name)(value))

        def perceptron(name: str, rows: Tensor) -> Tensor:
            if isinstance(copied.get_submodule(name), nn.Linear):
                return call(name, rows)
            return call(name, rows.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

        for name in recipe.before:
            x = call(name, x)
        hidden = torch.relu(perceptron(recipe.linear1, x.permute(0, 2, 3, 1)))
        pre = perceptron(recipe.linear2, hidden).permute(0, 3, 1, 2)
        z = reference.channel_shuffle(x * (torch.sigmoid(pre) if settings.sigmoid else pre), settings.groups)
        a1 = torch.relu(call(recipe.norm1, call(recipe.conv1, z)))
        v = call(recipe.norm2, call(recipe.conv2, a1))
        gate = torch.sigmoid(v) if settings.gate_sigmoid else v
        out = z * reference.channel_shuffle(gate, settings.gate_groups)
        for name in recipe.after:
            out = call(name, out)
        return out


def equal_gradients(a: Tensor, b: Tensor) -> bool:
    """Whether two gradients are equal but for the rounding of sums over a map."""
    return (a - b).abs().max().item() <= 1e-7 * b.abs().max().item() + 1e-10
