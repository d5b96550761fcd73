import importlib
import sys
import zipfile
from pathlib import Path

import pytest
from hydra import compose as compose_config
from hydra import initialize_config_dir, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException, MissingConfigException
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf

from fcnlab.config.locations import CONF
from fcnlab.library_internals.hydra import (
    BasicLauncher,
    composed_through,
    config_files_kept,
    copy_below_its_parent,
    folder_name,
    group_members,
    option_parser,
    reported_by,
    value_of,
    value_text,
)

BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


def parsed(word):
    return OverridesParser.create().parse_override(word)


def test_value_of_returns_the_parsed_value():
    assert value_of(parsed("a=1")) == 1 and value_of(parsed("a=null")) is None
    assert isinstance(value_of(parsed("a='b'")), QuotedString) and isinstance(value_of(parsed("a=1,2")), ChoiceSweep)


@pytest.mark.parametrize("text", ["1", "true", "null", "[1,2]", "{b:1}", "'a b'", "x"])
def test_value_text_is_read_as_the_same_value(text):
    value = value_of(parsed(f"a={text}"))
    assert value_of(parsed(f"a={value_text(value)}")) == value


def test_folder_name_omits_excluded_keys():
    assert folder_name([parsed("b=1"), parsed("seed=3"), parsed("a=x")], ["seed"], ",", "=") == "a=x,b=1"


def test_option_parser_separates_options_and_overrides():
    known, rest = option_parser().parse_known_args(["--config-dir", "here", "a=1"])
    assert known.config_dir == "here" and (known.overrides + rest) == ["a=1"]


def test_reported_by_sees_the_error_before_hydra_ends_the_process(capsys):
    def sentence(run):
        try:
            return run()
        except ValueError as error:
            raise CompactHydraException(f"fcnlab: {error}") from None

    from hydra._internal import utils

    before = utils.run_and_report
    with reported_by(sentence) as report:
        assert utils.run_and_report is report and report(lambda: 3) == 3
        with pytest.raises(SystemExit):
            report(lambda: int("no number"))
    assert "fcnlab: invalid literal" in capsys.readouterr().err and utils.run_and_report is before


def test_an_error_without_a_traceback_has_no_heading(capsys):
    failed = JobReturn(overrides=["a=1"], status=JobStatus.FAILED, _return_value=CompactHydraException("wrong"))
    with reported_by(lambda run: run()):
        with pytest.raises(CompactHydraException, match="wrong"):
            _ = failed.return_value
        assert capsys.readouterr().err == ""
        failed.return_value = KeyError("a fault of the program")
        with pytest.raises(KeyError):
            _ = failed.return_value
    assert "Error executing job with overrides: ['a=1']" in capsys.readouterr().err
    finished = JobReturn(status=JobStatus.COMPLETED, _return_value=3)
    assert finished.return_value == 3


def test_basic_launcher_is_a_hydra_launcher():
    assert issubclass(BasicLauncher, Launcher) and JobReturn and callable(BasicLauncher().launch)


def test_hydra_composes_and_builds_plugins_through_given_functions(tmp_path):
    (tmp_path / "main.yaml").write_text("a: 1\n")
    seen = []

    def compose(load, arguments):
        seen.append(arguments["overrides"])
        return load(**arguments | {"overrides": ["a=2"]})

    with initialize_config_dir(str(tmp_path), version_base=None):
        with composed_through(compose, lambda config: config):
            assert compose_config("main", ["a=3"]).a == 2
        assert compose_config("main", ["a=3"]).a == 3
    assert seen == [["a=3"]]

    with composed_through(compose, lambda config: OmegaConf.create({"_target_": BASIC})):
        launcher = Plugins.instance()._instantiate(OmegaConf.create({"_target_": "nothing.at.all"}))
    assert type(launcher).__name__ == "BasicLauncher"  # its module was loaded again by Hydra


def test_config_files_are_read_again_only_if_they_have_changed(tmp_path, monkeypatch):
    main, option = tmp_path / "main.yaml", tmp_path / "part" / "one.yaml"
    option.parent.mkdir()
    main.write_text("defaults: [part: one, _self_]\na: {b: 1}\n")
    option.write_text("c: ${a.b}\n")
    read, load = [], OmegaConf.load
    monkeypatch.setattr(OmegaConf, "load", lambda file: read.append(Path(file.name).name) or load(file))
    with initialize_config_dir(str(tmp_path), version_base="1.3"), config_files_kept():
        expected = {"part": {"c": 2}, "a": {"b": 2}, "more": 3}
        assert compose_config("main", ["a.b=2", "+more=3"]) == expected
        assert compose_config("main") == {"part": {"c": 1}, "a": {"b": 1}}  # nothing of the one before
        assert read.count("main.yaml") == 1
        option.write_text("c: 5\n")
        assert compose_config("main") == {"part": {"c": 5}, "a": {"b": 1}}
        assert (read.count("main.yaml"), read.count("one.yaml")) == (1, 2)
        option.unlink()
        with pytest.raises(MissingConfigException):
            compose_config("main")


@pytest.mark.parametrize("archive", [False, True])
def test_config_files_of_a_package_are_read_again_after_a_change(tmp_path, monkeypatch, archive: bool):
    """A notebook composes several times in one process, and a package may be a zip archive."""
    package, place = f"configs_of_a_package_{archive}", tmp_path / ("package.zip" if archive else "folder")

    def write(text: str) -> None:
        files = {"__init__.py": "", "main.yaml": text}
        if archive:
            with zipfile.ZipFile(place, "w") as written:
                for name, content in files.items():
                    written.writestr(f"{package}/{name}", content)
        else:
            (place / package).mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                (place / package / name).write_text(content)

    write("a: 1\n")
    monkeypatch.syspath_prepend(place)
    with initialize_config_module(package, version_base="1.3"), config_files_kept():
        assert compose_config("main") == {"a": 1}
        write("a: 23\n")
        importlib.invalidate_caches()
        assert compose_config("main") == {"a": 23}
    sys.modules.pop(package)


def test_a_copy_resolves_interpolations_like_its_original():
    whole = OmegaConf.create({"seed": 7, "part": {"of": "${seed}"}})
    copied = copy_below_its_parent(whole.part)
    copied.more = 1
    assert copied.of == 7 and "more" not in whole.part


@pytest.mark.parametrize("group", ["model", "experiment", "hydra/launcher", "none"])
def test_group_members_are_those_of_the_public_methods(group):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        assert group_members(loader, group, ObjectType.CONFIG) == loader.get_group_options(group)
        assert group_members(loader, group, ObjectType.GROUP) == loader.list_groups(group)
