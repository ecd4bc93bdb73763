"""The proof that a module computes an attention by a recipe, on random copies of it (copies.py).

Compared are results, the gradients of the input and of every parameter, buffers and attributes: in training
and evaluation, at two sizes of the map and in both memory layouts. In evaluation, results are compared also
for very small, very large and not finite values, and in narrower dtypes.
"""

from __future__ import annotations

import contextlib
import copy
import io
import random
import threading
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

_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)


def _small(copied: nn.Module) -> tuple[int, int]:
    """Height and width of a small map, which reflect and circular padding can extend."""
    padding = [max(m._reversed_padding_repeated_twice) for m in copied.modules() if isinstance(m, nn.Conv2d)]
    size = max(5, 1 + max(padding, default=0))
    return size, size + 1


def _large(channels: int) -> tuple[int, int]:
    """Height and width of a larger map, of about 1 MiB in float64 where the channels allow that."""
    for height, width in ((66, 65), (34, 33), (18, 17), (10, 9)):
        if channels * height * width * 8 <= 1 << 20:
            break
    return height, width


_proving = threading.local()
_lock = threading.RLock()
"""Held by a proof, since the random states, the number of threads and the warnings belong to the process."""


def is_proving() -> bool:
    """Whether this thread runs a proof."""
    return getattr(_proving, "active", False)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep the caller's random state, modes, warnings and number of threads as they are."""
    states, threads = (random.getstate(), np.random.get_state()), torch.get_num_threads()
    torch.set_num_threads(1)  # the maps are too small for more
    _proving.active = True
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),  # of a forward pass that prints
        torch.random.fork_rng(devices=[]),
        torch.device("cpu"),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            _proving.active = False
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
    for tensor in (torch.empty(0, device="cpu"), *module.parameters()):
        if type(tensor).__name__ == "FakeTensor":
            raise NotAttentionError("its tensors are fake: they have no values to compare")
    with _lock, _undisturbed():
        generator = torch.Generator().manual_seed(0)
        for part in module.modules():
            for name, value in part.__dict__.items():
                if isinstance(value, _GENERATORS):
                    raise NotAttentionError(f"its attribute {name} draws random numbers")
        try:
            copied = random_copy(module, generator).eval()
        except Exception as error:  # __deepcopy__ of an attribute may raise any exception
            raise NotAttentionError(f"it cannot be copied: {error}") from error
        first_error: Exception | None = None
        difference: NotAttentionError | None = None
        for channels in _possible_channels(copied):
            x = torch.randn(
                (2, channels, *_small(copied)), generator=generator, dtype=torch.float64, device="cpu"
            )
            try:
                return _Proof(copied, recognise(duplicate(copied), x), channels, generator).recipe()
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
        self._small = _small(copied)

    def recipe(self) -> Recipe:
        """The recipe with the attributes that the forward pass sets, or NotAttentionError."""
        contiguous, last, large = torch.contiguous_format, torch.channels_last, _large(self._channels)
        cases = (self._small, contiguous), (self._small, last), (large, contiguous), (large, last)
        # One of the large maps in each mode
        found = [self._compare(False, *case) for case in cases[:3]]
        found += [self._compare(True, *case) for case in (*cases[:2], cases[3])]
        kept = [attributes for attributes in found if attributes is not None]
        if any(attributes != kept[0] for attributes in kept):
            names = ", ".join(sorted(set().union(*kept)))
            raise NotAttentionError(f"its forward pass sets {names} differently in training and evaluation")
        for scale in (1e-8, 1e4, 1e9):
            self._compare_values(scale * self._map(*self._small), f"for values of about {scale:g}")
        special = self._map(*self._small)
        special[0, :, 1, 2], special[1, 0, 3, 3] = torch.nan, torch.inf
        self._compare_values(special, "for values that are not finite")
        for samples in (1, 3):
            x = torch.cat([self._map(*self._small), self._map(*self._small)])[:samples]
            self._compare_values(x, f"for a batch of {samples}")
        self._compare_flags()
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            self._compare_roughly(dtype, 100 * self._map(*self._small))
            self._compare_roughly(dtype, special)
        return replace(self._recipe, kept=kept[0])

    def _map(self, height: int, width: int) -> Tensor:
        shape = 2, self._channels, height, width
        return torch.randn(shape, generator=self._generator, dtype=torch.float64, device="cpu")

    def _compare_values(self, x: Tensor, when: str) -> None:
        with torch.no_grad():
            if not equal(self._copied(x.clone()), self._formula(self._copied, x.clone())):
                raise NotAttentionError(f"it computes something else {when}")

    def _compare_flags(self) -> None:
        """Compare values with other values of those buffers that may be flags or counters."""
        module = duplicate(self._copied)
        for name, buffer in module.named_buffers():
            if buffer.is_floating_point() or buffer.numel() != 1 or name.endswith("num_batches_tracked"):
                continue
            buffer.fill_(not buffer if buffer.dtype == torch.bool else buffer + 1)
            x = self._map(*self._small)
            with torch.no_grad():
                if not equal(module(x.clone()), self._formula(self._copied, x)):
                    raise NotAttentionError(f"its result depends on its buffer {name}")

    def _compare_roughly(self, dtype: torch.dtype, x: Tensor) -> None:
        """Compare values in another dtype, in which both round differently."""
        module, x = converted(self._copied, dtype), x.to(dtype)
        with torch.no_grad():
            try:
                expected = self._formula(module, x.clone())
            except RuntimeError:  # The layers do not support this dtype on the CPU.
                return
            out = module(x.clone())
        if out.dtype != dtype:
            raise NotAttentionError(f"its result has the dtype {out.dtype} for a map of {dtype}")
        finite = expected.isfinite()
        same = torch.equal(finite, out.isfinite())
        out, expected = (t.double().where(finite, 0.0) for t in (out, expected))
        tolerance = 1e-3 if dtype == torch.float32 else 0.1
        if not same or (out - expected).abs().mean() > tolerance * expected.abs().mean():
            raise NotAttentionError(f"it computes something else for a map of {dtype}")

    def _compare(
        self, training: bool, size: tuple[int, int], layout: torch.memory_format
    ) -> dict[str, str] | None:
        """Compare all that a forward and a backward pass compute and change.

        Returns:
            The attributes that the forward pass sets, as in `Recipe`; None if the module refuses the layout.
        """
        mode = "training" if training else "evaluation"
        x = self._map(*size).contiguous(memory_format=layout)
        module, formula = (duplicate(self._copied).train(training) for _ in range(2))
        given, also_given = (x.clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2))
        before = _plain_attributes(module)
        state = _random_state()
        entering = given * 1.0  # no leaf, so that a module that works in place does not raise
        try:
            out = module(entering)
        except RuntimeError as error:
            if layout == torch.channels_last and "view size" in str(error):
                return None  # It asks for a view that this layout does not have.
            raise
        if _random_state() != state:
            raise NotAttentionError(f"it draws random numbers in {mode} (dropout or drop path)")
        if not torch.equal(entering, x):
            raise NotAttentionError("it changes its input in place")
        expected = self._formula(formula, also_given * 1.0)
        if not isinstance(out, Tensor) or not equal(out, expected):
            raise NotAttentionError(f"it computes something else in {mode} from a map of {size[0]}x{size[1]}")
        kept = _kept(_changed(module, before), out, entering)
        _require_equal_buffers(module, formula, "forward pass changes")
        if not out.requires_grad:
            raise NotAttentionError("its result has no gradient")
        after = _plain_attributes(module)
        weight = torch.randn(out.shape, generator=self._generator, dtype=torch.float64, device="cpu")
        out.backward(weight)
        expected.backward(weight)
        for name in _changed(module, after):
            raise NotAttentionError(
                f"its backward pass sets the attribute {name}, which a fused one would not"
            )
        _require_equal_buffers(module, formula, "backward pass (of gradient checkpointing?) changes")
        pairs = zip((given, *parameters(module)), (also_given, *parameters(formula)), strict=True)
        for mine, theirs in pairs:
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in (mine, theirs)]
            if theirs.requires_grad and not equal_gradients(*gradients):
                raise NotAttentionError(
                    f"its gradients differ in {mode}: a part of it is computed under no_grad or detached"
                )
        return kept

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


def _plain_attributes(module: nn.Module) -> list[tuple[str, dict[str, Any]]]:
    """The path and the attributes of every module inside."""
    return [
        (
            path,
            {
                name: copy.copy(value) if type(value) in (list, dict, set) else value
                for name, value in part.__dict__.items()
                if name not in _OF_EVERY_MODULE
            },
        )
        for path, part in module.named_modules()
    ]


_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)


def _changed(module: nn.Module, before: list[tuple[str, dict[str, Any]]]) -> dict[str, object]:
    """The paths and values of the attributes that were set since `before`."""
    return {
        f"{path}.{name}" if path else name: value
        for (path, now), (_, earlier) in zip(_plain_attributes(module), before, strict=True)
        for name, value in now.items()
        if name not in earlier or not equal_attributes(earlier[name], value)
    }


def _kept(changed: dict[str, object], out: Tensor, x: Tensor) -> dict[str, str]:
    """Which attributes keep the result or the input of a forward pass, as in `Recipe`."""
    kept = {}
    for name, value in changed.items():
        for source, tensor in (("output", out), ("input", x)):
            if "." not in name and isinstance(value, Tensor) and _is_same(value, tensor):
                kept[name] = source if value.requires_grad else f"{source} detached"
                break
        else:
            raise NotAttentionError(
                f"its forward pass sets the attribute {name}, which a fused one would not"
            )
    return kept


def _is_same(value: Tensor, tensor: Tensor) -> bool:
    """Whether a tensor is another, perhaps detached."""
    return value.data_ptr() == tensor.data_ptr() and value.shape == tensor.shape


def _require_equal_buffers(module: nn.Module, formula: nn.Module, how: str) -> None:
    for (name, mine), theirs in zip(module.named_buffers(), formula.buffers(), strict=True):
        if not (equal(mine, theirs) if mine.is_floating_point() else torch.equal(mine, theirs)):
            raise NotAttentionError(f"its {how} its buffer {name}")


def equal_gradients(a: Tensor, b: Tensor) -> bool:
    """Whether two gradients are equal but for the rounding of sums over a map."""
    return (a - b).abs().max().item() <= 1e-7 * b.abs().max().item() + 1e-10
