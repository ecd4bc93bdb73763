"""Triton's interpreter: under TRITON_INTERPRET=1 the kernels are Python and NumPy on the CPU, for tests."""

from __future__ import annotations

from typing import Any

import numpy
import torch
import triton.language as tl
from triton.runtime import interpreter

from gcsa_ext.backends.triton.kernels.tile import sum_partials

INTERPRETED = isinstance(sum_partials, interpreter.InterpretedFunction)


def compute_as_a_gpu_does() -> None:
    """Make Triton 3.6's interpreter compute what compiled kernels compute.

    After this call scalars bound a loop with NumPy 2.4 too (Triton issue 9171), bfloat16 is rounded to
    nearest and not towards zero, tl.dot multiplies the values of bfloat16 operands and not their bits, and
    overflow and NaN raise no warning. Besides, the functions of the language are replaced once and not in
    every call of every function, which takes half of the time.
    """
    builder = interpreter.InterpreterBuilder
    patch, convert, dot = interpreter._patch_lang_tensor, interpreter._convert_float, builder.create_dot
    run, patch_language = interpreter.GridExecutor.__call__, interpreter._patch_lang
    patched: set[Any] = set()

    def patch_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def patch_language_once(function: Any) -> Any:
        if function not in patched:
            patch_language(function)
            patched.add(function)
        return interpreter._LangPatchScope()  # an empty scope: at its end nothing is restored

    def convert_float(data: Any, source: Any, target: Any, rounding_mode: Any) -> Any:
        if (source, target) == (tl.float32, tl.bfloat16):
            return torch.from_numpy(data).to(torch.bfloat16).view(torch.int16).numpy()
        if (source, target) == (tl.bfloat16, tl.float32):
            return torch.from_numpy(data).view(torch.bfloat16).to(torch.float32).numpy()
        return convert(data, source, target, rounding_mode)

    def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        a, b = (self.cast_impl(t, tl.float32) if t.dtype.scalar == tl.bfloat16 else t for t in (a, b))
        return dot(self, a, b, *others)

    def run_quietly(self: Any, *args: Any, **options: Any) -> None:
        with numpy.errstate(all="ignore"):
            run(self, *args, **options)

    interpreter.GridExecutor.__call__ = run_quietly
    interpreter._patch_lang_tensor = patch_tensor
    interpreter._patch_lang = patch_language_once
    interpreter._convert_float = convert_float
    builder.create_dot = create_dot
