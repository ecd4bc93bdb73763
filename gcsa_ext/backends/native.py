"""The compiled module gcsa_ext._C, or the reason why it cannot be loaded. Importing this file never fails."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import torch  # before the extension, which then shares the OpenMP runtime that torch has loaded
from torch.utils.dlpack import from_dlpack

extension: ModuleType | None = None
load_error: str | None = None

_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


# OpenMP's threads do not survive a fork, and its runtime would wait for them forever. A forked child
# therefore computes on one thread.
os.register_at_fork(after_in_child=_after_fork)


def threads() -> int:
    """The number of threads that a kernel on the CPU may use."""
    return 1 if _forked else torch.get_num_threads()


def torch_names() -> dict[str, object]:
    """The objects of torch that csrc/python/tensors.h uses."""
    return {
        "float32": torch.float32,
        "float64": torch.float64,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
        "int64": torch.int64,
        "channels_last": torch.channels_last,
        "contiguous_format": torch.contiguous_format,
        "empty": torch.empty,
        "from_dlpack": from_dlpack,
        "threads": threads,
    }


def _load() -> ModuleType:
    module = importlib.import_module("gcsa_ext._C")
    # The workspaces of the kernels and the reference counts of tensors rely on the global interpreter lock.
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        raise ImportError(
            "gcsa_ext._C has not been proved without Python's global interpreter lock, which PYTHON_GIL=0 or "
            "-X gil=0 keeps off: start Python without them"
        )
    module.use_torch(torch_names())
    return module


try:
    extension = _load()
except Exception as error:  # a broken module, or one of another version, may raise any exception
    folder = Path(__file__).parents[1]
    load_error = f"the compiled module gcsa_ext._C cannot be loaded: {error} (gcsa_ext is in {folder})"
    if isinstance(error, ModuleNotFoundError):
        load_error += "; if that is the source tree, run outside of it after `pip install .`"
