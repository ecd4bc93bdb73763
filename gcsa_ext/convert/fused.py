"""The fused forward pass of an attention, as a method of one module."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Container
from typing import Any, NamedTuple

from torch import Tensor, nn

from gcsa_ext.convert.proof import prove
from gcsa_ext.convert.recognition import NotAttentionError, Recipe
from gcsa_ext.nn import layers
from gcsa_ext.nn.attention import attend, attend_by_layers, layers_take, operator_takes
from gcsa_ext.nn.layers import Node, Structure


class Fusion(NamedTuple):
    """What a fused forward pass knows: it is the attribute ``fusion`` of that function."""

    recipe: Recipe
    structure: Structure


_CONSTANT = (bool, int, float, str, tuple, type(None), types.FunctionType, types.BuiltinFunctionType, type)
"""Types of plain attributes that may change what a forward pass computes."""
_VALUE = (bool, int, float, str, tuple)
_BY_TORCH = {"inplace", *nn.Module().__dict__}
"""Attributes of modules that do not change what they compute, or differently in training, which is proved."""


def _attributes(module: nn.Module, ignored: Container[str] = ()) -> tuple[tuple[str, object], ...]:
    """The names and values of a module's plain attributes, on which its forward pass may depend."""
    return tuple(
        (name, value)
        for name, value in module.__dict__.items()
        if name not in _BY_TORCH and name not in ignored and isinstance(value, _CONSTANT)
    )


def _class_attributes(module: nn.Module) -> tuple[tuple[str, object], ...]:
    """The names and values of the plain attributes that a user's class has itself."""
    if type(module).__module__.startswith("torch."):
        return ()
    classes = type(module).__mro__[: type(module).__mro__.index(nn.Module)]
    return tuple(
        (name, getattr(module, name))
        for name in {name: None for kind in classes for name in vars(kind)}
        if not name.startswith("__") and isinstance(getattr(type(module), name), _VALUE)
    )


def structure_of(module: nn.Module, recipe: Recipe) -> Structure:
    """Every module inside an attention as it was when the attention was proved."""
    nodes: list[Node] = []
    numbers: dict[nn.Module, int] = {module: 0}
    paths: dict[str, int] = {}
    same = []
    names = (recipe.linear1, recipe.linear2, recipe.conv1, recipe.conv2, recipe.norm1, recipe.norm2)
    called = {module.get_submodule(name) for name in names if name}
    # One without parameters, dropout for instance, may also be called inside of the attention.
    called |= {
        layer
        for layer in map(module.get_submodule, (*recipe.before, *recipe.after))
        if layer._parameters or layer._modules
    }

    def visit(parent: nn.Module, number: int, path: str) -> None:
        for name, child in parent._modules.items():
            if child is None:
                continue
            kinds: tuple[type[nn.Module], ...] = (type(child),)
            if type(child) in layers.BATCH_NORM:
                # It may be converted to SyncBatchNorm or back, or folded into its convolution.
                kinds = (*layers.BATCH_NORM, nn.Identity)
            # The fused forward pass follows the attributes of the layers that it calls or reads itself.
            attributes = () if child in called else _attributes(child)
            nodes.append(Node(number, name, kinds, tuple(child._modules), attributes))
            child_number = len(nodes)
            paths[path + name] = child_number
            if child in numbers:
                same.append((numbers[child], child_number))
            else:
                numbers[child] = child_number
                visit(child, child_number, f"{path}{name}.")

    visit(module, 0, "")
    numbered = tuple(0 if name is None else paths[name] for name in names)
    of_classes = tuple(
        (number, name, value)
        for part, number in numbers.items()
        if part not in called
        for name, value in _class_attributes(part)
    )
    return Structure(tuple(nodes), numbered, tuple(same), _attributes(module, recipe.kept), of_classes)


def _fused_forward(fusion: Fusion, like: Callable[..., Any]) -> Callable[..., Any]:
    """A function ``forward(self, *args, **kwargs)`` for modules of this structure, documented as `like` is.

    It computes the attention of one map by the operator gcsa. In every other case, which the proof did not
    cover, and where the operator steps aside, the forward pass of the module's class computes.
    """
    recipe, structure = fusion
    settings, before, after, kept = recipe.settings, recipe.before, recipe.after, recipe.kept
    own = plain_forward(like)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        of_class = type(self).forward
        if len(args) != 1 or kwargs or type(args[0]) not in (Tensor, nn.Parameter):
            return of_class(self, *args, **kwargs)
        x: Tensor = args[0]
        weighted = layers.find(self, structure)
        if weighted is None or plain_forward(of_class) is not own:
            return of_class(self, x)
        if operator_takes(weighted, x):
            compute = attend
        elif layers_take(weighted, x):
            compute = attend_by_layers
        else:
            return of_class(self, x)
        if not before and not layers.takes_channels(weighted, x):
            return of_class(self, x)  # It raises the error.
        for name in before:
            x = self.get_submodule(name)(x)
        out = compute(x, weighted, settings)
        for name in after:
            out = self.get_submodule(name)(out)
        for name, source in kept.items():
            value = args[0] if source.startswith("input") else out
            setattr(self, name, value.detach() if source.endswith("detached") else value)
        return out

    forward.fusion = fusion  # type: ignore[attr-defined]
    forward.__doc__ = like.__doc__
    forward.__signature__ = inspect.signature(like)  # type: ignore[attr-defined]
    return forward


def plain_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The forward pass that a class has, or had before it was fused itself (classes.py)."""
    return getattr(forward, "replaced", forward)


def has_other_forward(module: nn.Module) -> bool:
    """Whether the object has another forward pass than its class.

    An object that was fused and pickled has that of its class in its attribute ``forward``.
    """
    forward = module.__dict__.get("forward")
    if forward is None:
        return False
    function = getattr(forward, "__func__", None)
    return function is None or plain_forward(function) is not plain_forward(type(module).forward)


def fusion_of(module: nn.Module) -> Fusion | None:
    """What the module's fused forward pass knows, or None if the module is not fused."""
    forward = module.__dict__.get("forward")
    return getattr(forward.__func__, "fusion", None) if isinstance(forward, types.MethodType) else None


def _replicate_for_data_parallel(self: nn.Module) -> nn.Module:
    """A replica for nn.DataParallel, which computes with its own layers."""
    replica: nn.Module = type(self)._replicate_for_data_parallel(self)
    if fusion_of(self) is not None:
        _set_methods(replica, self.__dict__["forward"].__func__)
    return replica


def _set_methods(module: nn.Module, forward: Callable[..., Any]) -> None:
    for name, method in (
        ("forward", forward),
        ("_replicate_for_data_parallel", _replicate_for_data_parallel),
    ):
        module.__dict__[name] = types.MethodType(method, module)


def fuse(module: nn.Module) -> Fusion:
    """Give a module a fused forward pass, in its attribute ``forward``.

    A second attribute lets nn.DataParallel make replicas with such a forward pass. Nothing else of the module
    changes.

    A copy by ``copy.deepcopy`` is fused too. A pickled module has the forward pass of its class where it is
    read, since Python pickles a method as the module and the name of the method.

    Raises:
        NotAttentionError: the module is not an attention that can be fused; the message says why.
    """
    if has_other_forward(module):
        raise NotAttentionError("its forward pass was replaced on the object already")
    recipe = prove(module)
    fusion = Fusion(recipe, structure_of(module, recipe))
    _set_methods(module, _fused_forward(fusion, type(module).forward))
    return fusion


def restore(module: nn.Module) -> bool:
    """Take the fused forward pass off a module again; False if it had none."""
    fused = fusion_of(module) is not None
    if fused:
        del module.__dict__["forward"], module.__dict__["_replicate_for_data_parallel"]
    return fused
