"""``fcnlab VERB [group=option] [key=value] [-m]``: each verb is a primary config and a function of tasks/."""

import difflib
import errno
import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from fcnlab.errors import CHDIR_REFUSED, UserError, limit_of_process, unwritable_reason
from fcnlab.signals import Interrupted, ended_by_signals
from fcnlab.terminal import keep_writable, open_standard_files, print_failure
from fcnlab.verbs import ACTIONS, ARGUMENTS, LISTS, VERBS

if TYPE_CHECKING:
    from hydra.conf import HydraConf

CONFIG_NAME = "--config-name="
FROM_RUN = "from_run="
NO_ACCESS = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
FLAGS = {"watch": {"--terminal": "terminal=true"}}  # options of a command, and the settings that they stand for
WRITES_NOTHING = {"watch", "new"}  # in whose output folder nothing is written
NAMES = {"compare": ("baseline",), "card": ("name",), "wandb": ("baseline",)}  # settings that are typed as they are
RECORDS = (FROM_RUN, "sweep.resume=", "sweep.extend=", "sweep.confirm=")
OPTIONS_WITH_VALUE = (
    "--cfg",
    "--config-dir",
    "--config-path",
    "--config-name",
    "--package",
    "--experimental-rerun",
    *("-c", "-cd", "-cp", "-cn", "-p"),
)
INFO_TOPICS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")  # which need not be given
PROCESS = "FCNLAB_PROCESS"  # in the environment: the process id of the fcnlab that starts others
ONLY_SHOWS = {"-c", "--cfg", "-i", "--info", "-h", "--help", "--hydra-help", "--version"}  # nothing is run with these
DISK_FULL = {errno.ENOSPC: "no space left on the device", errno.EDQUOT: "the disk quota is used up"}
DISK_ERRORS = DISK_FULL | {
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk reports an input/output error",
    errno.ESTALE: "the file system is no longer available",
}
HELP = """\
fcnlab: experiments with fully convolutional networks for semantic segmentation.

  fcnlab train   [group=option] [key=value] [-m]       {train}
  fcnlab eval    checkpoint=PATH [data=...]            {eval}
  fcnlab predict checkpoint=PATH input=... output=...  {predict}
  fcnlab doctor  data=... [key=value]                  {doctor}
  fcnlab compare runs=FOLDER[,FOLDER] [baseline=NAME]  {compare}
  fcnlab watch   [runs=FOLDER[,FOLDER]] [--terminal]   {watch}
  fcnlab figure  runs=FOLDER,FOLDER [images=NAME,NAME] {figure}
  fcnlab export  checkpoint=PATH format=onnx           {export}
  fcnlab card    checkpoint=PATH [output=FILE]         {card}
  fcnlab bench   [benchmarks=NAME,NAME] [key=value]    {bench}
  fcnlab wandb   push|workspace|report runs=FOLDER     {wandb}
  fcnlab new     FOLDER                                {new}

  fcnlab COMMAND --help     the config groups and settings of a command, with examples
  fcnlab COMMAND --cfg job  the composed configuration: every setting with its value
  fcnlab --version          the version of fcnlab

Start with: fcnlab train
"""


def main() -> None:
    """Run the console script. Slow imports come after ``ended_by_signals``."""
    open_standard_files()
    sys.stdout, sys.stderr = keep_writable(sys.stdout, 1), keep_writable(sys.stderr, 2)
    try:
        with ended_by_signals():
            try:
                _command()
            except SystemExit as end:  # Hydra's as well, after it has shown an error
                if end.code:
                    raise
            _report_unprinted_output()
    except Interrupted as stop:
        if not stop.reported:
            print(f"fcnlab: stopped by {stop}", file=sys.stderr)
        raise
    except (ImportError, MemoryError, OSError, RuntimeError) as error:
        if (reason := limit_of_process(error)) is None:
            raise
        sys.exit(f"fcnlab: {reason}")


def _report_unprinted_output() -> None:
    """Report output that could not be printed: an error where printing was all that the command had to do."""
    if reason := print_failure(sys.stdout):
        sentence = f"fcnlab: not all output could be written to standard output: {reason}"
        if _only_shows():
            sys.exit(sentence)
        print(sentence, file=sys.stderr)


def _only_shows() -> bool:
    """Return whether the command only prints something."""
    return any(word.partition("=")[0] in ONLY_SHOWS for word in sys.argv)


def _command() -> None:
    if {"-sc", "--shell-completion"} & set(sys.argv):
        verb = _completed_verb()
        if verb is not None:
            sys.argv.append(f"--config-name={verb}")
            _run(verb)
        return
    sys.argv[1:] = _join_option_values(sys.argv[1:])
    words = [word.removeprefix(CONFIG_NAME) for word in sys.argv]
    place = next((place for place, word in enumerate(words) if place and word in VERBS), None)
    if place is None:
        return _without_verb()
    verb = words[place]
    started_by_lightning = sys.argv[place] != verb
    if started_by_lightning:
        _end_with_rank_0()
    _check_current_folder(verb)
    os.environ[PROCESS] = str(os.getpid())
    # Rewritten in place and not cut out: Lightning starts the other ranks of a DDP run with this very argv.
    sys.argv[place] = CONFIG_NAME + verb
    if verb in ACTIONS and not started_by_lightning:
        _name_action(verb, place + 1)
    if verb in ARGUMENTS:
        _name_argument(verb, place + 1)
    sys.argv[1:] = [FLAGS.get(verb, {}).get(word, word) for word in sys.argv[1:]]
    # argparse takes settings in one block alone, and calls others unrecognized: options come first.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: not word.startswith("-"))
    if verb in LISTS:
        sys.argv[1:] = [_as_name_list(word, LISTS[verb], NAMES.get(verb, ())) for word in sys.argv[1:]]
    sys.argv[1:] = _without_null(verb, sys.argv[1:])
    sys.argv[1:] = map(_with_absolute_folders, sys.argv[1:])
    _check_options(verb)
    _add_recorded_overrides(verb, started_by_lightning)
    _check_overrides(verb)
    _check_no_sweep(verb)
    _check_output_folder(verb)
    _check_lists(verb)
    _run(verb)


def _join_option_values(words: list[str]) -> list[str]:
    """Join options and their values, as in ``--config-dir=a=b``: a value is neither an override nor a verb."""
    joined: list[str] = []
    for word in words:
        if joined and _takes_value(joined[-1], word) and not word.startswith("-"):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _name_action(verb: str, place: int) -> None:
    """Write the word after a command as a setting: ``action=push``."""
    actions, word = ACTIONS[verb], sys.argv[place] if place < len(sys.argv) else ""
    if word in actions:
        sys.argv[place] = f"action={word}"
    elif word and not word.startswith("-") and "=" not in word:
        near = difflib.get_close_matches(word, actions, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Choose from {', '.join(actions)}."
        sys.exit(f"fcnlab {verb}: Unknown word {word!r}. {hint} See fcnlab {verb} --help.")
    elif not _only_shows() and not any(each.startswith("action=") for each in sys.argv):
        lines = (f"  fcnlab {verb} {action:<10} {sentence}" for action, sentence in actions.items())
        sys.exit("\n".join([f"fcnlab {verb}: nothing to do. Type one of:", *lines]))


def _name_argument(verb: str, place: int) -> None:
    """Write the word after a command that takes one as its setting: ``folder=mylab``."""
    key, words = ARGUMENTS[verb], sys.argv[place:]
    argument = next((index for index, word in enumerate(words, place) if word[:1] != "-" and "=" not in word), None)
    if argument is not None:
        from fcnlab.config.overrides import format_override

        sys.argv[argument] = format_override(key, sys.argv[argument])
    elif not _only_shows() and not any(each.startswith(f"{key}=") for each in sys.argv):
        sys.exit(f"fcnlab {verb}: which {key}? Type fcnlab {verb} {key.upper()}")


def _check_options(verb: str) -> None:
    """Refuse options that show a configuration together with -m, and options of ``--cfg`` without it."""
    options = {word.partition("=")[0] for word in sys.argv[1:] if word.startswith("-")}
    shows = options & ONLY_SHOWS
    if any(len(option) > 2 and "--experimental-rerun".startswith(option) for option in options):
        sys.exit(f"fcnlab {verb}: --experimental-rerun executes code. To repeat a run, type from_run=FOLDER")
    if shows & {"-c", "--cfg", "-i", "--info"} and options & {"-m", "--multirun"}:
        sys.exit(f"fcnlab {verb}: {min(shows)} shows the configuration of one run. Remove -m, and give single values")
    if not shows and (how := options & {"-p", "--package", "--resolve"}):
        sys.exit(f"fcnlab {verb}: {min(how)} has no effect without --cfg. Add --cfg job")


def _takes_value(word: str, value: str) -> bool:
    begins = word.startswith("--") and len(word) > 2  # argparse takes the first letters of an option
    if word in ("-i", "--info"):
        return value in INFO_TOPICS
    return word in OPTIONS_WITH_VALUE or (begins and any(option.startswith(word) for option in OPTIONS_WITH_VALUE))


def _end_with_rank_0() -> None:
    """End this rank with rank 0: without it, a rank waits for half an hour."""
    if os.environ.get("LOCAL_RANK", "0") != "0" and PROCESS in os.environ:
        from fcnlab.sweeps.processes import die_with_parent

        die_with_parent(int(os.environ[PROCESS]))


def _add_recorded_overrides(verb: str, started_by_lightning: bool) -> None:
    """Add the recorded overrides of ``from_run=``, ``sweep.resume=`` and the like to the command line."""
    asks = [word.lstrip("+").startswith(RECORDS) for word in sys.argv]
    keys = {word.partition("=")[0].lstrip("+") for word in sys.argv if "=" in word}
    if "sweep.best" in keys and "sweep.confirm" not in keys:
        sys.exit(f"fcnlab {verb}: sweep.best has no effect without sweep.confirm=FOLDER. Leave it out")
    if not any(asks):
        return
    if sum(word.lstrip("+").startswith("sweep.") for word, ask in zip(sys.argv, asks, strict=True) if ask) > 1:
        sys.exit(f"fcnlab {verb}: sweep.resume, sweep.extend and sweep.confirm exclude each other. Type one of them")
    sys.argv[:] = [word.lstrip("+") if ask else word for word, ask in zip(sys.argv, asks, strict=True)]
    from fcnlab.config.recorded_overrides import apply_from_run, apply_sweep_resume

    try:
        if verb == "train" and not started_by_lightning:  # whose words have them
            apply_from_run(sys.argv, verb)
        apply_sweep_resume(sys.argv, verb)
        _apply_sweep_confirm(verb)
    except UserError as error:
        sys.exit(f"fcnlab {verb}: {error}")


def _apply_sweep_confirm(verb: str) -> None:
    """Add the best settings of ``sweep.confirm=FOLDER``; only such a command pays for the imports."""
    if any(word.startswith("sweep.confirm=") for word in sys.argv):
        from fcnlab.sweeps.confirmation import apply_sweep_confirm

        apply_sweep_confirm(sys.argv, verb)


def _is_sweep() -> bool:
    return bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(sys.argv))


def _check_no_sweep(verb: str) -> None:
    """Refuse -m for a command that writes nothing: a sweep has a folder, and waits for the end of each job."""
    if verb in WRITES_NOTHING and _is_sweep() and not _only_shows():
        several = " Several folders: runs=FOLDER,FOLDER" if "runs" in LISTS.get(verb, ()) else ""
        sys.exit(f"fcnlab {verb}: -m must be left out: this command runs once.{several}")


def _check_lists(verb: str) -> None:
    """Refuse a list of sweep values inside another value, which Hydra supports in no way."""
    if _is_sweep():
        from fcnlab.sweeps.grid_sweeper import check_no_nested_lists

        try:
            check_no_nested_lists(word for word in sys.argv[1:] if not word.startswith("-"))
        except UserError as error:
            sys.exit(f"fcnlab {verb}: {error}")


def _sweep_composition() -> AbstractContextManager[None]:
    """Return the context in which a sweep is composed; only a sweep pays for its imports."""
    if not _is_sweep():
        return nullcontext()
    from fcnlab.sweeps.grid_sweeper import group_settings_deferred

    return group_settings_deferred()


def _as_name_list(word: str, lists: tuple[str, ...], names: tuple[str, ...]) -> str:
    """Write ``runs=A,B`` as a list of quoted names, because commas, ``=`` and ``${`` have a meaning for Hydra."""
    key, _, value = word.partition("=")
    if key in lists and value.startswith(("'", '"')):
        return f"{key}=[{value}]"
    if key not in (*lists, *names) or value.startswith(("[", "'", '"')) or value in ("", "null"):
        return word
    from fcnlab.config.overrides import format_value

    return f"{key}=[{','.join(map(format_value, _split(value)))}]" if key in lists else f"{key}={format_value(value)}"


def _split(value: str) -> list[str]:
    """Split ``A,B`` at commas, except inside the name of an existing file or folder."""
    parts, names = value.split(","), []
    while parts:
        ends = range(len(parts), 1, -1)
        count = next((end for end in ends if os.path.exists(",".join(parts[:end]))), 1)  # noqa: PTH110  (no OSError)
        names.append(",".join(parts[:count]))
        del parts[:count]
    return names


def _without_null(verb: str, words: list[str]) -> list[str]:
    """Replace ``logger=null`` by ``logger=none``."""
    from fcnlab.config.typed_overrides import without_null

    try:
        return list(without_null(verb, words))
    except UserError as error:
        sys.exit(f"fcnlab {verb}: {error}")


def _check_overrides(verb: str) -> None:
    """Refuse overrides for which Hydra's own messages mislead."""
    from fcnlab.config.typed_overrides import check_experiment, check_grammar, check_groups

    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    try:
        check_grammar(words, _is_sweep())
        check_groups(verb, words)
        check_experiment(verb, words)
    except UserError as error:
        sys.exit(f"fcnlab {verb}: {error}")


def _with_absolute_folders(word: str) -> str:
    """Return a word with the folders of ``hydra.searchpath`` absolute: records and printed commands repeat them."""
    if not word.startswith("hydra.searchpath="):
        return word
    from fcnlab.config.overrides import absolute_searchpath

    return absolute_searchpath(word)


def _check_current_folder(verb: str) -> None:
    """Refuse to run in a removed directory: Hydra always asks for the current one."""
    try:
        os.getcwd()  # noqa: PTH109
    except OSError as error:
        sys.exit(f"fcnlab {verb}: the current directory no longer exists ({error.strerror}). Use cd to leave it")


def _without_verb() -> None:
    if "--version" in sys.argv:
        from importlib.metadata import version

        print(f"fcnlab {version('fcnlab')}")
        sys.exit(0)
    commands = [word for word in sys.argv[1:] if not word.startswith("-")]
    if commands:
        near = difflib.get_close_matches(commands[0], VERBS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Commands: {', '.join(VERBS)}."
        sys.exit(f"fcnlab: Unknown command {commands[0]!r}. {hint} See fcnlab --help.")
    print(HELP.format(**VERBS), end="")


def _completed_verb() -> str | None:
    """Return the verb whose overrides Hydra completes; None where the verb itself was completed here."""
    line = os.environ.get("COMP_LINE")
    if line is None:  # -sc install=bash
        return "train"
    words = line.split()
    verb = next((word for word in words if word in VERBS), None)
    typed = "" if line.endswith(" ") else words[-1]
    if verb is None or line.endswith(verb):
        print(" ".join(name for name in VERBS if name.startswith(typed) or len(words) == 1))
        return None
    action = next((word for word in words if word in ACTIONS.get(verb, ())), None)
    if verb in ACTIONS and (action is None or line.endswith(action)) and "=" not in typed:
        print(" ".join(name for name in ACTIONS[verb] if name.startswith(typed)))
        return None
    for word in filter(None, (verb, action)):
        line = line.replace(f" {word}", "", 1)
    os.environ["COMP_LINE"] = line  # Hydra expects the line of an app without verbs
    return verb


def _disk_error_message(verb: str, error: OSError, folder: Path) -> str | None:
    """Return the message for a disk error, or for a file in the run's folder; None for any other error."""
    where = f" for {error.filename}" if error.filename else ""
    resume = "resume with checkpoint=last and hydra.run.dir set to this run's folder"
    next_step = resume if verb == "train" else "repeat the command"
    if error.errno in DISK_ERRORS:
        problem, way_out = (
            f"{DISK_ERRORS[error.errno]}{where}",
            "Free some space" if error.errno in DISK_FULL else "Fix the disk",
        )
    elif error.errno == errno.EMFILE:
        problem, way_out = f"no more files may be opened{where}", "Raise the limit (ulimit -n 4096)"
    elif isinstance(error.filename, str | os.PathLike) and Path(error.filename).is_relative_to(folder):
        problem, way_out = f"{error.filename}: {error.strerror}", "Fix it"
    elif error.errno in NO_ACCESS and error.filename is not None:
        way_out = "Choose another file or folder, or grant this process access to it"
        return f"fcnlab {verb}: {os.fsdecode(error.filename)}: {error.strerror}. {way_out}"
    else:
        return None
    return f"fcnlab {verb}: {problem}. Files saved before are complete. {way_out}, then {next_step}."


def _check_working_folder(hydra: "HydraConf") -> None:
    """Refuse ``hydra.job.chdir=true``: relative paths would lead elsewhere, and data be drawn in the run's folder."""
    if hydra.job.chdir:
        raise UserError(CHDIR_REFUSED)


def _check_output_folder(verb: str) -> None:
    """Refuse an output folder that cannot be written to, before Hydra tries to create it."""
    sweep = _is_sweep()
    if _only_shows() or verb in WRITES_NOTHING:
        return
    key = "hydra.sweep.dir=" if sweep else "hydra.run.dir="
    typed = next((word.removeprefix(key) for word in reversed(sys.argv) if word.startswith(key)), "outputs")
    if "${" in typed:
        return
    from fcnlab.config.overrides import unquote_value

    if reason := unwritable_reason(Path(unquote_value(typed))):
        sys.exit(f"fcnlab {verb}: {key}{typed}: {reason}. Nothing was changed. Choose another folder")


def _run(verb: str) -> None:
    import logging

    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import CompactHydraException, InstantiationException

    from fcnlab.config.hydra_errors import errors_explained
    from fcnlab.config.locations import CONF
    from fcnlab.config.recorded_overrides import typed_folders
    from fcnlab.escaping import escape_log_record, escape_terminal
    from fcnlab.hydra_registration import register_launchers, register_plugins, register_schemas
    from fcnlab.lazy_imports import import_verb

    began = time.time()

    def task(cfg):
        from fcnlab.config.run_context import run_context
        from fcnlab.runs.run_folder import RunFolder

        context = run_context(HydraConfig.instance().cfg)
        try:
            module = {"eval": "evaluate"}.get(verb, verb)  # eval is Python's
            function = getattr(import_verb(f"fcnlab.tasks.{module}"), module)
            with RunFolder(context, began) as folder:
                _check_working_folder(HydraConfig.get())
                return function(cfg, folder)
        except UserError as error:
            # Shown without a traceback.
            raise CompactHydraException(escape_terminal(f"fcnlab {verb}: {error}")) from error
        except (ImportError, MemoryError, OSError, RuntimeError) as error:
            message = _disk_error_message(verb, error, context.folder) if isinstance(error, OSError) else None
            if message is None and (reason := limit_of_process(error)):
                message = f"fcnlab {verb}: {reason}"
            if message is None:
                raise
            raise CompactHydraException(escape_terminal(message)) from error
        except InstantiationException as error:
            if isinstance(error.__cause__, ValueError):
                raise CompactHydraException(escape_terminal(f"fcnlab {verb}: {error.__cause__}")) from error
            raise

    register_schemas()
    register_launchers()
    logging.getLogger("fcnlab").addFilter(escape_log_record)
    register_plugins(typed_folders(sys.argv))
    with _sweep_composition(), errors_explained(verb, task) as report:
        report(hydra.main(version_base="1.3", config_path=str(CONF))(task))
