"""What holds for every test: fixed random numbers, and memory that is full of NaN before it is written."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(20250311)


@pytest.fixture(autouse=True)
def nan_in_new_memory() -> Iterator[None]:
    """torch.empty returns NaN (or the largest integer), so that an output which nobody wrote shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def keep_threads() -> Iterator[None]:
    """Restore the number of threads after a test that sets it."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def one_thread(keep_threads: None) -> None:
    """For thousands of calls on tiny tensors, whose threads would only wait for each other."""
    torch.set_num_threads(1)
