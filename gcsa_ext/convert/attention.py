"""Attention modules inside a model: fused where they stand, restored, and reported."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast, overload

from torch import nn

from gcsa_ext.convert import classes, fused
from gcsa_ext.convert.copies import HOOKS, is_linear_map
from gcsa_ext.convert.proof import prove
from gcsa_ext.convert.recognition import GATED, NotAttentionError
from gcsa_ext.nn.attention import GCSA, Settings
from gcsa_ext.nn.layers import find

MOST_LAYERS = 8
"""The largest number of linear layers and convolutions in a module that may be an attention."""


@dataclass(frozen=True)
class Attention:
    """An attention module inside a model, or a module that resembles one."""

    name: str
    """Its path inside the model, "" for the model itself."""
    kind: str
    """The name of its class."""
    fused: bool
    words: str
    """What it computes, or why it is not fused."""


@dataclass(frozen=True)
class Report:
    """What `replace_attention` found in a model; ``str(report)`` has a line for each module."""

    attentions: tuple[Attention, ...]

    @property
    def fused(self) -> tuple[Attention, ...]:
        """The modules that are fused now, those that were fused before among them."""
        return tuple(a for a in self.attentions if a.fused)

    @property
    def left(self) -> tuple[Attention, ...]:
        """The modules that are left as they were."""
        return tuple(a for a in self.attentions if not a.fused)

    def __str__(self) -> str:
        lines = [
            f"{'fused' if a.fused else 'left '}  {a.name or '(the model)'} ({a.kind}): {a.words}"
            for a in self.attentions
        ]
        return "\n".join(lines) or "no attention module found"


def _words(module: nn.Module, fusion: fused.Fusion) -> str:
    """What a fused module computes, in words."""
    settings = fusion.recipe.settings
    conv1, conv2 = (
        cast("nn.Conv2d", module.get_submodule(name)) for name in (fusion.recipe.conv1, fusion.recipe.conv2)
    )
    sizes = dict.fromkeys(f"{size}x{size}" for size in (conv1.kernel_size[0], conv2.kernel_size[0]))
    words = [f"{conv1.in_channels} channels", f"{' and '.join(sizes)} convolutions"]
    if conv1.groups > 1 or conv2.groups > 1:
        words.append(f"in {max(conv1.groups, conv2.groups)} groups")
    if conv1.padding_mode != "zeros":
        words.append(f"{conv1.padding_mode} padding")
    if settings.groups > 1:
        words.append(f"{settings.groups} shuffle groups between the gates")
    if settings.gate_groups > 1:
        words.append(f"{settings.gate_groups} shuffle groups on the spatial gate")
    if not settings.sigmoid:
        words.append("no sigmoid in the channel gate")
    if not settings.gate_sigmoid:
        words.append("no sigmoid in the spatial gate")
    if fusion.recipe.before or fusion.recipe.after:
        words.append("further layers around it: " + ", ".join((*fusion.recipe.before, *fusion.recipe.after)))
    return ", ".join(words)


def _sizes(layer: nn.Module) -> tuple[int, int, int]:
    """Inputs, outputs and kernel size of a linear layer or convolution."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features, 1
    conv = cast("nn.Conv2d", layer)
    return conv.in_channels, conv.out_channels, max(conv.kernel_size)


def _may_be_attention(module: nn.Module) -> bool:
    """Whether a module has the layers of an attention, by their sizes, and few others.

    These are two pointwise layers and two convolutions, each pair from C channels to fewer and back.
    """
    if type(module).__module__.startswith("torch.") or is_linear_map(module):
        return False
    found = [layer for layer in module.modules() if is_linear_map(layer)]
    if not 4 <= len(found) <= MOST_LAYERS:
        return False
    for a, b, c, d in itertools.permutations(found, 4):
        (C, h, k1), (h2, C2, k2), (C3, m, k3), (m2, C4, k4) = map(_sizes, (a, b, c, d))
        if C == C2 == C3 == C4 and h == h2 and m == m2 and k1 == k2 == 1 < max(k3, k4):
            return isinstance(c, nn.Conv2d) and isinstance(d, nn.Conv2d)
    return False


_NAMED_LIKE_ATTENTION = re.compile(
    r"att(entio)?n|gam|gcsa|cbam|squeeze|gate|eca|^se(layer|block|module)?$", re.I
)


def _fuse_all(model: nn.Module) -> tuple[int, dict[str, Attention], dict[str, NotAttentionError]]:
    """Fuse the innermost modules that are attentions.

    Returns:
        The number of modules that this call fused, all that are fused, and the differences of other modules
        with the layers of an attention, by their paths.
    """
    count = 0
    attentions: dict[str, Attention] = {}
    differences: dict[str, NotAttentionError] = {}
    done = {module for module in model.modules() if isinstance(module, GCSA)}
    for name, module in reversed(list(model.named_modules())):  # children come before their parents
        if not done.isdisjoint(module.modules()) or not _may_be_attention(module):
            continue
        fusion = fused.fusion_of(module)
        inside = [path for path in differences if path.startswith(f"{name}." if name else "")]
        try:
            if fusion is None:
                fusion = fused.fuse(module)
                count += 1
        except NotAttentionError as difference:
            # Of a module and the modules in it, the difference of the one that resembles an attention most
            if all(difference.progress > differences[path].progress for path in inside):
                differences[name] = difference
            else:
                continue
        else:
            done.add(module)
            attentions[name] = Attention(name, type(module).__name__, True, _words(module, fusion))
        for path in inside:
            del differences[path]
    return count, attentions, differences


def _require_uncompiled(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None:
            where = f"its module {name}" if name else "the model"
            raise ValueError(
                f"replace_attention: {where} is compiled already, and a compiled module keeps the forward "
                "pass that it was compiled with; call replace_attention before torch.compile"
            )


@overload
def replace_attention(model: nn.Module | type[nn.Module], *, explain: Literal[False] = False) -> int: ...
@overload
def replace_attention(model: nn.Module | type[nn.Module], *, explain: Literal[True]) -> Report: ...
def replace_attention(model: nn.Module | type[nn.Module], *, explain: bool = False) -> int | Report:
    """Fuse every GCSA and GAM module inside a model where it stands.

    A module is found by what it computes, whatever its class, attributes and layers are called: copies with
    random numbers are run, and their results and gradients are compared with those of the attention (see the
    guide, "Swap the attention in your model"). The module stays the object that it is: class, attributes,
    parameters, buffers and hooks. It gets a fused forward pass in its attribute ``forward``, which
    `restore_attention` takes off again. The fused forward pass computes the attention of one map. With other
    arguments, under torch.func, export and tracing, and where layers have been exchanged or got hooks, the
    forward pass of the class computes.

    Call it before torch.compile. A model in DistributedDataParallel may be fused before or after it is
    wrapped. A copy (copy.deepcopy) of a fused module is fused; one that was pickled has the forward pass of
    its class where it is read, also where gcsa_ext is not installed.

    Args:
        model: a model, or a class of modules. Objects of the class are fused when they are made, or else in
            their first forward pass: for frameworks that build the model themselves.
        explain: return a report.

    Returns:
        The number of modules that this call has fused; a module in several places counts once. For a class 1,
        or 0 if it is fused already. With `explain` a report, which also has the modules that resemble an
        attention and are left as they are, with the reason.

    Raises:
        TypeError: `model` is no module and no class of modules.
        ValueError: the model is compiled, or `explain` is asked of a class.

    Warns:
        UserWarning: a module has the layers of an attention, but computes something else with them.
    """
    if isinstance(model, type) and issubclass(model, nn.Module):
        if explain:
            raise ValueError("replace_attention: a class has no report; ask for that of a model")
        if model.__module__.startswith("torch."):
            raise ValueError(
                f"replace_attention: {model.__name__} is a class of torch, not one of attentions"
            )
        return int(classes.fuse_class(model))
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"replace_attention: expected a module or a class of modules, got {type(model).__name__}"
        )
    _require_uncompiled(model)
    count, found, differences = _fuse_all(model)
    modules = dict(model.named_modules())
    if not explain:
        for name, difference in differences.items():
            if difference.progress >= GATED:
                where, kind = name or "the model itself", type(modules[name]).__name__
                warnings.warn(f"replace_attention leaves {where} alone: {kind}: {difference}", stacklevel=2)
        return count
    for name, difference in differences.items():
        found[name] = Attention(name, type(modules[name]).__name__, False, str(difference))
    for name, module in modules.items():
        kind = type(module).__name__
        if isinstance(module, GCSA):
            found[name] = Attention(name, kind, True, "a GCSA of gcsa_ext")
        elif (
            _NAMED_LIKE_ATTENTION.search(kind)
            and any(map(is_linear_map, module.modules()))
            and not _overlaps(name, found)
        ):
            found[name] = Attention(name, kind, False, _difference(module))
    return Report(tuple(found[name] for name in modules if name in found))


def _overlaps(name: str, others: Iterable[str]) -> bool:
    """Whether a module is inside one of others or has one inside, by their paths."""
    path = f"{name}." if name else ""
    return any(other.startswith(path) or path.startswith(f"{other}." if other else "") for other in others)


def _difference(module: nn.Module) -> str:
    """Why a module is not an attention that can be fused."""
    try:
        prove(module)
    except NotAttentionError as difference:
        return str(difference)
    return "it has too many layers around its attention"


def restore_attention(model: nn.Module | type[nn.Module]) -> int:
    """Take the fused forward passes of `replace_attention` off again.

    Args:
        model: a model, or a class that was fused. Objects of a class that are fused stay so.

    Returns:
        The number of modules that have the forward pass of their class again; for a class 1 or 0.
    """
    if isinstance(model, type) and issubclass(model, nn.Module):
        return int(classes.restore_class(model))
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"restore_attention: expected a module or a class of modules, got {type(model).__name__}"
        )
    restored = [module for module in model.modules() if fused.restore(module)]
    for module in restored:
        if classes.is_fused(type(module)):
            classes.leave(module)
    return len(restored)


def from_module(module: nn.Module, kind: type[GCSA] = GCSA) -> GCSA:
    """The GCSA that computes what `module` computes and shares its layers.

    `replace_attention` needs no new module and fuses more kinds of attention; this is for code that wants a
    `GCSA`.

    Args:
        module: an attention with two linear layers whose spatial gate is not shuffled, whatever its class and
            its layers are called. What it computes is proved on copies with random numbers.
        kind: the class of the result, `GCSA` or a subclass. Its ``__init__`` is not called.

    Raises:
        ValueError: the module computes something else.
    """
    try:
        recipe = prove(module)
    except NotAttentionError as difference:
        raise ValueError(f"{type(module).__name__} is not a GCSA or GAM module: {difference}") from None
    gcsa = kind.__new__(kind)
    nn.Module.__init__(gcsa)
    linear1, linear2, conv1, conv2 = (
        module.get_submodule(name) for name in (recipe.linear1, recipe.linear2, recipe.conv1, recipe.conv2)
    )
    norms = [None if name is None else module.get_submodule(name) for name in (recipe.norm1, recipe.norm2)]
    norm1, norm2 = (nn.Identity() if norm is None else norm for norm in norms)
    gcsa.groups, gcsa.channel_sigmoid = recipe.settings.groups, recipe.settings.sigmoid
    gcsa.channel_attention = nn.Sequential(linear1, nn.ReLU(inplace=True), linear2)
    gcsa.spatial_attention = nn.Sequential(conv1, norm1, nn.ReLU(inplace=True), conv2, norm2)
    gcsa.training = module.training
    for name in (*HOOKS, "_is_full_backward_hook"):
        setattr(gcsa, name, getattr(module, name))
    other_settings = recipe.settings != Settings(recipe.settings.groups, recipe.settings.sigmoid)
    if (
        recipe.before
        or recipe.after
        or other_settings
        or isinstance(linear1, nn.Conv2d)
        or find(gcsa) is None
    ):
        raise ValueError(
            f"{type(module).__name__} is an attention that the module GCSA does not have; "
            "gcsa_ext.replace_attention fuses it where it stands"
        )
    return gcsa
