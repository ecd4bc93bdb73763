"""The exchange of GCSA and GAM modules for the fused `GCSA`."""

from __future__ import annotations

import warnings

from torch import nn

from gcsa_ext.convert.probe import BRANCHES, HOOKS, branch, probe, structural_difference
from gcsa_ext.nn.attention import GCSA


def from_module(module: nn.Module, kind: type[GCSA] = GCSA) -> GCSA:
    """The GCSA that computes what `module` computes and shares its layers, parameters, buffers and hooks.

    Args:
        module: any module with the layers of `GCSA` under the same names. Its number of shuffle groups, and
            whether its channel gate has a sigmoid, are determined by running a copy with random weights.
        kind: the class of the result, `GCSA` or a subclass. Its ``__init__`` is not called.

    Raises:
        ValueError: the module has other layers, or its forward pass computes something else with them.
    """
    reason = structural_difference(module)
    if reason is not None:
        raise ValueError(f"{type(module).__name__} is not a GCSA or GAM module: {reason}")
    groups, channel_sigmoid = probe(module)
    gcsa = kind.__new__(kind)
    nn.Module.__init__(gcsa)
    gcsa.groups = groups
    gcsa.channel_sigmoid = channel_sigmoid
    for name in BRANCHES:
        setattr(gcsa, name, branch(module, name))
    gcsa.training = module.training
    for name in HOOKS:
        setattr(gcsa, name, getattr(module, name))
    return gcsa


def replace_attention(model: nn.Module) -> int:
    """Exchange every public GCSA or GAM module inside a model for the fused `GCSA`, in place.

    Modules are found by their layers (see `GCSA`), whatever their class is called. Each is checked by running
    a copy with random weights. The new module shares the parameters and buffers of the old one, so
    optimisers, checkpoints and tied weights keep working. A module that has such layers but computes
    something else stays in place, with a warning. Call it before torch.compile, DistributedDataParallel or
    other wrappers.

    Args:
        model: any module; must not itself be such a module (use ``GCSA.from_module``).

    Returns:
        The number of exchanged modules. A module that is used in several places counts once.

    Raises:
        ValueError: `model` itself is such a module, which cannot be exchanged in place.
    """
    if not isinstance(model, GCSA) and structural_difference(model) is None:
        raise ValueError(
            f"the model itself ({type(model).__name__}) is the attention module: "
            "use model = GCSA.from_module(model)"
        )
    exchanged: dict[nn.Module, GCSA] = {}
    refused: set[nn.Module] = set()
    for path, parent in list(model.named_modules()):
        for name, child in list(parent._modules.items()):  # named_children leaves out repeated modules
            if child is None or isinstance(child, GCSA) or child in refused:
                continue
            if structural_difference(child) is not None:
                continue
            if child not in exchanged:
                try:
                    exchanged[child] = from_module(child)
                except Exception as error:  # the child's forward pass may raise any exception
                    refused.add(child)
                    warnings.warn(
                        f"replace_attention leaves {path or 'the model'}.{name} alone: {error}", stacklevel=2
                    )
                    continue
            setattr(parent, name, exchanged[child])
    return len(exchanged)
