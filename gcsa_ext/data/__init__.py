"""Real input: media files, manifests, faces, log-mel spectrograms, prepared clips, and a synthetic corpus.

Needs the extra ``[train]``: ``pip install ".[train]"``.
"""

from gcsa_ext.corpora.clips import (
    ClipBatch,
    ClipSample,
    ClipSettings,
    collate_clips,
    is_audible,
    make_sample,
    prepare_clip,
)
from gcsa_ext.corpora.dataset import ClipDataset
from gcsa_ext.corpora.labels import EMOTIONS, IGNORE_INDEX
from gcsa_ext.corpora.manifest import SPLITS, Clip, ManifestError, read_manifest, write_manifest
from gcsa_ext.corpora.synthetic import FACE_OF, VOICE_OF, synthesize_clip, synthesize_corpus
from gcsa_ext.media import (
    MediaError,
    MediaInfo,
    equal_interval_times,
    frames_at,
    iterate_audio,
    iterate_frames,
    iterate_frames_at,
    probe,
    read_audio,
)
from gcsa_ext.media.faces import FaceCropper
from gcsa_ext.media.spectrogram import LogMelSpectrogram

__all__ = [
    "EMOTIONS",
    "FACE_OF",
    "IGNORE_INDEX",
    "SPLITS",
    "VOICE_OF",
    "Clip",
    "ClipBatch",
    "ClipDataset",
    "ClipSample",
    "ClipSettings",
    "FaceCropper",
    "LogMelSpectrogram",
    "ManifestError",
    "MediaError",
    "MediaInfo",
    "collate_clips",
    "equal_interval_times",
    "frames_at",
    "is_audible",
    "iterate_audio",
    "iterate_frames",
    "iterate_frames_at",
    "make_sample",
    "prepare_clip",
    "probe",
    "read_audio",
    "read_manifest",
    "synthesize_clip",
    "synthesize_corpus",
    "write_manifest",
]
