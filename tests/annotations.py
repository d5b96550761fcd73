"""What ``make test-slow`` decorates every function and dataclass of fcnlab with (``--jaxtyping-packages``).

A call whose arguments or result are not what its annotations say, shapes included, raises a TypeError.
"""

import io
import typing
import warnings

from beartype import BeartypeConf, FrozenDict, beartype
from beartype.roar import BeartypeDecorHintPep585DeprecationWarning

# Type checkers take any open file for these; beartype asks for a name and a mode, which files in memory lack.
BYTES = io.BufferedIOBase | io.RawIOBase
FILES = {typing.IO[bytes]: BYTES, typing.BinaryIO: BYTES, typing.TextIO: io.TextIOBase}
CONF = BeartypeConf(
    is_pep484_tower=True,  # an int is a float, as for type checkers and in YAML
    hint_overrides=FrozenDict(FILES),
)


def checked(decorated):
    """Check the annotations of a function or class, those too that Hydra and OmegaConf write in an old way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BeartypeDecorHintPep585DeprecationWarning)
        return beartype(decorated, conf=CONF)
