"""Decoding by presentation time: every test makes the media file that it needs."""

import pickle
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from gcsa_ext.media import (
    MediaError,
    equal_interval_times,
    frames_at,
    iterate_audio,
    iterate_frames,
    probe,
    read_audio,
)

TICKS = 1000
RATE = 16000


def write_video(
    path: Path,
    times: Sequence[float],
    size: tuple[int, int] = (48, 64),
    pictures: Sequence[npt.NDArray[np.uint8]] | None = None,
    sound: npt.NDArray[np.float32] | None = None,
    sound_start: float = 0.0,
    key_interval: int = 12,
    options: dict[str, str] | None = None,
) -> Path:
    """Frame i is shown from times[i] on; its grey level is 10 + 8 i modulo 240 unless pictures are given."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("libx264", rate=Fraction(25))
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS)
        stream.options = {"preset": "ultrafast", "crf": "10", "g": str(key_interval), "threads": "1"}
        audio = None
        if sound is not None:
            audio = container.add_stream("aac", rate=RATE, layout="mono")
        for i, time in enumerate(times):
            pixels = np.full((*size, 3), level(i), np.uint8) if pictures is None else pictures[i]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time * TICKS), Fraction(1, TICKS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None:
            piece = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
            piece.sample_rate, piece.time_base = RATE, Fraction(1, RATE)
            piece.pts = round(sound_start * RATE)
            container.mux(audio.encode(piece))
            container.mux(audio.encode(None))
    return path


def write_sound(
    path: Path, waveform: npt.NDArray[np.float32], rate: int = RATE, codec: str = "pcm_s16le"
) -> Path:
    """waveform is (channels, samples)."""
    layout = {1: "mono", 2: "stereo"}[len(waveform)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        samples = np.ascontiguousarray((waveform * 32767).round().astype(np.int16).T.reshape(1, -1))
        piece = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
        piece.sample_rate, piece.pts, piece.time_base = rate, 0, Fraction(1, rate)
        container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return path


def level(index: int) -> int:
    return 10 + 8 * (index % 30)


def shown(frame: npt.NDArray[np.uint8]) -> int:
    """Which frame this is, by its grey level."""
    return round((float(frame.mean()) - 10) / 8)


def tone(seconds: float, frequency: float = 440.0, rate: int = RATE) -> npt.NDArray[np.float32]:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


VARIABLE = [0.0, 0.04, 0.08, 0.5, 0.52, 0.9, 1.6, 1.64]


def test_probe_tells_what_a_file_contains(tmp_path: Path) -> None:
    info = probe(write_video(tmp_path / "clip.mp4", np.arange(25) / 25, sound=tone(1.0)))
    assert (info.width, info.height, info.rotation) == (64, 48, 0)
    assert info.has_video and info.has_audio
    assert info.duration == pytest.approx(1.0, abs=0.05)
    assert info.frame_rate == pytest.approx(25, rel=0.05)


def test_frames_are_chosen_by_presentation_time_not_by_number(tmp_path: Path) -> None:
    path = write_video(tmp_path / "variable.mp4", VARIABLE)
    wanted = [0.0, 0.03, 0.1, 0.49, 0.51, 0.53, 1.0, 1.59, 1.62, 1.65]
    frames, actual = frames_at(path, wanted)
    expected = [max(i for i, time in enumerate(VARIABLE) if time <= t + 1e-9) for t in wanted]
    assert frames.shape == (len(wanted), 48, 64, 3) and frames.dtype == np.uint8
    assert [shown(frame) for frame in frames] == expected
    np.testing.assert_allclose(actual, np.array(VARIABLE)[expected], atol=2e-3)


def test_times_outside_the_video_give_the_first_and_the_last_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "variable.mp4", VARIABLE)
    frames, actual = frames_at(path, [-1.0, 7.0, 100.0])
    assert [shown(frame) for frame in frames] == [0, 7, 7]
    np.testing.assert_allclose(actual, [0.0, 1.64, 1.64], atol=2e-3)


def test_iterate_frames_gives_every_frame_and_its_time(tmp_path: Path) -> None:
    path = write_video(tmp_path / "variable.mp4", VARIABLE)
    times, frames = zip(*iterate_frames(path), strict=True)
    np.testing.assert_allclose(times, VARIABLE, atol=2e-3)
    assert [shown(frame) for frame in frames] == list(range(8))


@pytest.mark.parametrize("start", [0.0, 0.3, 1.0, 2.5, 4.9])
def test_seeking_gives_what_decoding_from_the_beginning_gives(tmp_path: Path, start: float) -> None:
    times = np.arange(125) / 25
    path = write_video(tmp_path / "long.mp4", times, key_interval=50)
    found = [time for time, _ in iterate_frames(path, start, start + 0.4)]
    expected = [time for time in times if start <= time < start + 0.4]
    np.testing.assert_allclose(found, expected, atol=2e-3)
    frames, actual = frames_at(path, [start, start + 0.05])
    assert actual[0] == pytest.approx(np.floor(start * 25 + 1e-6) / 25, abs=2e-3)
    assert shown(frames[0]) == np.floor(start * 25 + 1e-6) % 30


@pytest.mark.parametrize(
    ("matrix", "rotation", "store"),
    [
        ((0, 1, -1, 0), 90, lambda upright: np.rot90(upright, 1)),
        ((-1, 0, 0, -1), 180, lambda upright: np.rot90(upright, 2)),
        ((0, -1, 1, 0), 270, lambda upright: np.rot90(upright, -1)),
        ((-1, 0, 0, 1), 0, lambda upright: upright[:, ::-1]),
    ],
)
def test_turned_and_mirrored_video_comes_out_upright(
    tmp_path: Path,
    matrix: tuple[int, int, int, int],
    rotation: int,
    store: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]],
) -> None:
    upright = np.full((96, 64, 3), 40, np.uint8)
    upright[:32, :32] = (220, 30, 30)
    stored = np.ascontiguousarray(store(upright))
    path = write_video(tmp_path / "phone.mp4", [0.0, 0.04], stored.shape[:2], pictures=[stored, stored])
    # The track header holds x' = a x + c y, y' = b x + d y as 16.16 fixed point: (a, b, 0, c, d, 0, ...).
    identity, turned = (
        struct.pack(">5i", a << 16, b << 16, 0, c << 16, d << 16) for a, b, c, d in ((1, 0, 0, 1), matrix)
    )
    data = path.read_bytes()
    header = data.index(b"tkhd")
    path.write_bytes(data[:header] + data[header:].replace(identity, turned, 1))

    info = probe(path)
    assert (info.width, info.height, info.rotation) == (64, 96, rotation)
    _, frame = next(iterate_frames(path))
    assert frame.shape == upright.shape
    assert np.abs(frame[..., 0].astype(int) - upright[..., 0]).mean() < 12


def test_frames_of_a_stream_without_time_stamps_are_evenly_spaced(tmp_path: Path) -> None:
    write_video(tmp_path / "raw.h264", np.arange(10) / 25)
    times = [time for time, _ in iterate_frames(tmp_path / "raw.h264")]
    assert len(times) == 10 and times[0] == pytest.approx(0.0, abs=1e-6)
    assert np.all(np.diff(times) > 0)


def test_time_stamps_that_do_not_begin_at_zero(tmp_path: Path) -> None:
    path = write_video(tmp_path / "late.ts", 5 + np.arange(20) / 25, sound=tone(0.8), sound_start=5.0)
    times = [time for time, _ in iterate_frames(path)]
    assert times[0] == pytest.approx(0.0, abs=2e-3)
    sound = read_audio(path)
    assert sound is not None
    assert np.flatnonzero(np.abs(sound) > 0.1)[0] / RATE < 0.08


def test_truncated_video_gives_its_frames_and_then_the_last_one(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (50, 48, 64, 3), np.uint8)
    whole = write_video(
        tmp_path / "whole.mp4", np.arange(50) / 25, pictures=list(noise), options={"movflags": "faststart"}
    )
    data = whole.read_bytes()
    part = tmp_path / "part.mp4"
    part.write_bytes(data[: len(data) * 6 // 10])
    received = [time for time, _ in iterate_frames(part)]
    assert 5 < len(received) < 50
    frames, actual = frames_at(part, equal_interval_times(0.0, 2.0, 8))
    assert frames.shape == (8, 48, 64, 3)
    assert actual[-1] == pytest.approx(received[-1])
    assert np.all(np.diff(actual) >= 0)


def test_a_damaged_packet_costs_no_more_than_its_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "damaged.mp4", np.arange(50) / 25, key_interval=5)
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + 4 + len(data) // 4
    data[middle : middle + 40] = b"\xff" * 40
    path.write_bytes(bytes(data))
    times = [time for time, _ in iterate_frames(path)]
    assert len(times) > 30 and times[-1] == pytest.approx(49 / 25, abs=0.05)


@pytest.mark.parametrize("seed", range(6))
def test_damaged_sound_packets_cost_no_more_than_their_sound(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    sound = random.normal(0.0, 0.1, 2 * RATE).astype(np.float32)
    path = write_video(tmp_path / "damaged.mp4", np.arange(50) / 25, sound=sound)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.size]
    for position, size in packets[5:-5:3]:
        for at in random.integers(position, position + size, 4):
            data[at] = random.integers(256)
    path.write_bytes(bytes(data))
    read = read_audio(path, sample_rate=RATE)
    assert read is not None and len(read) == pytest.approx(2 * RATE, rel=0.1)
    assert np.isfinite(read).all()
    assert sum(1 for _ in iterate_frames(path)) == 50


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("empty.mp4", b"", "0 bytes"),
        ("text.mp4", b"this is not a video\n" * 50, "cannot be opened"),
        ("noise.mp4", bytes(range(256)) * 40, "cannot be opened"),
        ("playlist.mp4", b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n", ""),
        ("missing.mp4", None, "no such file"),
    ],
)
def test_files_that_are_no_media_give_one_clear_error(
    tmp_path: Path, name: str, content: bytes | None, problem: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    for read in (probe, read_audio, lambda p: list(iterate_frames(p)), lambda p: frames_at(p, [0.0])):
        with pytest.raises(MediaError, match="expected") as caught:
            read(path)
        assert str(path) in str(caught.value) and problem in str(caught.value)


def test_a_video_cut_before_its_index_is_an_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "cut.mp4", np.arange(25) / 25)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(MediaError, match="truncated"):
        probe(path)


def test_a_folder_is_no_media_file(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="not a regular file"):
        probe(tmp_path)


def test_a_media_error_survives_pickling(tmp_path: Path) -> None:
    error = MediaError(tmp_path / "a.mp4", "it is broken")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_sound_without_video(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "voice.wav", tone(1.0)[None])
    info = probe(path)
    assert not info.has_video and info.has_audio
    assert info.duration == pytest.approx(1.0, abs=1e-3)
    assert (info.width, info.height, info.frame_rate) == (0, 0, None)
    sound = read_audio(path)
    assert sound is not None and sound.dtype == np.float32
    np.testing.assert_allclose(sound, tone(1.0), atol=1e-4)
    with pytest.raises(MediaError, match="no video track"):
        frames_at(path, [0.0])


def test_video_without_sound(tmp_path: Path) -> None:
    path = write_video(tmp_path / "silent.mp4", np.arange(10) / 25)
    assert not probe(path).has_audio
    assert read_audio(path) is None
    assert list(iterate_audio(path)) == []


def test_sound_is_resampled_and_its_channels_averaged(tmp_path: Path) -> None:
    stereo = np.stack([tone(0.5, rate=44100), np.zeros(22050, np.float32)])
    sound = read_audio(write_sound(tmp_path / "stereo.wav", stereo, rate=44100))
    assert sound is not None and len(sound) == pytest.approx(8000, abs=2)
    np.testing.assert_allclose(sound[200:-200], 0.5 * tone(0.5)[200 : len(sound) - 200], atol=5e-3)


def test_sound_that_starts_later_is_padded_with_silence(tmp_path: Path) -> None:
    path = write_video(tmp_path / "late.mp4", np.arange(50) / 25, sound=tone(1.0), sound_start=0.75)
    sound = read_audio(path)
    assert sound is not None
    loud = np.flatnonzero(np.abs(sound) > 0.1)
    assert loud[0] / RATE == pytest.approx(0.75, abs=0.03)
    assert loud[-1] / RATE == pytest.approx(1.75, abs=0.05)
    assert np.abs(sound[: round(0.65 * RATE)]).max() < 1e-3


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.5), (0.25, 1.0), (1.3, 2.1), (3.0, None)])
def test_a_stretch_of_sound_is_the_same_as_in_the_whole(
    tmp_path: Path, start: float, end: float | None
) -> None:
    chirp = np.sin(2 * np.pi * np.cumsum(np.linspace(200, 2000, 4 * RATE)) / RATE).astype(np.float32) / 2
    path = write_video(tmp_path / "chirp.mp4", np.arange(100) / 25, sound=chirp)
    whole, stretch = read_audio(path), read_audio(path, start, end)
    assert whole is not None and stretch is not None
    expected = whole[round(start * RATE) : None if end is None else round(end * RATE)]
    assert len(stretch) == len(expected)
    np.testing.assert_allclose(stretch, expected, atol=2e-3)


def test_a_stretch_after_the_sound_is_empty(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "short.wav", tone(0.5)[None])
    sound = read_audio(path, start=2.0, end=3.0)
    assert sound is not None and sound.shape == (0,)


def test_chunks_of_sound_join_to_the_whole(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "voice.wav", tone(1.0)[None])
    chunks = list(iterate_audio(path, chunk_seconds=0.3))
    assert [len(chunk) for chunk in chunks] == [4800, 4800, 4800, 1600]
    whole = read_audio(path)
    assert whole is not None
    np.testing.assert_array_equal(np.concatenate(chunks), whole)


def test_equal_interval_times_are_the_centres_of_equal_bins() -> None:
    np.testing.assert_allclose(equal_interval_times(0.0, 2.0, 4), [0.25, 0.75, 1.25, 1.75])
    np.testing.assert_allclose(equal_interval_times(1.0, 2.0, 1), [1.5])
    times = equal_interval_times(0.0, 3.6, 15)
    assert times.dtype == np.float64
    np.testing.assert_allclose(np.diff(times), 3.6 / 15)
    with pytest.raises(ValueError, match="count is 0"):
        equal_interval_times(0.0, 1.0, 0)
    with pytest.raises(ValueError, match=r"\[2.0, 1.0\]"):
        equal_interval_times(2.0, 1.0, 3)


@pytest.mark.parametrize("times", [[1.0, 0.5], [0.0, float("nan")], []])
def test_times_must_ascend(tmp_path: Path, times: list[float]) -> None:
    path = write_video(tmp_path / "clip.mp4", [0.0, 0.04])
    with pytest.raises(ValueError, match="times"):
        frames_at(path, times)


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    def peak(seconds: int) -> int:
        path = write_video(
            tmp_path / f"{seconds}.mp4", np.arange(seconds * 10) / 10, (144, 192), sound=tone(seconds)
        )
        tracemalloc.start()
        try:
            for _ in iterate_frames(path):
                pass
            frames_at(path, equal_interval_times(0, seconds, 4))
            for _ in iterate_audio(path, chunk_seconds=1.0):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    short, long = peak(5), peak(40)
    assert long < short + 2**18, (short, long)
