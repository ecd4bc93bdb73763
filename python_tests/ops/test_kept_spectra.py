"""Spectra of weights that GCSA keeps from call to call in eval mode: the same bits, every change noticed."""

from __future__ import annotations

import copy
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from instruction_sets import ISAS, skip_unless_it_runs
from pairs import pair
from subprocesses import python
from torch import Tensor, nn

from gcsa_ext import GCSA, backends, functional

pytestmark = pytest.mark.usefixtures("only_for_inference")


@pytest.fixture
def only_for_inference() -> Iterator[None]:
    functional.release_workspace()
    with torch.no_grad():
        yield
    functional.release_workspace()


def convolutions(module: GCSA) -> tuple[nn.Conv2d, nn.Conv2d]:
    first, second = (module.spatial_attention[i] for i in (0, 3))
    assert isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d)
    return first, second


def anew(module: GCSA, x: Tensor) -> Tensor:
    """As if these weights had never been seen."""
    functional.release_workspace()
    result: Tensor = module(x)
    functional.release_workspace()
    return result


def keeps(module: GCSA, x: Tensor) -> bool:
    """Whether more memory is kept after several calls than after one."""
    functional.release_workspace()
    module(x)
    once = functional.release_workspace()
    for _ in range(3):
        module(x)
    return functional.release_workspace() > once


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("shape", "kernel_size"),
    [
        ((1, 64, 28, 28), 7),
        ((5, 48, 23, 9), 5),
        ((2, 20, 40, 61), 9),
        ((3, 8, 12, 70), 11),
        ((9, 64, 7, 7), 7),
    ],
)
def test_the_same_bits_in_every_call(
    shape: tuple[int, ...], kernel_size: int, threads: int, keep_threads: None
) -> None:
    torch.set_num_threads(threads)
    module, plain = pair(channels=shape[1], kernel_size=kernel_size)
    module.eval()
    x, y = torch.randn(shape), torch.randn(shape)
    expected = anew(module, x), anew(module, y)
    assert keeps(module, x)
    for _ in range(3):
        assert torch.equal(module(x), expected[0])
        assert torch.equal(module(y), expected[1])
    torch.testing.assert_close(expected[0], plain.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes_and_layouts(dtype: torch.dtype, layout: torch.memory_format) -> None:
    module = pair(dtype, channels=24)[0].eval().to(memory_format=layout)
    x = torch.randn(2, 24, 13, 18, dtype=dtype).contiguous(memory_format=layout)
    expected = anew(module, x)
    for _ in range(4):
        assert torch.equal(module(x), expected)
    # One module, several sizes of map: tiles of several sizes.
    for size in (7, 30, 41, 7):
        x = torch.randn(1, 24, size, size, dtype=dtype).contiguous(memory_format=layout)
        first = module(x)
        assert torch.equal(module(x), first) and torch.equal(module(x), first)
        assert torch.equal(anew(module, x), first)


def other_state(module: GCSA) -> None:
    module.load_state_dict(pair(channels=24)[0].state_dict())


def one_state_entry(module: GCSA) -> None:
    state = {k: v.clone() for k, v in module.state_dict().items()}
    state["spatial_attention.3.weight"][-1, -1, -1, -1] += 1
    module.load_state_dict(state)


def optimiser(kind: type[torch.optim.Optimizer]) -> Callable[[GCSA], None]:
    def change(module: GCSA) -> None:
        with torch.enable_grad():
            module(torch.randn(2, 24, 9, 9)).square().sum().backward()
        kind(module.parameters(), lr=0.1).step()
        module.zero_grad()

    return change


def data_product(module: GCSA) -> None:
    convolutions(module)[0].weight.data.mul_(1.5)


def data_element(module: GCSA) -> None:
    weight = convolutions(module)[1].weight.data
    weight.view(-1)[torch.randint(weight.numel(), ())] += 0.5


def first_element(module: GCSA) -> None:
    convolutions(module)[0].weight.data.view(-1)[0] += 0.5


def last_element(module: GCSA) -> None:
    convolutions(module)[0].weight.data.view(-1)[-1] += 0.5


def in_place(module: GCSA) -> None:
    convolutions(module)[1].weight.add_(0.1)


def numpy(module: GCSA) -> None:
    convolutions(module)[0].weight.detach().numpy()[3, 1] *= -1


def storage(module: GCSA) -> None:
    torch.empty(0).set_(convolutions(module)[1].weight.untyped_storage())[17] += 2


def signs(module: GCSA) -> None:
    for convolution in convolutions(module):
        convolution.weight.data.neg_()


def exchanged(module: GCSA) -> None:
    weight = convolutions(module)[0].weight
    weight.data.copy_(weight.data[torch.tensor([1, 0, *range(2, len(weight))])])


def rounded(module: GCSA) -> None:
    for convolution in convolutions(module):
        convolution.weight.data.copy_((convolution.weight * 1.1).bfloat16())


def other_data(module: GCSA) -> None:
    weight = convolutions(module)[1].weight
    weight.data = torch.randn_like(weight)


def other_parameter(module: GCSA) -> None:
    convolution = convolutions(module)[0]
    convolution.weight = nn.Parameter(torch.randn_like(convolution.weight))


def averaged(module: GCSA) -> None:
    for mine, other in zip(module.parameters(), pair(channels=24)[0].parameters(), strict=True):
        mine.data.lerp_(other.data, 0.3)


CHANGES = {
    "load_state_dict": other_state,
    "one entry of a state": one_state_entry,
    "SGD": optimiser(torch.optim.SGD),
    "AdamW": optimiser(torch.optim.AdamW),
    "data.mul_": data_product,
    "data[i]": data_element,
    "data[0]": first_element,
    "data[-1]": last_element,
    "in place": in_place,
    "numpy": numpy,
    "storage": storage,
    "signs": signs,
    "filters exchanged": exchanged,
    "bfloat16": rounded,
    "data =": other_data,
    "weight =": other_parameter,
    "moving average": averaged,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("calls", [1, 2, 4])
def test_every_change_is_noticed(change: Callable[[GCSA], None], calls: int) -> None:
    """After one call nothing is kept yet, the second one transforms, the others use that."""
    module = pair(channels=24)[0].eval()
    x = torch.randn(2, 24, 19, 19)
    for _ in range(3):
        for _ in range(calls):
            before = module(x)
        change(module)
        found = module(x)
        assert not torch.equal(found, before)
        assert torch.equal(found, copy.deepcopy(module)(x))
        assert torch.equal(module(x), found)
        assert torch.equal(module(x), found)


def test_copies_to_another_dtype() -> None:
    module = pair(channels=24)[0].eval()
    x = torch.randn(2, 24, 19, 19)
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float32, torch.bfloat16):
        module.to(dtype)
        expected = copy.deepcopy(module)(x.to(dtype))
        for _ in range(3):
            assert torch.equal(module(x.to(dtype)), expected)


def test_between_steps_of_training() -> None:
    module, plain = pair(channels=16)
    x = torch.randn(4, 16, 14, 15)
    optimisers = [torch.optim.SGD(m.parameters(), lr=1e-3) for m in (module, plain)]
    for _ in range(4):
        for m, optimizer in zip((module, plain), optimisers, strict=True):
            m.train()
            with torch.enable_grad():
                m(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            m.eval()
        for _ in range(3):
            torch.testing.assert_close(module(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [100, 300])
def test_many_modules_take_turns(count: int) -> None:
    """Of the same sizes, so that they differ in their weights only."""
    modules = [pair(channels=16)[0].eval() for _ in range(count)]
    x = torch.randn(1, 16, 11, 11)
    expected = [module(x) for module in modules]
    once = functional.release_workspace()
    for _ in range(4):
        for module, result in zip(modules, expected, strict=True):
            assert torch.equal(module(x), result)
    assert functional.release_workspace() > once + count * 40_000  # bytes of spectra


def test_freed_weights_and_others_in_their_place() -> None:
    x = torch.randn(1, 16, 11, 11)
    places = set()
    for _ in range(100):
        module, plain = pair(channels=16)
        places.add(convolutions(module)[0].weight.data_ptr())
        for _ in range(3):
            torch.testing.assert_close(module.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-5)
    assert len(places) < 100


def test_the_same_bytes_with_another_meaning() -> None:
    """Weights whose strides change while they lie where they lay."""
    module = pair(channels=24, kernel_size=5)[0].eval()
    x = torch.randn(2, 24, 19, 19)
    for _ in range(3):
        before = module(x)
    weight = convolutions(module)[0].weight
    inputs, k = weight.shape[1:3]
    weight.data = weight.data.as_strided(weight.shape, (inputs * k * k, 1, inputs * k, inputs))
    found = module(x)
    assert not torch.equal(found, before)
    torch.testing.assert_close(found, copy.deepcopy(module).to(memory_format=torch.contiguous_format)(x))
    assert torch.equal(module(x), found) and torch.equal(module(x), found)


def test_memory_is_bounded_and_given_back() -> None:
    modules = [GCSA(64).eval() for _ in range(90)]
    x = torch.randn(1, 64, 56, 56)
    for module in modules:
        expected = module(x)
        assert torch.equal(module(x), expected)
    resident = resident_bytes()
    kept = functional.release_workspace()
    workspace = 32 << 20
    assert 224 << 20 < kept < (256 << 20) + workspace
    assert resident is None or abs(resident - resident_bytes() - kept) < workspace
    assert functional.release_workspace() == 0
    assert torch.equal(module(x), expected)


def resident_bytes() -> int | None:
    """Of this process; None where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else None


def test_more_modules_than_are_kept() -> None:
    """Their number is bounded too."""
    x = torch.randn(1, 4, 7, 7)
    first = GCSA(4).eval()
    states = [torch.randn_like(convolutions(first)[0].weight) for _ in range(4200)]
    for state in states:
        convolutions(first)[0].weight.data = state
        assert torch.equal(first(x), first(x))
    for state in states[:20] + states[-20:]:
        convolutions(first)[0].weight.data = state
        assert torch.equal(first(x), anew(first, x))


def test_weights_that_are_converted_in_every_call_leave_nothing_behind() -> None:
    """Those of a module of bfloat16: they lie elsewhere when something else has taken the last place."""
    module = pair(torch.bfloat16, channels=64)[0].eval()
    x = torch.randn(1, 64, 28, 28, dtype=torch.bfloat16)
    expected = anew(module, x)
    held = []
    for i in range(60):
        assert torch.equal(module(x), expected)
        if i % 3 == 0:
            held.append(torch.zeros(convolutions(module)[0].weight.numel()))
    assert functional.release_workspace() < 16 << 20


def test_many_weights_are_not_kept() -> None:
    """Reading their spectra would take longer than to transform them."""
    assert keeps(GCSA(64).eval(), torch.randn(1, 64, 14, 14))
    assert not keeps(GCSA(256).eval(), torch.randn(1, 256, 14, 14))


def test_the_limit_is_for_benchmarks() -> None:
    module, x = GCSA(64).eval(), torch.randn(1, 64, 14, 14)
    before = backends.native.extension.keep_weights_up_to(-1)
    try:
        assert not keeps(module, x)
    finally:
        assert backends.native.extension.keep_weights_up_to(before) == -1
    assert keeps(module, x)


def test_from_several_python_threads(keep_threads: None) -> None:
    module = pair(channels=32)[0].eval()
    inputs = [torch.randn(1 + i % 3, 32, 15, 13) for i in range(4)]
    expected = [anew(module, x) for x in inputs]

    def call(i: int) -> Tensor:
        if i % 10 == 9:
            functional.release_workspace()
        torch.set_num_threads(1 + i % 2)
        with torch.no_grad():
            return module(inputs[i % 4])  # type: ignore[no-any-return]

    with ThreadPoolExecutor(4) as pool:
        for i, found in enumerate(pool.map(call, range(200))):
            assert torch.equal(found, expected[i % 4])


def test_threads_with_weights_of_their_own_at_the_same_place() -> None:
    """While some use what was kept, another call finds that the weights have changed."""
    module = pair(channels=32)[0].eval()
    x = torch.randn(1, 32, 15, 13)
    states = [copy.deepcopy(pair(channels=32)[0].state_dict()) for _ in range(3)]
    expected = []
    for state in states:
        module.load_state_dict(state)
        expected.append(anew(module, x))

    def call(_: int) -> Tensor:
        with torch.no_grad():
            return module(x)  # type: ignore[no-any-return]

    with ThreadPoolExecutor(4) as pool:
        for turn in range(12):
            module.load_state_dict(states[turn % 3])
            for found in pool.map(call, range(12)):
                assert torch.equal(found, expected[turn % 3])


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_change_during_a_call(call: int, one_thread: None) -> None:
    """Another thread writes to weights while they are kept: that call may see any of both, later ones not."""
    module = pair(channels=64)[0].eval()
    weight, x = convolutions(module)[0].weight, torch.randn(24, 64, 28, 28)
    for _ in range(3):
        functional.release_workspace()
        for _ in range(call - 1):
            module(x)
        begun = threading.Event()

        def write(begun: threading.Event = begun) -> None:
            begun.wait()
            time.sleep(0.003)
            weight.data.neg_()

        writer = threading.Thread(target=write)
        writer.start()
        begun.set()
        module(x)
        writer.join()
        expected = copy.deepcopy(module)(x)
        for _ in range(3):
            assert torch.equal(module(x), expected)


def test_a_fork_after_use() -> None:
    printed = python(
        f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import torch, gcsa_ext
        from gcsa_ext import functional
        from subprocesses import holds_in_a_fork
        torch.set_num_threads(2)
        module = gcsa_ext.GCSA(24).eval().requires_grad_(False)
        x = torch.randn(3, 24, 13, 11)
        expected = module(x)
        for _ in range(3):
            assert torch.equal(module(x), expected)
        def right():
            same = all(torch.allclose(module(x), expected, rtol=1e-4, atol=1e-4) for _ in range(3))
            module.spatial_attention[0].weight.data.neg_()
            changed = module(x)
            noticed = not torch.allclose(changed, expected, rtol=1e-4, atol=1e-4)
            return same and noticed and functional.release_workspace() > 0 and torch.equal(module(x), changed)
        assert holds_in_a_fork(right)
        assert torch.equal(module(x), expected)
        print("done")
        """
    )
    assert printed == "done"


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa: str) -> None:
    skip_unless_it_runs(isa)
    printed = python(
        f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import torch, gcsa_ext
        from test_kept_spectra import anew, keeps, pair
        torch.manual_seed(0)
        torch.set_grad_enabled(False)
        for dtype in (torch.float32, torch.float64):
            for channels, kernel, size in ((20, 7, (23, 17)), (32, 5, (9, 33)), (28, 11, (14, 14))):
                module = pair(dtype, channels=channels, kernel_size=kernel)[0].eval()
                x = torch.randn(3, channels, *size, dtype=dtype)
                expected = anew(module, x)
                assert keeps(module, x)
                for _ in range(3):
                    assert torch.equal(module(x), expected)
                module.spatial_attention[3].weight.data[0, :, 0, 0] += 1
                assert not torch.equal(module(x), expected)
        print(gcsa_ext.info()["isa"])
        """,
        GCSA_EXT_CPU_ISA=isa,
    )
    assert printed == isa
