"""Write the list of all settings and their defaults: its diff shows in review what a change does to users.

    python scripts/settings.py        (make settings)

``tests/config/settings.txt`` gets one line for each setting in each file of conf/ and in the root schema of each
command, and one for each entry of a defaults list. ``???`` is a setting without a default. Arguments of classes that no
file sets are not listed.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from fcnlab.config.components import leaves_of
from fcnlab.config.locations import CONF
from fcnlab.hydra_registration import register_schemas

LIST = Path(__file__).parents[1] / "tests" / "config" / "settings.txt"
HELP = "hydra.help.template"  # a text, which is no setting


def list_settings() -> list[str]:
    """Return the lines ``FILE: key = value``, in the order of the files."""
    register_schemas()
    store = ConfigStore.instance().repo
    schemas = {name: store[name].node for name in sorted(store) if name.endswith("_schema.yaml")}
    files = {str(path.relative_to(CONF)): OmegaConf.load(path) for path in sorted(CONF.rglob("*.yaml"))}
    return [
        f"{name.removesuffix('.yaml')}: {line}" for name, cfg in (files | schemas).items() for line in _settings(cfg)
    ]


def _settings(cfg: DictConfig) -> Iterator[str]:
    tree = OmegaConf.to_container(cfg, resolve=False)
    for entry in tree.pop("defaults", []):
        yield f"defaults {_as_json(entry)}"
    for key, value in leaves_of(tree).items():
        if key != HELP:
            yield f"{key} = {_as_json(value)}"


def _as_json(value) -> str:
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    LIST.write_text("".join(f"{line}\n" for line in list_settings()))
