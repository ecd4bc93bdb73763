"""The choice of the backend, the reason why one cannot run, a package without its compiled module."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from instruction_sets import ISAS, skip_unless_it_runs
from pairs import pair, step
from subprocesses import ROOT, python

import gcsa_ext
from gcsa_ext import backends, functional, reference


def arguments(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    shapes = (2, 8, 3, 5), (3, 8), (3,), (8, 3), (8,)
    return tuple(torch.randn(shape, dtype=dtype) for shape in shapes)


def test_the_compiled_module_is_there() -> None:
    """Without it all other tests would compare the definition with itself."""
    assert backends.native.load_error is None
    assert backends.choose("channel_gate", torch.device("cpu"), torch.float32) == "cpu"


def test_use_backend_forces_a_backend_and_restores_the_previous(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def record(*call: object) -> torch.Tensor:
        calls.append("cpu")
        return reference.channel_gate(*call)

    monkeypatch.setitem(backends.cpu.operators, "channel_gate", record)
    a = arguments()
    with gcsa_ext.use_backend("reference"):
        assert backends.forced_backend() == "reference"
        expected = functional.channel_gate(*a, 4)
        assert calls == []
        with gcsa_ext.use_backend("cpu"):
            functional.channel_gate(*a, 4)
            assert calls == ["cpu"]
        assert backends.forced_backend() == "reference"
    with pytest.raises(KeyError), gcsa_ext.use_backend("cpu"):
        raise KeyError
    assert backends.forced_backend() is None
    assert torch.equal(expected, reference.channel_gate(*a, 4))


def test_reference_backend_differentiates() -> None:
    leaves = [t.double().requires_grad_() for t in arguments()]
    results = []
    for backend in ("cpu", "reference"):
        with gcsa_ext.use_backend(backend):
            out = functional.channel_gate(*leaves, 4)
            results.append((out, *torch.autograd.grad(out.sin().sum(), leaves)))
            out = functional.norm_gate(leaves[0], leaves[0] * 2, leaves[4], None, training=True)
            results[-1] += (out, *torch.autograd.grad(out.sin().sum(), [leaves[0], leaves[4]]))
    torch.testing.assert_close(*results)


def test_unknown_backend() -> None:
    with (
        pytest.raises(ValueError, match=r"unknown backend 'gpu' .* one of cpu, triton, cuda, reference"),
        gcsa_ext.use_backend("gpu"),
    ):
        pass
    assert backends.forced_backend() is None


def test_forced_backend_that_cannot_run_says_why() -> None:
    with (
        gcsa_ext.use_backend("cpu"),
        pytest.raises(
            RuntimeError, match=r"'cpu' is forced but cannot run: .*torch\.bfloat16, not torch\.float16"
        ),
    ):
        functional.channel_gate(*arguments(torch.float16), 4)


def test_float16_is_computed_by_the_definition_with_one_warning() -> None:
    """In another process, where no test has caused the warning before."""
    printed = python(
        """
        import warnings
        import torch
        from gcsa_ext import functional, reference
        x, *weights = (torch.randn(s).half() for s in ((2, 8, 3, 5), (3, 8), (3,), (8, 3), (8,)))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                out = functional.channel_gate(x, *weights, 4)
            functional.norm_gate(x, x, training=True)
            # spectrogram_mask copies bits: the kernel takes float16.
            functional.frequency_mask(x, torch.tensor([0]), torch.tensor([1]))
        print(torch.equal(out, reference.channel_gate(x, *weights, 4)))
        for warning in caught:
            print(warning.category.__name__, warning.message)
        """
    ).splitlines()
    assert printed[0] == "True" and len(printed) == 3
    for line, operator in zip(printed[1:], ("channel_gate", "norm_gate"), strict=True):
        assert line.startswith(f"RuntimeWarning gcsa_ext: plain PyTorch computes {operator}, ")
        assert "not torch.float16" in line


def test_dtypes_of_the_kernels_run_without_a_warning() -> None:
    python(
        """
        import warnings
        import torch
        from gcsa_ext import functional
        warnings.simplefilter("error")
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            shapes = (2, 8, 3, 5), (3, 8), (3,), (8, 3), (8,)
            a = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
            out = functional.channel_gate(*a, 4)
            functional.norm_gate(out, out, a[4], a[4], training=True).sum().backward()
        """
    )


@pytest.mark.parametrize("forced_pass", ["forward", "backward"])
def test_one_pass_with_a_forced_backend(forced_pass: str, calls: list[str]) -> None:
    module, x, grad = pair(channels=8)[0], *torch.randn(2, 2, 8, 6, 5)
    expected = step(copy.deepcopy(module), x, grad)
    calls.clear()
    x.requires_grad_()
    with gcsa_ext.use_backend("reference" if forced_pass == "forward" else "cpu"):
        out = module(x)
    with gcsa_ext.use_backend("reference" if forced_pass == "backward" else "cpu"):
        grads = torch.autograd.grad(out, [x, *module.parameters()], grad)
    assert ("gcsa" in calls) == (forced_pass == "backward") and "gcsa_backward" not in calls
    torch.testing.assert_close([out, *grads], expected, rtol=1e-4, atol=1e-5)


def test_info() -> None:
    found = gcsa_ext.info()
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["torch"] == torch.__version__
    assert found["isa"] in found["build"]["isas"]
    assert found["backends"]["cpu"]["cpu"] is None and found["backends"]["reference"]["cpu"] is None
    text = gcsa_ext.format_info()
    for expected in (torch.__version__, found["build"]["compiler"], found["isa"], "cpu on cpu", "available"):
        assert expected in text


STEP = """
    import torch, gcsa_ext
    torch.manual_seed(0)
    module = gcsa_ext.GCSA(24, groups=4).double()
    x = torch.randn(2, 24, 7, 9, dtype=torch.double)
    def errors(module, x):
        results = []
        for backend in (None, "reference"):
            leaf = x.clone().requires_grad_()
            module.zero_grad()
            if backend is None:
                out = module(leaf)
                out.sin().sum().backward()
            else:
                with gcsa_ext.use_backend(backend):
                    out = module(leaf)
                    out.sin().sum().backward()
            results.append([out.detach(), leaf.grad, *(p.grad.clone() for p in module.parameters())])
        return max((a - b).abs().max().item() for a, b in zip(*results))
    worst = max(errors(module, x), errors(module, x.to(memory_format=torch.channels_last)))
    assert worst < 1e-11, worst
    assert errors(module.float(), x.float()) < 1e-3
"""


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa: str) -> None:
    skip_unless_it_runs(isa)
    printed = python(STEP + "\n    print(gcsa_ext.info()['isa'])\n", GCSA_EXT_CPU_ISA=isa)
    assert printed == isa


def test_unknown_instruction_set() -> None:
    printed = python(
        """
        import warnings
        import torch, gcsa_ext
        print(gcsa_ext.info()["isa"])
        print(gcsa_ext.format_info())
        x = torch.randn(2, 8, 3, 3)
        with warnings.catch_warnings(record=True) as caught:
            gcsa_ext.functional.norm_gate(x, x, training=True)
        print("warned:", *(warning.message for warning in caught))
        """,
        GCSA_EXT_CPU_ISA="sse9",
    )
    message = "GCSA_EXT_CPU_ISA=sse9: this build has baseline"
    assert printed.splitlines()[0].startswith("none: " + message)
    assert f"cannot run: {message}" in printed
    warned = printed.splitlines()[-1]
    assert warned.startswith("warned: gcsa_ext: plain PyTorch computes norm_gate") and message in warned
    assert "(GCSA_EXT_CPU_ISA=sse9)" in printed


def test_environment_variable_forces_a_backend() -> None:
    source = """
        import torch, gcsa_ext
        from gcsa_ext import backends
        calls = []
        backends.cpu.operators["spectrogram_mask"] = lambda x, *a: calls.append(1) or x.clone()
        print(gcsa_ext.info()["forced_backend"])
        try:
            gcsa_ext.functional.frequency_mask(torch.randn(3, 4), torch.tensor([0]), torch.tensor([1]))
            print(len(calls))
        except Exception as error:
            print(type(error).__name__, error)
    """
    assert python(source, GCSA_EXT_BACKEND="reference").splitlines() == ["reference", "0"]
    assert python(source, GCSA_EXT_BACKEND="cpu").splitlines() == ["cpu", "1"]
    assert python(source, GCSA_EXT_BACKEND="").splitlines() == ["None", "1"]
    unknown = python(source, GCSA_EXT_BACKEND="tpu").splitlines()
    assert unknown[1].startswith("ValueError unknown backend 'tpu' (use_backend or GCSA_EXT_BACKEND)")


def test_package_without_its_compiled_module(tmp_path: Path) -> None:
    """It can be imported, has the reason in info(), warns once, and computes the right numbers."""
    ignored = shutil.ignore_patterns("_C*", "__pycache__")
    shutil.copytree(ROOT / "gcsa_ext", tmp_path / "gcsa_ext", ignore=ignored)
    printed = python(
        STEP.replace("import torch, gcsa_ext", "import warnings, torch, gcsa_ext").replace(
            "worst = max(",
            "warnings.simplefilter('always')\n    with warnings.catch_warnings(record=True) as caught:\n"
            "        module(x), module(x)\n    print(len(caught), caught[0].message)\n    worst = max(",
        )
        + """
    from gcsa_ext import backends, functional
    info = gcsa_ext.info()
    assert info["build"] is None and info["isa"] is None
    assert info["backends"]["cpu"]["cpu"] == info["load_error"]
    print(info["load_error"])
    print(gcsa_ext.format_info())
    spectrogram, band = torch.randn(3, 5, 4), torch.tensor([1])
    expected = spectrogram.clone()
    expected[:, 1:2] = 0.0
    assert torch.equal(functional.frequency_mask(spectrogram, band, band), expected)
    try:
        with gcsa_ext.use_backend("cpu"):
            module(x.float())
    except RuntimeError as error:
        print("forced:", error)
    """,
        path=tmp_path,
    )
    lines = printed.splitlines()
    count, message = lines[0].split(" ", 1)
    assert count == "1" and "plain PyTorch computes channel_gate, correct but slower" in message
    reason = "the compiled module gcsa_ext._C cannot be loaded: "
    assert reason in message and lines[1].startswith(reason)
    assert f"missing: {reason}" in printed
    assert "forced: channel_gate: backend 'cpu' is forced but cannot run: " + reason in printed
