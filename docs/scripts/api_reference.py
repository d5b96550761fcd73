"""The public names of fcnlab as directives of Sphinx's autodoc."""

import inspect

import fcnlab


def document() -> str:
    """Return a directive for each name of ``fcnlab.__all__``."""
    return "```{eval-rst}\n" + "\n".join(_directive(name) for name in public_names()) + "\n```"


def public_names() -> list[str]:
    return [name for name in fcnlab.__all__ if not name.startswith("__")]


def _directive(name: str) -> str:
    kind = "class" if inspect.isclass(getattr(fcnlab, name)) else "function"
    return f".. auto{kind}:: fcnlab.{name}\n" + ("   :members:\n" if kind == "class" else "")
