"""The operator gcsa on the CPU with the options of published modules.

They are groups, replicate padding, unequal kernels, shuffled gates, no sigmoid and missing biases.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from gcsa_variants import Variant, check, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instruction_sets import ISAS, skip_unless_it_runs
from subprocesses import python

from gcsa_ext.backends.operands import DIFFERENTIABLE, Arguments

pytestmark = pytest.mark.usefixtures("one_thread")

FIELDS = Arguments._fields[:DIFFERENTIABLE]
VARIANTS = {
    "grouped, gate shuffled": Variant(conv_groups=(4, 4), gate_groups=4),
    "first grouped": Variant(conv_groups=(2, 1)),
    "second grouped": Variant(conv_groups=(1, 2), m=6),
    "groups of whole vectors": Variant((2, 128, 6, 5), m=64, conv_groups=(4, 4), gate_groups=4),
    "groups within a vector": Variant((2, 64, 8, 7), m=16, conv_groups=(4, 4), gate_groups=4),
    "merged groups": Variant((2, 128, 5, 6), m=32, conv_groups=(4, 4), gate_groups=4),
    "groups of odd sizes": Variant((2, 30, 7, 6), m=20, conv_groups=(10, 5), gate_groups=3),
    "one channel in each group": Variant((2, 17, 7, 6), m=17, conv_groups=(17, 17), gate_groups=17),
    "more hidden channels": Variant((2, 16, 7, 6), m=96, conv_groups=(2, 2), gate_groups=2),
    "gate shuffled": Variant((2, 36, 7, 6), gate_groups=3),
    "replicate": Variant(replicate=True),
    "replicate beyond the map": Variant((2, 12, 1, 2), kernels=(7, 5), replicate=True),
    "replicate, one point": Variant(
        (3, 12, 1, 1), kernels=(11, 3), conv_groups=(2, 2), replicate=True, batch=(False, False)
    ),
    "replicate, several tiles": Variant((1, 12, 70, 75), kernels=(7, 3), replicate=True),
    "replicate, a row of tiles": Variant((2, 12, 3, 130), kernels=(9, 7), replicate=True),
    "first 1x1": Variant(kernels=(1, 7)),
    "second 1x1": Variant(kernels=(7, 1), m=20),
    "both 1x1, long": Variant((2, 36, 30, 31), m=40, kernels=(1, 1), conv_groups=(4, 2), gate_groups=2),
    "3x3 and 11x11": Variant((2, 20, 20, 13), m=9, kernels=(3, 11)),
    "gates without sigmoid": Variant(sigmoid=False, gate_sigmoid=False, gate_groups=2),
    "no biases": Variant(biases=False, conv_biases=False, affine=False),
    "other hidden channels": Variant(h=5, m=7),
    "grouped, several tiles": Variant(
        (1, 32, 67, 45), m=16, kernels=(7, 7), conv_groups=(2, 2), gate_groups=2
    ),
    "one convolution in groups of tiles": Variant((4, 64, 40, 56), m=16, kernels=(7, 7), conv_groups=(4, 4)),
    "everything": Variant(
        (3, 24, 11, 14), 5, 12, (3, 7), (4, 3), 2, 6, False, False, True, False, False, batch=(True, False)
    ),
}


@pytest.mark.parametrize(
    ("dtype", "layout"),
    [
        (torch.float32, torch.contiguous_format),
        (torch.float32, torch.channels_last),
        (torch.float64, torch.contiguous_format),
        (torch.bfloat16, torch.channels_last),
    ],
    ids=str,
)
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_option(
    variant: Variant, dtype: torch.dtype, layout: torch.memory_format, calls: list[str]
) -> None:
    check(dataclasses.replace(variant, layout=layout), dtype)
    assert calls == ["gcsa", "gcsa_backward", "gcsa"]


@pytest.mark.parametrize("batch", [(False, False), (False, True), (True, False)], ids=str)
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_given_statistics(variant: Variant, batch: tuple[bool, bool]) -> None:
    check(dataclasses.replace(variant, batch=batch))


@pytest.mark.parametrize(("threads", "N"), [(2, 5), (3, 1)])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_threads(variant: Variant, threads: int, N: int) -> None:
    """The same number of threads gives the same bits."""
    torch.set_num_threads(threads)
    other = dataclasses.replace(variant, shape=(N, *variant.shape[1:]))
    torch.manual_seed(0)
    first = check(other)
    torch.manual_seed(0)
    second = check(other)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "needed", [(name,) for name in FIELDS] + [("x", "w1"), ("conv1_weight", "conv2_bias")], ids=str
)
@pytest.mark.parametrize("name", ["everything", "grouped, gate shuffled", "first 1x1", "replicate"])
def test_some_gradients(name: str, needed: tuple[str, ...]) -> None:
    variant = dataclasses.replace(VARIANTS[name], biases=True, conv_biases=True)
    check(variant, need=[field in needed for field in FIELDS])


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


@st.composite
def variants(draw: st.DrawFn) -> Variant:
    C, m = (
        draw(st.sampled_from([1, 2, 6, 12, 16, 32, 33, 48, 64])),
        draw(st.sampled_from([1, 3, 8, 12, 16, 32, 40])),
    )
    common = _divisors(math.gcd(C, m))
    return Variant(
        (draw(st.integers(1, 3)), C, draw(st.integers(1, 24)), draw(st.integers(1, 24))),
        draw(st.integers(1, 9)),
        m,
        (draw(st.sampled_from([1, 3, 5, 7, 9, 11])), draw(st.sampled_from([1, 3, 5, 7, 9, 11]))),
        (draw(st.sampled_from(common)), draw(st.sampled_from(common))),
        draw(st.sampled_from(_divisors(C))),
        draw(st.sampled_from(_divisors(C))),
        sigmoid=draw(st.booleans()),
        gate_sigmoid=draw(st.booleans()),
        replicate=draw(st.booleans()),
        biases=draw(st.booleans()),
        conv_biases=draw(st.booleans()),
        affine=draw(st.booleans()),
        batch=(False, False),  # of few positions the statistics are too near to a division by zero
        layout=draw(st.sampled_from([torch.contiguous_format, torch.channels_last])),
    )


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(variants())
def test_random_variants(variant: Variant) -> None:
    torch.manual_seed(0)
    check(variant, torch.float64)


@pytest.mark.parametrize("name", VARIANTS)
def test_gradcheck(name: str) -> None:
    variant = VARIANTS[name]
    _, C, H, W = variant.shape
    if C > 40 or H * W > 300:
        variant = dataclasses.replace(variant, shape=(1, C, min(H, 4), min(W, 3)))
    a = variant.arguments(torch.float64)
    inputs = [v if v is None else v.requires_grad_() for v in a.differentiable]
    assert torch.autograd.gradcheck(
        lambda *t: torch.ops.gcsa_ext.gcsa(*t, *a[DIFFERENTIABLE:])[0],
        inputs,
        fast_mode=True,
        atol=1e-4,
        rtol=1e-3,
    )


@pytest.mark.parametrize(
    "name", ["everything", "groups within a vector", "replicate, several tiles", "both 1x1, long"]
)
def test_samples_are_independent(name: str) -> None:
    variant = dataclasses.replace(VARIANTS[name], batch=(False, False))
    variant = dataclasses.replace(variant, shape=(3, *variant.shape[1:]))
    a, grad = variant.arguments(), torch.randn(variant.shape)
    spoilt = a.x.clone()
    spoilt[1] = torch.nan
    first, second = (torch.ops.gcsa_ext.gcsa_inference(*call) for call in (a, a._replace(x=spoilt)))
    assert second[1].isnan().all()
    assert torch.equal(first[[0, 2]], second[[0, 2]])
    need = [True, *12 * [False]]
    grads = [
        run(a, "cpu", g, need)["gradient of x"]
        for g in (grad, grad * torch.tensor([1.0, 7.0, 1.0])[:, None, None, None])
    ]
    assert torch.equal(grads[0][[0, 2]], grads[1][[0, 2]])


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa: str) -> None:
    skip_unless_it_runs(isa)
    printed = python(
        """
        import dataclasses, torch, gcsa_ext
        from gcsa_variants import Variant, check
        sizes = (((2, 64, 7, 9), 16, (4, 4)), ((1, 64, 20, 9), 32, (2, 4)), ((2, 24, 5, 6), 12, (4, 3)))
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            for shape, m, conv_groups in sizes:
                for layout in (torch.contiguous_format, torch.channels_last):
                    torch.manual_seed(0)
                    grouped = Variant(shape, m=m, conv_groups=conv_groups, gate_groups=4, layout=layout)
                    check(grouped, dtype)
                    check(dataclasses.replace(grouped, kernels=(1, 7), gate_sigmoid=False), dtype)
                    check(dataclasses.replace(grouped, kernels=(3, 5), replicate=True, biases=False), dtype)
        print(gcsa_ext.info()["isa"])
        """,
        GCSA_EXT_CPU_ISA=isa,
        OMP_NUM_THREADS="1",
    )
    assert printed == isa
