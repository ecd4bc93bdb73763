"""Corpora: label sets, manifests of clips, prepared clips, and the synthetic corpus.

Needs the extra ``[train]``: ``pip install ".[train]"``.
"""

from gcsa_ext.corpora.clips import (
    ClipBatch,
    ClipDataset,
    ClipSample,
    ClipSettings,
    collate_clips,
    is_audible,
    make_sample,
    prepare_clip,
)
from gcsa_ext.corpora.labels import EMOTIONS, IGNORE_INDEX
from gcsa_ext.corpora.manifest import SPLITS, Clip, ManifestError, read_manifest, write_manifest
from gcsa_ext.corpora.synthetic import FACE_OF, VOICE_OF, synthesize_clip, synthesize_corpus

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
    "ManifestError",
    "collate_clips",
    "is_audible",
    "make_sample",
    "prepare_clip",
    "read_manifest",
    "synthesize_clip",
    "synthesize_corpus",
    "write_manifest",
]
