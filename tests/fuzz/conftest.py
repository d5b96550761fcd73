"""Fuzz all code that reads foreign bytes or words: the result is right or a UserError, and memory stays small.

``make test`` runs 50 examples of each property, always the same ones. ``FCNLAB_FUZZ_EXAMPLES=2000``, as in ``make
fuzz``, runs that many new ones each time; hypothesis prints a failing one and keeps it in ``.hypothesis/``.
"""

import os
import resource
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

EXAMPLES = os.environ.get("FCNLAB_FUZZ_EXAMPLES")
LITTLE = 2**29  # bytes in addition to those of the process

settings.register_profile(
    "fuzz",
    max_examples=int(EXAMPLES or 50),
    derandomize=EXAMPLES is None,
    deadline=None,
    # All examples of a test share one folder: each rewrites its file.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("fuzz")


@pytest.fixture
def little_memory():
    """Make allocations fail beyond another half a gigabyte: a file that claims more must be refused before."""
    if sys.platform != "linux":
        pytest.skip("the limit is Linux's")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + LITTLE, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
