"""Every case that ``python benchmarks/report.py`` measures on a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from harness import plain
from harness.case import BACKWARD_TOLERANCE, BFLOAT16_TOLERANCE, EAGER, Case
from harness.operators import MAPS, channel_gate_case, frequency_mask_case, gcsa_case, norm_gate_case, randn
from harness.published import VARIANTS, published_case
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gcsa_ext.nn import RHCNN, BimodalLoss, BimodalNet, FrequencyMasking, SpecAugment, TimeMasking

MASKING = ("FrequencyMasking", "TimeMasking", "SpecAugment")
"""The modules of `masking_case`."""


def masking_case(
    kind: str,
    shape: Sequence[int],
    iid: bool,
    inplace: bool = False,
    mean: bool = False,
    quick: bool = False,
) -> Case:
    """A module of MASKING on spectrograms of `shape` (N, C, freq, time), drawing included.

    FrequencyMasking and TimeMasking have one band, SpecAugment has two of either kind. The value is 0, or for
    SpecAugment with `mean` the mean of the spectrograms.
    """
    freq, time = shape[2:]
    bins, frames = freq // 4, time // 4
    bands = 2 if kind == "SpecAugment" else 1

    def make(is_plain: bool) -> Any:
        module: nn.Module
        if kind == "SpecAugment":
            module = SpecAugment(bands, frames, bands, bins, iid, zero_masking=not mean, inplace=inplace)
        elif kind == "TimeMasking":
            module = TimeMasking(frames, iid_masks=iid, inplace=inplace)
        else:
            module = FrequencyMasking(bins, iid_masks=iid, inplace=inplace)
        return plain.plain_copy(module) if is_plain else module, (randn(shape),), None

    # Shares of the elements, on average.
    kept = 1.0
    if kind != "TimeMasking":
        kept *= (1 - bins / 2 / freq) ** bands
    if kind != "FrequencyMasking":
        kept *= (1 - frames / 2 / time) ** bands
    words = [kind, "iid" if iid else "shared"] + ["in place"] * inplace + ["mean"] * mean
    return Case(
        " ".join(words),
        shape,
        make,
        layouts=False,
        # Compiled, torchaudio's draws its random numbers in another order, so its result cannot be checked.
        compiled=False,
        peer="torchaudio" if plain.torchaudio is not None else EAGER,
        clone=not inplace,
        bytes=((1 - kept if inplace else 1 + kept) + mean) * 4 * math.prod(shape),
        quick=quick,
    )


def network_case(
    operation: str,
    shape: Sequence[int],
    network: Callable[[], nn.Module],
    inputs: Callable[[], tuple[Tensor, ...]],
    training: bool,
    compiled: bool = True,
    quick: bool = False,
) -> Case:
    """A network on random inputs: inference, or in training forward and backward, without the optimiser."""

    def make(is_plain: bool) -> Any:
        module = network().train(training)
        arguments = inputs()
        grad = torch.randn(shape[0], module.out_features) if hasattr(module, "out_features") else None
        return plain.plain_copy(module) if is_plain else module, arguments, grad

    def flops() -> float:
        with FlopCounterMode(display=False) as counter:
            case.build(EAGER)()
        return float(counter.get_total_flops())

    case = Case(
        f"{operation} {'train forward + backward' if training else 'eval forward'}",
        shape,
        make,
        training,
        input_gradients=False,
        compiled=compiled,
        flops=flops,
        tolerance=BFLOAT16_TOLERANCE if training else BACKWARD_TOLERANCE,
        compiles_long=training,
        quick=quick,
    )
    return case


def stack_case(shape: Sequence[int], training: bool) -> Case:
    """Four residual stages of two blocks, each with a GCSA at its end; images of 224 x 224 give it MAPS.

    The GCSA modules are those of `gcsa_case`, but each is called once per step, among other layers that fill
    the caches and the allocator.
    """

    def network() -> nn.Module:
        widths = tuple(sizes[0] for sizes in MAPS)
        return RHCNN(widths=widths, depths=(2, 2, 2, 2), dilations=(1,))

    return network_case(
        "GCSA in four residual stages", shape, network, lambda: (randn(shape),), training, compiled=False
    )


class _Step(nn.Module):
    """The loss of a network's training step."""

    def __init__(self, network: BimodalNet) -> None:
        super().__init__()
        self.network = network
        self.criterion = BimodalLoss()

    def forward(self, frames: Tensor, spectrogram: Tensor, target: Tensor) -> Tensor:
        return self.criterion(self.network(frames, spectrogram), target)


def bimodal_case(
    preset: str, frames: Sequence[int], spectrogram: Sequence[int], compiled: bool = True, quick: bool = False
) -> Case:
    """The loss and its gradients for uint8 `frames` (N, T, 3, H, W) and a `spectrogram` (N, 1, F, L)."""

    def inputs() -> tuple[Tensor, ...]:
        images = torch.randint(256, tuple(frames), dtype=torch.uint8)
        return images, randn(spectrogram), torch.randint(8, tuple(frames[:1]))

    def network() -> nn.Module:
        return _Step(BimodalNet.from_preset(preset, frequency_mask_param=0))  # see masking_case

    return network_case(f"BimodalNet {preset}", frames, network, inputs, True, compiled, quick)


def _cases() -> Iterator[Case]:
    large, small = (8, *MAPS[0]), (8, *MAPS[3])
    for backward in (False, True):
        for shape in (large, small):
            yield channel_gate_case(shape, backward, quick=shape is small)
        for training in (False, True):
            yield norm_gate_case(large, training, backward, quick=not backward)
    spectrograms, large_spectrograms = (64, 1, 80, 400), (256, 1, 128, 1024)
    for iid in (False, True):
        yield frequency_mask_case(spectrograms, iid, quick=iid)
        yield frequency_mask_case(spectrograms, iid, backward=True)
        yield frequency_mask_case(spectrograms, iid, inplace=True)
    for training in (False, True):
        for sizes in MAPS:
            yield gcsa_case((8, *sizes), training, backward=training, quick=sizes in (MAPS[1], MAPS[3]))
    yield gcsa_case((8, *MAPS[1]), training=True)
    yield gcsa_case((8, *MAPS[1]), backward=True)
    for sizes in MAPS:
        yield gcsa_case((1, *sizes))
    for training in (False, True):
        yield gcsa_case((1, 64, 7, 7), training, backward=training, quick=not training)
    for training in (False, True):
        for sizes in MAPS:
            yield gcsa_case((8, *sizes), training, backward=training, dtype=torch.bfloat16, autocast=True)
    for kind in MASKING:
        for shape in (spectrograms, large_spectrograms):
            for iid in (False, True):
                for inplace in (False, True):
                    yield masking_case(kind, shape, iid, inplace, quick=shape is spectrograms)
    for iid in (False, True):
        yield masking_case("SpecAugment", spectrograms, iid, mean=True)
    for variant in VARIANTS:
        for training in (False, True):
            for sizes in MAPS:
                yield published_case(variant, (8, *sizes), training)
    for training in (False, True):
        yield stack_case((8, 3, 224, 224), training)
    yield bimodal_case("small", (8, 4, 3, 64, 64), (8, 1, 64, 128), quick=True)
    yield bimodal_case("base", (2, 2, 3, 112, 112), (2, 1, 64, 192), compiled=False)


CASES = tuple(_cases())
BY_NAME = {str(case): case for case in CASES}
