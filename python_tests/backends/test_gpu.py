"""What only a GPU has: usual sizes, tuning, graphs, streams, large maps.

Tests elsewhere that are marked `devices.every_device` run on a GPU as well."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from accuracy import MODULE_FACTOR, assert_as_accurate
from attention_variants import VARIANTS, check_variant, variant_arguments
from devices import ON_A_GPU, every_backend
from gate_checks import channel_gate_arguments, check, gate
from pairs import assert_same_step, pair
from torch import Tensor, nn

from gcsa_ext import GCSA, backends, functional, reference

if not torch.cuda.is_available():
    pytest.skip("torch.cuda.is_available() is False: these tests need a GPU", allow_module_level=True)

pytestmark = [
    *(every_backend, pytest.mark.parametrize("backend", ["triton", "cuda"], indirect=True)),
    pytest.mark.parametrize("device", [ON_A_GPU], indirect=True),
]
DEVICE = "cuda"


def test_kernels_run_on_a_gpu(backend: str) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for operator in ("channel_gate", "norm_gate", "spectrogram_mask", "conv2d_same", "gcsa"):
            assert backends.unsupported(backend, operator, torch.device(DEVICE), dtype) is None
    assert not backends.triton.INTERPRETED and not backends.cuda.launch.emulated()


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("operator", ["channel_gate", "gcsa", "norm_gate", "spectrogram_mask"])
def test_kernels_pass_their_proofs(
    operator: str, layout: torch.memory_format, tf32: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends.proof, "enabled", True)
    monkeypatch.setattr(backends.proof, "results", {})
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x = torch.zeros(2, 4, 3, 5, dtype=dtype).contiguous(memory_format=layout)
            assert backends.proof.failure(backend, operator, x) is None
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert len(backends.proof.results) == 3 and set(backends.proof.results.values()) == {None}


def test_kernels_are_proved_after_a_capture(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forced backend computes while a graph is captured. The first call after the capture proves it."""
    monkeypatch.setattr(backends.proof, "enabled", True)
    monkeypatch.setattr(backends.proof, "results", {})
    u, vector = torch.randn(2, 24, 9, 11), torch.rand(24) + 0.5
    expected = reference.norm_gate(u, u, None, None, vector, vector, 1e-5)

    def call() -> Tensor:
        return torch.ops.gcsa_ext.norm_gate(u, u, None, None, vector, vector, 1e-5)[0]

    monkeypatch.setattr(backends.proof, "enabled", False)
    call()  # so that the kernel is loaded
    monkeypatch.setattr(backends.proof, "enabled", True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    assert backends.proof.results == {}
    graph.replay()
    torch.testing.assert_close(out, expected)
    call()
    assert list(backends.proof.results.values()) == [None]


def test_errors_of_launches_name_kernel_and_shape(backend: str) -> None:
    """The error is that of a device that does not exist."""
    if backend != "cuda":
        pytest.skip("gcsa_ext words the errors of its CUDA launches; Triton words those of its own")
    kernels, x = backends.cuda.launch.kernels(), torch.zeros(2, 3, 4)
    band = torch.zeros(1, dtype=torch.int64)
    target = (99, 0, 132, 227 * 1024)
    addresses = (band.data_ptr(), band.data_ptr(), 0, x.data_ptr(), x.data_ptr())
    with pytest.raises(
        RuntimeError, match=r"launching frequency_mask, in place .* invalid device.* \(a batch of 2"
    ):
        kernels.frequency_mask(target, 2, 3, 4, 1, True, 4, *addresses)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "shape", [(9, 64, 56, 56), (16, 128, 28, 28), (5, 256, 14, 14), (8, 512, 7, 7)], ids=str
)
def test_attention_at_usual_sizes(
    shape: tuple[int, ...], training: bool, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    fused, plain = (m.train(training) for m in pair(dtype, channels=shape[1]))
    x = torch.randn(shape, dtype=dtype).contiguous(memory_format=layout)
    assert_same_step(fused, plain, x, summands=10.0, buffers=1e-3 if dtype == torch.float32 else 2.0**-6)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_at_a_usual_size(name: str, training: bool, dtype: torch.dtype, layout: str) -> None:
    check_variant(variant_arguments(name, dtype, training, layout, (8, 96, 28, 28)))


@pytest.mark.parametrize("hidden", [16, 32, 64, 128, 256, 300])
def test_every_table_of_block_sizes(hidden: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for channels in (24, 200):
            check(*gate(4), channel_gate_arguments(torch.randn(3, channels, 17, 19, dtype=dtype), hidden))


@pytest.fixture
def tuning(backend: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Tuning switched on, without earlier choices."""
    if backend != "triton":
        pytest.skip("only the triton backend times configurations of its kernels")
    module: ModuleType = backends.triton.tuning
    monkeypatch.setattr(module, "enabled", True)
    monkeypatch.setattr(module, "chosen", {})
    return module


def test_every_configuration_is_tried_and_gives_the_same_bits(
    tuning: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration changes the time, not the result."""
    module = GCSA(32)
    x, grad = torch.randn(8, 32, 28, 28, requires_grad=True), torch.randn(8, 32, 28, 28)

    def step() -> list[Tensor]:
        trained = copy.deepcopy(module)
        out = trained(x)
        with torch.no_grad():
            evaluated = copy.deepcopy(module).eval()(x)
        return [out, evaluated, *torch.autograd.grad(out, [x, *trained.parameters()], grad)]

    measured = step()
    assert len(tuning.chosen) >= 6
    assert {key[0].type for key in tuning.chosen} == {DEVICE}
    for number in (0, 1, 2):
        monkeypatch.setattr(
            tuning,
            "fastest",
            lambda configurations, launch, number=number: list(configurations)[number % len(configurations)],
        )
        monkeypatch.setattr(tuning, "chosen", {})
        assert all(torch.equal(a, b) for a, b in zip(step(), measured, strict=True))


def test_two_runs_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's deterministic convolutions."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    for dtype in (torch.float32, torch.bfloat16):
        module = GCSA(64).to(dtype)
        x = torch.randn(32, 64, 56, 56, dtype=dtype, requires_grad=True)
        results = []
        for _ in range(2):
            out = module(x)
            results.append([out, *torch.autograd.grad(out.sin().sum(), [x, *module.parameters()])])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_tf32_follows_the_switch_of_torch() -> None:
    arguments = channel_gate_arguments(torch.randn(4, 64, 32, 32), 16)
    exact = reference.channel_gate(*(a.double() for a in arguments), 4)

    def error() -> float:
        found = functional.channel_gate(*arguments, 4).double()
        return ((found - exact).norm() / exact.norm()).item()

    assert error() < 1e-6
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        assert 1e-6 < error() < 1e-3
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def captured(step: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # kernels are compiled before the capture
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph, results


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_cuda_graphs(training: bool, dtype: torch.dtype) -> None:
    module = GCSA(32).to(dtype).train(training)
    x, grad = torch.randn(4, 32, 14, 14, dtype=dtype), torch.randn(4, 32, 14, 14, dtype=dtype)
    x.requires_grad_()
    parameters = list(module.parameters())

    def step() -> list[Tensor]:
        if not training:
            with torch.no_grad():
                return [module(x)]
        out = module(x)
        return [out, *torch.autograd.grad(out, [x, *parameters], grad)]

    graph, results = captured(step)
    for _ in range(2):
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        torch.testing.assert_close(results, step(), rtol=1e-2, atol=1e-3)


def test_tuning_beside_a_capture_in_another_thread(tuning: ModuleType) -> None:
    """The first call of a shape loads kernels and waits for them, while another thread captures a graph."""
    u, z, vector = torch.randn(2, 24, 9, 11), torch.randn(2, 24, 9, 11), torch.rand(24) + 0.5
    expected = reference.norm_gate(u, z, None, None, vector, vector, 1e-5)
    last = (t.contiguous(memory_format=torch.channels_last) for t in (u, z))
    functional.norm_gate(*last, None, None, vector, vector)  # so that torch's kernels are loaded
    tuning.chosen.clear()
    torch.cuda.synchronize()
    found: list[Tensor] = []

    def call() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            found.append(torch.ops.gcsa_ext.norm_gate(u, z, None, None, vector, vector, 1e-5)[0])

    graph, x = torch.cuda.CUDAGraph(), torch.ones(5)
    with torch.cuda.graph(graph):
        y = x * 2
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        y += 1
    graph.replay()
    torch.cuda.synchronize()
    assert len(tuning.chosen) == 1
    torch.testing.assert_close(found, [expected])
    assert torch.equal(y, torch.full_like(y, 3.0))


def test_cuda_graph_of_a_mask() -> None:
    spectrogram, start, width = torch.randn(8, 80, 401), torch.randint(60, (8, 2)), torch.randint(20, (8, 2))
    graph, (result,) = captured(lambda: [functional.frequency_mask(spectrogram, start, width, 1.0)])
    start.copy_(torch.randint(60, (8, 2)))
    spectrogram.normal_()
    graph.replay()
    assert torch.equal(result, reference.frequency_mask(spectrogram, start, width, 1.0))


def test_several_streams() -> None:
    """Kernels run on the current stream, after the long work that is queued there."""
    module = GCSA(32).eval()
    inputs = [torch.randn(8, 32, 28, 28) for _ in range(4)]
    with torch.no_grad():
        expected = [module(x) for x in inputs]
        torch.cuda.synchronize()
        results: list[Tensor] = []
        for x in inputs:
            with torch.cuda.stream(torch.cuda.Stream()):
                late = torch.full_like(x, torch.nan)
                torch.cuda._sleep(20_000_000)
                late.copy_(x)
                results.append(module(late))
    torch.cuda.synchronize()
    torch.testing.assert_close(results, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="this test needs two GPUs")
def test_several_devices() -> None:
    """Kernels run on the device of the tensors, not on the current one."""
    module, x = GCSA(32), torch.randn(4, 32, 14, 14)
    other, y = copy.deepcopy(module).to("cuda:1"), x.to("cuda:1").requires_grad_()
    assert torch.cuda.current_device() == 0
    out = other(y)
    out.sum().backward()
    assert out.device == y.grad.device == torch.device("cuda:1") and torch.cuda.current_device() == 0
    torch.testing.assert_close(out.cpu(), module(x).cpu(), rtol=1e-4, atol=1e-5)


def large(shape: tuple[int, ...], copies: float) -> Tensor:
    """A random bfloat16 map. The test is skipped where the GPU has no memory for so many copies."""
    needed = copies * 2 * torch.Size(shape).numel()
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"this test needs {needed / 2**30:.0f} GiB of free GPU memory")
    return torch.empty(shape, dtype=torch.bfloat16).normal_()


@pytest.fixture
def plain_memory() -> Iterator[None]:
    """Do not fill new memory, which would take long."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    yield
    torch.cuda.empty_cache()


@pytest.mark.xdist_group("memory")  # one at a time, where several processes share the GPU
@pytest.mark.usefixtures("plain_memory")
@pytest.mark.parametrize("shape", [(11, 64, 1800, 1720), (1, 1, 46400, 46400)], ids=str)
def test_maps_of_more_than_2_to_the_31_elements(shape: tuple[int, ...]) -> None:
    """Many channels, and as many positions."""
    x = large(shape, 6)
    assert x.numel() > 2**31
    mean, var = torch.zeros(shape[1]), torch.ones(shape[1])
    out = functional.norm_gate(x, x, None, None, mean, var)
    arguments = channel_gate_arguments(x[:1, :, :1, :1].contiguous(), 4)[1:]
    gated = functional.channel_gate(x, *arguments, 1)
    corners = (slice(-1, None), slice(None), slice(-3, None), slice(-70, None))
    end = x[corners].contiguous()
    torch.testing.assert_close(
        out[corners], reference.norm_gate(end, end, None, None, mean, var, 1e-5), rtol=0.02, atol=0.01
    )
    torch.testing.assert_close(
        gated[corners], reference.channel_gate(end, *arguments, 1), rtol=0.02, atol=0.02
    )
    del out, gated
    _, batch_mean, batch_var = torch.ops.gcsa_ext.norm_gate(x, x, None, None, None, None, 1e-5)
    torch.testing.assert_close(batch_mean, torch.zeros_like(batch_mean), rtol=0.0, atol=1e-3)
    torch.testing.assert_close(batch_var, torch.ones_like(batch_var), rtol=0.01, atol=0.0)


@pytest.mark.xdist_group("memory")
@pytest.mark.usefixtures("plain_memory")
def test_a_mask_of_more_than_2_to_the_31_elements() -> None:
    x = large((300, 3, 80, 29900), 4)
    assert x.numel() > 2**31
    start, width = torch.tensor([3]), torch.tensor([4])
    end = reference.frequency_mask(x[-1], start, width, 5.0)
    assert torch.equal(functional.frequency_mask(x, start, width, 5.0)[-1], end)
    assert torch.equal(functional.frequency_mask_(x, start, width, 5.0)[-1], end)


class AfterConvolution(nn.Module):
    """The attention behind a convolution, as in a network."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(16, 16, 3, padding=1)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.convolution(x))


@pytest.mark.parametrize("inside", [True, False])
def test_autocast(inside: bool, calls: list[str]) -> None:
    """Behind a convolution x is in 16 bits, and one operator computes; a float32 x is left to the layers."""
    fused, plain = pair(channels=16)
    if inside:
        fused, plain = AfterConvolution(fused), AfterConvolution(plain)
        plain.convolution = copy.deepcopy(fused.convolution)
    exact = copy.deepcopy(plain).double()
    x, grad = torch.randn(8, 16, 12, 12), torch.randn(8, 16, 12, 12)
    steps = []
    for module in (fused, plain, exact):
        with torch.autocast("cuda", torch.bfloat16, enabled=module is not exact):
            out = module(x.double() if module is exact else x)
        steps.append((out, *torch.autograd.grad(out, list(module.parameters()), grad.to(out.dtype))))
    scale = max(g.abs().max().item() for g in steps[2])
    for name, a, b, c in zip(["result", *(n for n, _ in plain.named_parameters())], *steps, strict=True):
        if a.dtype == torch.float32 and name != "result":
            a, b = a.bfloat16(), b.bfloat16()  # as exact as the arithmetic was
        assert_as_accurate(a, b, c, name, MODULE_FACTOR, scale)
    assert ("gcsa" in calls) == inside


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_inductor(mode: str) -> None:
    module = GCSA(16).eval()
    compiled = torch.compile(module, fullgraph=True, mode=mode)
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(4, 16, 14, 14)
            torch.testing.assert_close(compiled(x).clone(), module(x), rtol=1e-4, atol=1e-5)
