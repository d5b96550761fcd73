"""Test the allowed contents of foreign files; everything else is refused."""

import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import fcnlab
from fcnlab.config.components import iter_components, iter_strings
from fcnlab.config.composition import annotation_at
from fcnlab.config.locations import CONF
from fcnlab.config.ranges import is_valid
from fcnlab.config.schemas import TrainConfig
from fcnlab.config.trust import (
    DATA_COMPONENTS,
    DEFERRED,
    LIBRARY_NETWORKS,
    MODEL_COMPONENTS,
    OUTPUT_PATH_KEYS,
    WRITERS,
    UntrustedError,
    check_components,
    check_links,
    check_overrides,
    override_rejection,
    trusted_packages,
    without_fetching,
)
from fcnlab.sweeps.manifest import Manifest

MODEL_CONFIG = {"_target_": "fcnlab.models.FCN", "backbone": {"_target_": "fcnlab.models.Tiny", "width": 2}}
DATA_CONFIG = {
    "_target_": "fcnlab.data.DataModule",
    "root": "data",
    "dataset": {"_target_": "fcnlab.data.open_voc", "_partial_": True},
    "augment": {"_target_": "fcnlab.data.transforms.none", "_partial_": True},
}

# --- overrides of a record

ALLOWED_OVERRIDES = [
    "seed=1",
    "seed=1,2,3",
    "+optim.x=1",
    "~callbacks.progress",
    "experiment=paper/fcn8s",
    "experiment=null",
    "model/backbone=googlenet",
    "model=fcn32s,fcn8s",
    "model=choice(fcn32s,'fcn8s')",
    "model=glob(fcn*)",
    "loss=[dice]",
    "optim.lr=tag(log,interval(1e-4,1e-2))",
    "trainer.max_steps=range(3)",
    "augment.scale=[0.5,2.0]",
    "data.root='/a b/c'",
    "data.dataset.classes={soil: [1, 2, 3], leaf dry: [4, 5, 6], folder: [7, 8, 9]}",
    "model.weights=D/fcn8s_seed${seed}.ckpt",
    "checkpoint=A,B",
    "callbacks.best.monitor=val/miou",
    "logger.wandb.name='a run'",
    "logger.wandb.name='a: b'",
]
REFUSED_OVERRIDES = [
    "model.named_weights.none.encoder_name=resnet18",
    "model.named_weights={none: {encoder_name: 'a:b/c'}}",
    "model.network.encoder_weights=imagenet",
    "model.network.encoder_name='tu-hf-hub:someone/something'",
    "loss=../../../../proc/self/cwd/hostile/evil",
    "loss=/hostile/evil",
    "loss='../evil'",
    "loss=dice,../evil",
    "loss=[dice,../evil]",
    "loss=choice(dice,'../evil')",
    "loss=./dice",
    "loss=dice/",
    "loss=paper//fcn8s",
    "loss=.",
    "loss=${model}",
    "loss=dice.yaml/../../evil",
    "+experiment=../evil",
    "model/backbone=../../evil",
    "loss=none_of_this_name",
    "loss@callbacks.x=dice",
    "+loss@hydra.x=dice",
    "hydra.run.dir=/x",
    "++hydra.searchpath=[file:///hostile]",
    "hydra/launcher=basic",
    "+hydra={run: {dir: /x}}",
    "-m",
    "--config-dir=/hostile",
    "-cd=/hostile",
    "train",
    "",
    "=x",
    "stages=[../../evil]",
    "trust=[os]",
    "sweep.folder=/x",
    "sweep={folder: /x}",
    "a=${oc.env:HOME}",
    "a=${ oc.env:HOME}",
    "a='${ oc.env:HOME}'",
    "a=${oc.env:${b}}",
    "a=${a.${b}}",
    "a=${hydra.run.dir}",
    "a=$${x}{oc.env:HOME}",
    "a='$'",  # with b='{oc.env:HOME}' and c=${a}${b}
    r"a='\${oc.env:HOME}'",
    "a.${b}=1",
    "a={'${oc.env:HOME}': 1}",
    "+x._target_=os.system",
    "+x={_target_: os.system}",
    "+x=[{_target_: os.system}]",
    "+x={y: [{z: {'_target_': os.system}}]}",
    "x._partial_=true",
    "x._args_=[1]",
    "data.dataset.classes={_target_: os.system}",
    "callbacks.best.dirpath=/home/user",
    "callbacks.best={dirpath: /home/user}",
    "callbacks={best: {dirpath: x}}",
    "callbacks.best.filename=../../x",
    "callbacks.best.filename=/x",
    "+callbacks.best.filename=~/x",
    "logger.tensorboard.save_dir=x",
    "logger.tensorboard.version=../..",
    "+logger.mine.tracking_uri='file:///home/user'",
    "+logger.mine.tracking_uri='https://example.org'",
    "+logger.mine.tracking_uri='file:/home/user'",
    "+logger.mine.tracking_uri='file:../x'",
    "logger.tensorboard.name=${data.root}",  # with +data.root=/x
    "logger.tensorboard.name='a/${x}'",
    r"logger.tensorboard.name='\${x}'",
    "logger.tensorboard={name: '${x}'}",
    "logger.wandb.tags=[a,'${x}']",
    "+logger.mine=${optim}",
    "callbacks.best.monitor=${a},${b}",
    "+trainer.profiler=${x}",
    "logger.wandb.entity=somebody",
    "logger.wandb={entity: somebody}",
    "checkpoint=wandb:team/project/name:best",
    "checkpoint='wandb:team/project/name:best'",
    "checkpoint=a.ckpt,wandb:team/project/name:best",
    "checkpoint=[a.ckpt,wandb:team/project/name:best]",
    "checkpoint=choice(wandb:team/project/name:best,a.ckpt)",
    "+logger.mine.host=example.org",
    "+trainer.default_root_dir=/x",
    "data.cache_dir=/x",
    "data={cache_dir: /x}",
    "data.archive=[a.tar]",
    "a\u2024b=1",
    "a=" + 12 * "[" + 12 * "]",
    "seed=" + 5_000 * "9",  # Python converts 4,300 digits
    "seed=" + 400 * "9",
    "seed=1" + 400 * "_1",
    "optim.lr=0." + 400 * "3",
    "optim.lr=[1,{a: " + 400 * "3" + "}]",
    "data=" + 300 * "a",  # a file's name has 255
    "data=" + 3_000 * "a/" + "a",
    "a/" * 3_000 + "b=1",
    "b" * 300 + "=1",
    "data=[a," + 300 * "b" + "]",
    "+data/" + 300 * "b" + "=voc",
    5,
    None,
    ["seed=1"],
]


@pytest.mark.parametrize("override", ALLOWED_OVERRIDES)
def test_allowed_overrides_of_a_record(override: str):
    check_overrides([override], [CONF])


@pytest.mark.parametrize("override", REFUSED_OVERRIDES, ids=repr)
def test_all_other_overrides_of_a_record_are_refused(override):
    with pytest.raises(UntrustedError, match="its record is refused, because of the override"):
        check_overrides(["seed=1", override], [CONF])


def test_overrides_that_are_slow_or_grow_are_refused():
    """Ten doublings give a thousand copies, and Hydra's parser needs half a minute for 20,000 brackets."""
    doubled = [f"+a{place + 1}=['${{a{place}}}','${{a{place}}}']" for place in range(10)]
    with pytest.raises(UntrustedError, match="more than 8 interpolations"):
        check_overrides(doubled, [CONF])
    for long in (["a=" + 20_000 * "["], ["a=1"] * 5_000):
        with pytest.raises(UntrustedError, match="more than 10000 characters"):
            check_overrides(long, [CONF])


def test_foreign_text_is_escaped_in_messages():
    with pytest.raises(UntrustedError) as caught:
        check_overrides(["\x1b[2Jx=${oc.env:X}" + 500 * "y"], [CONF])
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 300


def test_user_options_need_a_typed_config_dir(tmp_path):
    own, elsewhere = tmp_path / "own", tmp_path / "elsewhere"
    (own / "loss").mkdir(parents=True)
    elsewhere.mkdir()
    for path in (own / "loss/mine.yaml", elsewhere / "evil.yaml"):
        path.write_text("a: 1\n")
    (own / "loss/linked.yaml").symlink_to(elsewhere / "evil.yaml")
    (own / "loss/deep").symlink_to(elsewhere)
    assert "needs --config-dir" in override_rejection("loss=mine", [CONF])
    assert not override_rejection("loss=mine", [own, CONF]) and not override_rejection("loss=mine.yaml", [own, CONF])
    for word in ("loss=linked", "loss=deep/evil", "loss=glob(*)"):
        assert "leads out of its config folder" in override_rejection(word, [own, CONF])


def test_a_record_sets_no_output_path():
    """Checks every value of conf/ that is a path in the run's folder."""
    inside = {
        key
        for path in CONF.rglob("*.yaml")
        for key, value in flat(OmegaConf.to_container(OmegaConf.load(path), resolve=False))
        if isinstance(value, str) and "hydra:runtime.output_dir" in value
    }
    assert {"dirpath", "folder", "save_dir"} <= inside <= set(OUTPUT_PATH_KEYS)


def test_interpolations_in_conf_give_only_numbers_to_output_settings():
    """A path in a record is checked only where the record sets it, not where an interpolation copies it."""
    places = [path for group in WRITERS for path in (CONF / group).rglob("*.yaml")]
    trees = [OmegaConf.to_container(OmegaConf.load(path), resolve=False) for path in places]
    trees += [
        {
            key: value
            for key, value in OmegaConf.to_container(OmegaConf.load(path), resolve=False).items()
            if key in WRITERS
        }
        for path in CONF.rglob("*.yaml")
    ]
    interpolated = {
        text for tree in trees for text in iter_strings(tree) if "${" in text and "hydra:runtime.output_dir" not in text
    }
    assert "${checkpointing.keep_top}" in interpolated
    for text in interpolated:
        assert is_valid(1, annotation := annotation_at(TrainConfig, text[2:-1])) and not is_valid("/x", annotation)


def flat(tree):
    """Yield every key with its value, at any depth."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield key, value
        yield from flat(value)


def test_the_resume_command_repeats_settings_that_must_be_typed(tmp_path):
    plain, own = (Manifest(tmp_path, "eval", ["checkpoint=a,b", *further]) for further in ([], ["trust=[mine]"]))
    assert plain.resume_command == f"fcnlab eval -m sweep.resume={tmp_path}"
    assert own.resume_command == f"{plain.resume_command} checkpoint=a,b 'trust=[mine]'"


def test_a_link_out_of_a_folder_is_refused(tmp_path):
    folder = tmp_path / "sweep"
    (folder / "0" / "wandb").mkdir(parents=True)
    (folder / "0" / "a").symlink_to(folder / "sweep.json")
    (folder / "0" / "wandb" / "latest-run").symlink_to("/elsewhere/run")  # W&B's link, in a folder that was moved
    check_links(folder)
    (folder / "0" / "metrics.csv").symlink_to(tmp_path / "precious")
    with pytest.raises(UntrustedError, match=r"metrics\.csv is a link that leads out"):
        check_links(folder)


# --- components of a checkpoint or a run's data


def callables() -> set[str]:
    """Return all names of all callables in fcnlab, also those of imported ones."""
    names = set()
    for module in pkgutil.walk_packages(fcnlab.__path__, "fcnlab."):
        if module.name != "fcnlab.__main__":
            loaded = importlib.import_module(module.name)
            members = {name: value for name, value in vars(loaded).items() if callable(value)}
            names |= {f"{module.name}.{name}" for name in members}
            classes = {name: value for name, value in members.items() if inspect.isclass(value)}
            names |= {
                f"{module.name}.{name}.{part}"
                for name, value in classes.items()
                for part, member in vars(value).items()
                if callable(getattr(value, part, member))
            }
    return names


def is_allowed(tree, places) -> bool:
    try:
        check_components(tree, places, (), "a file")
    except UntrustedError:
        return False
    return True


def put(tree: dict, path: str, target: str) -> dict:
    node = {"_target_": target} | ({"_partial_": True} if path in DEFERRED else {})
    return tree | (node if not path else {path: node})


@pytest.mark.parametrize(
    ("tree", "places"), [(MODEL_CONFIG, MODEL_COMPONENTS), (DATA_CONFIG, DATA_COMPONENTS)], ids=["model", "data"]
)
def test_only_the_listed_callables_are_allowed_as_targets(tree, places):
    every = callables() | set(LIBRARY_NETWORKS)
    assert len(every) > 1000 and {name for names in places.values() for name in names} <= every
    for path, listed in places.items():
        allowed = {name for name in every if is_allowed(put(tree, path, name), places)}
        assert allowed == set(listed)
    for name in every:  # nowhere else
        assert not is_allowed(tree | {"root": {"_target_": name}}, places)


@pytest.mark.parametrize(
    ("places", "group", "slot"),
    [
        (MODEL_COMPONENTS, "model", ""),
        (MODEL_COMPONENTS, "model/backbone", "backbone"),
        (DATA_COMPONENTS, "data", ""),
        (DATA_COMPONENTS, "augment", "augment"),
        (DATA_COMPONENTS, "data", "dataset"),
    ],
)
def test_the_lists_contain_exactly_the_targets_in_conf(places, group: str, slot: str):
    trees = [OmegaConf.to_container(OmegaConf.load(path), resolve=False) for path in (CONF / group).glob("*.yaml")]
    nodes = [tree.get(slot, {}) if slot == "dataset" else tree for tree in trees]
    assert {node["_target_"] for node in nodes if "_target_" in node} == set(places[slot])


HOSTILE = {
    "another package": {"_target_": "os.system"},
    "through an attribute": {"_target_": "fcnlab.data.datamodule.os.system"},
    "an alias": {"_target_": "fcnlab.models.tiny.Tiny"},
    "the same prefix": {"_target_": "fcnlab.modelsevil.FCN"},
    "a dot of unicode": {"_target_": "fcnlab\u2024models.Tiny"},
    "a surrogate": {"_target_": "fcnlab.models.\ud800Tiny"},
    "wrong capitals": {"_target_": "fcnlab.models.tiny"},
    "a space": {"_target_": " fcnlab.models.Tiny"},
    "not a string": {"_target_": 42},
    "a list": {"_target_": ["fcnlab.models.Tiny"]},
    "reading endlessly": {"_target_": "fcnlab.models.vgg.md5", "path": "/dev/zero"},
    "positional arguments": {"_target_": "fcnlab.models.VGG16", "_args_": ["same", 0.5, "imagenet"]},
    "partial": {"_target_": "fcnlab.models.Tiny", "_partial_": True},
    "not recursive": {"_target_": "fcnlab.models.Tiny", "_recursive_": False},
    "nested": {"_target_": "fcnlab.models.Tiny", "padding": {"_target_": "fcnlab.models.Tiny"}},
    "in a list": [{"_target_": "fcnlab.models.Tiny"}],
    "in a tuple": ({"_target_": "os.mkdir", "path": "made"},),
    "below an empty key": {"": {"_target_": "os.system"}},
    "interpolated": {"_target_": "fcnlab.models.Tiny", "width": "${oc.env:HOME}"},
    "half an interpolation": {"_target_": "fcnlab.models.Tiny", "padding": "$"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_model_from_a_file_has_only_a_listed_backbone(name):
    assert is_allowed(MODEL_CONFIG, MODEL_COMPONENTS) and not is_allowed(
        MODEL_CONFIG | {"backbone": HOSTILE[name]}, MODEL_COMPONENTS
    )
    assert not is_allowed(MODEL_CONFIG | {"": HOSTILE[name]}, MODEL_COMPONENTS) and not is_allowed(
        MODEL_CONFIG | {"x": HOSTILE[name]}, MODEL_COMPONENTS
    )


def network(target: str = "segmentation_models_pytorch.Unet", **arguments) -> dict:
    node = {"_target_": target, "_partial_": True, "classes": 21} | arguments
    return {"_target_": "fcnlab.models.Architecture", "num_classes": 21, "weights": "none", "network": node}


def test_a_library_network_from_a_file_has_plain_arguments_only():
    plain = network(encoder_name="tu-convnext_tiny.fb_in22k", decoder_channels=[16, 8], encoder_weights=None)
    assert is_allowed(plain, MODEL_COMPONENTS) and trusted_packages(plain) == []
    hostile = [
        network(encoder_name="tu-hf-hub:someone/something"),  # timm asks the Hub for its configuration
        network(encoder_name="tu-local-dir:/somewhere"),
        network(encoder_name=["resnet18", "a/b"]),
        network(encoder_weights="imagenet"),
        network(pretrained_cfg={"url": "http://host/x"}),  # smp hands unknown arguments to timm
        network(checkpoint_path="x"),
        network(in_channels=1_000_000),  # smp makes real tensors of it while sizes are compared
        network(decoder_channels={"a": 1}),
        network("torchvision.models.segmentation.fcn_resnet50", weights="DEFAULT"),
        network("torchvision.models.get_model", name="resnet50"),
        network("segmentation_models_pytorch.from_pretrained", classes="someone/something"),
        network() | {"network": network()["network"] | {"_partial_": False}},
        network() | {"named_weights": {"_target_": "os.system"}},
    ]
    assert not any(is_allowed(tree, MODEL_COMPONENTS) for tree in hostile)
    own = network(encoder_weights="imagenet")
    assert trusted_packages(own) == ["segmentation_models_pytorch"]
    with pytest.raises(
        UntrustedError, match=r"sets network.encoder_weights='imagenet', .* add trust=\[segmentation_mod"
    ):
        check_components(own, MODEL_COMPONENTS, (), "a file")


def test_the_network_of_a_checkpoint_fetches_nothing():
    """Neither by arguments that no list covers nor by those that are left out."""
    unet = network() | {"named_weights": {"none": {"encoder_name": "a:b/c"}}}
    rebuilt = without_fetching(unet)
    assert rebuilt["named_weights"] == {} and rebuilt["network"] == unet["network"] | {"encoder_weights": None}
    name = "torchvision.models.segmentation.fcn_resnet50"
    of_torchvision = without_fetching(network(name))["network"]
    assert of_torchvision == network(name, weights=None, weights_backbone=None)["network"]
    assert without_fetching({"_target_": "fcnlab.models.FCN"}) == {"_target_": "fcnlab.models.FCN"}


def test_a_dataset_function_must_be_partial():
    for partial in ({}, {"_partial_": False}, {"_partial_": 1}):
        images = {"_target_": "fcnlab.data.open_shapes", "root": "/x", "split": "train"} | partial
        assert is_allowed(DATA_CONFIG, DATA_COMPONENTS) and not is_allowed(
            DATA_CONFIG | {"dataset": images}, DATA_COMPONENTS
        )


def test_a_package_named_by_the_user_is_trusted(tmp_path):
    own = {"_target_": "torch.nn.modules.linear.Linear", "in": [{"_target_": "fcnlab.models.Tiny"}]}
    check_components(own, MODEL_COMPONENTS, ("torch.nn",), "a file")
    check_components(MODEL_CONFIG | {"backbone": own}, MODEL_COMPONENTS, ("torch.nn",), "a file")
    assert trusted_packages(own) == ["torch"] and trusted_packages(MODEL_CONFIG) == []
    for target in ("torch.load", "torch.nn.functional.warnings.warn", "pathlib.Path.write_text"):
        with pytest.raises(UntrustedError, match=r"add trust=\[PACKAGE\]"):
            check_components({"_target_": target}, MODEL_COMPONENTS, ("torch.nn",), "a file")


def test_every_component_of_a_tree_is_found():
    assert len(list(iter_components({"a": {"": {"_target_": "x"}, "b": [{"_target_": "y"}]}, "_target_": "z"}))) == 3


def test_options_with_dots_are_refused_because_hydra_follows_them(tmp_path):
    """The attack: a group option with dots loads a YAML file from anywhere."""
    from hydra import compose, initialize_config_dir

    from fcnlab.hydra_registration import register_schemas

    (tmp_path / "evil.yaml").write_text("_target_: fcnlab.sweeps.processes.start_process\n")
    register_schemas()
    up = "/".join([".."] * (len(CONF.parts) + 1))
    option = f"{up}{Path(tmp_path).resolve()}/evil"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose("train", [f"loss={option}"]).loss._target_ == "fcnlab.sweeps.processes.start_process"
    assert override_rejection(f"loss={option}", [CONF])
