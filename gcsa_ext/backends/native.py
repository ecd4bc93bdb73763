"""The compiled module, or the reason why there is none. Importing this never fails."""

from __future__ import annotations

import functools
import importlib
import os
from pathlib import Path
from types import ModuleType

import torch  # first: the extension then shares the OpenMP threads that torch has loaded
from torch.autograd import forward_ad
from torch.utils.dlpack import from_dlpack

extension: ModuleType | None = None
load_error: str | None = None

_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


# OpenMP's threads do not survive a fork, and its runtime would wait for them for ever: a forked child
# computes on one thread.
os.register_at_fork(after_in_child=_after_fork)


def threads() -> int:
    """How many threads a kernel on the CPU may use."""
    return 1 if _forked else torch.get_num_threads()


def transformed() -> bool:
    """Whether torch.func (vmap, grad, jvp, ...) or forward-mode differentiation is at work.

    torch.library's operators know only plain backward differentiation and would fail there, or drop the
    tangent without a word; the definition in plain PyTorch takes every transform.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


# See csrc/tensors.h.
_TORCH = {
    "Tensor": torch.Tensor,
    "Parameter": torch.nn.Parameter,
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
    "increment_version": torch.autograd.graph.increment_version,
    "is_grad_enabled": torch.is_grad_enabled,
    "autograd_excluded": functools.partial(
        torch._C._dispatch_tls_is_dispatch_key_excluded, torch._C.DispatchKey.AutogradOther
    ),
    "is_inference_mode_enabled": torch.is_inference_mode_enabled,
    "is_autocast_enabled": torch.is_autocast_enabled,
    "get_autocast_dtype": torch.get_autocast_dtype,
    "get_default_dtype": torch.get_default_dtype,
    "observers": (
        torch._C._len_torch_dispatch_stack,
        torch._C._len_torch_function_stack,
        torch._C._get_tracing_state,
        torch._C._autograd._profiler_enabled,
        transformed,
    ),
}

try:
    extension = importlib.import_module("gcsa_ext._C")
    extension.use_torch(_TORCH)
except ImportError as error:
    folder = Path(__file__).parents[1]
    load_error = f"the compiled module gcsa_ext._C cannot be loaded: {error} (gcsa_ext is in {folder})"
    if isinstance(error, ModuleNotFoundError):
        load_error += "; if that is the source tree, run outside of it after `pip install .`"
