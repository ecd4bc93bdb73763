"""The verb ``check``: which attention modules of a model can be fused, and how much time that saves."""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gcsa_ext import replace_attention, restore_attention
from gcsa_ext.cli.errors import report_error
from gcsa_ext.cli.options import add_device_option, device_name, positive_float, positive_int

SUMMARY = "show which attention modules of a model can be fused, and how much time that saves"
DETAILS = (
    "The factory is called without arguments. It returns a module, or a module and a tuple of its inputs. "
    "Nothing is written: fuse the model in your own program by gcsa_ext.replace_attention(model)."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``check``."""
    parser.add_argument(
        "factory",
        metavar="MODEL.py:FACTORY",
        help="a Python file, or a module that can be imported, and in it a function, a class or a model",
    )
    parser.add_argument(
        "--input",
        metavar="N,C,H,W",
        type=_shape,
        default=(1, 3, 224, 224),
        help="the shape of a random input, unless the factory returns the inputs (default: 1,3,224,224)",
    )
    parser.add_argument(
        "--training", action="store_true", help="time a forward and backward pass in training, not evaluation"
    )
    parser.add_argument("--threads", type=positive_int, help="threads of torch (default: as torch chooses)")
    parser.add_argument("--seconds", type=positive_float, default=3.0, help="time for each measurement")
    add_device_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what can be fused, and the times before and after; returns the exit code.

    It is 1 if the fused model computes something else.
    """
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(device_name(arguments.device))
    torch.manual_seed(0)
    model, inputs = _load(arguments.factory, arguments.input)
    model.to(device).train(arguments.training)
    inputs = tuple(value.to(device) if isinstance(value, Tensor) else value for value in inputs)

    report = replace_attention(model, explain=True)
    print(report)
    if restore_attention(model) == 0:
        return 0
    attentions = [model.get_submodule(attention.name) for attention in report.fused]
    step = functools.partial(_step, model, inputs, arguments.training)
    expected, plain = _measure(step, model, attentions, arguments.seconds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report has the reasons
        replace_attention(model)
    result, fused = _measure(step, model, attentions, arguments.seconds)

    passes = "a training step (forward and backward pass)" if arguments.training else "evaluation"
    shapes = ", ".join("x".join(map(str, v.shape)) for v in inputs if isinstance(v, Tensor))
    print(f"\nmedian ms in {passes} of {shapes} on {device}, {torch.get_num_threads()} threads")
    print(f"{'':34}{'plain':>10}{'fused':>10}{'plain/fused':>14}")
    rows = (("model", plain.model, fused.model), ("its fused modules, forward", plain.inside, fused.inside))
    for name, old, new in rows:
        print(f"{name:34}{1e3 * old:10.2f}{1e3 * new:10.2f}{old / new:14.2f}")
    share = [f"{times.inside / times.model:.0%}" for times in (plain, fused)]
    print(f"{'their share of the time':34}{share[0]:>10}{share[1]:>10}")
    error = max(_relative_error(a, b) for a, b in zip(result, expected, strict=True))
    agrees = error < 1e-2 if arguments.training else error < 1e-3
    print(f"largest difference of the results: {error:.1e} of their largest value")
    if not agrees:
        return report_error("the fused model computes something else than the plain one; please report this")
    return 0


def _relative_error(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max().clamp_min(torch.finfo(b.dtype).tiny)).item()


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"expected positive sizes like 1,3,224,224, got {text!r}")
    return shape


def _load(factory: str, shape: Sequence[int]) -> tuple[nn.Module, tuple[Any, ...]]:
    """The model that a factory makes, and its inputs."""
    where, separator, name = factory.rpartition(":")
    if not separator or not where or not name:
        raise ValueError(f"expected MODEL.py:FACTORY or package.module:FACTORY, got {factory!r}")
    module = _import(where)
    made = getattr(module, name, None)
    if made is None:
        raise ValueError(f"{where} has no {name!r}")
    if not isinstance(made, nn.Module):
        try:
            made = made()
        except Exception as error:  # of the user's own code
            raise ValueError(f"{factory}, called without arguments, raises {_words(error)}") from error
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{factory} gives {type(model).__name__}, not a torch.nn.Module")
    if inputs is None:
        floating = (p.dtype for p in model.parameters() if p.is_floating_point())
        inputs = torch.randn(*shape, dtype=next(floating, torch.float32))
    return model, inputs if isinstance(inputs, tuple) else (inputs,)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error} (--debug shows where)"


def _import(where: str) -> ModuleType:
    """A module by its name or the path of its file, which may import what lies beside it."""
    path = Path(where)
    if path.suffix != ".py" and not path.exists():
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"{where} is neither a file nor a module that can be imported: {error}"
            ) from error
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise FileNotFoundError(f"{where} does not exist")
    sys.path.insert(0, str(path.resolve().parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # for pickle and dataclasses
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # of the user's own code
        raise ValueError(f"{where} raises {_words(error)}") from error
    return module


def _tensors(value: object) -> Iterator[Tensor]:
    """The tensors of floating dtype in a model's result."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _step(model: nn.Module, inputs: tuple[Any, ...], training: bool) -> list[Tensor]:
    """One forward pass or, in training, forward and backward pass; its results."""
    with torch.set_grad_enabled(training):
        results = list(_tensors(model(*inputs)))
        if training:
            model.zero_grad()
            torch.stack([result.sum() for result in results if result.requires_grad]).sum().backward()
    return [result.detach() for result in results]


class _Times(NamedTuple):
    """Median seconds of a step, and in it of the forward passes of some modules."""

    model: float
    inside: float


def _measure(
    step: Callable[[], list[Tensor]], model: nn.Module, attentions: Sequence[nn.Module], seconds: float
) -> tuple[list[Tensor], _Times]:
    """The results of the first step, and times of the next ones. Buffers are as before afterwards."""
    buffers = [buffer.clone() for buffer in model.buffers()]
    torch.manual_seed(0)  # of dropout
    try:
        results = step()
    except Exception as error:
        raise ValueError(f"the model's step raises {_words(error)}; see --input") from error
    started: list[float] = []
    spent: list[float] = []

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    hooks = [a.register_forward_pre_hook(lambda *_: started.append(now())) for a in attentions]
    hooks += [a.register_forward_hook(lambda *_: spent.append(now() - started.pop())) for a in attentions]
    totals: list[float] = []
    inside: list[float] = []
    end = now() + seconds
    while len(totals) < 3 or now() < end:
        spent.clear()
        begin = now()
        step()
        totals.append(now() - begin)
        inside.append(sum(spent))
    for hook in hooks:
        hook.remove()
    for buffer, value in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(value)
    return results, _Times(statistics.median(totals), statistics.median(inside))
