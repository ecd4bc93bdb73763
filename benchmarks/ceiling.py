"""What this machine can do at most, measured where the cases are: copy bandwidth and matrix rate."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch


def _fastest(call: Callable[[], object], times: int = 10) -> float:
    call()
    spans = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        spans.append(time.perf_counter() - start)
    return min(spans)


@dataclass
class Ceiling:
    """The best rates seen, in bytes and operations per second.

    Attributes:
        bandwidth: of a copy too large for the caches, reads and writes together.
        rate: of a square matrix product, by dtype; a multiply-add is two operations.
    """

    bandwidth: float = 0.0
    rate: dict[torch.dtype, float] = field(default_factory=lambda: {torch.float32: 0.0, torch.bfloat16: 0.0})

    def measure(self) -> None:
        """Measure, and keep what is better than before."""
        source, target = torch.ones(2, 2**26)
        seconds = _fastest(lambda: target.copy_(source))
        self.bandwidth = max(self.bandwidth, 2 * source.nbytes / seconds)
        size = 1536
        for dtype in self.rate:
            a, b = torch.randn(2, size, size, dtype=torch.float32).to(dtype)
            self.rate[dtype] = max(self.rate[dtype], 2 * size**3 / _fastest(lambda a=a, b=b: a @ b))

    def least_time(self, flops: float | None, moved: float | None, dtype: torch.dtype) -> float:
        """Seconds that the work takes at these rates (the roofline); 0 where there is no formula."""
        return max((flops or 0.0) / self.rate[dtype], (moved or 0.0) / self.bandwidth)
