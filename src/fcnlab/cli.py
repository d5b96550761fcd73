"""``fcnlab VERB [group=option] [key=value] [-m]``: each verb is a primary config and a function of tasks/."""

import errno
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from fcnlab.errors import CHDIR_REFUSED, UserError, limit_of_process, unwritable_reason
from fcnlab.signals import Interrupted, ended_by_signals
from fcnlab.terminal import lasting, open_standard_files, why_not_printed

if TYPE_CHECKING:
    from hydra.conf import HydraConf

VERBS = {
    "train": "train a network; leaves checkpoints, scores, curves and images in outputs/",
    "eval": "score a checkpoint: four scores, per class, per image",
    "predict": "segment images: palette PNGs and overlays",
    "doctor": "what is wrong with a data set, and with this machine",
    "compare": "say which runs are better, and how sure that is: a page, tables, intervals",
    "bench": "how fast and how small it is, against others in the same run",
}
CONFIG_NAME = "--config-name="
FROM_RUN = "from_run="
OPTIONAL = {"train": ("experiment",), "eval": ("model", "data", "experiment"), "predict": ("data",)}  # null by default
NOT_FOR_US = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
LISTS = {"compare": ("runs", "baseline"), "bench": ("claims",)}  # a list that is typed as A,B, and a name as it is
RESUME = "sweep.resume="
WITH_VALUE = (
    "--cfg",
    "--config-dir",
    "--config-path",
    "--config-name",
    "--package",
    "--experimental-rerun",
    *("-c", "-cd", "-cp", "-cn", "-p"),
)
OF_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")  # which need not be given
PROCESS = "FCNLAB_PROCESS"  # in the environment: the process id of the fcnlab that starts others
ONLY_SHOWS = {"-c", "--cfg", "-i", "--info", "-h", "--help", "--hydra-help", "--version"}  # nothing is run with these
FULL = {errno.ENOSPC: "no space left on the device", errno.EDQUOT: "the disk quota is used up"}
OF_THE_DISK = FULL | {
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk does not answer",
    errno.ESTALE: "the file system is no longer there",
}
HELP = """\
fcnlab: fully convolutional networks for segmentation, as experiments.

  fcnlab train   [group=option] [key=value] [-m]       {train}
  fcnlab eval    checkpoint=PATH [data=...]            {eval}
  fcnlab predict checkpoint=PATH input=... output=...  {predict}
  fcnlab doctor  data=... [key=value]                  {doctor}
  fcnlab compare runs=FOLDER[,FOLDER] [baseline=NAME]  {compare}
  fcnlab bench   [claims=NAME,NAME] [key=value]        {bench}

  fcnlab VERB --help       its groups and settings, with examples
  fcnlab VERB --cfg job    the whole configuration as it would run
  fcnlab --version         of fcnlab

Start with: fcnlab train
"""


def main() -> None:
    """The console script. What takes longer to import is imported behind ``ended_by_signals``."""
    open_standard_files()
    sys.stdout, sys.stderr = lasting(sys.stdout, 1), lasting(sys.stderr, 2)
    try:
        with ended_by_signals():
            try:
                _command()
            except SystemExit as end:  # Hydra's, too, behind what it has shown
                if end.code:
                    raise
            _say_what_was_not_printed()
    except Interrupted as stop:
        if not stop.reported:
            print(f"fcnlab: stopped by {stop}", file=sys.stderr)
        raise
    except (ImportError, MemoryError, OSError, RuntimeError) as error:
        if (reason := limit_of_process(error)) is None:
            raise
        sys.exit(f"fcnlab: {reason}")


def _say_what_was_not_printed() -> None:
    """Where printing was all that a command had to do, it has failed; the results of others are in their folders."""
    if reason := why_not_printed(sys.stdout):
        sentence = f"fcnlab: not all output could be written to standard output: {reason}"
        if _only_shows():
            sys.exit(sentence)
        print(sentence, file=sys.stderr)


def _only_shows() -> bool:
    """Whether no more is asked for than to print something."""
    return any(word.partition("=")[0] in ONLY_SHOWS for word in sys.argv)


def _command() -> None:
    if {"-sc", "--shell-completion"} & set(sys.argv):
        verb = _completed_verb()
        if verb is not None:
            sys.argv.append(f"--config-name={verb}")
            _run(verb)
        return
    sys.argv[1:] = _with_values(sys.argv[1:])
    words = [word.removeprefix(CONFIG_NAME) for word in sys.argv]
    place = next((place for place, word in enumerate(words) if place and word in VERBS), None)
    if place is None:
        return _no_verb()
    verb = words[place]
    started_by_lightning = sys.argv[place] != verb
    if started_by_lightning:
        _end_with_rank_0()
    _check_current_folder(verb)
    os.environ[PROCESS] = str(os.getpid())
    # Rewritten in place and not cut out: Lightning starts the other ranks of a DDP run with this very argv.
    sys.argv[place] = CONFIG_NAME + verb
    # argparse takes settings in one block alone, and calls others unrecognized: options come first.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: not word.startswith("-"))
    if verb in LISTS:
        sys.argv[1:] = [_as_list(word, *LISTS[verb]) for word in sys.argv[1:]]
    sys.argv[1:] = list(_without_null(verb, sys.argv[1:]))
    _check_options(verb)
    _bring_back(verb, started_by_lightning)
    _check_grammar(verb)
    _check_groups(verb)
    _check_experiment(verb)
    _check_place(verb)
    _check_lists(verb)
    _run(verb)


def _with_values(words: list[str]) -> list[str]:
    """Options and their values as one word, ``--config-dir=a=b``: a value is no setting, and no verb."""
    joined: list[str] = []
    for word in words:
        if joined and _waits_for_value(joined[-1], word) and not word.startswith("-"):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _check_options(verb: str) -> None:
    """Refuse options that only show, beside those that run, and those that say how to show, without them."""
    options = {word.partition("=")[0] for word in sys.argv[1:] if word.startswith("-")}
    shows = options & ONLY_SHOWS
    if any(len(option) > 2 and "--experimental-rerun".startswith(option) for option in options):
        sys.exit(f"fcnlab {verb}: --experimental-rerun would run what a file holds: type from_run=FOLDER")
    if shows & {"-c", "--cfg", "-i", "--info"} and options & {"-m", "--multirun"}:
        sys.exit(
            f"fcnlab {verb}: {min(shows)} shows the settings of one run: leave -m out, and give one value of each list"
        )
    if not shows and (how := options & {"-p", "--package", "--resolve"}):
        sys.exit(f"fcnlab {verb}: {min(how)} has no effect without --cfg, which it is for: add --cfg job")


def _waits_for_value(word: str, value: str) -> bool:
    begins = word.startswith("--") and len(word) > 2  # argparse takes the first letters of an option
    if word in ("-i", "--info"):
        return value in OF_INFO
    return word in WITH_VALUE or (begins and any(option.startswith(word) for option in WITH_VALUE))


def _end_with_rank_0() -> None:
    """A rank whose first is gone would wait for it, for half an hour."""
    if os.environ.get("LOCAL_RANK", "0") != "0" and PROCESS in os.environ:
        from fcnlab.sweeps.processes import die_with_parent

        die_with_parent(int(os.environ[PROCESS]))


def _bring_back(verb: str, started_by_lightning: bool) -> None:
    """``from_run=FOLDER`` and ``sweep.resume=FOLDER``: let their records give the settings that are not typed."""
    asks = [word.lstrip("+").startswith((FROM_RUN, RESUME)) for word in sys.argv]
    if not any(asks):
        return
    sys.argv[:] = [word.lstrip("+") if ask else word for word, ask in zip(sys.argv, asks, strict=True)]
    from fcnlab.config.recorded_overrides import apply_from_run, apply_sweep_resume

    try:
        if verb == "train" and not started_by_lightning:  # whose words have them
            apply_from_run(sys.argv, verb)
        apply_sweep_resume(sys.argv, verb)
    except UserError as error:
        sys.exit(f"fcnlab {verb}: {error}")


def _is_sweep() -> bool:
    return bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(sys.argv))


def _check_lists(verb: str) -> None:
    """Refuse a list inside a value of a sweep's, of which Hydra makes neither."""
    if _is_sweep():
        from fcnlab.sweeps.grid_sweeper import check_no_nested_lists

        try:
            check_no_nested_lists(word for word in sys.argv[1:] if not word.startswith("-"))
        except UserError as error:
            sys.exit(f"fcnlab {verb}: {error}")


def _sweeping() -> AbstractContextManager[None]:
    """What has to be entered while a sweep is composed; its imports take time."""
    if not _is_sweep():
        return nullcontext()
    from fcnlab.sweeps.grid_sweeper import group_settings_deferred

    return group_settings_deferred()


def _as_list(word: str, lists: str, name: str = "") -> str:
    """``runs=A,B`` as the list that is meant, and names as they are: commas and ``=`` have meanings for Hydra."""
    key, _, value = word.partition("=")
    if key == lists and value.startswith(("'", '"')):
        return f"{key}=[{value}]"
    if key not in (lists, name) or value.startswith(("[", "'", '"')) or value in ("", "null"):
        return word
    from fcnlab.config.overrides import quote_value

    return f"{key}=[{','.join(map(quote_value, _split(value)))}]" if key == lists else f"{key}={quote_value(value)}"


def _split(value: str) -> list[str]:
    """``A,B`` as A and B; but a comma inside the name of what is there is a part of it."""
    parts, names = value.split(","), []
    while parts:
        ends = range(len(parts), 1, -1)
        count = next((end for end in ends if os.path.exists(",".join(parts[:end]))), 1)  # noqa: PTH110  (no OSError)
        names.append(",".join(parts[:count]))
        del parts[:count]
    return names


def _without_null(verb: str, words: list[str]) -> Iterator[str]:
    """``logger=null`` as the option ``none`` that is meant; Hydra ends in a traceback where a group is null."""
    from fcnlab.config.locations import CONF

    for word in words:
        group, _, value = word.partition("=")
        value = "null" if value.lower() == "null" else value  # for Hydra the same
        among = "null" in re.split(r"[,()]", value.lower()) and not value.startswith(("{", "["))
        if not among or not re.fullmatch(r"[a-z/]+", group) or not (CONF / group).is_dir():
            yield word
        elif value != "null":
            sys.exit(f"fcnlab {verb}: {word}: null cannot be swept over; list some of its options: {_options(group)}")
        elif (CONF / group / "none.yaml").is_file():
            yield f"{group}=none"
        elif group not in OPTIONAL.get(verb, ()):
            sys.exit(f"fcnlab {verb}: {group}=null: a run needs one of its options: {_options(group)}")


def _options(group: str) -> str:
    """What a group may be; experiments are in folders, while a folder inside another group is a group of its own."""
    from fcnlab.config.locations import CONF

    pattern = "**/*.yaml" if group == "experiment" else "*.yaml"
    paths = (CONF / group).glob(pattern)
    return ", ".join(sorted(str(path.relative_to(CONF / group).with_suffix("")) for path in paths))


def _check_current_folder(verb: str) -> None:
    """Relative paths mean nothing in a folder that was removed, and Hydra asks for it whatever is done."""
    try:
        os.getcwd()  # noqa: PTH109
    except OSError as error:
        sys.exit(f"fcnlab {verb}: the current folder is no longer there ({error.strerror}): cd to another one")


def _check_grammar(verb: str) -> None:
    """Refuse a word that Hydra cannot read, and say how it is typed: Hydra names the class of its lexer's error."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    from fcnlab.config.overrides import in_quotes, shell_join
    from fcnlab.errors import first_line

    parser = OverridesParser.create()
    sweep = bool({"-m", "--multirun"} & set(sys.argv))
    for word in sys.argv[1:]:
        if word.startswith("-"):
            continue
        try:
            parser.parse_override(word)
        except HydraException as error:
            readable = in_quotes(word, sweep)
            reason = (
                f"its value needs quotes: {shell_join([readable])}" if readable else f"{first_line(error)} (key=value)"
            )
            sys.exit(f"fcnlab {verb}: {word} cannot be read: {reason}")


def _check_groups(verb: str) -> None:
    """Some verbs choose no data by themselves, and Hydra's words for a setting of what is not there mislead."""
    for group in {"eval": ("data", "model"), "predict": ("data",)}.get(verb, ()):
        settings = [word for word in sys.argv if word.startswith(f"{group}.")]
        if settings and not any(word.startswith((f"{group}=", "experiment=")) for word in sys.argv):
            sys.exit(f"fcnlab {verb}: {settings[0]} sets nothing, since no {group} is chosen: add {group}=OPTION")


def _check_experiment(verb: str) -> None:
    """Hydra's words for an experiment of another verb mislead; its file says in its second line whose it is."""
    from fcnlab.config.locations import CONF

    chosen = next((word.removeprefix("experiment=") for word in sys.argv if word.startswith("experiment=")), "")
    for name in chosen.split(","):
        path = CONF / "experiment" / f"{name}.yaml"
        used = re.search(r"^# fcnlab (\w+) experiment=", path.read_text(), re.MULTILINE) if path.is_file() else None
        if used and used[1] != verb:
            sys.exit(f"fcnlab {verb}: experiment={name} is one of fcnlab {used[1]}")


def _no_verb() -> None:
    if "--version" in sys.argv:
        from importlib.metadata import version

        print(f"fcnlab {version('fcnlab')}")
        sys.exit(0)
    wanted = [word for word in sys.argv[1:] if not word.startswith("-")]
    if wanted:
        sys.exit(f"fcnlab: no verb {wanted[0]!r}; there are {', '.join(VERBS)}. See fcnlab --help.")
    print(HELP.format(**VERBS), end="")


def _completed_verb() -> str | None:
    """The verb whose settings Hydra is to complete; None where the verb itself was to be completed, and was."""
    line = os.environ.get("COMP_LINE")
    if line is None:  # -sc install=bash
        return "train"
    words = line.split()
    verb = next((word for word in words if word in VERBS), None)
    if verb is None or line.endswith(verb):
        typed = "" if line.endswith(" ") else words[-1]
        print(" ".join(name for name in VERBS if name.startswith(typed) or len(words) == 1))
        return None
    os.environ["COMP_LINE"] = line.replace(f" {verb}", "", 1)  # Hydra expects the line of an app without verbs
    return verb


def _of_the_disk(verb: str, error: OSError, folder: Path) -> str | None:
    """What to say of an error of the disk, or of a file in the run's folder; None where it is of something else."""
    where = f" for {error.filename}" if error.filename else ""
    goes_on = "go on with checkpoint=last and hydra.run.dir set to this run's folder"
    then = goes_on if verb == "train" else "repeat the command"
    if error.errno in OF_THE_DISK:
        what, way_out = f"{OF_THE_DISK[error.errno]}{where}", "make room" if error.errno in FULL else "mend that"
    elif error.errno == errno.EMFILE:
        what, way_out = f"no more files may be opened{where}", "allow more, by ulimit -n 4096"
    elif isinstance(error.filename, str | os.PathLike) and Path(error.filename).is_relative_to(folder):
        what, way_out = f"{error.filename}: {error.strerror}", "mend that"
    elif error.errno in NOT_FOR_US and error.filename is not None:
        way_out = "Name another file or folder, or give this process the right to use it"
        return f"fcnlab {verb}: {os.fsdecode(error.filename)}: {error.strerror}. {way_out}"
    else:
        return None
    return f"fcnlab {verb}: {what}. What was saved before is whole: {way_out}, then {then}."


def _check_working_folder(hydra: "HydraConf") -> None:
    """Refuse ``hydra.job.chdir=true``: relative paths would lead elsewhere, and data be drawn in the run's folder."""
    if hydra.job.chdir:
        raise UserError(CHDIR_REFUSED)


def _check_place(verb: str) -> None:
    """Refuse a folder that cannot be written to, before Hydra tries to make it."""
    sweep = bool({"-m", "--multirun"} & set(sys.argv))
    if _only_shows():
        return
    key = "hydra.sweep.dir=" if sweep else "hydra.run.dir="
    typed = next((word.removeprefix(key) for word in reversed(sys.argv) if word.startswith(key)), "outputs")
    if "${" in typed:
        return
    from fcnlab.config.overrides import unquote_value

    if reason := unwritable_reason(Path(unquote_value(typed))):
        sys.exit(f"fcnlab {verb}: {key}{typed}: {reason}; nothing has been changed. Name another folder")


def _run(verb: str) -> None:
    import logging

    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import CompactHydraException, InstantiationException

    from fcnlab.config.hydra_errors import errors_explained
    from fcnlab.config.locations import CONF
    from fcnlab.escaping import escape_log_record, escape_terminal
    from fcnlab.hydra_registration import register_launchers, register_schemas
    from fcnlab.lazy_imports import import_verb

    began = time.time()

    def task(cfg):
        from fcnlab.runs.run_folder import RunFolder

        hydra_config = HydraConfig.get()
        try:
            module = {"eval": "evaluate"}.get(verb, verb)  # eval is Python's
            function = getattr(import_verb(f"fcnlab.tasks.{module}"), module)
            with RunFolder(Path(hydra_config.runtime.output_dir), began) as folder:
                _check_working_folder(hydra_config)
                return function(cfg, folder)
        except UserError as error:
            raise CompactHydraException(
                escape_terminal(f"fcnlab {verb}: {error}")
            ) from error  # Hydra shows these without a traceback
        except (ImportError, MemoryError, OSError, RuntimeError) as error:
            folder = Path(hydra_config.runtime.output_dir)
            said = _of_the_disk(verb, error, folder) if isinstance(error, OSError) else None
            if said is None and (reason := limit_of_process(error)):
                said = f"fcnlab {verb}: {reason}"
            if said is None:
                raise
            raise CompactHydraException(escape_terminal(said)) from error
        except InstantiationException as error:
            if isinstance(error.__cause__, ValueError):
                raise CompactHydraException(escape_terminal(f"fcnlab {verb}: {error.__cause__}")) from error
            raise

    register_schemas()
    register_launchers()
    logging.getLogger("fcnlab").addFilter(escape_log_record)
    with _sweeping(), errors_explained(verb, task) as report:
        report(hydra.main(version_base="1.3", config_path=str(CONF))(task))
