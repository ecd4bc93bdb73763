"""The choice of a configuration: which one, when it is measured, and that results never depend on it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from needs_triton import imported
from torch import Tensor

import gcsa_ext
from gcsa_ext import GCSA, functional
from gcsa_ext.backends.gpu import capture

tuning = imported("gcsa_ext.backends.triton.tuning")
gates = imported("gcsa_ext.backends.triton.gates")
mask = imported("gcsa_ext.backends.triton.mask")
pytestmark = pytest.mark.usefixtures("one_thread")

CONFIGURATIONS = [{"num_stages": 3}, {"num_stages": 2}, {"num_stages": 4}]


class Device:
    """A device on which launches take the given milliseconds, by num_stages, and its events."""

    def __init__(self, milliseconds: dict[int, float]) -> None:
        self.milliseconds = milliseconds
        self.now = 0.0
        self.launched: list[int] = []
        self.capturing = False

    def launch(self, configuration: dict[str, int]) -> None:
        stages = configuration["num_stages"]
        self.launched.append(stages)
        if stages not in self.milliseconds:
            raise tuning.OutOfResources(300_000, 200_000, "shared memory")
        self.now += self.milliseconds[stages]

    def event(self, enable_timing: bool) -> Any:
        device, at = self, []

        class Event:
            def record(self) -> None:
                at.append(device.now)

            def synchronize(self) -> None:
                assert at and not device.capturing

            def elapsed_time(self, other: Event) -> float:
                return other.recorded_at() - at[-1]

            def recorded_at(self) -> float:
                return at[-1]

        assert enable_timing
        return Event()


class OnCuda:
    """The attributes of a tensor that the choice reads."""

    is_cuda = True
    device, dtype = torch.device("cuda", 0), torch.float32


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float]], Device]:
    def start(milliseconds: dict[int, float]) -> Device:
        device = Device(milliseconds)
        monkeypatch.setattr(torch.cuda, "Event", device.event)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: device.capturing)
        return device

    monkeypatch.setattr(tuning, "chosen", {})
    monkeypatch.setattr(tuning, "enabled", True)
    return start


Start = Callable[[dict[int, float]], Device]


def run(device: Device, *shape_class: object, x: Any = OnCuda) -> list[int]:
    """The configurations that a call launches, by num_stages."""
    device.launched.clear()
    tuning.launch_fastest(shape_class, CONFIGURATIONS, device.launch, x)
    return list(device.launched)


@pytest.mark.parametrize(
    ("milliseconds", "fastest"),
    [
        ({3: 1.0, 2: 0.5, 4: 0.7}, 2),
        ({3: 1.0, 2: 0.7, 4: 0.5}, 4),
        ({3: 0.5, 2: 1.0, 4: 0.7}, 3),
        ({3: 1.0, 2: 0.97, 4: 0.96}, 3),  # too little to be sure of
        ({3: 1.0, 2: 0.7}, 2),  # the last one takes more shared memory than there is
    ],
    ids=str,
)
def test_the_fastest_is_launched_from_then_on(
    milliseconds: dict[int, float], fastest: int, start: Start
) -> None:
    device = start(milliseconds)
    first = run(device, "kernel", 64)
    assert set(first) == {2, 3, 4} and len(first) < 60 and first[-1] == fastest
    for _ in range(2):
        assert run(device, "kernel", 64) == [fastest]


def test_every_shape_class_device_and_dtype_is_measured(start: Start) -> None:
    device = start({3: 1.0, 2: 0.5, 4: 0.7})
    assert run(device, "kernel", 64)[-1] == 2
    device.milliseconds = {3: 0.5, 2: 1.0, 4: 0.7}

    class Half(OnCuda):
        dtype = torch.float16

    class Second(OnCuda):
        device = torch.device("cuda", 1)

    for found in (
        run(device, "kernel", 128),
        run(device, "other kernel", 64),
        run(device, "kernel", 64, x=Half),
        run(device, "kernel", 64, x=Second),
    ):
        assert found[-1] == 3 and len(found) > 3
    assert run(device, "kernel", 64) == [2]


def test_nothing_is_measured_while_a_graph_is_captured(start: Start) -> None:
    device = start({3: 1.0, 2: 0.5, 4: 0.7})
    device.capturing = True
    assert run(device, "kernel", 64) == run(device, "kernel", 64) == [3]
    device.capturing = False
    assert run(device, "kernel", 64)[-1] == 2
    device.capturing = True
    assert run(device, "kernel", 64) == [2]


def test_captures_of_other_threads_are_not_disturbed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements run in the relaxed mode of capturing (2). The mode is then restored."""
    device, modes = start({3: 1.0, 2: 0.5, 4: 0.7}), [0]

    class Driver:
        def cuThreadExchangeStreamCaptureMode(self, mode: Any) -> int:  # noqa: N802
            previous, modes[0] = modes[0], mode._obj.value
            mode._obj.value = previous
            return 0

    monkeypatch.setattr(capture, "cuda_driver", Driver)
    launch, during = device.launch, []
    monkeypatch.setattr(device, "launch", lambda *a: during.append(modes[0]) or launch(*a))
    run(device, "kernel", 64)
    assert set(during[:-1]) == {2} and during[-1] == modes[0] == 0
    device.milliseconds = {}
    with pytest.raises(tuning.OutOfResources):
        run(device, "kernel", 128)
    assert modes == [0]


def test_nothing_is_measured_on_a_cpu(start: Start) -> None:
    assert run(start({3: 1.0, 2: 0.5, 4: 0.7}), "kernel", 64, x=torch.ones(1)) == [3]


def test_nothing_is_measured_where_it_is_switched_off(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "enabled", False)
    assert run(start({3: 1.0, 2: 0.5, 4: 0.7}), "kernel", 64) == [3]


def test_an_error_of_the_first_configuration_is_raised(start: Start) -> None:
    with pytest.raises(tuning.OutOfResources):
        run(start({2: 0.5, 4: 0.7}), "kernel", 64)


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], set[str]]]:
    """Launch the configuration of this number, or the last one; returns the kernels with a choice."""

    def take(number: int) -> set[str]:
        kernels: set[str] = set()

        def launch(shape_class: Any, configurations: Any, launch: Any, x: Tensor) -> None:
            kernels.add(next(part for part in shape_class if isinstance(part, str)))
            assert 2 <= len(configurations) <= 3
            launch(configurations[min(number, len(configurations) - 1)])

        for module in (gates, mask):
            monkeypatch.setattr(module, "launch_fastest", launch)
        return kernels

    with gcsa_ext.use_backend("triton"):
        yield take


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU kernels are compiled: see test_gpu.py")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_configuration_gives_the_same_bits(dtype: torch.dtype, take: Callable[[int], set[str]]) -> None:
    module = GCSA(12, kernel_size=5).to(dtype)
    x = torch.randn(2, 12, 11, 19, dtype=dtype, requires_grad=True)
    start, width = torch.tensor([3]), torch.tensor([4])
    results = []
    for number in range(3):
        kernels = take(number)
        with torch.no_grad():
            evaluated = module.eval()(x)
        trained = copy.deepcopy(module).train()
        out = trained(x)
        grads = torch.autograd.grad(out.sin().sum(), [x, *trained.parameters()])
        masked = functional.frequency_mask(x, start, width, 1.0)
        results.append((out, evaluated, masked, *grads))
        expected = "channel_gate", "channel_gate_backward", "norm_forward", "norm_backward"
        assert kernels == {*expected, "spectrogram_mask"}
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
