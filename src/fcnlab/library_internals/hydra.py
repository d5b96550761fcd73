"""Hydra: what an override says, how its values are written, and how errors are reported.

Seen to work with Hydra 1.3.8, the first 1.3.x that pyproject.toml allows being 1.3.4.
"""

from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra._internal import utils
from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.override_parser.types import Override

__all__ = ["BasicLauncher", "folder_name", "option_parser", "reported_by", "value_of", "value_text"]

# BasicLauncher: Hydra's launcher that runs jobs one after the other in this process. No public module exports it.


def value_of(override: Override) -> Any:
    """What an override sets, as it was parsed: a sweep stays a sweep, and text that is quoted stays ``QuotedString``.

    The public ``value()`` fails for sweeps and loses the quotes.
    """
    return override._value


def value_text(value: Any) -> str:
    """A parsed value as Hydra's own sweeper writes it behind the equals sign; it writes whole overrides only."""
    return Override._get_value_element_as_str(value)


def folder_name(overrides: Sequence[Override], exclude: Sequence[str], item_sep: str, kv_sep: str) -> str:
    """``hydra.job.override_dirname`` of some overrides. Hydra computes it once, from the words that it was given."""
    return get_overrides_dirname(list(overrides), list(exclude), item_sep, kv_sep)


def option_parser() -> ArgumentParser:
    """The parser of Hydra's own options, such as ``--config-dir``; ``hydra.main`` builds it for itself alone."""
    return utils.get_args_parser()


@contextmanager
def reported_by(run: Callable[[Callable], Any]) -> Iterator[Callable[[Callable], Any]]:
    """While entered, Hydra calls through ``run`` what may fail, and reports what is raised; gives who does both.

    Hydra prints tracebacks of its own and ends the process in there, so that no ``except`` of a caller sees the error.
    """
    report = utils.run_and_report

    def run_and_report(function: Callable) -> Any:
        return report(lambda: run(function))

    utils.run_and_report = run_and_report
    try:
        yield run_and_report
    finally:
        utils.run_and_report = report
