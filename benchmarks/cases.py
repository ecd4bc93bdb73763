"""What is measured: every operator and module of gcsa_ext beside its peers, on the same inputs and weights.

Rates count what the definition asks for: `flops` is twice the multiply-adds of the direct algorithm, padding
included, and `bytes` is what must be read or written at least once per pass over the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import plain
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gcsa_ext import functional
from gcsa_ext.nn import (
    GCSA,
    RHCNN,
    BimodalLoss,
    BimodalNet,
    CoarseFineLoss,
    FrequencyMasking,
    ProportionalFusion,
)

FORWARD_TOLERANCE, BACKWARD_TOLERANCE, BFLOAT16_TOLERANCE = 1e-4, 1e-2, 1e-1
"""Of the check against eager PyTorch. One ReLU whose input rounds to the other side of 0 changes gradients by
1e-3; in bfloat16, and in deep networks, there are many."""

MAPS = ((64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7))
"""(C, H, W) of the four stages of an ordinary backbone."""


@dataclass
class Call:
    """One step to be timed: a function of tensors, forward or forward and backward.

    Args:
        function: a function or module of `inputs` with one tensor as its result.
        inputs: of the function; gradients are taken of those that require one, and of the module's weights.
        grad: gradient of the result; None with `backward` takes that of a scalar.
        backward: also run the backward pass; otherwise no graph is recorded.
        autocast: bfloat16 autocast for the forward pass.
    """

    function: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    grad: Tensor | None = None
    backward: bool = False
    autocast: bool = False
    parameters: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = list(self.function.parameters()) if isinstance(self.function, nn.Module) else []

    def __call__(self) -> tuple[Tensor, ...]:
        """The result, and with `backward` the gradients after it."""
        with torch.set_grad_enabled(self.backward), torch.autocast("cpu", torch.bfloat16, self.autocast):
            out = self.function(*self.inputs)
        if not self.backward:
            return (out,)
        wanted = [t for t in (*self.inputs, *self.parameters) if t.requires_grad]
        return out.detach(), *torch.autograd.grad(out, wanted, self.grad)


Build = Callable[[], Call]


@dataclass(eq=False)
class Case:
    """One row of the report.

    Args:
        operation: what is computed, the same words in every case of a group.
        shape: of the main input.
        ours: gcsa_ext, by name; the first is the one that ratios are about.
        peers: by name; the first is eager PyTorch, which says what is correct.
        floor: what cannot be beaten, such as a copy; timed, not compared in value.
        flops, bytes: per call, see above; None where neither bounds the time.
        dtype: of the arithmetic.
        tolerance: largest `relative_error` against the first peer.
        compiles_long: compiling the peer takes minutes, so the report only does it when asked.
        quick: part of the quick report.
    """

    operation: str
    shape: Sequence[int]
    ours: dict[str, Build]
    peers: dict[str, Build]
    floor: dict[str, Build] = field(default_factory=dict)
    flops: float | Callable[[], float] | None = None
    bytes: float | None = None
    dtype: torch.dtype = torch.float32
    tolerance: float = FORWARD_TOLERANCE
    compiles_long: bool = False
    quick: bool = False

    def __str__(self) -> str:
        return f"{self.operation} {'x'.join(map(str, self.shape))}"


Make = Callable[[bool], tuple[Callable[..., Tensor], tuple[Tensor, ...], Tensor | None]]
"""make(plain) -> function or module, inputs, gradient of the result; `plain` asks for the peers' function."""


def _call(
    make: Make,
    plain: bool,
    backward: bool = False,
    autocast: bool = False,
    channels_last: bool = False,
    compiled: bool = False,
) -> Call:
    torch.manual_seed(0)
    function, inputs, grad = make(plain)
    if channels_last:
        if isinstance(function, nn.Module):
            function = function.to(memory_format=torch.channels_last)
        inputs, grad = tuple(map(_channels_last, inputs)), None if grad is None else _channels_last(grad)
    call = Call(function, inputs, grad, backward, autocast)
    if compiled:
        # As in eager mode, random numbers come from torch's generator: the check needs equal ones.
        call.function = torch.compile(function, dynamic=False, options={"fallback_random": True})
    return call


def _channels_last(x: Tensor) -> Tensor:
    if x.dim() != 4:
        return x
    return x.detach().to(memory_format=torch.channels_last).requires_grad_(x.requires_grad)


def _variants(
    make: Make,
    backward: bool = False,
    autocast: bool = False,
    layouts: bool = True,
    compiled: bool = True,
) -> dict[str, dict[str, Build]]:
    """`ours` and `peers` of a Case: both in both memory `layouts`, the peers also `compiled`."""
    build = partial(_call, make, backward=backward, autocast=autocast)
    ours: dict[str, Build] = {"gcsa_ext": partial(build, plain=False)}
    peers: dict[str, Build] = {"eager": partial(build, plain=True)}
    if layouts:
        ours["gcsa_ext channels_last"] = partial(build, plain=False, channels_last=True)
        peers["eager channels_last"] = partial(build, plain=True, channels_last=True)
    if compiled:
        peers["torch.compile"] = partial(build, plain=True, compiled=True)
    return {"ours": ours, "peers": peers}


def _passes(backward: bool) -> str:
    return "forward + backward" if backward else "forward"


def _randn(*shape: int, requires_grad: bool = False) -> Tensor:
    return torch.randn(shape, requires_grad=requires_grad)


def channel_gate_case(shape: Sequence[int], backward: bool, groups: int = 4, quick: bool = False) -> Case:
    """The operator on a map of `shape` (N, C, H, W) with C / 4 hidden channels."""
    N, C, H, W = shape
    h = C // 4

    def make(is_plain: bool) -> Any:
        weights = [_randn(h, C), _randn(h), _randn(C, h), _randn(C)]
        inputs = [_randn(*shape), *(w / w[0].numel() ** 0.5 for w in weights)]
        function = plain.channel_gate if is_plain else functional.channel_gate
        inputs = tuple(t.requires_grad_() for t in inputs)
        return partial(function, groups=groups), inputs, torch.randn(shape)

    return Case(
        f"channel_gate {_passes(backward)}",
        shape,
        **_variants(make, backward),
        # two products per position; backward, the gradients of the inputs and of the weights
        flops=(3 if backward else 1) * 2 * N * H * W * 2 * C * h,
        bytes=(5 if backward else 2) * 4 * N * C * H * W,  # x, out; then grad_out, x, grad_x
        tolerance=BACKWARD_TOLERANCE if backward else FORWARD_TOLERANCE,
        quick=quick,
    )


def norm_gate_case(shape: Sequence[int], training: bool, backward: bool, quick: bool = False) -> Case:
    """The operator on two maps of `shape` (N, C, H, W), with the batch's or running statistics."""
    C = shape[1]

    def make(is_plain: bool) -> Any:
        u, z, weight, bias = (_randn(*sizes, requires_grad=True) for sizes in (shape, shape, (C,), (C,)))
        function = plain.norm_gate if is_plain else functional.norm_gate
        inputs = (u, z, weight, bias, torch.zeros(C), torch.ones(C))
        return partial(function, training=training), inputs, torch.randn(shape)

    # u, z and out; u once more for the statistics; backward: grad_out, u, z, grad_u, grad_z, with batch
    # statistics the first three once more for the sums that grad_u needs.
    maps = 3 + training + backward * (5 + 3 * training)
    return Case(
        f"norm_gate {'train' if training else 'eval'} {_passes(backward)}",
        shape,
        **_variants(make, backward),
        bytes=maps * 4 * math.prod(shape),
        quick=quick,
    )


def frequency_mask_case(
    shape: Sequence[int], iid: bool, backward: bool = False, inplace: bool = False, quick: bool = False
) -> Case:
    """The operator on spectrograms of `shape` (N, C, freq, time): one band, per sample or shared."""
    name = "frequency_mask_" if inplace else "frequency_mask"
    widest = shape[2] // 4
    generator = torch.Generator().manual_seed(0)
    width = torch.randint(widest, (*shape[:2], 1) if iid else (1,), generator=generator)
    start = torch.randint(shape[2] - widest, width.shape, generator=generator)

    def make(is_plain: bool) -> Any:
        function = getattr(plain if is_plain else functional, name)
        return function, (_randn(*shape, requires_grad=not inplace), start, width), torch.randn(shape)

    masked = width.double().mean().item() / shape[2]
    # in place: the masked bins alone; else all bins written, and those kept read; the same backward
    share = masked if inplace else (1 + backward) * (2 - masked)
    words = f"{name} {'per sample' if iid else 'shared'} {_passes(backward)}"
    variants = _variants(make, backward, layouts=False)
    return Case(words, shape, **variants, bytes=share * 4 * math.prod(shape), quick=quick)


def gcsa_case(
    shape: Sequence[int],
    training: bool = False,
    backward: bool = False,
    dtype: torch.dtype = torch.float32,
    quick: bool = False,
) -> Case:
    """The module on a map of `shape` (N, C, H, W); bfloat16 means autocast."""
    N, C, H, W = shape
    h, k = C // 4, 7

    def make(is_plain: bool) -> Any:
        module = GCSA(C).train(training)
        x, grad = _randn(*shape, requires_grad=True), torch.randn(shape)
        return plain.plain_copy(module) if is_plain else module, (x,), grad

    autocast = dtype == torch.bfloat16
    words = ["GCSA", "train" if training else "eval", _passes(backward)]
    words += ["N=1"] * (N == 1) + ["bfloat16 autocast"] * autocast
    return Case(
        " ".join(words),
        shape,
        **_variants(make, backward, autocast=autocast),
        flops=(3 if backward else 1) * 2 * N * H * W * (2 * C * h + 2 * k * k * C * h),
        bytes=(5 if backward else 2) * 4 * N * C * H * W,  # as for channel_gate
        dtype=dtype,
        tolerance=BFLOAT16_TOLERANCE if autocast else BACKWARD_TOLERANCE if backward else FORWARD_TOLERANCE,
        quick=quick,
    )


def masking_case(shape: Sequence[int], iid: bool, inplace: bool = False, quick: bool = False) -> Case:
    """The module on spectrograms of `shape` (N, C, freq, time), drawing included."""
    widest = shape[2] // 4

    def make(is_plain: bool) -> Any:
        module: nn.Module = FrequencyMasking(widest, iid_masks=iid, inplace=inplace)
        return plain.plain_copy(module) if is_plain else module, (_randn(*shape),), None

    def clone() -> Call:
        return Call(torch.clone, (_randn(*shape),))

    # Compiled, torchaudio's draws its random numbers in another order, so its result cannot be checked.
    variants = _variants(make, layouts=False, compiled=False)
    if plain.torchaudio is not None:
        variants["peers"] = {"torchaudio": variants["peers"]["eager"]}
    masked = widest / 2 / shape[2]  # on average
    return Case(
        f"FrequencyMasking {'iid' if iid else 'shared'}{' in place' if inplace else ''}",
        shape,
        **variants,
        floor={} if inplace else {"clone": clone},
        bytes=(masked if inplace else 2 - masked) * 4 * math.prod(shape),
        quick=quick,
    )


class _Step(nn.Module):
    """The loss of a network's training step."""

    def __init__(self, network: BimodalNet) -> None:
        super().__init__()
        self.network = network
        self.criterion = BimodalLoss()

    def forward(self, frames: Tensor, spectrogram: Tensor, target: Tensor) -> Tensor:
        return self.criterion(self.network(frames, spectrogram), target)


STACK_WIDTHS = tuple(sizes[0] for sizes in MAPS)


def stack_case(shape: Sequence[int], training: bool) -> Case:
    """Four residual stages of two blocks, each with a GCSA at its end; images of 224 x 224 give it MAPS.

    The same GCSA modules as in `gcsa_case`, but each is called once per step, among other layers that fill
    the caches and the allocator.
    """

    def network() -> nn.Module:
        return RHCNN(widths=STACK_WIDTHS, depths=(2, 2, 2, 2), dilations=(1,))

    def inputs() -> tuple[Tensor, ...]:
        return (_randn(*shape),)

    return network_case("GCSA in four residual stages", shape, network, inputs, training, compiled=False)


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
            _call(make, plain=True, backward=training)()
        return float(counter.get_total_flops())

    variants = _variants(make, training, compiled=compiled)
    tolerance = BFLOAT16_TOLERANCE if training else BACKWARD_TOLERANCE
    words = f"{operation} {'train forward + backward' if training else 'eval forward'}"
    return Case(
        words,
        shape,
        **variants,
        flops=flops,
        tolerance=tolerance,
        compiles_long=training,
        quick=quick,
    )


def fusion_case(batch: int) -> Case:
    """Proportional fusion of two modalities' logits, eight classes."""

    def make(is_plain: bool) -> Any:
        fusion = ProportionalFusion(8)
        fusion.set_scores([0.4, 0.6])
        visual, audio = _randn(batch, 8, requires_grad=True), _randn(batch, 8, requires_grad=True)
        function = plain.PlainFusion(fusion) if is_plain else lambda *logits: fusion(logits)
        return function, (visual, audio), torch.randn(batch, 8)

    variants = _variants(make, backward=True, layouts=False)
    return Case("ProportionalFusion forward + backward", (batch, 8), **variants)


def loss_case(batch: int) -> Case:
    """The coarse-fine loss of eight classes."""

    def make(is_plain: bool) -> Any:
        loss = CoarseFineLoss()
        function = plain.PlainCoarseFineLoss(loss) if is_plain else loss
        return function, (_randn(batch, 8, requires_grad=True), torch.randint(8, (batch,))), None

    variants = _variants(make, backward=True, layouts=False)
    return Case("CoarseFineLoss forward + backward", (batch, 8), **variants)


def bimodal_case(
    preset: str, frames: Sequence[int], spectrogram: Sequence[int], compiled: bool = True, quick: bool = False
) -> Case:
    """The loss and its gradients for uint8 `frames` (N, T, 3, H, W) and a `spectrogram` (N, 1, F, L)."""

    def inputs() -> tuple[Tensor, ...]:
        images = torch.randint(256, tuple(frames), dtype=torch.uint8)
        return images, _randn(*spectrogram), torch.randint(8, tuple(frames[:1]))

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
            yield gcsa_case((8, *sizes), training, backward=training, dtype=torch.bfloat16)
    for shape in (spectrograms, large_spectrograms):
        for iid in (False, True):
            for inplace in (False, True):
                yield masking_case(shape, iid, inplace, quick=shape is spectrograms)
    for training in (False, True):
        yield stack_case((8, 3, 224, 224), training)
    images, sound = (16, 3, 64, 64), (16, 1, 64, 128)
    for training in (False, True):
        yield network_case(
            "RHCNN small",
            images,
            lambda: BimodalNet.from_preset("small").visual,
            lambda: (_randn(*images),),
            training,
        )
        yield network_case(
            "MCNN small",
            sound,
            lambda: BimodalNet.from_preset("small").audio,
            lambda: (_randn(*sound),),
            training,
        )
    yield fusion_case(64)
    yield loss_case(64)
    yield bimodal_case("small", (8, 4, 3, 64, 64), (8, 1, 64, 128), quick=True)
    yield bimodal_case("base", (2, 2, 3, 112, 112), (2, 1, 64, 192), compiled=False)


CASES = tuple(_cases())
