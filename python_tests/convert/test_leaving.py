"""Fused networks leave as graphs: ONNX, torch.export, traces and torch.fx have the plain layers alone."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from leaving import CHANNELS, FUSED, MAKERS, Net, WithMasking, network, operators_called, plain_and_fused
from torch import Tensor, nn

import gcsa_ext

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is deprecated:DeprecationWarning"),
    # Of torch's exporters themselves:
    pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\). is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based ONNX:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning"),
]
every_network = pytest.mark.parametrize("name", list(MAKERS))
fused_networks = pytest.mark.parametrize("name", FUSED)


def sizes() -> tuple[Tensor, Tensor]:
    """Two batches of images that differ in number, height and width."""
    return torch.randn(2, 3, 11, 9), torch.randn(3, 3, 8, 13)


def dynamic_shapes() -> tuple[dict[int, Any]]:
    return ({axis: torch.export.Dim(name) for axis, name in ((0, "batch"), (2, "height"), (3, "width"))},)


def domains(model: onnx.ModelProto) -> set[str]:
    """The domains of all operators of an ONNX file; "" is that of the standard."""
    nodes = list(model.graph.node)
    for function in model.functions:
        nodes += function.node
    return {node.domain for node in nodes}


def convolutions(graph: torch.fx.Graph) -> int:
    return sum("conv" in str(node.target) for node in graph.nodes if node.op == "call_function")


def test_the_operators_compute_outside_of_exports() -> None:
    for name in MAKERS:
        assert operators_called(plain_and_fused(name)[1], sizes()[0]) == ["gcsa_inference"]


@every_network
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "TorchScript"])
def test_onnx(name: str, dynamo: bool, dynamic: bool, tmp_path: Path) -> None:
    plain, fused = plain_and_fused(name)
    first, other = sizes()
    file = tmp_path / "model.onnx"
    options: dict[str, Any] = {"verbose": False} if dynamo else {}
    if dynamic and dynamo:
        options["dynamic_shapes"] = dynamic_shapes()
    elif dynamic:
        options["dynamic_axes"] = {"x": {0: "batch", 2: "height", 3: "width"}}
    torch.onnx.export(fused, (first,), file, dynamo=dynamo, input_names=["x"], **options)
    assert domains(onnx.load(file)) == {""}
    session = onnxruntime.InferenceSession(file)
    for x in (first, other) if dynamic else (first,):
        (found,) = session.run(None, {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), plain(x), rtol=1e-5, atol=1e-5)
    assert operators_called(fused, first) == ["gcsa_inference"], "fused again after the export"


@every_network
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("strict", [False, True], ids=["not strict", "strict"])
def test_export(name: str, strict: bool, training: bool) -> None:
    plain, fused = (model.train(training) for model in plain_and_fused(name))
    first, other = sizes()
    program = torch.export.export(fused, (first,), strict=strict, dynamic_shapes=dynamic_shapes())
    for graph in (program, program.run_decompositions()):
        assert "gcsa_ext" not in str([node.target for node in graph.graph.nodes])
        assert convolutions(graph.graph) == 3, "the stem's, and two of the attention"
        exported, expected = graph.module(), copy.deepcopy(plain)
        for x in (first, other):
            results = []
            for model in (exported, expected):
                torch.manual_seed(1)  # of the masking
                results.append(model(x))
            torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@every_network
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_trace(name: str, training: bool) -> None:
    plain, fused = (model.train(training) for model in plain_and_fused(name))
    first, other = sizes()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # A second trace for comparison would mask other bands.
        random = training and isinstance(fused, WithMasking)
        traced = torch.jit.trace(fused, first, check_trace=not random)
    by_tracer = [w for w in caught if issubclass(w.category, torch.jit.TracerWarning)]
    assert [w for w in by_tracer if Path(gcsa_ext.__file__).parent in Path(w.filename).parents] == []
    if not training:  # in training torch's own batch norm warns
        assert by_tracer == []
    kinds = {node.kind() for node in traced.inlined_graph.nodes()}
    assert "aten::_convolution" in kinds and not any(kind.startswith("gcsa_ext") for kind in kinds)
    if not training:
        for x in (first, other):
            torch.testing.assert_close(traced(x), plain(x), rtol=1e-5, atol=1e-5)


@every_network
def test_symbolic_trace(name: str) -> None:
    plain, fused = plain_and_fused(name)
    graph = torch.fx.symbolic_trace(fused)
    layers = [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    types = [type(fused.get_submodule(layer)) for layer in layers]
    assert [types.count(kind) for kind in (nn.Linear, nn.Conv2d, nn.BatchNorm2d)] == [3, 3, 2]
    assert "gcsa_ext" not in graph.code
    for x in sizes():
        torch.testing.assert_close(graph(x), plain(x), rtol=1e-5, atol=1e-5)


@fused_networks
def test_symbolic_trace_of_the_attention_itself(name: str) -> None:
    plain, fused = (model.attention for model in plain_and_fused(name))
    x = torch.randn(2, CHANNELS, 7, 6)
    torch.testing.assert_close(torch.fx.symbolic_trace(fused)(x), plain(x), rtol=1e-5, atol=1e-5)


def test_symbolic_trace_of_a_training_mask_is_refused() -> None:
    """Its bands depend on the size of the spectrogram, which torch.fx does not know."""
    with pytest.raises(torch.fx.proxy.TraceError, match="control flow"):
        torch.fx.symbolic_trace(gcsa_ext.FrequencyMasking(4))


@every_network
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_compile(name: str, training: bool) -> None:
    plain, fused = (model.train(training) for model in plain_and_fused(name))
    operators: list[str] = []

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        operators.extend(str(n.target) for n in module.graph.nodes if "gcsa_ext.gcsa" in str(n.target))
        return module

    x = sizes()[0]
    compiled = torch.compile(fused, backend=backend, fullgraph=True)
    results = []
    for model in (compiled, plain):
        torch.manual_seed(1)
        results.append(model(x))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert operators == ["gcsa_ext.gcsa.default"]
    for a, b in zip(fused.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
@fused_networks
def test_script_after_restoring(name: str) -> None:
    """TorchScript compiles the source of `forward`, so it refuses a fused forward pass."""
    plain, fused = plain_and_fused(name)
    with pytest.raises(torch.jit.frontend.NotSupportedError, match="variable number of arguments"):
        torch.jit.script(fused)
    assert gcsa_ext.restore_attention(fused) == 1
    scripted = torch.jit.script(fused)
    for x in sizes():
        torch.testing.assert_close(scripted(x), plain(x), rtol=1e-5, atol=1e-5)


@fused_networks
def test_exports_of_a_class_that_is_fused(name: str) -> None:
    """The class's forward pass, too, steps aside, whether its objects are fused already or not."""
    plain = network(name)
    kind = type(plain.attention)
    x = sizes()[0]
    assert gcsa_ext.replace_attention(kind) == 1
    try:
        new = MAKERS[name]().eval()
        new.load_state_dict(plain.state_dict())
        for model in (new, copy.deepcopy(plain)):
            program = torch.export.export(model, (x,))
            assert convolutions(program.graph) == 3
            assert "gcsa_ext" not in str([node.target for node in program.graph.nodes])
            graph = torch.fx.symbolic_trace(copy.deepcopy(model))
            torch.testing.assert_close(graph(x), program.module()(x), rtol=1e-5, atol=1e-5)
        assert isinstance(new, Net) and operators_called(new, x) == ["gcsa_inference"]
    finally:
        assert gcsa_ext.restore_attention(kind) == 1
    torch.testing.assert_close(new(x), plain(x), rtol=1e-5, atol=1e-5)
