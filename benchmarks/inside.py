"""GCSA inside whole networks: its share of a step, its speed-up there, and Amdahl's limit for the step."""

from __future__ import annotations

import copy
import functools
import statistics
import time
from dataclasses import dataclass

import torch
from cases import Call, Case
from paired import measure
from plain import PlainGCSA
from torch import Tensor, nn

from gcsa_ext.nn import GCSA


class Stopwatch:
    """Sums up the seconds that a network spends in its GCSA modules, forward and backward, by hooks.

    The backward pass of a module lasts from the gradient of its output to the complete gradient of its input;
    in a network whose module inputs have other consumers, these count too.

    Attributes:
        seconds: so far; set it to 0 before a step.
        shapes: of the last input of every module.
    """

    def __init__(self, network: nn.Module) -> None:
        self.seconds = 0.0
        self.shapes: dict[nn.Module, torch.Size] = {}
        modules = [module for module in network.modules() if isinstance(module, (GCSA, PlainGCSA))]
        self._handles = [module.register_forward_pre_hook(self._enter) for module in modules]
        self._handles += [module.register_forward_hook(self._leave) for module in modules]

    def remove(self) -> None:
        """Take the hooks out of the network again."""
        for handle in self._handles:
            handle.remove()

    def _enter(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (x,) = inputs
        self.shapes[module] = x.shape
        if x.requires_grad:
            x.register_hook(self._stop)
        self._start()

    def _leave(self, module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        self._stop()
        if out.requires_grad:
            out.register_hook(self._start)

    def _start(self, *_: Tensor) -> None:
        self.seconds -= time.perf_counter()

    def _stop(self, *_: Tensor) -> None:
        self.seconds += time.perf_counter()


@dataclass(frozen=True)
class Inside:
    """One network's step, eager PyTorch beside gcsa_ext, both contiguous.

    Attributes:
        plain_step, our_step: seconds of the whole step (medians).
        plain_share, our_share: part of it that is spent in GCSA modules.
        plain_loop, our_loop: seconds of the same modules on inputs of the same shapes, each one alone in a
            tight loop (medians, summed up).
    """

    plain_step: float
    our_step: float
    plain_share: float
    our_share: float
    plain_loop: float
    our_loop: float

    @property
    def step_ratio(self) -> float:
        """How much faster the step is."""
        return self.plain_step / self.our_step

    @property
    def inside_ratio(self) -> float:
        """How much faster GCSA is inside the step."""
        return self.plain_share * self.plain_step / (self.our_share * self.our_step)

    @property
    def loop_ratio(self) -> float:
        """How much faster the same modules are in tight loops."""
        return self.plain_loop / self.our_loop

    @property
    def limit(self) -> float:
        """How much faster the step is if all but GCSA takes as long as before."""
        return 1 / (1 - self.plain_share + self.plain_share / self.inside_ratio)

    def __str__(self) -> str:
        return (
            f"GCSA is {100 * self.plain_share:.0f} % of the plain step, {self.inside_ratio:.2f}x as fast "
            f"in it ({self.loop_ratio:.2f}x in a loop): limit {self.limit:.2f}x, step {self.step_ratio:.2f}x"
        )


@functools.cache
def inside(case: Case, seconds: float = 4.0) -> Inside:
    """Measure a network's case, for about so many seconds and as many for the loops."""
    calls = {"plain": case.peers["eager"](), "ours": case.ours["gcsa_ext"]()}
    watches: dict[str, Stopwatch] = {}
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in calls.items():
        assert isinstance(call.function, nn.Module)
        watches[name] = Stopwatch(call.function)

    def step(name: str) -> None:
        watches[name].seconds = 0.0
        calls[name]()
        spent[name].append(watches[name].seconds)

    spans = measure({name: functools.partial(step, name) for name in calls}, seconds)
    rounds = len(spans["plain"])
    steps = {name: statistics.median(span) for name, span in spans.items()}
    # the warm-up rounds come first
    shares = {name: statistics.median(spent[name][-rounds:]) / steps[name] for name in calls}

    for watch in watches.values():
        watch.remove()
    loops = dict.fromkeys(calls, 0.0)
    sites = list(zip(*(watches[name].shapes.items() for name in calls), strict=True))
    for pair in sites:
        alone = {
            name: _alone(module, shape, calls[name].backward)
            for name, (module, shape) in zip(calls, pair, strict=True)
        }
        for name, span in measure(alone, seconds / len(sites)).items():
            loops[name] += statistics.median(span)
    return Inside(
        steps["plain"], steps["ours"], shares["plain"], shares["ours"], loops["plain"], loops["ours"]
    )


def _alone(module: nn.Module, shape: torch.Size, backward: bool) -> Call:
    """The module by itself, on an input of the shape that it had in the network."""
    x = torch.randn(shape, requires_grad=backward)
    return Call(copy.deepcopy(module), (x,), torch.randn(shape), backward)
