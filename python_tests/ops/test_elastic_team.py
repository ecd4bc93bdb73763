"""Evaluation turns to one thread where other threads take its cores, with the same bits."""

from __future__ import annotations

import pytest
from subprocesses import python

BITS = """
    import hashlib, math, torch, gcsa_ext
    from gcsa_ext import functional
    from gcsa_ext.backends import native
    torch.manual_seed(0)
    torch.set_num_threads(2)
    alone = math.isinf(native.extension.core_round_trip(1e-4))  # it needs two threads
    found = hashlib.sha256()
    def add(result):
        found.update(result.contiguous().view(torch.uint8).numpy().tobytes())
    maps = [(1, 16, 28, 28), (5, 24, 13, 11), (8, 64, 14, 14), (6, 72, 9, 30), (2, 7, 40, 3)]
    with torch.no_grad():
        for shape in maps:
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                attention = gcsa_ext.GCSA(shape[1], groups=1).to(dtype).eval()
                weight = torch.randn(20, shape[1], 7, 7).to(dtype)
                for layout in (torch.contiguous_format, torch.channels_last):
                    x = torch.randn(shape).to(dtype).contiguous(memory_format=layout)
                    for threads in (2, 3, 4):
                        torch.set_num_threads(threads)
                        add(attention(x))
                        add(functional.conv2d_same(x, weight))
    print(alone, found.hexdigest())
"""


@pytest.mark.parametrize("isa", ["baseline", ""])
def test_a_team_that_gets_one_thread_computes_the_same_bits(isa: str) -> None:
    """OMP_THREAD_LIMIT leaves one thread to a call that was planned for several."""
    environment = {"GCSA_EXT_CPU_ISA": isa} if isa else {}
    many, bits = python(BITS, **environment).split()
    one, bits_of_one = python(BITS, OMP_THREAD_LIMIT="1", **environment).split()
    assert (many, one) == ("False", "True")
    assert bits == bits_of_one


def test_one_thread_computes_where_two_share_a_core() -> None:
    """On one core each of two threads is without it half of the time: nearly all calls take one thread."""
    printed = python(
        """
        import os, time
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        from pathlib import Path
        import torch, gcsa_ext
        def cpu_time():  # of each thread of this process, in nanoseconds
            return {
                int(task.name): int((task / "schedstat").read_text().split()[0])
                for task in Path("/proc/self/task").iterdir()
            }
        torch.set_num_threads(2)
        attention, x = gcsa_ext.GCSA(32).eval(), torch.randn(4, 32, 28, 28)
        with torch.no_grad():
            attention(x)
            before = cpu_time()
            end = time.thread_time() + 1.0
            while time.thread_time() < end:
                attention(x)
        used = {thread: time - before.get(thread, 0) for thread, time in cpu_time().items()}
        main = used.pop(os.getpid())
        print(len(used), sum(used.values()) / main)
        """,
        timeout=300.0,
    )
    workers, share = printed.split()
    assert int(workers) >= 1, "two threads were asked for"
    assert float(share) < 0.25
