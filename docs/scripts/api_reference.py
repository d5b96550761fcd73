"""The public names of fcnlab as directives of Sphinx's autodoc, by topic."""

import inspect

import fcnlab

TOPICS = {  # the rooms of src/fcnlab whose public names a section has
    "Load, train and compare": ("api", "evaluation", "comparison", "errors"),
    "Networks": ("models",),
    "Data": ("data",),
    "Losses and training": ("training",),
    "Scores": ("metrics",),
}


def document() -> str:
    """Return a section for each topic, with a directive for each name of ``fcnlab.__all__``."""
    names: dict[str, list[str]] = {topic: [] for topic in TOPICS}
    for name in public_names():
        names[_topic(getattr(fcnlab, name))].append(name)
    return "\n".join(f"## {topic}\n\n```{{eval-rst}}\n{_directives(found)}```\n" for topic, found in names.items())


def public_names() -> list[str]:
    return [name for name in fcnlab.__all__ if not name.startswith("__")]


def _topic(value: object) -> str:
    """Return the topic of a class or function; a room without a topic is an error, so that no name is left out."""
    room = inspect.getmodule(value).__name__.split(".")[1]
    return next(topic for topic, rooms in TOPICS.items() if room in rooms)


def _directives(names: list[str]) -> str:
    """Return the directives of functions, and then of classes, which list their members."""
    classes = [name for name in names if inspect.isclass(getattr(fcnlab, name))]
    functions = [f".. autofunction:: fcnlab.{name}\n" for name in names if name not in classes]
    return "".join([*functions, *(f".. autoclass:: fcnlab.{name}\n   :members:\n" for name in classes)])
