"""Settings without an effect are named, each by its reason, and those with one are not."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.types import RunMode

from fcnlab.config.locations import CONF
from fcnlab.config.run_context import run_context
from fcnlab.hydra_registration import register_schemas
from fcnlab.training import ineffective_settings
from fcnlab.training.ineffective_settings import ineffective_in_scoring, ineffective_in_training

EARLY = "callbacks.early_stopping.enabled=true"
HALF = f"[{','.join(['0.5'] * 21)}]"


@pytest.fixture
def ineffective(monkeypatch, tmp_path):
    """The messages about words that are typed behind ``fcnlab VERB``."""

    def finding(*words: str, verb: str = "train", mode: RunMode = RunMode.RUN) -> list[str]:
        register_schemas()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose(verb, overrides=list(words), return_hydra_config=True)
        cfg.hydra.runtime.output_dir, cfg.hydra.mode = str(tmp_path), mode
        context = run_context(cfg)
        monkeypatch.setattr(ineffective_settings, "uses_gpu", lambda accelerator: accelerator == "gpu")
        return list(ineffective_in_training(cfg, context) if verb == "train" else ineffective_in_scoring(context))

    return finding


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim.lr=0"], "optim.lr=0: the model does not learn"),
        (["loss=weighted", "loss.class_weights=null"], "loss.class_weights=null has no effect"),
        (["loss=weighted", f"loss.class_weights={HALF}"], "loss.class_weights has no effect if all weights are equal"),
        (["+trainer.min_steps=5"], "trainer.min_steps has no effect without early stopping"),
        (["+trainer.min_epochs=5"], "trainer.min_epochs has no effect"),
        ([EARLY], "callbacks.early_stopping has no effect with 4 validations"),
        (
            ["+trainer.gradient_clip_algorithm=value", "trainer.gradient_clip_val=null"],
            "trainer.gradient_clip_algorithm has no",
        ),
        (["speed.bf16=true", "trainer.accelerator=cpu"], "speed.bf16=true has no effect on a CPU"),
        (["speed.tf32=true", "trainer.accelerator=cpu"], "speed.tf32=true has no effect on a CPU"),
        (["+trainer.benchmark=true", "trainer.accelerator=cpu"], "trainer.benchmark=true has no effect on a CPU"),
        (["speed.fused_optimizer=true", "optim.fused=false"], "speed.fused_optimizer has no effect with optim.fused"),
        (["data=folder", "data.dataset.classes=[a,b]", "data.dataset.split_seed=3"], "split_seed has no effect"),
        (["data.folds=5", "data.fold=0", "data.val_list=val"], "data.val_list has no effect with data.folds=5"),
        (["data.stratify=true"], "data.stratify has no effect without data.folds"),
        (['data.fold_group="{group}_*"'], "data.fold_group has no effect without data.folds or data.fraction"),
        (["callbacks.last.enabled=false", "checkpointing.every_n_minutes=1"], "every_n_minutes has no effect"),
        (["callbacks.top=null", "checkpointing.keep_top=3"], "checkpointing.keep_top has no effect"),
        (["+callbacks.early_stopping.min_delta=0.1"], "callbacks.early_stopping.min_delta has no effect: add"),
        (["callbacks.progress.refresh_rate=3"], "callbacks.progress.refresh_rate has no effect"),
        (["logger.wandb.table_images=3", "evaluation.keep_predictions=none"], "table_images has no effect"),
        (["hydra.launcher.slots=2"], "hydra.launcher.slots=2 has no effect on a single run: add -m"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_ineffective_settings_are_named(ineffective, words, message):
    messages = ineffective(*words)
    assert len(messages) == 1 and message in messages[0]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["optim.lr=0.1", "speed.bf16=false", "+trainer.benchmark=false"],
        ["+trainer.min_steps=5", EARLY, "callbacks.early_stopping.patience=1"],
        ["+trainer.min_steps=5", "+trainer.max_time=00:00:10:00"],
        ["+trainer.min_steps=5", "+callbacks.mine._target_=mine.Stopper"],
        [EARLY, "+callbacks.early_stopping.stopping_threshold=0.5"],
        ["speed.bf16=true", "speed.tf32=true", "+trainer.benchmark=true", "trainer.accelerator=gpu"],
        ["+loss.class_weights=[1,2]"],
        ["callbacks.early_stopping.enabled=false", "callbacks.ema=null"],
    ],
    ids=str,
)
def test_effective_settings_are_not_named(ineffective, words):
    assert not ineffective(*words)


def test_launcher_settings_of_a_sweep_are_effective(ineffective):
    assert not ineffective("hydra.launcher.slots=2", mode=RunMode.MULTIRUN)


@pytest.mark.parametrize("verb", ["eval", "predict"])
def test_training_settings_are_ineffective_in_other_commands(ineffective, verb):
    words = ["trainer.max_steps=3", "data=voc", "data.crop_size=9", "augment=strong", "speed.compile=true"]
    effective = ["trainer.precision=32-true", "data.eval_batch_size=2", "+trainer.limit_test_batches=3"]
    messages = ineffective("checkpoint=x", *words, *effective, verb=verb)
    assert [message.partition(" ")[0] for message in messages] == [
        "trainer.max_steps",
        "data.crop_size",
        "augment",
        "speed.compile",
    ]
