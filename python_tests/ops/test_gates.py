"""channel_gate and norm_gate against their definition: values, gradients, layouts, NaN, threads."""

from __future__ import annotations

import math

import pytest
import torch
from accuracy import assert_as_accurate
from devices import every_backend, every_backend_and_dtype, every_device
from gate_checks import (
    channel_gate_arguments,
    check,
    gate,
    norm,
    norm_gate_arguments,
    run,
    statistics,
    widened,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import DTYPES, LAYOUTS, SIZES, expected_format
from torch import Tensor

from gcsa_ext import functional, reference

pytestmark = pytest.mark.usefixtures("one_thread")


@every_device
@every_backend_and_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_channel_gate(shape: tuple[int, ...], layout: str, dtype: torch.dtype, backend: str) -> None:
    x = LAYOUTS[layout](shape, dtype)
    C = shape[1]
    for groups, hidden in {(1, max(1, C // 4)), (2 if C % 2 == 0 else C, 1), (4 if C % 4 == 0 else 1, 5)}:
        out = check(*gate(groups), channel_gate_arguments(x, hidden))
        assert out.is_contiguous(memory_format=expected_format(x))


@every_device
@every_backend_and_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_norm_gate(shape: tuple[int, ...], layout: str, dtype: torch.dtype, backend: str) -> None:
    kinds = [statistics(shape[1], dtype)]
    if shape[0] * shape[2] * shape[3] > 1:
        kinds.append((None, None))
    for mean_and_var in kinds:
        for affine in (True, False):
            arguments = norm_gate_arguments(layout, shape, dtype, affine)
            if layout == "expanded" and mean_and_var[0] is None and shape[3] == 1:
                continue  # constant channels: the variance is 0 but for rounding, which eps does not hide
            out = check(*norm(*mean_and_var), arguments)
            assert out.is_contiguous(memory_format=expected_format(arguments[1]))


@every_device
@every_backend
@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_number_of_groups(groups: int, layout: str) -> None:
    check(*gate(groups), channel_gate_arguments(LAYOUTS[layout]((2, 12, 3, 5), torch.float32), 3))


@every_device
@pytest.mark.parametrize("hidden", [1, 2, 6, 7, 16, 17, 40])
@every_backend_and_dtype
def test_every_width_of_the_hidden_layer(hidden: int, dtype: torch.dtype, backend: str) -> None:
    check(*gate(2), channel_gate_arguments(torch.randn(2, 10, 7, 11, dtype=dtype), hidden))


@every_device
@every_backend_and_dtype
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_channel_gate_without_sigmoid(layout: str, dtype: torch.dtype, backend: str) -> None:
    arguments = channel_gate_arguments(LAYOUTS[layout]((3, 17, 4, 5), dtype), 4)
    check(*gate(1, sigmoid=False), arguments)
    with_sigmoid, without = (reference.channel_gate(*arguments, 1, s) for s in (True, False))
    assert not torch.allclose(with_sigmoid, without)


@every_device
@every_backend
@pytest.mark.parametrize("wanted", [[0], [1], [2], [3], [4], [0, 3], [1, 2, 4]], ids=str)
def test_channel_gate_with_some_gradients_only(wanted: list[int]) -> None:
    check(*gate(4), channel_gate_arguments(torch.randn(2, 8, 5, 7), 3), wanted)


@every_device
@every_backend
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("wanted", [[0], [1], [2], [3], [0, 1], [1, 3], [2, 3]], ids=str)
def test_norm_gate_with_some_gradients_only(wanted: list[int], layout: str, training: bool) -> None:
    mean_and_var = (None, None) if training else statistics(9, torch.float32)
    check(*norm(*mean_and_var), norm_gate_arguments(layout, (2, 9, 5, 7), torch.float32), wanted)


@pytest.mark.parametrize("u_layout", LAYOUTS)
@pytest.mark.parametrize("z_layout", ["contiguous", "channels_last", "sliced"])
def test_norm_gate_of_two_layouts(u_layout: str, z_layout: str) -> None:
    u, z = LAYOUTS[u_layout]((2, 5, 4, 6), torch.float32), LAYOUTS[z_layout]((2, 5, 4, 6), torch.float32)
    out = check(*norm(), [u, z, torch.randn(5), torch.randn(5)])
    assert out.is_contiguous(memory_format=expected_format(z))


@every_backend
def test_norm_gate_of_two_dtypes_has_the_wider() -> None:
    u, z = torch.randn(2, 5, 4, 6, dtype=torch.bfloat16), torch.randn(2, 5, 4, 6)
    found = functional.norm_gate(u, z, training=True)
    assert found.dtype == torch.float32
    assert torch.equal(found, functional.norm_gate(u.float(), z, training=True))


@pytest.mark.parametrize("backend", ["cpu", "triton", "cuda", "reference"], indirect=True)
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_norm_gate_of_bfloat16_maps_with_vectors_of_any_dtype(
    dtype: torch.dtype, create_graph: bool, backend: str
) -> None:
    u, z, *_ = norm_gate_arguments("contiguous", (2, 5, 4, 6), torch.bfloat16)
    weight, bias = (torch.randn(5, dtype=dtype, requires_grad=True) for _ in range(2))
    out = functional.norm_gate(u, z, weight, bias, training=True)
    weight.grad, bias.grad = torch.autograd.grad(out.sum(), (weight, bias), create_graph=create_graph)
    exact = reference.norm_gate(u.double(), z.double(), weight.double(), bias.double(), None, None, 1e-5)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), exact, rtol=2.0**-8, atol=2.0**-9)
    assert weight.grad.dtype == bias.grad.dtype == dtype


@every_device
@every_backend
def test_running_statistics_may_change_before_the_backward_pass() -> None:
    """Some losses run an evaluation pass, a training pass, and then backward through the first."""
    u, z, weight, bias = norm_gate_arguments("contiguous", (2, 5, 4, 6), torch.float32)
    u.requires_grad_()
    mean, var = torch.randn(5), torch.rand(5) + 0.5
    (expected,) = torch.autograd.grad(functional.norm_gate(u, z, weight, bias, mean, var).sum(), u)
    out = functional.norm_gate(u, z, weight, bias, mean, var)
    functional.norm_gate(u.detach(), z, weight, bias, mean, var, training=True)
    (found,) = torch.autograd.grad(out.sum(), u)
    assert torch.equal(found, expected)


@every_device
@every_backend
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_norm_gate_of_values_far_from_zero(layout: str) -> None:
    """The variance survives a mean that is 1000 times the deviation."""
    u = (torch.randn(4, 6, 9, 11) + 1000).contiguous(
        memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format
    )
    check(*norm(), [u, torch.randn(4, 6, 9, 11), torch.randn(6), torch.randn(6)])


@every_backend
def test_the_mean_of_either_layout_is_as_exact_as_the_other() -> None:
    """A float sum along the channels_last rows would lose digits that the contiguous one keeps."""
    u = torch.randn(8, 5, 16, 16) * 0.1 + torch.tensor([3.0, -10.0, 0.0, 30.0, 100.0]).view(5, 1, 1)
    z, exact = torch.ones_like(u), u.double().mean((0, 2, 3))
    for layout in (torch.contiguous_format, torch.channels_last):
        mean, var = torch.zeros(5), torch.zeros(5)
        functional.norm_gate(
            u.contiguous(memory_format=layout),
            z.contiguous(memory_format=layout),
            None,
            None,
            mean,
            var,
            True,
            1.0,
        )
        torch.testing.assert_close(mean.double(), exact, rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(var.double(), u.double().var((0, 2, 3)), rtol=1e-6, atol=0)


def test_gates_of_large_and_small_values() -> None:
    """The sigmoid saturates without overflow and keeps its tail."""
    v = torch.tensor([0.0, -0.0, 1e-30, 1.0, -1.0, 20.0, -20.0, 80.0, -80.0, 200.0, -200.0, 3e38, -3e38])
    for dtype in (torch.float32, torch.float64):
        u = v.to(dtype).view(1, 1, 1, -1).repeat(1, 2, 2, 1)
        ones = torch.ones_like(u)
        found = functional.norm_gate(u, ones, running_mean=torch.zeros(2), running_var=torch.ones(2), eps=0.0)
        exact = torch.sigmoid(u.double())
        relative = 1e-6 if dtype == torch.float32 else 1e-14
        torch.testing.assert_close(found.double(), exact, rtol=relative, atol=1e-37)


@every_device
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@every_backend_and_dtype
def test_not_finite_values_stay_where_the_definition_puts_them(
    dtype: torch.dtype, backend: str, layout: str, value: float
) -> None:
    x = LAYOUTS[layout]((2, 9, 3, 5), dtype)
    x[1, 4, 2, 3] = value
    fused, plain = gate(3)
    arguments = channel_gate_arguments(x, 2)
    assert_as_accurate(fused(*arguments), plain(*arguments), plain(*widened(arguments)))
    grad = torch.randn(2, 9, 3, 5)
    found, expected = (run(f, arguments, [0, 1, 2, 3, 4], grad)[1] for f in (fused, plain))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.isnan(), b.isnan())
    for mean_and_var in (statistics(9, dtype), (None, None)):
        fused, plain = norm(*mean_and_var)
        for number in (0, 1):
            arguments = norm_gate_arguments(layout, (2, 9, 3, 5), dtype)
            arguments[number] = x
            found, expected = (run(f, arguments, [0, 1, 2, 3], grad) for f in (fused, plain))
            assert torch.equal(found[0].isnan(), expected[0].isnan())
            for a, b in zip(found[1], expected[1], strict=True):
                assert torch.equal(a.isnan(), b.isnan())


@every_device
@every_backend
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("argument", [1, 2, 3, 4])
def test_not_finite_weights_stay_where_the_definition_puts_them(argument: int, value: float) -> None:
    arguments = channel_gate_arguments(torch.randn(1, 4, 3, 3), 2)
    arguments[argument].view(-1)[1] = value
    grad = torch.randn(1, 4, 3, 3)
    fused, plain = (run(f, arguments, [0, 1, 2, 3, 4], grad) for f in gate(2))
    assert torch.equal(fused[0].isnan(), plain[0].isnan())
    for found, expected in zip(fused[1], plain[1], strict=True):
        assert torch.equal(found.isnan(), expected.isnan())


@every_device
@pytest.mark.parametrize("shape", [(0, 8, 3, 5), (2, 8, 0, 5), (2, 8, 3, 0), (0, 8, 0, 0)], ids=str)
@every_backend_and_dtype
def test_empty_maps(shape: tuple[int, ...], dtype: torch.dtype, backend: str) -> None:
    arguments = [a.requires_grad_() for a in channel_gate_arguments(torch.randn(shape, dtype=dtype), 3)]
    functional.channel_gate(*arguments, 4).sum().backward()
    for a in arguments:
        assert a.grad is not None and torch.equal(a.grad, torch.zeros_like(a))
    for training in (True, False):
        u, z, weight, bias = (a.requires_grad_() for a in norm_gate_arguments("contiguous", shape, dtype))
        mean, var = statistics(8, dtype)
        before = mean.clone(), var.clone()
        out = functional.norm_gate(u, z, weight, bias, mean, var, training=training)
        assert out.shape == shape
        out.sum().backward()
        for a in (u, z, weight, bias):
            assert a.grad is not None and torch.equal(a.grad, torch.zeros_like(a))
        assert torch.equal(mean, before[0]) and torch.equal(var, before[1])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_expanded_and_strided_gradients(layout: str) -> None:
    """The gradient of sum() is one expanded number; that of permute() is strided."""
    shape = (2, 6, 4, 5)
    scale = torch.randn(5, 4, 6, 2, dtype=torch.float64)
    for fused, plain, arguments in (
        (*gate(3), channel_gate_arguments(LAYOUTS[layout](shape, torch.float64), 2)),
        (*norm(), norm_gate_arguments(layout, shape, torch.float64)),
    ):
        for reduce in (
            torch.sum,
            lambda out: (out.permute(3, 2, 1, 0) * scale).sum(),
            lambda out: out[:, 1:4].sum(),
        ):
            grads = []
            for function in (fused, plain):
                leaves = [a.detach().requires_grad_() for a in arguments]
                grads.append(torch.autograd.grad(reduce(function(*leaves)), leaves))
            torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-13)


@every_device
@every_backend
@pytest.mark.parametrize("training", [True, False])
def test_running_statistics(training: bool) -> None:
    u, z = torch.randn(3, 7, 4, 5) * 2 + 1, torch.randn(3, 7, 4, 5)
    mean, var = statistics(7, torch.float32)
    expected_mean, expected_var = mean.clone(), var.clone()
    functional.norm_gate(u, z, None, None, mean, var, training=training, momentum=0.3)
    torch.nn.functional.batch_norm(u, expected_mean, expected_var, None, None, training, 0.3)
    torch.testing.assert_close((mean, var), (expected_mean, expected_var))


def every_result(count: int) -> list[Tensor]:
    torch.set_num_threads(count)
    torch.manual_seed(3)
    results = []
    for layout in ("contiguous", "channels_last"):
        for dtype in (torch.float32, torch.bfloat16):
            arguments = channel_gate_arguments(LAYOUTS[layout]((3, 33, 11, 13), dtype), 7)
            grad = torch.randn(3, 33, 11, 13)
            out, grads = run(gate(11)[0], arguments, range(5), grad)
            results += [out, *grads]
            out, grads = run(norm()[0], norm_gate_arguments(layout, (3, 33, 11, 13), dtype), range(4), grad)
            results += [out, *grads]
    return results


def test_threads_change_nothing_but_the_order_of_sums() -> None:
    one = every_result(1)
    for count in (2, 3, 5):
        many = every_result(count)
        for a, b in zip(one, many, strict=True):
            torch.testing.assert_close(b, a, rtol=2e-6 if a.dtype == torch.float32 else 2.0**-7, atol=2e-5)
        for a, b in zip(every_result(count), many, strict=True):
            assert torch.equal(a, b), "the same number of threads must give the same bits"


@every_device
@every_backend
def test_inputs_are_not_changed() -> None:
    for fused, arguments in (
        (gate(2)[0], channel_gate_arguments(torch.randn(2, 8, 5, 3), 3)),
        (norm()[0], norm_gate_arguments("channels_last", (2, 8, 5, 3), torch.float32)),
    ):
        before = [a.clone() for a in arguments]
        run(fused, arguments, range(len(arguments)), torch.randn(2, 8, 5, 3))
        for a, b in zip(arguments, before, strict=True):
            assert torch.equal(a, b)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_shape_and_stride(data: st.DataObject) -> None:
    draw = data.draw
    torch.set_num_threads(draw(st.integers(1, 3)))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    groups, per_group = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    N, C, H, W = (
        draw(st.integers(1, 3)),
        groups * per_group,
        draw(st.integers(1, 9)),
        draw(st.integers(1, 19)),
    )
    dtype = draw(st.sampled_from(DTYPES))

    def any_map() -> Tensor:
        order = draw(st.permutations(range(4)))
        steps = [draw(st.integers(1, 2)) for _ in range(4)]
        sizes = [size * step for size, step in zip((N, C, H, W), steps, strict=True)]
        stored = torch.randn([sizes[i] for i in order], dtype=dtype)
        x = stored.permute([order.index(i) for i in range(4)])
        x = x[tuple(slice(step - 1, None, step) for step in steps)]
        assert x.shape == (N, C, H, W)
        return x

    check(*gate(groups, draw(st.booleans())), channel_gate_arguments(any_map(), draw(st.integers(1, 9))))
    mean_and_var = (None, None) if N * H * W > 4 and draw(st.booleans()) else statistics(C, dtype)
    check(
        *norm(*mean_and_var), [any_map(), any_map(), torch.randn(C, dtype=dtype), torch.randn(C, dtype=dtype)]
    )
