"""FrequencyMasking, TimeMasking and SpecAugment: the bits of torchaudio's, and what they add to them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torchaudio
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gcsa_ext import FrequencyMasking, SpecAugment, TimeMasking, backends, functional

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


MODULES: tuple[type[nn.Module], ...] = (FrequencyMasking, TimeMasking, SpecAugment)


def both(
    spectrogram: Tensor, seed: int, *args: Any, kind: type[nn.Module] = FrequencyMasking, **kwargs: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The results of gcsa_ext's and torchaudio's module `kind`, and the random state after each."""
    results, states = [], []
    for module in (kind, getattr(torchaudio.transforms, kind.__name__)):
        torch.manual_seed(seed)
        results.append(module(*args, **kwargs)(spectrogram.clone()))
        states.append(torch.get_rng_state())
    return *results, *states


def make(kind: type[nn.Module], **options: Any) -> nn.Module:
    """A module whose bands are at most 30 wide, with two bands of either kind if it is a SpecAugment."""
    return kind(2, 30, 2, 30, **options) if kind is SpecAugment else kind(30, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "param", "iid"),
    [
        ((30, 13), 12, False),
        ((2, 30, 13), 12, False),
        ((3, 1, 41, 7), 20, False),
        ((3, 2, 9, 5), 30, False),  # wider bands than there are bins
        ((3, 30, 13), 12, True),
        ((3, 2, 41, 7), 20, True),
        ((2, 2, 9, 5), 30, True),
        ((2, 3, 1, 4), 1, True),
    ],
    ids=str,
)
def test_bits_of_torchaudio(shape: tuple[int, ...], param: int, iid: bool, dtype: torch.dtype) -> None:
    spectrogram = torch.randn(shape, dtype=dtype)
    masked = 0
    for seed in range(60):
        found, expected, state, expected_state = both(spectrogram, seed, param, iid_masks=iid)
        assert torch.equal(found, expected), seed
        assert torch.equal(state, expected_state), seed
        masked += int((found == 0).sum())
    assert masked > 0 or param == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "param", "iid"),
    [
        ((13, 30), 12, False),
        ((3, 1, 7, 41), 20, False),
        ((3, 2, 5, 9), 30, False),  # wider bands than there are frames
        ((3, 13, 30), 12, True),
        ((2, 2, 5, 9), 30, True),
        ((2, 3, 4, 1), 1, True),
    ],
    ids=str,
)
@pytest.mark.parametrize("p", [1.0, 0.3, 0.01])
def test_time_masking_has_the_bits_of_torchaudio(
    p: float, shape: tuple[int, ...], param: int, iid: bool, dtype: torch.dtype
) -> None:
    spectrogram = torch.randn(shape, dtype=dtype)
    masked = 0
    for seed in range(30):
        found, expected, *states = both(spectrogram, seed, param, iid, p, kind=TimeMasking)
        assert torch.equal(found, expected), seed
        assert torch.equal(*states), seed
        masked += int((found == 0).sum())
    assert masked > 0 or param == 1 or p == 0.01


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(40, 50), (1, 40, 50), (3, 2, 40, 50), (2, 2, 9, 4)], ids=str)
@pytest.mark.parametrize("iid", [True, False])
@pytest.mark.parametrize("zero", [True, False])
def test_spec_augment_has_the_bits_of_torchaudio(
    zero: bool, iid: bool, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    spectrogram = torch.randn(shape, dtype=dtype)
    changed = 0
    for bands in ((1, 1), (3, 2), (2, 0), (0, 2), (0, 0)):
        for p in (1.0, 0.3, 0.01):
            for seed in range(4):
                options = {"iid_masks": iid, "p": p, "zero_masking": zero, "kind": SpecAugment}
                found, expected, *states = both(spectrogram, seed, bands[0], 20, bands[1], 12, **options)
                assert torch.equal(found, expected), (bands, p, seed)
                assert torch.equal(*states), (bands, p, seed)
                changed += int((found != spectrogram).sum())
    assert changed > 0


@pytest.mark.parametrize("iid", [True, False])
def test_spec_augment_masks_in_one_pass(iid: bool) -> None:
    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.shape == spectrogram.shape:
                seen.append(str(func))
            return out

    spectrogram = torch.randn(3, 2, 40, 50)
    with Mode():
        SpecAugment(3, 20, 2, 12, iid_masks=iid)(spectrogram)
    assert seen == ["gcsa_ext.spectrogram_mask.default"]


@pytest.mark.parametrize("iid", [True, False])
def test_bands_of_both_kinds_are_those_of_either_kind(iid: bool) -> None:
    spectrogram = torch.randn(3, 2, 40, 50)
    torch.manual_seed(6)
    found = functional.random_spectrogram_mask(spectrogram, 20, 12, 3, 2, iid, -1.0)
    torch.manual_seed(6)
    expected = functional.random_time_mask(spectrogram, 20, 3, iid, -1.0)
    expected = functional.random_frequency_mask(expected, 12, 2, iid, -1.0, inplace=True)
    assert torch.equal(found, expected) and (found == -1.0).any()


@pytest.mark.parametrize("iid", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_through_the_mean(dtype: torch.dtype, iid: bool) -> None:
    """The mean with which SpecAugment masks depends on every element."""
    spectrogram, grads = torch.randn(3, 2, 40, 50, dtype=dtype), []
    grad = torch.randn(3, 2, 40, 50, dtype=dtype)
    tolerance = {"rtol": 1e-2, "atol": 1e-3} if dtype == torch.bfloat16 else {}
    for kind in (SpecAugment, torchaudio.transforms.SpecAugment):
        torch.manual_seed(6)
        leaf = spectrogram.clone().requires_grad_()
        kind(2, 20, 2, 12, iid_masks=iid)(leaf).backward(grad)
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads, **tolerance)
    torch.manual_seed(6)
    leaf = spectrogram.clone().requires_grad_()
    SpecAugment(2, 20, 2, 12, iid_masks=iid, inplace=True)(leaf * 1).backward(grad)
    torch.testing.assert_close(leaf.grad, grads[0], **tolerance)


def test_gradient_of_a_mask_value() -> None:
    spectrogram, grads = torch.randn(3, 2, 40, 50), []
    for kind in (TimeMasking, torchaudio.transforms.TimeMasking):
        torch.manual_seed(6)
        value = torch.tensor(0.5, requires_grad=True)
        out = kind(20, iid_masks=True)(spectrogram, value)
        out.square().sum().backward()
        grads.append((out, value.grad))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("kind", MODULES)
def test_other_memory_layouts(kind: type[nn.Module]) -> None:
    arguments = (2, 12, 2, 25) if kind is SpecAugment else (25,)
    for spectrogram in (
        torch.randn(2, 2, 9, 30).transpose(-1, -2),
        torch.randn(2, 3, 30, 9).contiguous(memory_format=torch.channels_last),
        torch.randn(2, 3, 40, 20)[..., 5:-5, ::2],
        torch.randn(1, 1, 30, 9).expand(2, 3, 30, 9),
    ):
        for iid in (True, False):
            torch.manual_seed(7)
            found = kind(*arguments, iid_masks=iid)(spectrogram)
            torch.manual_seed(7)
            like = getattr(torchaudio.transforms, kind.__name__)(*arguments, iid_masks=iid)
            assert torch.equal(found, like(spectrogram))


@pytest.mark.parametrize("p", [0.0, 0.01, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("iid", [True, False])
def test_share_of_bins_that_a_band_may_cover(p: float, iid: bool) -> None:
    """Compared with torchaudio's functions: its transform has no p."""
    spectrogram = torch.randn(4, 2, 40, 3)
    like = torchaudio.functional.mask_along_axis_iid if iid else torchaudio.functional.mask_along_axis
    for seed in range(20):
        torch.manual_seed(seed)
        found = FrequencyMasking(30, iid_masks=iid, p=p)(spectrogram)
        torch.manual_seed(seed)
        expected = like(spectrogram.clone(), 30, 0.0, 2, p)
        assert torch.equal(found, expected)
        assert int((found == 0).all(-1).sum(-1).max()) <= 40 * p


@pytest.mark.parametrize("iid", [True, False])
@pytest.mark.parametrize("kind", [FrequencyMasking, TimeMasking])
def test_several_bands_are_drawn_one_after_the_other(kind: type[nn.Module], iid: bool) -> None:
    spectrogram = torch.randn(3, 2, 40, 35)
    torch.manual_seed(11)
    found = kind(10, iid_masks=iid, num_masks=3)(spectrogram)
    torch.manual_seed(11)
    expected = spectrogram
    for _ in range(3):
        expected = getattr(torchaudio.transforms, kind.__name__)(10, iid_masks=iid)(expected)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("shape", [(257, 1), (2, 3, 1000, 1)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernel_and_plain_tensors_agree_on_bands(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """With a gradient plain PyTorch computes the bands from the random numbers."""
    spectrogram = torch.randn(shape, dtype=dtype)
    leaf = spectrogram.clone().requires_grad_()
    for iid in (False, True)[: len(shape) - 1]:
        for param in (1, 77, 999):
            module = FrequencyMasking(param, iid_masks=iid, num_masks=3, value=2.0)
            for seed in range(20):
                found = []
                for argument in (spectrogram, leaf):
                    torch.manual_seed(seed)
                    found.append((module(argument), torch.get_rng_state()))
                assert torch.equal(found[0][0], found[1][0])
                assert torch.equal(found[0][1], found[1][1])


def test_shared_bands_in_another_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        for dtype in DTYPES:
            found, expected, *states = both(torch.randn(3, 80, 2, dtype=dtype), 4, 60)
            assert torch.equal(found, expected) and torch.equal(*states)
            spectrogram = torch.randn(3, 80, 70, dtype=dtype)
            options = {"iid_masks": False, "kind": SpecAugment}
            found, expected, *states = both(spectrogram, 4, 2, 30, 1, 60, **options)
            assert torch.equal(found, expected) and torch.equal(*states)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("iid", [False, True])
@pytest.mark.parametrize("kind", MODULES)
def test_every_backend_draws_alike(kind: type[nn.Module], iid: bool, inplace: bool) -> None:
    module, spectrogram = make(kind, iid_masks=iid, inplace=inplace), torch.randn(2, 40, 35)
    found = []
    for backend in ("cpu", "triton", "reference"):
        torch.manual_seed(8)
        with backends.use_backend(backend):
            found.append(module(spectrogram.clone()))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert (found[0] != spectrogram).any()


def test_autograd_notices_that_a_saved_tensor_was_masked() -> None:
    weight, spectrogram = torch.randn(40, 5, requires_grad=True), torch.randn(40, 5)
    out = weight * spectrogram
    FrequencyMasking(30, inplace=True)(spectrogram)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_value() -> None:
    spectrogram = torch.randn(2, 3, 40, 5).abs() + 0.1
    torch.manual_seed(3)
    found = FrequencyMasking(30, iid_masks=True, value=-11.5)(spectrogram)
    torch.manual_seed(3)
    zero = FrequencyMasking(30, iid_masks=True)(spectrogram)
    assert (zero == 0).any()
    assert torch.equal(found, torch.where(zero == 0, -11.5, zero))


def test_bands_are_shared_unless_iid() -> None:
    spectrogram = torch.randn(64, 1, 40, 5).abs() + 0.1
    torch.manual_seed(0)
    shared, iid = (FrequencyMasking(30, iid_masks=masks)(spectrogram) == 0 for masks in (False, True))
    assert (shared == shared[0]).all()
    assert not (iid == iid[0]).all()


@pytest.mark.parametrize("kind", MODULES)
def test_nothing_happens_in_evaluation(kind: type[nn.Module]) -> None:
    module, spectrogram = make(kind, inplace=True).eval(), torch.randn(2, 40, 5)
    state = torch.get_rng_state()
    assert module(spectrogram) is spectrogram
    assert torch.equal(torch.get_rng_state(), state)
    assert (spectrogram != 0).all()


@pytest.mark.parametrize("iid", [True, False])
@pytest.mark.parametrize("kind", MODULES)
def test_in_place(kind: type[nn.Module], iid: bool) -> None:
    spectrogram = torch.randn(2, 3, 40, 35)
    before = spectrogram.clone()
    torch.manual_seed(5)
    expected = make(kind, iid_masks=iid)(spectrogram)
    assert torch.equal(spectrogram, before)
    torch.manual_seed(5)
    assert make(kind, iid_masks=iid, inplace=True)(spectrogram) is spectrogram
    assert torch.equal(spectrogram, expected)
    assert not torch.equal(expected, before)


@pytest.mark.parametrize(
    "module",
    [
        FrequencyMasking(35, iid_masks=True),
        TimeMasking(25, iid_masks=True),
        SpecAugment(1, 25, 1, 35, zero_masking=True),
    ],
    ids=str,
)
def test_gradient(module: nn.Module) -> None:
    spectrogram = torch.randn(2, 40, 35, requires_grad=True)
    torch.manual_seed(1)
    out = module(spectrogram)
    out.sum().backward()
    assert torch.equal(spectrogram.grad, (out != 0).float())
    assert (out == 0).any()


@pytest.mark.parametrize(
    "module",
    [
        FrequencyMasking(20, iid_masks=True, num_masks=2, p=0.5, value=1.0),
        TimeMasking(20, iid_masks=True, num_masks=2, p=0.5, value=1.0),
        SpecAugment(2, 20, 1, 9, p=0.5, inplace=False),
    ],
    ids=str,
)
def test_copies_draw_alike(module: nn.Module) -> None:
    spectrogram = torch.randn(3, 40, 35)
    torch.manual_seed(2)
    expected = module(spectrogram)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.manual_seed(2)
        assert torch.equal(copied(spectrogram), expected)
        assert repr(copied) == repr(module)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freq_mask_param": -1}, "freq_mask_param=-1"),
        ({"freq_mask_param": 5, "num_masks": 0}, "num_masks=0"),
        ({"freq_mask_param": 5, "p": 1.5}, "p=1.5"),
        ({"freq_mask_param": 5, "p": -0.1}, "p=-0.1"),
        ({"freq_mask_param": 5, "p": float("nan")}, "p=nan"),
    ],
)
def test_arguments_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"FrequencyMasking: expected .*{message}"):
        FrequencyMasking(**options)
    options = {name.replace("freq", "time"): value for name, value in options.items()}
    with pytest.raises(ValueError, match=f"TimeMasking: expected .*{message.replace('freq', 'time')}"):
        TimeMasking(**options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 5, 1, 5), "n_time_masks=-1"),
        ((1, -5, 1, 5), "time_mask_param=-5"),
        ((1, 5, -1, 5), "n_freq_masks=-1"),
        ((1, 5, 1, -5), "freq_mask_param=-5"),
        ((1, 5, 1, 5, True, 1.5), "p=1.5"),
    ],
)
def test_arguments_of_spec_augment_that_do_not_fit(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"SpecAugment: expected .*{message}"):
        SpecAugment(*arguments)


def test_spectrograms_of_spec_augment_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"SpecAugment: .* at least 2 dimensions, got \(5,\)"):
        SpecAugment(1, 5, 1, 5)(torch.randn(5))
    with pytest.raises(TypeError, match=r"SpecAugment: .* floating dtype, got torch\.int64"):
        SpecAugment(1, 5, 1, 5)(torch.ones(5, 4, dtype=torch.int64))
    for bands in ((0, 0), (-1, 2)):
        message = f"at least one band, got {bands[0]} of frames and {bands[1]} of frequency bins"
        with pytest.raises(ValueError, match=f"random_spectrogram_mask: expected {message}"):
            functional.random_spectrogram_mask(torch.randn(5, 4), 3, 3, *bands)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(
        ValueError, match=r"TimeMasking\(iid_masks=True\).* at least 3 dimensions, got \(5, 4\)"
    ):
        TimeMasking(3, iid_masks=True)(torch.randn(5, 4))
    with pytest.raises(ValueError, match=r"random_time_mask: .* \(..., freq, time\), got \(5,\)"):
        functional.random_time_mask(torch.randn(5), 3)
    with pytest.raises(ValueError, match=r"at least 2 dimensions, got \(5,\)"):
        FrequencyMasking(3)(torch.randn(5))
    with pytest.raises(ValueError, match=r"iid_masks=True.* at least 3 dimensions, got \(5, 4\)"):
        FrequencyMasking(3, iid_masks=True)(torch.randn(5, 4))
    with pytest.raises(ValueError, match=r"random_frequency_mask: .* \(..., freq, time\), got \(5,\)"):
        functional.random_frequency_mask(torch.randn(5), 3)
    with pytest.raises(TypeError, match=r"floating dtype, got torch\.int64"):
        functional.random_frequency_mask(torch.ones(5, 4, dtype=torch.int64), 3)


@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 0, 4), (2, 5, 0)], ids=str)
def test_empty_spectrograms(shape: tuple[int, ...]) -> None:
    for iid in (True, False):
        for kind in MODULES:
            assert make(kind, iid_masks=iid)(torch.randn(shape)).shape == shape


def test_widths_that_are_no_int() -> None:
    x, results = torch.randn(3, 20, 5), []
    for widest, bands in ((7, 2), (7.0, 2), (torch.tensor(7), 2)):
        torch.manual_seed(3)
        results.append(functional.random_frequency_mask(x, widest, bands))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_another_default_device() -> None:
    """First with the other device: the bits of a value, which no other test uses, are cached."""
    x = torch.randn(3, 20, 15)
    for module in (FrequencyMasking(7, iid_masks=True, value=0.77), SpecAugment(2, 7, 1, 7)):
        found = []
        for device in ("meta", "cpu"):
            torch.manual_seed(3)
            with torch.device(device):
                found.append(module(x))
        assert torch.equal(*found)
