"""The decorator that ``make test-slow`` applies to all functions and dataclasses (``--jaxtyping-packages``).

A call whose arguments or result do not match its annotations, shapes included, raises a TypeError.
"""

import io
import typing
import warnings

from beartype import BeartypeConf, FrozenDict, beartype
from beartype.roar import BeartypeDecorHintPep585DeprecationWarning

# Type checkers accept any open file for these; beartype requires a name and a mode, which in-memory files lack.
BYTES = io.BufferedIOBase | io.RawIOBase
FILES = {typing.IO[bytes]: BYTES, typing.BinaryIO: BYTES, typing.TextIO: io.TextIOBase}
CONF = BeartypeConf(
    is_pep484_tower=True,  # an int is a float, as for type checkers and in YAML
    hint_overrides=FrozenDict(FILES),
)


def checked(decorated):
    """Check the annotations of a function or class, including old-style ones from Hydra and OmegaConf."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BeartypeDecorHintPep585DeprecationWarning)
        return beartype(decorated, conf=CONF)
