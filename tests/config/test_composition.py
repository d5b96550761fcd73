"""All mistakes of a command line are reported in one message, without Hydra's own lines."""

import pytest

FOUR = ("modl=fcn8s", "optim=sdg", "optim.lrr=1", "trainer.max_steps=many")
ALL_FOUR = """\
fcnlab train: Invalid configuration:
  Unknown config group 'modl'. Did you mean 'model'?
  Unknown option optim=sdg. Did you mean optim=sgd? Available options: adamw, sgd, sgd_cvpr, sgd_heavy.
  Unknown key optim.lrr. Did you mean optim.lr?
  trainer.max_steps must be a whole number of at least 1, or -1 for no limit, got 'many'.
"""


@pytest.fixture
def answer(fcnlab, capfd):
    """Return everything that a refused command writes to standard error."""

    def run(*words: str) -> str:
        assert fcnlab("train", *words) == 1
        return capfd.readouterr().err

    return run


@pytest.mark.parametrize("sweep", [(), ("-m", "seed=1,2")])
def test_all_mistakes_are_in_one_message(answer, sweep):
    assert answer(*FOUR, *sweep) == ALL_FOUR


def test_a_value_of_another_type_is_reported_in_one_line(answer):
    assert answer("optim.lr=fast") == (
        "fcnlab train: Invalid configuration: optim.lr must be a number of at least 0, got 'fast'.\n"
    )
    assert answer("seed=one") == (
        "fcnlab train: Invalid configuration: seed must be a whole number from 0 to 2^32 - 1, got 'one'.\n"
    )


@pytest.mark.parametrize(
    ("words", "mistake"),
    [
        (["optm.lr=1"], "Unknown key optm.lr of fcnlab train. Did you mean optim.lr?"),
        (["optim={lrr: 1}"], "Unknown key optim.lrr. Did you mean optim.lr?"),
        (["optim.lr.x=1"], "Unknown key optim.lr.x: optim.lr has no keys."),
        (["model/backbon=tiny"], "Unknown config group 'model/backbon'. Did you mean 'model/backbone'?"),
        (["+optim.lr=1"], "+optim.lr=1 adds a key that exists already. Type optim.lr=1."),
        (["~nothing"], "~nothing removes a key that does not exist."),
        (["speed.bf16=maybe"], "speed.bf16 must be true or false, got 'maybe'."),
    ],
)
def test_each_kind_of_mistake_is_named(answer, words, mistake):
    assert answer(*words) == f"fcnlab train: Invalid configuration: {mistake}\n"


def test_settings_inside_an_unknown_option_are_not_checked(answer):
    """The default option, which would be checked instead, has other settings."""
    text = answer("optim=xxxxxx", "optim.momentum=0.9", "optim.nesterov=true")
    assert text.startswith(
        "fcnlab train: Invalid configuration: Unknown option optim=xxxxxx. Available options: adamw,"
    )
    assert "momentum" not in text


def test_settings_inside_a_corrected_option_are_checked(answer):
    text = answer("optim=sdg", "optim.momentum=0.9", "optim.nesterof=true")
    assert "optim.nesterof" in text and "momentum" not in text


def test_all_listed_values_of_a_sweep_are_checked(answer):
    text = answer("-m", "modl=fcn8s", "seed=1,-1", "optim.lr=fast,1")
    assert "Unknown config group 'modl'" in text
    assert "seed must be a whole number" in text and "optim.lr must be a number" in text


def test_an_error_of_own_code_is_shown_from_the_verb_on(fcnlab, monkeypatch, capsys):
    def train(cfg, run):
        raise TypeError("own code")

    monkeypatch.setattr("fcnlab.tasks.train.train", train)
    assert fcnlab("train", "hydra.run.dir=run") == 1
    shown = capsys.readouterr().err
    assert "in train\n    raise TypeError" in shown and shown.endswith("TypeError: own code\n")
    assert "HYDRA_FULL_ERROR" not in shown and "hydra/_internal" not in shown


def test_the_full_error_has_its_cause(fcnlab, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match="Unknown config group 'modl'") as caught:
        fcnlab("train", "modl=fcn8s")
    assert caught.value.__cause__ is not None
