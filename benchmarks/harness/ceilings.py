"""What a device reaches at most, measured where the cases are: copy bandwidth and matrix rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from harness.timing import measure


@dataclass
class Ceilings:
    """The best rates seen, per second.

    Attributes:
        bandwidth: bytes of a copy too large for the caches, reads and writes together.
        rate: operations of a square matrix product, by dtype; a multiply-add is two operations.
    """

    bandwidth: float = 0.0
    rate: dict[str, float] = field(default_factory=dict)

    def measure(
        self,
        device: str = "cpu",
        megabytes: int = 256,
        size: int = 1536,
        synchronize: Callable[[], object] = lambda: None,
    ) -> None:
        """Measure, and keep what is better than before.

        Args:
            megabytes: of the copied tensor.
            size: of the square matrices.
        """

        def fastest(call: Callable[[], object]) -> float:
            options = {"least_rounds": 7, "least_span": 0.02, "synchronize": synchronize}
            return min(measure({"": call}, 0.2, **options)[""])

        source = torch.randn(megabytes << 18, device=device)
        copy = partial(torch.empty_like(source).copy_, source)
        self.bandwidth = max(self.bandwidth, 2 * source.nbytes / fastest(copy))
        for dtype in (torch.float32, torch.bfloat16):
            a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            rate = 2 * size**3 / fastest(partial(torch.matmul, a, b))
            self.rate[str(dtype)] = max(self.rate.get(str(dtype), 0.0), rate)

    def least_time(self, flops: float | None, moved: float | None, dtype: str) -> tuple[float, str]:
        """Seconds that the work takes at these rates, 0 where there is no formula, and "flops" or "bytes",
        whichever of the two bounds it."""
        arithmetic = (flops or 0.0) / self.rate[dtype]
        memory = (moved or 0.0) / self.bandwidth
        return (arithmetic, "flops") if arithmetic > memory else (memory, "bytes")
