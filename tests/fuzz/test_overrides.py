"""Hydra or fcnlab refuses the words of a command line with a proper error, or every component can be called."""

import inspect

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fcnlab.config.components import DIRECTIVES, locate
from fcnlab.config.locations import CONF
from fcnlab.config.validation import validate_config
from fcnlab.errors import UserError
from fcnlab.hydra_registration import register_schemas
from fuzz.test_checkpoints import ODD, changed, places

GROUPS = sorted(str(path.relative_to(CONF).with_suffix("")) for path in CONF.rglob("*.yaml") if path.parent != CONF)
VALUES = st.sampled_from((
    "", "null", "true", "0", "-1", "1e400", "nan", "???", "auto", "none", "x", "é", "'a b'", '"', "\\", "x=y", "a:b",
    "1,2", "[1,2]", "[]", "[", "{}", "{a:1}", "{5:3}", "$", "${", "${seed}", "${nothing}", "${model}", "..x", ".x.y",
    "os.mkdir", "os.nothing", "nothing.at.all", "fcnlab.models.fcn", "fcnlab.models.Tiny", "fcnlab.data.CLASSES",
    "builtins.dict", "math.pi", "random.random", "numpy.add", "{_target_:fcnlab.models.Tiny}", "{_target_:5}",
    "{_target_:fcnlab.models.Tiny,5:3}", "[{_target_:os.mkdir}]",
))  # fmt: skip
# Errors of Hydra: an AssertionError for "+=", a ValueError for "model=null".
REFUSED_BY_HYDRA = (HydraException, OmegaConfBaseException, AssertionError, ValueError)
WORDS = st.text(st.sampled_from("abz_.=+~[]{}$:,'\"\\ @/-0é"), max_size=12)


@pytest.fixture(scope="module")
def composed():
    """Compose the config of ``fcnlab train`` with these words, without output paths."""
    register_schemas()

    def composing(words):
        text = OmegaConf.to_yaml(compose("train", overrides=words))  # ${hydra:...} exists only inside a run
        return OmegaConf.create(text.replace("${hydra:runtime.output_dir}", "/nowhere"))

    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield composing


def components(node) -> list[dict]:
    inside = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    here = [node] if isinstance(node, dict) and "_target_" in node else []
    return here + [component for child in inside for component in components(child)]


def is_refused(cfg) -> bool:
    try:
        validate_config(cfg)
    except (UserError, OmegaConfBaseException):
        return True
    return False


def call_everything(cfg) -> None:
    for node in components(OmegaConf.to_container(cfg, resolve=True)):
        try:
            signature = inspect.signature(locate(node["_target_"]))
        except ValueError:  # a builtin without a signature
            continue
        signature.bind_partial(**{key: value for key, value in node.items() if key not in {*DIRECTIVES, "enabled"}})


@pytest.fixture(scope="module")
def sound(composed) -> dict:
    return OmegaConf.to_container(composed([]))


@settings(max_examples=settings().max_examples // 2)  # composing takes most of the test's time
@given(st.data())
def test_words_are_refused_or_every_component_can_be_called(composed, sound, data):
    signs = st.sampled_from(("", "", "", "+", "++", "~"))
    known = st.sampled_from([".".join(map(str, place)) for place in places(sound)])
    groups = st.sampled_from(GROUPS).map(lambda option: "=".join(option.rsplit("/", 1)))
    setting = st.tuples(signs, known | known | known | WORDS, st.just("="), VALUES | VALUES | WORDS).map("".join)
    try:
        cfg = composed(data.draw(st.lists(setting | groups, max_size=2)))
    except REFUSED_BY_HYDRA:
        return
    if not is_refused(cfg):
        call_everything(cfg)


@given(st.data())
def test_odd_values_are_refused_or_every_component_can_be_called(sound, data):
    place = data.draw(st.sampled_from([place for place in places(sound) if place]))
    directive = data.draw(st.just(()) | st.sampled_from([(key,) for key in DIRECTIVES]))
    value = data.draw(st.sampled_from(sorted(ODD.keys() - {"cycle", "laughs"})))  # which cannot be typed as a word
    try:
        cfg = OmegaConf.create(changed(sound, place + directive, ODD[value]))
    except OmegaConfBaseException:
        return
    if not is_refused(cfg):
        call_everything(cfg)
