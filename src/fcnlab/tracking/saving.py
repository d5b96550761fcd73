"""Save a view or a report on W&B's server: the only part of both that needs the network."""

from collections.abc import Callable
from typing import Any

from fcnlab.errors import UserError, first_line


def save(describe: Callable[[str], Any], entity: str | None) -> str:
    """Save what ``describe`` returns for an entity, and return its address.

    ``entity`` is W&B's default one if it is None.

    Raises
    ------
    UserError
        The server cannot be reached, or it refuses.
    """
    from fcnlab.tracking.server import check_server  # imports torch, which the comparison before does not need

    check_server()
    import wandb

    try:
        owner = entity or wandb.Api().default_entity
        if owner is None:
            raise UserError("W&B does not say whose project this is: set entity=TEAM")
        return describe(owner).save().url
    except UserError:
        raise
    except Exception as error:  # errors of W&B, of its answers and of its libraries have no common type
        raise UserError(f"W&B did not save it: {first_line(error)}") from error
