"""What the tests of several models share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _repeatable():
    """One seed; one thread, since small tensors gain nothing from more and wait for each other on a busy machine."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
