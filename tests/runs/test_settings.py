"""Test which settings are left out of a comparison because no score depends on them."""

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
DATA_ARGUMENTS = set(inspect.signature(DataModule).parameters)
DATASET_ARGUMENTS = {
    name
    for opener in (open_camvid, open_folder, open_sbd, open_shapes, open_voc)
    for name in inspect.signature(opener).parameters
}


@pytest.mark.parametrize(
    ("pattern", "before", "known"),
    [
        (WITHOUT_EFFECT, r"seed|", ROOTS),
        (WITHOUT_EFFECT, r"callbacks\.", CALLBACKS),
        (WITHOUT_EFFECT, r"data\.", DATA_ARGUMENTS),
        (WITHOUT_EFFECT_ON_SCORES, r"dataset\.", DATASET_ARGUMENTS),
    ],
)
def test_each_name_of_a_pattern_is_a_setting(pattern, before, known):
    """A setting that is renamed must also be renamed in the patterns."""
    group = pattern.pattern.partition(before + "(")[2].replace(r"(\..*)?", "").partition(")")[0]
    names = re.findall(r"[a-z]\w+", group)
    assert names and set(names) <= known
