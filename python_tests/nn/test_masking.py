"""FrequencyMasking: the bits of torchaudio's, and what it adds to them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torchaudio
from torch import Tensor

from gcsa_ext import FrequencyMasking, backends, functional

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def both(spectrogram: Tensor, seed: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The results of gcsa_ext and of torchaudio, and the random state after each."""
    results, states = [], []
    for kind in (FrequencyMasking, torchaudio.transforms.FrequencyMasking):
        torch.manual_seed(seed)
        results.append(kind(*args, **kwargs)(spectrogram.clone()))
        states.append(torch.get_rng_state())
    return *results, *states


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


def test_other_memory_layouts() -> None:
    for spectrogram in (
        torch.randn(2, 2, 9, 30).transpose(-1, -2),
        torch.randn(2, 3, 30, 9).contiguous(memory_format=torch.channels_last),
        torch.randn(2, 3, 40, 20)[..., 5:-5, ::2],
        torch.randn(1, 1, 30, 9).expand(2, 3, 30, 9),
    ):
        for iid in (True, False):
            found, expected, *_ = both(spectrogram, 7, 25, iid_masks=iid)
            assert torch.equal(found, expected)


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
def test_several_bands_are_drawn_one_after_the_other(iid: bool) -> None:
    spectrogram = torch.randn(3, 2, 40, 5)
    torch.manual_seed(11)
    found = FrequencyMasking(10, iid_masks=iid, num_masks=3)(spectrogram)
    torch.manual_seed(11)
    expected = spectrogram
    for _ in range(3):
        expected = torchaudio.transforms.FrequencyMasking(10, iid_masks=iid)(expected)
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
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("iid", [False, True])
def test_every_backend_draws_alike(iid: bool, inplace: bool) -> None:
    module, spectrogram = FrequencyMasking(30, iid_masks=iid, inplace=inplace), torch.randn(2, 40, 5)
    found = []
    for backend in ("cpu", "reference"):
        torch.manual_seed(8)
        with backends.use_backend(backend):
            found.append(module(spectrogram.clone()))
    assert torch.equal(*found) and (found[0] == 0).any()


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


def test_nothing_happens_in_evaluation() -> None:
    module, spectrogram = FrequencyMasking(30, inplace=True).eval(), torch.randn(2, 40, 5)
    state = torch.get_rng_state()
    assert module(spectrogram) is spectrogram
    assert torch.equal(torch.get_rng_state(), state)
    assert (spectrogram != 0).all()


@pytest.mark.parametrize("iid", [True, False])
def test_in_place(iid: bool) -> None:
    spectrogram = torch.randn(2, 3, 40, 5)
    torch.manual_seed(5)
    expected = FrequencyMasking(30, iid_masks=iid)(spectrogram)
    torch.manual_seed(5)
    assert FrequencyMasking(30, iid_masks=iid, inplace=True)(spectrogram) is spectrogram
    assert torch.equal(spectrogram, expected)
    assert not torch.equal(expected, torch.randn(2, 3, 40, 5))


def test_gradient() -> None:
    spectrogram = torch.randn(2, 40, 5, requires_grad=True)
    torch.manual_seed(1)
    out = FrequencyMasking(35, iid_masks=True)(spectrogram)
    out.sum().backward()
    assert torch.equal(spectrogram.grad, (out != 0).float())
    assert (out == 0).any()


def test_copies_draw_alike() -> None:
    module = FrequencyMasking(20, iid_masks=True, num_masks=2, p=0.5, value=1.0)
    spectrogram = torch.randn(3, 40, 5)
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
    with pytest.raises(ValueError, match=message):
        FrequencyMasking(**options)


def test_shapes_that_do_not_fit() -> None:
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
        assert FrequencyMasking(4, iid_masks=iid)(torch.randn(shape)).shape == shape


def test_widths_that_are_no_int() -> None:
    x, results = torch.randn(3, 20, 5), []
    for widest, bands in ((7, 2), (7.0, 2), (torch.tensor(7), 2)):
        torch.manual_seed(3)
        results.append(functional.random_frequency_mask(x, widest, bands))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_another_default_device() -> None:
    """First with the other device: the bits of a value, which no other test uses, are cached."""
    x, found = torch.randn(3, 20, 5), []
    for device in ("meta", "cpu"):
        torch.manual_seed(3)
        with torch.device(device):
            found.append(FrequencyMasking(7, iid_masks=True, value=0.77)(x))
    assert torch.equal(*found)
