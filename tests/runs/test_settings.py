"""Which settings are left out of a comparison, because no score depends on them."""

import inspect
import re

import pytest
import yaml

from fcnlab.config.locations import CONF
from fcnlab.config.schemas import EvalConfig, PredictConfig, TrainConfig
from fcnlab.data import DataModule, open_camvid, open_folder, open_sbd, open_shapes, open_voc
from fcnlab.runs.origins import WITHOUT_EFFECT_ON_SCORES
from fcnlab.runs.settings import WITHOUT_EFFECT

ROOTS = {name for config in (TrainConfig, EvalConfig, PredictConfig) for name in vars(config)["__annotations__"]}
CALLBACKS = set(yaml.safe_load((CONF / "callbacks/default.yaml").read_text()))
OF_DATA = set(inspect.signature(DataModule).parameters)
OF_DATASETS = {
    name
    for opener in (open_camvid, open_folder, open_sbd, open_shapes, open_voc)
    for name in inspect.signature(opener).parameters
}


@pytest.mark.parametrize(
    ("pattern", "before", "known"),
    [
        (WITHOUT_EFFECT, r"seed|", ROOTS),
        (WITHOUT_EFFECT, r"callbacks\.", CALLBACKS),
        (WITHOUT_EFFECT, r"data\.", OF_DATA),
        (WITHOUT_EFFECT_ON_SCORES, r"dataset\.", OF_DATASETS),
    ],
)
def test_each_name_of_a_pattern_is_a_setting(pattern, before, known):
    """A setting that is renamed must be renamed here, too."""
    group = pattern.pattern.partition(before + "(")[2].replace(r"(\..*)?", "").partition(")")[0]
    names = re.findall(r"[a-z]\w+", group)
    assert names and set(names) <= known
