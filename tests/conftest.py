"""What every test shares: float64 oracles, and the police for threads, environment and randomness."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """No test may leave threads, environment variables, default dtype, thread count or grad mode changed."""
    torch.manual_seed(0)
    threads, environment = set(threading.enumerate()), _environment()
    state = (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled())
    yield
    assert _environment() == environment, "a test changed the environment"
    assert (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()) == state
    for thread in set(threading.enumerate()) - threads:
        thread.join(timeout=2)
        assert not thread.is_alive() or thread.daemon, f"a test left the thread {thread.name} running"


def _environment() -> dict[str, str]:
    """The environment without what pytest and torch (its compiler's cache) set by themselves."""
    own = ("PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR")
    return {name: value for name, value in os.environ.items() if name not in own}
