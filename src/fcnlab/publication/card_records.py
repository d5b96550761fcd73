"""What the records of a checkpoint's run say for its model card: scores, training, command.

Records are foreign. Text from them is escaped where the card is written.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fcnlab.comparison.formats import percent
from fcnlab.comparison.runs import ExcludedRun, Run, read_or_reason
from fcnlab.errors import UserError
from fcnlab.files.reading import read_json_facts
from fcnlab.runs.lineage import TrainingRun, from_facts
from fcnlab.training.checkpoints import TrainedNet
from fcnlab.training.lineage import file_facts, trained_of


class CardRecords(NamedTuple):
    """The facts on a checkpoint; None for what no record contains.

    ``evaluations`` have scored exactly these weights, the run's own evaluation first. ``without_scores`` is the reason
    why that one is missing.
    """

    trained: TrainingRun | None
    step: int | None
    command: str | None
    cost: dict[str, float]
    evaluations: list[Run]
    without_scores: str | None


def card_records(net: TrainedNet, evaluations: Sequence[Path]) -> CardRecords:
    """Return what the checkpoint, the folder of its run and some evaluations record.

    Raises
    ------
    UserError
        A folder of ``evaluations`` is no usable evaluation of this checkpoint.
    """
    folder = net.path.absolute().parent.parent
    facts = _facts_of_run(folder, net.checkpoint)
    own, reason = _own_evaluation(folder, net.checkpoint, facts)
    step, command = net.checkpoint.get("global_step"), facts.get("command")
    return CardRecords(
        trained=from_facts(trained_of(net.checkpoint)),
        step=step if type(step) is int else None,
        command=command if isinstance(command, str) else None,
        cost=own.cost if own else {},
        evaluations=[*([own] if own else []), *_evaluations(net.path, evaluations)],
        without_scores=reason,
    )


def _facts_of_run(folder: Path, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run.json of a checkpoint's run; empty if the folder is not that of this run."""
    facts, trained = read_json_facts(folder, "run.json"), trained_of(checkpoint)
    run = trained.get("run") if isinstance(trained, dict) else None
    return facts if run is not None and facts.get("id") == run else {}


def _own_evaluation(
    folder: Path, checkpoint: Mapping[str, Any], facts: Mapping[str, Any]
) -> tuple[Run | None, str | None]:
    """Return the evaluation at the end of the checkpoint's run, or the reason why there is none of these weights."""
    if not facts:
        return None, "the checkpoint is not in the folder of its run"
    run = read_or_reason(folder)
    if not isinstance(run, Run):
        return None, f"the record of its run is not usable: {run.reason if run else 'it contains no scores'}"
    scored, selected = run.selection or {}, checkpoint["fcnlab"].get("selection") or {}
    # A run that was resumed from an earlier step may have left a top checkpoint of the same step: its score differs.
    keys = ("checkpoint", "step", *(["val_miou"] if selected.get("checkpoint") == "best" else []))
    if any(scored.get(key) != selected.get(key) for key in keys):
        validated = scored.get("val_miou")
        score = f" and val mIoU {percent(validated)} %" if isinstance(validated, float) else ""
        return None, f"its run has scored {scored.get('checkpoint')}.ckpt of step {scored.get('step')}{score} instead"
    return run, None


def _evaluations(checkpoint: Path, folders: Sequence[Path]) -> list[Run]:
    digest = file_facts(checkpoint)["sha256"] if folders else ""
    return [_evaluation(folder.absolute(), checkpoint, digest) for folder in folders]


def _evaluation(folder: Path, checkpoint: Path, digest: str) -> Run:
    run = read_or_reason(folder)
    if isinstance(run, ExcludedRun):
        raise UserError(f"evaluations={folder} cannot be used: {run.reason}")
    if run is None or run.weights[1] != digest:
        raise UserError(
            f"evaluations={folder} is not an evaluation of checkpoint={checkpoint}: choose the folder of a command"
            " fcnlab eval with this checkpoint alone"
        )
    return run
