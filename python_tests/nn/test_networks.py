"""RHCNN, MCNN and BimodalNet: shapes, masks, missing modalities, gradients, errors."""

from __future__ import annotations

import json
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from gcsa_ext.nn import MCNN, RHCNN, BimodalLoss, BimodalNet

M = TypeVar("M", bound=nn.Module)

SMALL_VISUAL = {"widths": [8, 12], "depths": [1, 2]}
SMALL_AUDIO = {"branch_width": 4, "widths": [8, 12], "depths": [1, 1]}


def tiny_net(**options: object) -> BimodalNet:
    torch.manual_seed(0)
    config = {"visual": SMALL_VISUAL, "audio": SMALL_AUDIO, "num_classes": 8, **options}
    return randomize_norms(BimodalNet.from_config(config))


def randomize_norms(module: M) -> M:
    """Give batch norms statistics and biases far from the identity, so that a forgotten mask shows."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight, 1.0, 0.3)
            nn.init.normal_(norm.bias, 0.3, 0.3)
            nn.init.normal_(norm.running_mean, 0.0, 0.3)
    return module


def clips(n: int = 3, t: int = 4, length: int = 33) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    frames = torch.randint(0, 256, (n, t, 3, 20, 24), dtype=torch.uint8, generator=generator)
    return frames, torch.randn(n, 1, 18, length, generator=generator)


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 3, 17, 40), (1, 3, 1, 1), (5, 3, 9, 64)])
def test_rhcnn_shapes(shape: tuple[int, ...]) -> None:
    net = RHCNN(widths=(8, 12, 20), depths=(1, 2, 1), stem_width=5).eval()
    out = net(torch.randn(shape))
    assert out.shape == (shape[0], net.out_features) == (shape[0], 20)
    assert out.isfinite().all()


def test_rhcnn_odd_channels_and_groups() -> None:
    net = RHCNN(in_channels=1, widths=(9, 15), depths=(1, 1), groups=3, kernel_size=3, dilations=(2,)).eval()
    assert net(torch.randn(2, 1, 12, 13)).shape == (2, 15)


def test_rhcnn_cycles_through_the_dilations() -> None:
    net = RHCNN(widths=(8, 8, 8), depths=(1, 2, 1))
    rates = [m.dilation[0] for name, m in net.named_modules() if name.endswith("dilated.0")]
    assert rates == [1, 2, 5, 1]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RHCNN(widths=(8,), depths=(1, 1)), "widths=\\(8,\\)"),
        (lambda: RHCNN(widths=(), depths=()), "widths=\\(\\)"),
        (lambda: RHCNN(dilations=()), "dilation"),
        (lambda: RHCNN(widths=(10,), depths=(1,)), "10"),
        (lambda: MCNN(branch_size=4), "4"),
        (lambda: MCNN(widths=(8,), depths=(0,)), "depths=\\(0,\\)"),
        (lambda: RHCNN()(torch.zeros(2, 4, 8, 8)), "\\(2, 4, 8, 8\\)"),
        (lambda: RHCNN()(torch.zeros(3, 8, 8)), "\\(3, 8, 8\\)"),
        (lambda: MCNN()(torch.zeros(2, 2, 8, 8)), "\\(2, 2, 8, 8\\)"),
        (lambda: MCNN()(torch.zeros(2, 1, 8, 8), torch.ones(2, 7, dtype=torch.bool)), "\\(2, 7\\)"),
        (lambda: MCNN()(torch.zeros(2, 1, 8, 8), torch.ones(2, 8)), "float32"),
    ],
)
def test_bad_sizes_are_named(build: object, message: str) -> None:
    assert callable(build)
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("length", [1, 2, 7, 37, 50])
@pytest.mark.parametrize("extra", [1, 4, 19, 60])
def test_mcnn_ignores_padding(length: int, extra: int) -> None:
    torch.manual_seed(length)
    net = randomize_norms(MCNN(**SMALL_AUDIO).eval())
    short = torch.randn(2, 1, 21, length)
    padded = torch.cat([short, torch.full((2, 1, 21, extra), torch.nan)], dim=3)
    mask = torch.arange(length + extra).expand(2, -1) < length
    expected = net(short)
    torch.testing.assert_close(net(padded, mask), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(net(short, mask[:, :length]), expected, rtol=0, atol=0)


def test_mcnn_mixed_lengths_equal_one_by_one() -> None:
    torch.manual_seed(1)
    net = randomize_norms(MCNN(**SMALL_AUDIO).eval())
    lengths = [5, 41, 18, 1]
    batch = torch.randn(4, 1, 16, 41)
    mask = torch.arange(41) < torch.tensor(lengths)[:, None]
    together = net(batch, mask)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(
            net(batch[row : row + 1, :, :, :length])[0], together[row], rtol=0, atol=1e-5
        )


def test_mcnn_nothing_valid_gives_zero_and_finite_gradients() -> None:
    net = MCNN(**SMALL_AUDIO)
    mask = torch.zeros(3, 20, dtype=torch.bool)
    mask[0] = True
    out = net(torch.randn(3, 1, 16, 20), mask)
    out.sum().backward()
    assert (out[1:] == 0).all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("preset", ["small", "base"])
def test_presets(preset: str) -> None:
    net = BimodalNet.from_preset(preset).eval()
    weights = sum(p.numel() for p in net.parameters())
    assert (weights < 1e6) if preset == "small" else (10e6 <= weights <= 30e6)
    with torch.no_grad():
        out = net(torch.rand(1, 2, 3, 40, 32), torch.randn(1, 1, 64, 50))
    assert out.probabilities.shape == (1, 8)
    torch.testing.assert_close(out.probabilities.sum(dim=1), torch.ones(1))


def test_config_round_trip_through_json() -> None:
    net = tiny_net(dropout=0.25, fusion_rule="class").eval()
    twin = BimodalNet.from_config(json.loads(json.dumps(net.config()))).eval()
    twin.load_state_dict(net.state_dict())
    frames, spectrogram = clips()
    for a, b in zip(net(frames, spectrogram), twin(frames, spectrogram), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_config_of_a_hand_made_network_is_refused() -> None:
    net = BimodalNet(RHCNN(widths=(8,), depths=(1,)), MCNN(widths=(8,), depths=(1,)))
    with pytest.raises(ValueError, match="from_config"):
        net.config()


def test_uint8_and_float_frames_agree() -> None:
    net = tiny_net().eval()
    frames, spectrogram = clips()
    for a, b in zip(net(frames, spectrogram), net(frames / 255.0, spectrogram), strict=True):
        torch.testing.assert_close(a, b)


def test_masked_frames_do_not_matter() -> None:
    net = tiny_net().eval()
    frames, spectrogram = clips()
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0]], dtype=torch.bool)
    out = net(frames, spectrogram, frame_mask=mask)
    alone = net(frames[:1, :2], spectrogram[:1])
    torch.testing.assert_close(out.visual_logits[:1], alone.visual_logits, rtol=0, atol=1e-5)
    other = torch.where(mask[:, :, None, None, None], frames, 255 - frames)
    torch.testing.assert_close(
        net(other, spectrogram, frame_mask=mask).visual_logits, out.visual_logits, rtol=0, atol=0
    )


def test_masked_frames_stay_out_of_batch_norm() -> None:
    frames, spectrogram = clips()
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    statistics = []
    for noise in (0, 255):
        net = tiny_net()
        net(frames.masked_fill(~mask[:, :, None, None, None], noise), spectrogram, frame_mask=mask)
        statistics.append(torch.cat([b.flatten() for n, b in net.named_buffers() if "running" in n]))
    torch.testing.assert_close(statistics[0], statistics[1], rtol=0, atol=0)


def test_missing_modality_of_one_sample() -> None:
    net = tiny_net().eval()
    frames, spectrogram = clips(4)
    present = torch.tensor([[1, 1], [0, 1], [1, 0], [0, 0]], dtype=torch.bool)
    out = net(frames, spectrogram, present=present)
    assert torch.equal(out.present, present)
    assert (out.visual_logits[[1, 3]] == 0).all()
    assert (out.audio_logits[[2, 3]] == 0).all()
    torch.testing.assert_close(out.probabilities[1], out.audio_logits[1].softmax(0))
    torch.testing.assert_close(out.probabilities[2], out.visual_logits[2].softmax(0))
    torch.testing.assert_close(out.probabilities[3], torch.full((8,), 1 / 8))
    # An empty mask says the same as `present`.
    frame_mask = present[:, :1].expand(4, frames.shape[1])
    spectrogram_mask = present[:, 1:].expand(4, spectrogram.shape[3])
    same = net(frames, spectrogram, frame_mask, spectrogram_mask)
    for a, b in zip(out, same, strict=True):
        torch.testing.assert_close(a, b)


def test_missing_modality_of_the_batch() -> None:
    net = tiny_net().eval()
    frames, spectrogram = clips()
    both = net(frames, spectrogram)
    sight, sound = net(frames, None), net(None, spectrogram)
    torch.testing.assert_close(sight.visual_logits, both.visual_logits)
    torch.testing.assert_close(sound.audio_logits, both.audio_logits)
    torch.testing.assert_close(sight.probabilities, both.visual_logits.softmax(dim=1))
    torch.testing.assert_close(sound.probabilities, both.audio_logits.softmax(dim=1))
    assert sight.present.tolist() == [[True, False]] * 3


def test_every_weight_gets_a_finite_gradient() -> None:
    net = tiny_net(dropout=0.0, frequency_mask_param=0)
    frames, spectrogram = clips()
    present = torch.tensor([[1, 1], [0, 1], [1, 0]], dtype=torch.bool)
    loss = BimodalLoss()(net(frames, spectrogram, present=present), torch.tensor([0, 5, 7]))
    loss.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A bias in front of a batch norm has no effect in training: its gradient is only rounding.
        if not name.endswith(("spatial_attention.0.bias", "spatial_attention.3.bias")):
            assert parameter.grad.abs().max() > 0, name


def test_training_with_a_batch_that_lacks_everything() -> None:
    net = tiny_net()
    frames, spectrogram = clips()
    out = net(frames, spectrogram, present=torch.zeros(3, 2, dtype=torch.bool))
    loss = BimodalLoss()(out, torch.tensor([0, 1, 2]))
    assert loss == 0


def test_frequency_masking_only_in_training() -> None:
    net = tiny_net(frequency_mask_param=18, frequency_masks=2, dropout=0.0)
    _, spectrogram = clips(n=8)
    torch.manual_seed(0)
    first = net(None, spectrogram).audio_logits
    assert not torch.allclose(first, net(None, spectrogram).audio_logits)
    net.eval()
    assert torch.equal(net(None, spectrogram).audio_logits, net(None, spectrogram).audio_logits)


def test_bfloat16_autocast() -> None:
    net = tiny_net()
    frames, spectrogram = clips()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(frames, spectrogram)
        loss = BimodalLoss()(out, torch.tensor([1, 2, 3]))
    loss.backward()
    assert out.log_probabilities.dtype == torch.float32
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_traces_into_one_graph_with_the_same_answer() -> None:
    net = tiny_net().eval()
    frames, spectrogram = clips()
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    for a, b in zip(net(frames, spectrogram, mask), compiled(frames, spectrogram, mask), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "both None"),
        ({"frames": torch.zeros(2, 3, 8, 8)}, "\\(2, 3, 8, 8\\)"),
        ({"frames": torch.zeros(2, 3, 1, 8, 8)}, "\\(2, 3, 1, 8, 8\\)"),
        ({"frames": torch.zeros(0, 3, 3, 8, 8)}, "\\(0, 3, 3, 8, 8\\)"),
        ({"frames": torch.zeros(2, 3, 3, 8, 0)}, "\\(2, 3, 3, 8, 0\\)"),
        ({"frames": torch.zeros(2, 3, 3, 8, 8, dtype=torch.int64)}, "int64"),
        ({"spectrogram": torch.zeros(2, 8, 8)}, "\\(2, 8, 8\\)"),
        ({"spectrogram": torch.zeros(2, 1, 8, 8, dtype=torch.int32)}, "int32"),
        ({"frames": torch.zeros(2, 3, 3, 8, 8), "spectrogram": torch.zeros(3, 1, 8, 8)}, "\\(3, 1, 8, 8\\)"),
        (
            {"frames": torch.zeros(2, 3, 3, 8, 8), "frame_mask": torch.ones(2, 4, dtype=torch.bool)},
            "\\(2, 4\\)",
        ),
        ({"spectrogram": torch.zeros(2, 1, 8, 8), "spectrogram_mask": torch.ones(2, 8)}, "float32"),
        (
            {"spectrogram": torch.zeros(2, 1, 8, 8), "present": torch.ones(2, 3, dtype=torch.bool)},
            "\\(2, 3\\)",
        ),
    ],
)
def test_bad_input_is_named(arguments: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_net()(**arguments)


def test_unknown_preset_and_option() -> None:
    with pytest.raises(ValueError, match="'huge'"):
        BimodalNet.from_preset("huge")
    with pytest.raises(TypeError, match="nonsense"):
        BimodalNet.from_preset("small", nonsense=1)
