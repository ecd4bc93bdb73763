"""A corpus of synthetic talking faces, split by person, with its manifest."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gcsa_ext.atomic import whole_file
from gcsa_ext.corpora.labels import ABAW
from gcsa_ext.corpora.manifest import Clip, write_manifest
from gcsa_ext.corpora.synthetic.clip import synthesize_clip

# Part of the clips' folder name. It changes whenever the same arguments give other files.
_CORPUS_VERSION = 2


class _Job(NamedTuple):
    """The arguments of synthesize_clip for one clip."""

    path: Path
    identity: int
    emotion: int
    seed: int


def synthesize_corpus(
    folder: str | Path,
    identities: int = 72,
    clips_per_emotion: int = 1,
    seed: int = 0,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
    size: int = 112,
) -> Path:
    """Write a corpus of ``identities`` x 8 emotions x ``clips_per_emotion`` clips and its manifest.

    About two thirds of the identities are for training, the others for validation and test in equal parts. No
    identity is in two splits; it is the clip's speaker in the manifest. A folder that holds the corpus of the
    same arguments already is left as it is; an interrupted corpus is completed.

    Args:
        folder: where the corpus goes; made if missing.
        identities: number of persons, at least 3.
        clips_per_emotion: clips of each person and emotion.
        seed: chooses the persons and everything random in the clips.
        workers: number of threads.
        progress: called in this thread as ``progress(done, total)`` after each clip, and first with 0 done.
        size: even side of the frames in pixels.

    Returns:
        The path of ``manifest.csv`` in ``folder``.

    Raises:
        ValueError: fewer than 3 identities, no clips, a negative seed, or a bad ``size``.
    """
    if identities < 3 or clips_per_emotion < 1 or seed < 0:
        raise ValueError(
            f"identities is {identities}, clips_per_emotion {clips_per_emotion} and seed {seed}; expected "
            "at least 3 identities (one per split), at least 1 clip and a seed >= 0"
        )
    root = Path(folder)
    manifest, record = root / "manifest.csv", root / "corpus.json"
    parameters = {
        "version": _CORPUS_VERSION,
        "identities": identities,
        "clips_per_emotion": clips_per_emotion,
        "seed": seed,
        "size": size,
    }
    # Clips of other parameters are in another folder, so that they are never used by mistake.
    clips_folder = root / "-".join(["clips", *(f"{value}" for value in parameters.values())])
    persons = np.random.default_rng([seed]).integers(2**31, size=identities).tolist()
    clips: list[Clip] = []
    jobs: list[_Job] = []
    for i, person in enumerate(persons):
        for take in range(clips_per_emotion):
            for label, name in enumerate(ABAW):
                path = clips_folder / f"{i:03d}-{name.lower()}-{take}.mp4"
                clips.append(Clip(path, label, _split(i, identities), speaker=f"{i:03d}"))
                jobs.append(_Job(path, person, label, take))

    missing = [job for job in jobs if not job.path.is_file()]
    if not missing and manifest.is_file() and _holds(record, parameters):
        if progress is not None:
            progress(len(jobs), len(jobs))
        return manifest
    record.unlink(missing_ok=True)
    _render(missing, len(jobs), size, workers, progress)
    write_manifest(manifest, clips)
    with whole_file(record) as temporary:
        temporary.write_text(json.dumps(parameters, indent=2) + "\n", encoding="utf-8")
    return manifest


def _holds(record: Path, parameters: dict[str, int]) -> bool:
    """True if the file ``record`` says that a corpus of these parameters is complete."""
    try:
        return bool(json.loads(record.read_text(encoding="utf-8")) == parameters)
    except (FileNotFoundError, json.JSONDecodeError):
        return False


def _render(
    missing: list[_Job],
    total: int,
    size: int,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write the ``missing`` of ``total`` clips."""
    done = total - len(missing)
    if progress is not None:
        progress(done, total)
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        futures = [pool.submit(synthesize_clip, *job, size=size) for job in missing]
        try:
            for future in as_completed(futures):
                future.result()
                done += 1
                if progress is not None:
                    progress(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _split(identity: int, identities: int) -> str:
    held_out = max(1, round(identities / 6))
    if identity < identities - 2 * held_out:
        return "train"
    return "validation" if identity < identities - held_out else "test"
