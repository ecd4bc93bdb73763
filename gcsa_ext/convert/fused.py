"""The fused forward pass of an attention, as a method of one module."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from gcsa_ext.convert.proof import prove
from gcsa_ext.convert.recognition import NotAttentionError, Recipe
from gcsa_ext.nn import layers
from gcsa_ext.nn.attention import attend, attend_by_layers, operator_takes
from gcsa_ext.nn.layers import Node, Structure


class Fusion(NamedTuple):
    """What a fused forward pass knows: it is the attribute ``fusion`` of that function."""

    recipe: Recipe
    structure: Structure


def structure_of(module: nn.Module, recipe: Recipe) -> Structure:
    """Every module inside an attention as it was when the attention was proved."""
    nodes: list[Node] = []
    numbers: dict[nn.Module, int] = {module: 0}
    paths: dict[str, int] = {}
    same = []

    def visit(parent: nn.Module, number: int, path: str) -> None:
        for name, child in parent._modules.items():
            if child is None:
                continue
            kinds: tuple[type[nn.Module], ...] = (type(child),)
            if type(child) in layers.BATCH_NORM:
                # It may be converted to SyncBatchNorm or back, or folded into its convolution.
                kinds = (*layers.BATCH_NORM, nn.Identity)
            nodes.append(Node(number, name, kinds, len(child._modules)))
            own = len(nodes)
            paths[path + name] = own
            if child in numbers:
                same.append((numbers[child], own))
            else:
                numbers[child] = own
                visit(child, own, f"{path}{name}.")

    visit(module, 0, "")
    names = (recipe.linear1, recipe.linear2, recipe.conv1, recipe.conv2, recipe.norm1, recipe.norm2)
    numbered = tuple(0 if name is None else paths[name] for name in names)
    return Structure(tuple(nodes), numbered, tuple(same))


def _fused_forward(fusion: Fusion) -> Callable[..., Any]:
    """A function ``forward(self, *args, **kwargs)`` for modules of this structure.

    It computes the attention of one map by the operator gcsa. In every other case, which the proof did not
    cover, and where the operator steps aside, the forward pass of the module's class computes.
    """
    recipe, structure = fusion
    settings, before, after, kept = recipe.settings, recipe.before, recipe.after, recipe.kept

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if len(args) != 1 or kwargs or type(args[0]) not in (Tensor, nn.Parameter):
            return type(self).forward(self, *args, **kwargs)
        x: Tensor = args[0]
        weighted = layers.find(self, structure)
        if weighted is None:
            return type(self).forward(self, x)
        out: Tensor | None
        if operator_takes(weighted, x):
            for name in before:
                x = self.get_submodule(name)(x)
            out = attend(x, weighted, settings)
        else:
            out = None if before else attend_by_layers(x, weighted, settings)
            if out is None:
                return type(self).forward(self, x)
        for name in after:
            out = self.get_submodule(name)(out)
        for name, source in kept.items():
            value = args[0] if source.startswith("input") else out
            setattr(self, name, value.detach() if source.endswith("detached") else value)
        return out

    forward.fusion = fusion  # type: ignore[attr-defined]
    return forward


def fusion_of(module: nn.Module) -> Fusion | None:
    """What the module's fused forward pass knows, or None if the module is not fused."""
    forward = module.__dict__.get("forward")
    return getattr(forward.__func__, "fusion", None) if isinstance(forward, types.MethodType) else None


def fuse(module: nn.Module) -> Fusion:
    """Give a module a fused forward pass, in its attribute ``forward``; nothing else of it changes.

    A copy by ``copy.deepcopy`` is fused too. A pickled module has the forward pass of its class where it is
    read, since Python pickles a method as the module and the name of the method.

    Raises:
        NotAttentionError: the module is not an attention that can be fused; the message says why.
    """
    if "forward" in module.__dict__:
        raise NotAttentionError("its forward pass was replaced on the object already")
    recipe = prove(module)
    fusion = Fusion(recipe, structure_of(module, recipe))
    module.__dict__["forward"] = types.MethodType(_fused_forward(fusion), module)
    return fusion


def restore(module: nn.Module) -> bool:
    """Take the fused forward pass off a module again; False if it had none."""
    fused = fusion_of(module) is not None
    if fused:
        del module.__dict__["forward"]
    return fused
