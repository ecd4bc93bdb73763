"""The proof of the kernels for GPUs, on the CPU: Triton's kernels are interpreted, those of CUDA emulated.

Kernels are made wrong on purpose by `spoil`."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from devices import every_backend
from needs_triton import imported
from subprocesses import python
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import gcsa_ext
from gcsa_ext import GCSA, backends, functional, reference
from gcsa_ext.backends import proof
from gcsa_ext.backends.gpu import capture, maps
from gcsa_ext.cli import main

imported("gcsa_ext.backends.triton.gates")
pytestmark = pytest.mark.usefixtures("one_thread", "proofs")
both = [every_backend, pytest.mark.parametrize("backend", ["triton", "cuda"], indirect=True)]
emulated = [every_backend, pytest.mark.parametrize("backend", ["cuda"], indirect=True)]
CONTIGUOUS, LAST = torch.contiguous_format, torch.channels_last
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch) -> list[proof.Subject]:
    """Prove kernels on the CPU; the list gets what is proved, in order."""
    proved: list[proof.Subject] = []
    find = proof._find_difference

    def record(subject: proof.Subject) -> str | None:
        proved.append(subject)
        return find(subject)

    monkeypatch.setattr(proof, "_find_difference", record)
    monkeypatch.setattr(proof, "on_cpu", True)
    monkeypatch.setattr(proof, "enabled", True)
    monkeypatch.setattr(proof, "results", {})
    monkeypatch.setattr(proof, "_postponed", set())
    return proved


@pytest.fixture
def as_on_a_gpu(emulated_cuda: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """No backend is forced, and the kernels for GPUs are the best that there are for tensors on the CPU."""
    monkeypatch.setattr(backends.cpu, "unsupported", lambda *_: "not in this test")
    for module in (backends.triton, backends.cuda):
        monkeypatch.setattr(module, "unsupported", lambda *_: None)
    monkeypatch.setitem(backends.reference.operators, "saved_shape", maps.saved_shape)


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the kernels of an operator wrong: `change` gets its first result that is a tensor."""

    def spoil(backend: str, operator: str, change: Callable[[Tensor], None]) -> None:
        operators = proof.BACKENDS[backend].operators
        compute = operators[operator]

        def wrong(*arguments: Any) -> Any:
            found = compute(*arguments)
            if found is None:  # in place
                change(arguments[0])
            else:
                change(next(t for t in ([found] if isinstance(found, Tensor) else found) if t is not None))
            return found

        monkeypatch.setitem(operators, operator, wrong)

    return spoil


def scale(result: Tensor) -> None:
    result.mul_(1.2)


def one_wrong_value(result: Tensor) -> None:
    result[result.dim() * (-1,)] += result.abs().max()


def one_nan(result: Tensor) -> None:
    result[result.dim() * (0,)] = torch.nan


def fail_to_compile(result: Tensor) -> None:
    raise NotImplementedError("no code for this GPU")


FAULTS = {
    scale: "off by",
    one_wrong_value: "off by",
    one_nan: "off by nan",
    fail_to_compile: "NotImplementedError: no code for this GPU",
}


def a_map(dtype: torch.dtype = torch.float32, layout: torch.memory_format = CONTIGUOUS) -> Tensor:
    return torch.randn(2, 4, 3, 5).to(dtype).contiguous(memory_format=layout)


def norm_gate(x: Tensor) -> Tensor:
    return functional.norm_gate(x, x, training=True)


def expected_norm_gate(x: Tensor) -> Tensor:
    return reference.norm_gate(x, x, None, None, None, None, 1e-5)


@pytest.fixture
def caught() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        yield messages


# ---- Kernels that are right


@pytest.mark.parametrize(
    ("dtype", "layout"),
    [(torch.float32, CONTIGUOUS), (torch.float32, LAST), (torch.bfloat16, CONTIGUOUS), (torch.float16, LAST)],
    ids=str,
)
@pytest.mark.parametrize("operator", ["channel_gate", "gcsa", "norm_gate"])
@pytest.mark.parametrize("backend", ["triton", "cuda"], indirect=True)
def test_right_kernels_pass(
    operator: str, dtype: torch.dtype, layout: torch.memory_format, backend: str, proofs: list[proof.Subject]
) -> None:
    for _ in range(3):
        assert proof.failure(backend, operator, a_map(dtype, layout)) is None
    assert [subject[:5] for subject in proofs] == [(backend, operator, torch.device("cpu"), dtype, layout)]
    assert proof.results == {proofs[0]: None}


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("backend", ["triton", "cuda"], indirect=True)
def test_right_masks_pass(dtype: torch.dtype, backend: str, proofs: list[proof.Subject]) -> None:
    """Kernels read spectrograms as contiguous ones, so that one proof holds for every layout."""
    for layout in (CONTIGUOUS, LAST):
        for operator in ("spectrogram_mask", "spectrogram_mask_"):
            assert proof.failure(backend, operator, a_map(dtype, layout)) is None
    assert len(proofs) == 1


@pytest.mark.parametrize("backend", ["cuda"], indirect=True)
def test_tf32_is_proved_by_itself(backend: str, proofs: list[proof.Subject]) -> None:
    try:
        for _ in range(2):
            assert proof.failure(backend, "channel_gate", a_map()) is None
            torch.backends.cuda.matmul.allow_tf32 = True
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert [subject.tf32[0] for subject in proofs] == [False, True]
    assert str(proofs[1]).endswith("channel_gate on cpu, float32, contiguous_format, tf32 allowed")
    assert proof.failure(backend, "channel_gate", a_map(torch.bfloat16)) is None
    assert proofs[2].tf32 == (False, False)


@pytest.mark.parametrize("backend", ["cuda"], indirect=True)
def test_the_first_use_proves_and_later_ones_do_not(backend: str, proofs: list[proof.Subject]) -> None:
    x = a_map().requires_grad_()
    for _ in range(2):
        norm_gate(x).sum().backward()
        functional.frequency_mask(x, torch.tensor([0]), torch.tensor([1])).sum().backward()
    assert [subject.operator for subject in proofs] == ["norm_gate", "spectrogram_mask"]
    module = GCSA(4, kernel_size=5)
    module(x).sum().backward()
    module.eval()(x.detach())
    assert [subject.operator for subject in proofs[2:]] == ["gcsa"]
    assert all(reason is None for reason in proof.results.values())


def test_other_backends_are_not_proved(proofs: list[proof.Subject]) -> None:
    for backend in ("cpu", "reference"):
        with gcsa_ext.use_backend(backend):
            norm_gate(a_map())
    norm_gate(a_map())
    functional.conv2d_same(a_map(), torch.randn(4, 4, 3, 3), None)
    assert proofs == []


# ---- Kernels that are wrong


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "operator", ["norm_gate", "norm_gate_backward", "channel_gate", "spectrogram_mask", "spectrogram_mask_"]
)
@pytest.mark.parametrize("backend", ["triton", "cuda"], indirect=True)
def test_wrong_kernels_are_found(
    operator: str, fault: Callable[[Tensor], None], backend: str, spoil: Callable[..., None]
) -> None:
    _is_found(operator, fault, backend, spoil)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("operator", ["channel_gate_backward", "gcsa", "gcsa_inference", "gcsa_backward"])
@pytest.mark.parametrize("backend", ["cuda"], indirect=True)
def test_wrong_kernels_of_the_attention_are_found(
    operator: str, fault: Callable[[Tensor], None], backend: str, spoil: Callable[..., None]
) -> None:
    _is_found(operator, fault, backend, spoil)


def _is_found(
    operator: str, fault: Callable[[Tensor], None], backend: str, spoil: Callable[..., None]
) -> None:
    spoil(backend, operator, fault)
    name = proof.FAMILIES[operator]
    with pytest.warns(RuntimeWarning, match=f"kernels failed their proof.*{backend} {name} on cpu") as caught:
        reason = proof.failure(backend, operator, a_map())
    assert len(caught) == 1
    assert reason is not None and FAULTS[fault] in reason
    assert proof.failure(backend, name, a_map()) == reason  # without another warning
    if fault is not fail_to_compile:
        expected = {"norm_gate_backward": "gradient of u", "spectrogram_mask_": "result in place"}
        expected["gcsa_inference"] = "result in evaluation"
        expected["gcsa_backward"] = expected["channel_gate_backward"] = "gradient of x"
        assert f"{expected.get(operator, 'result')}: off by" in reason


@pytest.mark.parametrize("backend", ["triton"], indirect=True)
def test_wrong_launches_are_found(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums of a gradient over all positions, of which one part is left out."""
    launches = backends.triton.gates
    right = launches.sum_partials
    monkeypatch.setattr(launches, "sum_partials", lambda partial, *others: right(partial[1:], *others))
    with pytest.warns(RuntimeWarning, match="gradient of u: off by"):
        assert proof.failure(backend, "norm_gate", a_map()) is not None


@pytest.mark.parametrize("backend", ["cuda"], indirect=True)
def test_a_gradient_that_is_missing_or_of_another_shape(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    operators = backends.cuda.operators
    compute = operators["norm_gate_backward"]
    for change, expected in ((lambda grad: None, "None"), (lambda grad: grad[:1], r"torch.Size\(\[1")):
        monkeypatch.setattr(proof, "results", {})
        monkeypatch.setitem(
            operators,
            "norm_gate_backward",
            lambda *a, change=change: (lambda u, *others: (change(u), *others))(*compute(*a)),
        )
        with pytest.warns(RuntimeWarning, match=f"gradient of u: expected shape .*, got {expected}"):
            assert proof.failure(backend, "norm_gate", a_map()) is not None


@pytest.mark.parametrize("backend", ["cuda"], indirect=True)
def test_a_forced_backend_that_fails_raises(backend: str, spoil: Callable[..., None]) -> None:
    spoil(backend, "norm_gate_backward", one_nan)
    message = (
        "norm_gate: backend 'cuda' is forced but cannot run: its kernels failed their proof: .*off by nan"
    )
    with pytest.warns(RuntimeWarning), pytest.raises(RuntimeError, match=message):
        norm_gate(a_map())
    with pytest.raises(RuntimeError, match=message):
        norm_gate(a_map())


@pytest.mark.usefixtures("as_on_a_gpu")
def test_the_next_backend_computes(
    spoil: Callable[..., None], caught: list[warnings.WarningMessage], proofs: list[proof.Subject]
) -> None:
    x = a_map().requires_grad_()
    spoil("triton", "norm_gate_backward", scale)
    for _ in range(2):
        out = norm_gate(x)
        (grad,) = torch.autograd.grad(out.sin().sum(), x)
    assert backends.choose("norm_gate", x.device, x.dtype, x=x) == "cuda"
    assert [subject.backend for subject in proofs] == ["triton", "cuda"]
    (warning,) = caught
    assert warning.category is RuntimeWarning
    assert "triton norm_gate on cpu, float32, contiguous_format: gradient of u: off by" in str(
        warning.message
    )
    torch.testing.assert_close(out, expected_norm_gate(x))
    torch.testing.assert_close(grad, torch.autograd.grad(expected_norm_gate(x).sin().sum(), x)[0])


@pytest.mark.usefixtures("as_on_a_gpu")
def test_the_reference_computes_where_no_backend_passes(
    spoil: Callable[..., None], caught: list[warnings.WarningMessage]
) -> None:
    x = a_map()
    spoil("triton", "norm_gate", one_nan)
    spoil("cuda", "norm_gate", fail_to_compile)
    for _ in range(2):
        torch.testing.assert_close(norm_gate(x), expected_norm_gate(x))
    assert [str(warning.message).split(" on cpu")[0].split(": ")[-1] for warning in caught] == [
        "triton norm_gate",
        "cuda norm_gate",
    ]
    found = gcsa_ext.info()["proofs"]
    assert found["enabled"] and found["passed"] == []
    assert found["failed"]["cuda norm_gate on cpu, float32, contiguous_format"].startswith("NotImplemented")
    text = gcsa_ext.format_info()
    assert "triton norm_gate on cpu, float32, contiguous_format: failed: result: off by nan" in text
    # The proof of another layout or dtype is another one.
    assert backends.choose("norm_gate", x.device, torch.bfloat16) == "triton"


def train(module: Callable[[Tensor], Tensor], x: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    out = module(x)
    return [out.detach(), *torch.autograd.grad(out.sin().sum(), [x, *parameters])]


@pytest.fixture
def attention() -> Iterator[tuple[GCSA, Tensor, list[Tensor]]]:
    """A module without running statistics, its input, and the result and gradients of the reference."""
    module, x = GCSA(8, kernel_size=5), torch.randn(2, 8, 6, 5, requires_grad=True)
    with gcsa_ext.use_backend("reference"):
        expected = train(module, x, list(module.parameters()))
    yield module, x, expected


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("operator", ["gcsa", "gcsa_backward"])
def test_an_attention_whose_kernels_fail(
    operator: str,
    compiled: bool,
    attention: tuple[GCSA, Tensor, list[Tensor]],
    spoil: Callable[..., None],
    caught: list[warnings.WarningMessage],
) -> None:
    """The reference computes both passes, even if the kernels of only one are wrong."""
    module, x, expected = attention
    spoil("triton", operator, one_wrong_value)
    spoil("cuda", operator, one_wrong_value)
    function = torch.compile(module, backend="aot_eager", fullgraph=True) if compiled else module
    for _ in range(2):
        torch.testing.assert_close(train(function, x, list(module.parameters())), expected)
    assert sum("failed their proof" in str(warning.message) for warning in caught) == 2


def test_all_backends_on_gpus_save_the_same_shape() -> None:
    """A graph may be compiled before the kernels fail their proof."""
    for dtype in DTYPES:
        for layout in (CONTIGUOUS, LAST):
            x = torch.empty(2, 8, 3, 5, dtype=dtype, device="meta").contiguous(memory_format=layout)
            for backend in (backends.reference, backends.triton, backends.cuda):
                assert backend.operators["saved_shape"](6, x) == maps.saved_shape(6, x)


# ---- Where a proof has to wait


@pytest.mark.usefixtures("as_on_a_gpu")
def test_while_a_graph_is_captured_the_reference_computes(
    caught: list[warnings.WarningMessage],
    calls: list[str],
    attention: tuple[GCSA, Tensor, list[Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    proofs: list[proof.Subject],
) -> None:
    """A backward pass after the capture must not read what the reference has saved, which is NaN."""
    module, x, expected = attention
    monkeypatch.setattr(capture, "is_capturing", lambda x: True)
    for _ in range(2):
        out = module(x)
    assert proofs == [] and proof.results == {} and "gcsa" not in calls
    assert len(caught) == 2  # of Triton and CUDA
    assert "could not be proved yet: triton gcsa on cpu" in str(caught[0].message)
    assert "call the operator once before the capture" in str(caught[0].message)
    monkeypatch.setattr(capture, "is_capturing", lambda x: False)
    grads = torch.autograd.grad(out.sin().sum(), [x, *module.parameters()])
    torch.testing.assert_close([out.detach(), *grads], expected)
    assert [subject.backend for subject in proofs] == ["triton"]
    calls.clear()
    module(x)
    assert calls == ["gcsa"] and len(caught) == 2


@pytest.mark.parametrize("backend", ["cuda"], indirect=True)
def test_a_forced_backend_computes_while_a_graph_is_captured(
    backend: str, caught: list[warnings.WarningMessage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "is_capturing", lambda x: True)
    x = a_map()
    torch.testing.assert_close(norm_gate(x), expected_norm_gate(x))
    assert proof.results == {} and caught == []


@pytest.mark.usefixtures("as_on_a_gpu")
def test_kernels_are_proved_later_where_memory_ran_out(
    spoil: Callable[..., None], caught: list[warnings.WarningMessage], proofs: list[proof.Subject]
) -> None:
    memory = [0]

    def allocate(result: Tensor) -> None:
        if not memory[0]:
            raise torch.OutOfMemoryError("tried to allocate 2 MiB")

    for backend in ("triton", "cuda"):
        spoil(backend, "norm_gate", allocate)
    x = a_map()
    torch.testing.assert_close(norm_gate(x), expected_norm_gate(x))
    assert proof.results == {} and "memory ran out: tried to allocate 2 MiB" in str(caught[0].message)
    memory[0] = 1
    norm_gate(x)
    assert list(proof.results.values()) == [None] and proofs[-1].backend == "triton"


# ---- The state of the caller


class Operators(TorchDispatchMode):
    """Counts the operators that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    """Counts the functions that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def other_defaults() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


@pytest.mark.parametrize("backend", ["cuda"], indirect=True)
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_modes_and_defaults_of_the_caller(
    mode: Callable[[], Any], backend: str, request: pytest.FixtureRequest, proofs: list[proof.Subject]
) -> None:
    """They do not disturb the proof, and it does not change them, nor the state of the random numbers."""
    x = a_map()
    mean, var = torch.zeros(4), torch.ones(4)
    call = torch.ops.gcsa_ext.norm_gate.default
    expected = reference.norm_gate(x, x, None, None, mean, var, 1e-3)
    state = torch.get_rng_state()
    request.getfixturevalue("other_defaults")
    functions, operators = Functions(), Operators()
    with mode(), functions, operators, torch.autocast("cpu", torch.bfloat16):
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        out = call(x, x, None, None, mean, var, 1e-3)[0]
        assert before == (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        assert torch.is_autocast_enabled("cpu") and torch.get_default_device().type == "meta"
        assert torch.get_default_dtype() == torch.float64
    assert proof.results == {proofs[0]: None}
    assert operators.seen[0].startswith("gcsa_ext.norm_gate") and len(operators.seen) < 10
    assert len(functions.seen) < 10
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("backend", ["cuda"], indirect=True)
def test_fake_tensors_prove_nothing(backend: str, proofs: list[proof.Subject]) -> None:
    module = GCSA(8, kernel_size=5)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x = mode.from_tensor(torch.randn(2, 8, 6, 5)).requires_grad_()
        assert module(x).shape == x.shape
        assert norm_gate(x).shape == x.shape
    assert proofs == []


@pytest.mark.parametrize("backend", ["cuda"], indirect=True)
def test_several_threads_prove_once(backend: str, proofs: list[proof.Subject]) -> None:
    found: list[Tensor] = []
    x = a_map()
    start = threading.Barrier(4)

    def call() -> None:
        start.wait()
        found.append(norm_gate(x))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(proofs) == 1
    torch.testing.assert_close(found, 4 * [expected_norm_gate(x)])


@pytest.mark.parametrize("backend", ["cuda"], indirect=True)
def test_the_first_use_is_a_backward_pass(backend: str, proofs: list[proof.Subject]) -> None:
    x = a_map().requires_grad_()
    with gcsa_ext.use_backend("reference"):
        out = norm_gate(x)
    (grad,) = torch.autograd.grad(out.sin().sum(), x)
    assert [subject.operator for subject in proofs] == ["norm_gate"]
    torch.testing.assert_close(grad, torch.autograd.grad(expected_norm_gate(x).sin().sum(), x)[0])


def test_ranks_do_not_wait_for_each_other() -> None:
    """Of two processes of a group only one uses an operator, which it proves."""
    printed = python(
        """
        import os, sys, tempfile, subprocess
        import torch
        import torch.distributed as dist
        import gcsa_ext
        from gcsa_ext.backends import proof
        rank, path = (sys.argv[1:] or ["0", tempfile.mktemp()])[-2:]
        other = None
        if rank == "0":
            source = open("/proc/self/cmdline").read().split(chr(0))[2]
            other = subprocess.Popen([sys.executable, "-c", source, "1", path], stdout=subprocess.PIPE)
        dist.init_process_group("gloo", init_method=f"file://{path}", rank=int(rank), world_size=2)
        proof.on_cpu = True
        if rank == "0":
            x = torch.randn(2, 3, 4, 5)
            with gcsa_ext.use_backend("triton"):
                gcsa_ext.functional.norm_gate(x, x, training=True)
        total = torch.tensor([float(len(proof.results))])
        dist.all_reduce(total)
        dist.destroy_process_group()
        if other is not None:
            assert other.wait() == 0
            print(len(proof.results), total.item())
        """,
        TRITON_INTERPRET="1",
        OMP_NUM_THREADS="1",
    )
    assert printed.splitlines()[-1] == "1 1.0"


# ---- The switch, and the command


@pytest.mark.parametrize("backend", ["cuda"], indirect=True)
def test_switched_off(
    backend: str, spoil: Callable[..., None], monkeypatch: pytest.MonkeyPatch, proofs: list[proof.Subject]
) -> None:
    spoil(backend, "norm_gate", scale)
    monkeypatch.setattr(proof, "enabled", False)
    x = a_map()
    torch.testing.assert_close(norm_gate(x), 1.2 * expected_norm_gate(x))
    assert proofs == []
    assert "switched off: GCSA_EXT_PROOF=0" in gcsa_ext.format_info()


def test_environment_variable_switches_proofs_off() -> None:
    source = """
        import gcsa_ext
        from gcsa_ext.backends import proof
        print(proof.enabled, gcsa_ext.info()["proofs"]["enabled"], proof.on_cpu)
        print(gcsa_ext.format_info())
    """
    assert python(source, GCSA_EXT_PROOF="0").startswith("False False False")
    printed = python(source)
    assert printed.startswith("True True False")
    assert "none so far: the first use of an operator proves it" in printed


@pytest.mark.parametrize("backend", ["cuda"], indirect=True)
def test_command_proves_everything(
    backend: str,
    spoil: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caught: list[warnings.WarningMessage],
) -> None:
    spoil(backend, "channel_gate", one_nan)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main(["info", "--prove"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  cuda norm_gate on cpu, bfloat16, channels_last: passed" in lines
    assert "  cuda spectrogram_mask on cpu, float64, contiguous_format: passed" in lines
    assert any(
        line.startswith("  cuda channel_gate on cpu, float16, channels_last: failed: result:")
        for line in lines
    )
    passed, failed = (sum(word in line for line in lines) for word in (": passed", ": failed: "))
    assert (passed, failed) == (4 + 6 + 6, 6) and len(caught) == 6
