"""What tests of runs share."""

import functools
import inspect

import pytest


@pytest.fixture
def at_call(monkeypatch):
    """Do something when a method is called for the n-th time, before it runs."""

    def arrange(owner: type, method: str, count: int, act) -> None:
        original, calls = inspect.unwrap(getattr(owner, method)), [0]

        @functools.wraps(original)  # Lightning looks at the signature
        def counting(self, *args, **kwargs):
            calls[0] += 1
            if calls[0] == count:
                act()
            return original(self, *args, **kwargs)

        monkeypatch.setattr(owner, method, counting)

    return arrange
