"""A data set of clips, decoded once and then read from a cache folder."""

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import cast

import torch
from torch.utils.data import Dataset

from gcsa_ext.atomic import whole_file
from gcsa_ext.corpora.clips import ClipSample, ClipSettings, prepare_clip
from gcsa_ext.corpora.manifest import Clip
from gcsa_ext.extra import import_extra
from gcsa_ext.media import MediaError

safetensors_torch = import_extra("safetensors.torch")

# Part of every cache key. It changes whenever prepare_clip gives other tensors for the same clip and
# settings.
_CACHE_VERSION = 1


class ClipDataset(Dataset[ClipSample]):
    """Clips as :class:`ClipSample`, decoded once and then read from a cache folder.

    A clip's cache file is named by a hash of its path, modification time, size, start and end and of the
    settings, so that a changed file or setting never gets a stale cache file. Labels are not cached. Each
    cache file is complete from the moment it appears: DataLoader workers and several processes may share the
    folder, whether :meth:`prepare` was called or not.

    Args:
        clips: the items, in this order.
        settings: how clips become tensors.
        cache_folder: folder for prepared clips; made if missing. None decodes at every access.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        settings: ClipSettings | None = None,
        cache_folder: str | Path | None = None,
    ) -> None:
        self.clips = list(clips)
        self.settings = settings if settings is not None else ClipSettings()
        self.cache_folder = None if cache_folder is None else Path(cache_folder)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> ClipSample:
        """Read clip ``index`` from the cache, or prepare it. Raises MediaError as :func:`prepare_clip`."""
        clip = self.clips[index]
        file = self.cache_file(index)
        if file is None:
            return prepare_clip(clip, self.settings)
        if not file.is_file():
            sample = prepare_clip(clip, self.settings)
            tensors = {name: tensor for name, tensor in sample.items() if name != "label"}
            with whole_file(file) as temporary:
                safetensors_torch.save_file(tensors, temporary)
            return sample
        stored = safetensors_torch.load_file(file)
        return cast(ClipSample, {**stored, "label": torch.tensor(clip.label, dtype=torch.int64)})

    def cache_file(self, index: int) -> Path | None:
        """The path of the cache file of clip ``index``, which need not exist; None without a cache folder.

        Raises:
            MediaError: the media file is missing.
        """
        if self.cache_folder is None:
            return None
        clip = self.clips[index]
        try:
            status = clip.path.stat()
        except OSError as error:
            raise MediaError(clip.path, f"it cannot be read ({error.strerror})") from error
        key = [
            _CACHE_VERSION,
            str(clip.path.resolve()),
            status.st_mtime_ns,
            status.st_size,
            clip.start,
            clip.end,
            self.settings.to_dict(),
        ]
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.cache_folder / f"{digest[:32]}.safetensors"

    def prepare(self, progress: Callable[[int, int], None] | None = None, workers: int = 2) -> None:
        """Fill the cache with every clip that is not in it yet, on ``workers`` threads.

        Args:
            progress: called in this thread as ``progress(done, total)`` after each clip, and first with 0
                done.
            workers: number of threads; decoding and face detection release the GIL.

        Raises:
            ValueError: the dataset has no cache folder.
            MediaError: a clip cannot be decoded; the clips prepared before it stay in the cache.
        """
        if self.cache_folder is None:
            raise ValueError("cache_folder is None; expected a folder for prepared clips")
        total = len(self.clips)
        # Clips are prepared in parallel, so that torch needs no threads.
        torch_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
            jobs = [pool.submit(self._fill, index) for index in range(total)]
            try:
                if progress is not None:
                    progress(0, total)
                for done, job in enumerate(as_completed(jobs), start=1):
                    job.result()
                    if progress is not None:
                        progress(done, total)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                torch.set_num_threads(torch_threads)

    def _fill(self, index: int) -> None:
        file = self.cache_file(index)
        if file is not None and not file.is_file():
            self[index]
