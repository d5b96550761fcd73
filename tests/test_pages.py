"""Test that the commands and the Python of README, of the start page and of the how-to pages work.

A command is run with small data and few steps, or only composed and validated, if it needs something that a test does
not have. Blocks that begin with a comment of a path, such as ``# mine/data/leaves.yaml``, are written to that file.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from fcnlab.cli import LISTS
from fcnlab.config.validation import validate_config
from fcnlab.data.formats.shapes import write_data_set
from fcnlab.verbs import VERBS

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
OTHERS = {"python.md"}  # has a test of its own
PAGES = [
    REPOSITORY / "README.md",
    DOCS / "index.md",
    *sorted(DOCS.glob("start/*.md")),
    *sorted(DOCS.glob("how-to/*.md")),
]
PAGES = [page for page in PAGES if page.name not in OTHERS]
SHELL = ("", "bash", "console", "sh")

NOT_FCNLAB = {
    "docker": "needs Docker",
    "export": "the test sets the path",
    "make": "installs into the checkout; CI runs make train and make test",
    "pip": "installs",
    "cd": "the test has its own folder",
    "mkdir": "the test has its own folder",
    ".": "the test runs in the environment already",
    "mlflow": "serves a page",
    "tensorboard": "serves a page",
    "squeue": "needs Slurm",
    "ssh": "needs another machine",
    "tmux": "needs a terminal",
    "uv": "installs",
    "wandb": "needs an account or a terminal",
}
COMPOSED_PAGES = {
    "index.md": "its commands are those of compare.md",
    "README.md": "its commands are those of the how-to pages",
    "baselines.md": "trains large networks; tests/tasks/test_baselines.py trains and compares them",
    "backbones.md": "needs VOC, or weights that the repository does not contain; tests/models/test_timm_backbone.py trains",
    "voc.md": "needs VOC, or weights that the repository does not contain",
    "speed.md": "needs many training runs",
    "folds.md": "needs many training runs; tests/tasks/test_folds.py trains and evaluates folds and ensembles",
    "sweeps.md": "needs many training runs; tests/sweeps runs sweeps and searches",
    "slurm.md": "needs a Slurm cluster; tests/sweeps/slurm starts one",
    "watch.md": "ends with Ctrl-C; tests/tasks/test_watch.py runs it",
    "paper.md": "tests/tasks/test_figure.py and test_card.py draw figures and write cards",
    "loggers.md": "tests/tracking reads what TensorBoard and MLflow get",
    "wandb.md": "starts processes of W&B; tests/tracking/test_connection.py runs them",
    "containers.md": "needs Docker",
}
COMPOSED = {
    r"model/backbone=(vgg16|googlenet)\b": "needs weights that the repository does not contain",
    r"runs=outputs/train,outputs/sweeps": "names folders that the commands of the page do not write",
    r"plan=true": "needs three seeds on 30 images; tests/tasks/test_compare.py plans",
    r"merge_over=": "needs runs of different code or of moved data",
    r"eval -m|runs=outputs/flips": "six evaluations",
    r"sweep\.(resume|confirm)=FOLDER": "tests/sweeps/test_sweeps.py and test_sweep_overrides.py start such sweeps",
    r"checkpoint=wandb:": "needs an account; tests/tracking/test_downloads.py has a small server",
    r"doctor data=voc": "takes seconds; own-data.md runs doctor",
}
WITHOUT_RUNS = set(COMPOSED_PAGES) - {"README.md"}  # which has Python, too
FEW_STEPS = ["trainer=smoke", "trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.accelerator=cpu"]
FEW_STEPS += ["logger=csv", "data.num_workers=0", "data.crop_size=32", "data.batch_size=4"]
FEW_SHAPES = ["data.dataset.num_train=8", "data.dataset.num_val=4", "data.dataset.size=64"]


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The path in the first line, if it is a comment of a path."""
        match = re.match(r"# ([\w./-]+\.(?:py|yaml))\n", self.text)
        return match and match[1]


def blocks_of(page: Path) -> Iterator[Block]:
    language, lines = None, []
    for line in page.read_text().splitlines():
        if not line.startswith("```"):
            lines.append(line)
        elif language is None:
            language, lines = line[3:].strip(), []
        else:
            yield Block(language, "\n".join([*lines, ""]))
            language = None


def commands_in(text: str) -> list[list[str]]:
    """The words of each command of a shell block; a backslash continues a line, and so does an open quote."""
    lines: list[str] = []
    for line in text.replace("\\\n", " ").splitlines():
        if lines and lines[-1].count('"') % 2:
            lines[-1] += "\n" + line
        else:
            lines.append(line)
    commands = [words for line in lines if (words := shlex.split(line, comments=True))]
    return [_in_container(words) if words[:2] == ["docker", "run"] else words for words in commands]


def _in_container(words: list[str]) -> list[str]:
    """Return the command from the name of the image on, whose entry point has the same name."""
    return words[words.index("fcnlab") :]


def commands_of(page: Path) -> list[list[str]]:
    return [words for block in blocks_of(page) if block.language in SHELL for words in commands_in(block.text)]


def is_composed(page: Path, words: list[str]) -> bool:
    return page.name in COMPOSED_PAGES or any(re.search(pattern, " ".join(words)) for pattern in COMPOSED)


def write_files(folder: Path) -> None:
    """Write the files of all pages, since some use those of another."""
    for block in [block for page in PAGES for block in blocks_of(page) if block.file]:
        path = folder / str(block.file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)


def commands_to_compose() -> list[str]:
    """Each command that no page runs, once."""
    commands = [(page, words) for page in PAGES for words in commands_of(page) if words[0] == "fcnlab"]
    run = {shlex.join(words) for page, words in commands if not is_composed(page, words)}
    return sorted({shlex.join(words) for _, words in commands if not words[1].startswith("-")} - run)


def test_each_command_is_run_or_has_a_reason():
    commands = [(page, words) for page in PAGES for words in commands_of(page)]
    for page, words in commands:
        known = words[0] == "fcnlab" and words[1] in (*VERBS, "--help")
        assert known or words[0] in NOT_FCNLAB or words[:2] == ["python", "-c"], f"{page.name}: {words}"
    texts = [" ".join(words) for _, words in commands]
    assert set(NOT_FCNLAB) <= {words[0] for _, words in commands}
    assert set(COMPOSED_PAGES) <= {page.name for page in PAGES}
    assert all(any(re.search(pattern, text) for text in texts) for pattern in COMPOSED)


@pytest.mark.parametrize("command", commands_to_compose())
def test_command_composes(command, composed, tmp_path):
    """With a value of each sweep, and the files of the pages as the folder of ``--config-dir``."""
    _, verb, *words = shlex.split(command)
    write_files(tmp_path)
    overrides = [one_value(word, verb) for word in words if "=" in word]
    if "--config-dir" in words:
        overrides.append(f"hydra.searchpath=[file://{tmp_path}/mine]")
    cfg = composed(*overrides, name=verb)
    if verb == "train" and not cfg.stages and not cfg.from_run:
        validate_config(cfg)


def one_value(word: str, verb: str) -> str:
    """Return the override with the first value of its sweep; a list of folders or names as Hydra reads it."""
    key, _, value = word.partition("=")
    if key in LISTS.get(verb, ()):
        return f"{key}=[{value}]"
    override = OverridesParser.create().parse_override(word)
    if not override.is_sweep_override():
        return word
    first = next(override.sweep_string_iterator()) if override.is_discrete_sweep() else override.value().start
    return f"{key}={first}"


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[] if page.name == "README.md" else pytest.mark.slow)
        for page in PAGES
        if page.name not in WITHOUT_RUNS
    ],
    ids=lambda page: page.stem,
)
def test_page_runs(page, fcnlab, world, tmp_path, monkeypatch):
    """Its Python and its commands in the order of the page, each with exit code 0."""
    write_files(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict = {}
    for block in blocks_of(page):
        if block.language == "python" and not block.file:
            exec(block.text, names)
        for words in commands_in(block.text) if block.language in SHELL else ():
            if words[0] == "python":
                exec(words[2], {})
            elif words[0] == "fcnlab" and not is_composed(page, words):
                assert fcnlab(*shortened(*words[1:])) == 0, f"{page.name}: {shlex.join(words)}"


def shortened(verb: str, *words: str) -> list[str]:
    """Return the words of a command for small data and few steps."""
    text = " ".join(words)
    added = FEW_STEPS if verb == "train" else ["trainer.accelerator=cpu"] if verb in ("eval", "predict") else []
    if (verb == "train" and "data=" not in text and "from_run=" not in text) or "data=shapes" in text:
        added = [*added, *FEW_SHAPES]
    if (verb == "train" and "model/backbone=" not in text and "from_run=" not in text) or "=tiny" in text:
        added = [*added, "model.backbone.width=4"]
    if "-m" in words:
        added = [*added, "hydra/launcher=basic"]
    shorter = {r"^trainer\.max_steps=\d+$": "trainer.max_steps=4", r"^seed=1,.*": "seed=1"}
    for pattern, value in shorter.items():
        words = tuple(re.sub(pattern, value, word) for word in words)
    return [verb, *added, *words]


@pytest.fixture
def world(trained_once, tmp_path, monkeypatch):
    """Make a trained run, images, masks and a devkit of VOC, as the pages name them, in the current folder."""
    trained_once(folder="RUN")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number in range(20):
        split = "train" if number < 15 else "val"
        image = Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8))
        mask = Image.fromarray(rng.integers(0, 2, (48, 64), np.uint8))
        for folder, drawn, suffix in [
            ("photos", image, "jpg"),
            ("leaves/photos", image, "jpg"),
            ("leaves/labels", mask, "png"),
            (f"pairs/{split}", image, "jpg"),
            (f"pairs/{split}", mask, "png"),
        ]:
            Path(folder).mkdir(parents=True, exist_ok=True)
            drawn.save(f"{folder}/{number}.{suffix}")
    image.save("photo.jpg")
    write_data_set(tmp_path / "FOLDER/VOCdevkit/VOC2012", 4, 4, 64, seed=1)
