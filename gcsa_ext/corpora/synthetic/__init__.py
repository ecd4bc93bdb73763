"""The synthetic corpus: talking faces as video files, with voices."""

from gcsa_ext.corpora.synthetic.clip import FACE_OF, VOICE_OF, synthesize_clip
from gcsa_ext.corpora.synthetic.corpus import synthesize_corpus

__all__ = ["FACE_OF", "VOICE_OF", "synthesize_clip", "synthesize_corpus"]
