"""Weights & Biases offline: what a run holds, how it ends, and that it never hangs."""

import errno
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from shutil import rmtree as remove_tree
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import wandb
from omegaconf import OmegaConf

from fcnlab.config.components import leaves_of
from fcnlab.config.ranges import MOST_CLASSES, MOST_DRAWN, MOST_PIXELS
from fcnlab.config.run_context import RunContext
from fcnlab.data.temporary_folders import remove_leftovers
from fcnlab.errors import UserError
from fcnlab.sweeps.launchers import SlotsLauncher
from fcnlab.tracking import connection as actual
from fcnlab.tracking import contents, folders, media, mirror, server
from fcnlab.tracking.folders import temporary_files_in_own_folder
from fcnlab.training import loggers


def inspect(run: Path) -> str:
    """What W&B's own reader says of an offline run."""
    wandb = Path(sys.executable).with_name("wandb")
    command = [wandb, "leet", "inspect", "--summary", run]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def offline_runs(folder: Path) -> list[Path]:
    return sorted((folder / "wandb").glob("offline-run-*"))


def test_a_run_holds_config_scores_tables_and_images(train):
    folder = train("logger=default", "callbacks.sample_images.count=3", "trainer.max_steps=4")
    (run,) = offline_runs(folder)
    message = {line.split()[0]: line.split()[1:] for line in inspect(run).splitlines() if line.strip()}
    record = json.loads((folder / "metrics.json").read_text())
    assert float(message["final/miou"][0]) == record["miou"]
    tables = {"final/per_class", "final/confusion_table", "final/per_image"}
    assert {*tables, "val/images", "model.upsampling", "optim.lr"} <= set(message)
    masks = list((run / "files/media/images/mask").rglob("*.png"))
    assert len(masks) >= 3  # truth and prediction of three images; equal ones are kept once
    assert "sizes do not match" not in (folder / "train.log").read_text()


@pytest.mark.slow
def test_a_resumed_run_has_todays_settings_and_its_segments(train):
    fast = ("logger=default", "callbacks.sample_images.enabled=false")
    train(*fast, "trainer.max_steps=1")
    folder = train(*fast, "trainer.max_steps=2", "optim.lr=0.125", "checkpoint=last")
    (second,) = [run for run in offline_runs(folder) if "0.125" in inspect(run)]
    message = inspect(second)
    assert re.search(r"^\s*optim\.lr\s+0\.125", message, re.MULTILINE) and "segments" in message


def test_values_that_w_and_b_has_of_a_run_are_replaced(monkeypatch, tmp_path):
    """A server keeps them, unless it is asked to: here what it is asked."""
    asked, run = [], MagicMock()
    run.config.update.side_effect = lambda config, allow_val_change: asked.append((config, allow_val_change))
    monkeypatch.setattr(actual, "_started", lambda described, mode: run)
    monkeypatch.setattr(actual, "Mirror", lambda experiment, **settings: experiment)
    actual.wandb_logger(tmp_path, {"optim": {"lr": 0.125}})
    assert not asked
    actual.wandb_logger(tmp_path, {"optim": {"lr": 0.125}}, run_id="abc")
    assert asked == [({"optim": {"lr": 0.125}}, True)]


def test_a_run_that_fails_is_marked_as_failed(train_code, tmp_path):
    assert train_code("logger=default", "optim=sgd", "optim.lr=1e36", "trainer.gradient_clip_val=null") == 1
    (run,) = offline_runs(tmp_path / "run")
    assert "exit code 1" in inspect(run)


@pytest.mark.slow
def test_a_sweep_holds_one_run_for_each_job(fcnlab, small, shapes_root, tmp_path):
    words = [*small, f"data.root={shapes_root}", "trainer=smoke", "trainer.accelerator=cpu", "trainer.max_steps=2"]
    sweep = ["hydra/launcher=basic", f"hydra.sweep.dir={tmp_path}/sweep", "model=fcn32s,fcn16s,fcn8s", "seed=1,2"]
    assert fcnlab("train", "-m", *words, *sweep) == 0
    assert len(offline_runs(tmp_path / "sweep")) == 6
    records = [json.loads(path.read_text()) for path in sorted((tmp_path / "sweep").glob("*/metrics.json"))]
    assert sorted(record["provenance"]["seed"] for record in records) == [1, 1, 1, 2, 2, 2]
    names = {re.match(r"run +(.*) \(\w+\)\n", inspect(run))[1] for run in offline_runs(tmp_path / "sweep")}
    assert names == {f"model=fcn{stride}s seed={seed}" for stride in (32, 16, 8) for seed in (1, 2)}


def described(run: Path) -> dict:
    """The first thing that an offline run says of itself."""
    wandb = Path(sys.executable).with_name("wandb")
    done = subprocess.run([wandb, "leet", "inspect", "--json", run], capture_output=True, text=True, check=True)
    return next(record["run"] for record in map(json.loads, done.stdout.splitlines()) if record["type"] == "run")


@pytest.mark.slow
def test_a_sweep_of_processes_is_one_group_of_runs(fcnlab, small, shapes_root, tmp_path, monkeypatch, capfd):
    """The one real sweep of ``make test``: two jobs, then the same again, which finds nothing to do."""
    returned = []
    launch = SlotsLauncher.launch
    monkeypatch.setattr(SlotsLauncher, "launch", lambda *a, **k: returned.append(launch(*a, **k)) or returned[-1])
    monkeypatch.setenv("LOCAL_RANK", "1")  # left by a run before, say: the jobs are none the worse
    for name in ("WANDB_RUN_ID", "WANDB_NAME", "WANDB_RESUME"):
        monkeypatch.setenv(name, "allow")  # nor do they share a run
    words = [*small, f"data.root={shapes_root}", "trainer=smoke", "trainer.accelerator=cpu", "trainer.max_steps=2"]
    assert (
        fcnlab("train", "-m", *words, "hydra.sweep.dir=sweeps/one", "model=fcn32s,fcn8s", "logger.wandb.tags=[mine]")
        == 0
    )
    assert fcnlab("train", "sweep.resume=sweeps/one") == 0
    sweep = tmp_path / "sweeps" / "one"
    runs = [json.loads((sweep / job / "run.json").read_text()) for job in "01"]
    assert [run["starts"] for run in runs] == [1, 1]
    scores = [json.loads((sweep / job / "metrics.json").read_text())["miou"] for job in "01"]
    assert [[job.return_value for job in jobs] for jobs in returned] == [scores, scores]
    assert returned[0][1].overrides[-2:] == ["model=fcn8s", "logger.wandb.tags=[mine]"]
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"sweeps", "outputs"}
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["cache"]  # of the labels

    found = {run["display_name"]: run for run in map(described, offline_runs(sweep))}
    assert set(found) == {"model=fcn32s", "model=fcn8s"}
    assert len({run["run_id"] for run in found.values()} - {"allow"}) == 2
    message = "Warning: WANDB_NAME, WANDB_RESUME, WANDB_RUN_ID in the environment have no effect"
    assert message in capfd.readouterr().out
    run = found["model=fcn8s"]
    assert (run["run_group"], run["job_type"], run["run_id"]) == ("sweeps/one", "train", runs[1]["wandb"])
    assert run["tags"] == ["mine", "fcn8s", "tiny", "shapes"]
    config = run["config"]["update"]
    assert config["options"]["model"] == "fcn8s" and config["options"]["backbone"] == "tiny"
    assert config["optim"]["lr"] > 0 and config["seed"] == 1


@pytest.fixture
def opened(monkeypatch) -> list[dict]:
    """What W&B was asked to start."""
    asked: list[dict] = []

    def start(described: dict, mode: str) -> MagicMock:
        asked.append(described)
        run = MagicMock(id=described["id"] or os.environ.get("WANDB_RUN_ID", "new"), offline=True, dir="/nowhere/files")
        return run

    monkeypatch.setattr(actual, "_started", start)
    monkeypatch.setattr(actual, "Mirror", FakeLogger)
    monkeypatch.setattr("fcnlab.training.loggers.WandbLogger", FakeLogger)
    return asked


class FakeLogger:
    def __init__(self, experiment: MagicMock, **settings: object):
        self.experiment = experiment

    def finish(self) -> None: ...


SINGLE = {"WANDB_NAME": "mine", "WANDB_RUN_GROUP": "ours", "WANDB_PROJECT": "theirs"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ("mine", "ours", "theirs")),
        (["logger.wandb.name=a", "logger.wandb.group=b", "logger.wandb.project=c"], ("a", "b", "c")),
        (["sweep.folder=/sweeps/1", "sweep.name=job"], ("job", "ours", "theirs")),
    ],
    ids=["environment", "typed", "job"],
)
def test_run_name_from_the_environment(opened, described_by, monkeypatch, words, expected):
    for name, value in SINGLE.items():
        monkeypatch.setenv(name, value)
    described_by(*words)
    assert tuple(opened[-1][key] for key in ("name", "group", "project")) == expected


def test_an_empty_project_in_the_environment_is_none(opened, described_by, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "")
    described_by()
    assert opened[-1]["project"] == "fcnlab"


def test_resumed_run_continues_its_wandb_run(opened, described_by, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_RUN_ID", "another")
    described_by(facts={"wandb": "recorded"})
    assert opened[-1]["id"] == "recorded"
    assert "WANDB_RUN_ID=another in the environment has no effect" in caplog.text
    caplog.clear()
    monkeypatch.setenv("WANDB_RUN_ID", "recorded")
    described_by(facts={"wandb": "recorded"})
    described_by()
    assert opened[-1]["id"] is None and "no effect" not in caplog.text  # W&B itself takes the environment's


def test_the_folder_of_the_environment_causes_a_warning(opened, described_by, monkeypatch, caplog):
    described_by()
    assert "WANDB_DIR" not in caplog.text
    monkeypatch.setenv("WANDB_DIR", "/elsewhere")
    described_by()
    assert (
        "Warning: WANDB_DIR in the environment has no effect, since wandb/ is in the folder of the run" in caplog.text
    )


@pytest.fixture
def described_by(composed, monkeypatch, tmp_path):
    """Open the loggers of a composed run."""

    def open_them(*words: str, facts: dict | None = None) -> None:
        cfg = composed("logger=wandb", *words)
        loggers._open_wandb(cfg, RunContext("train", tmp_path, words), facts or {})

    return open_them


def mode_with(environment: dict[str, str], tmp_path) -> str:
    """The mode chosen by a fresh process: W&B reads its settings once."""
    code = "from fcnlab.tracking.server import reachable_mode; print(reachable_mode())"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    clean |= {"NETRC": str(tmp_path / "none"), "WANDB_DIR": str(tmp_path)} | environment
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.split()[-1]


def test_without_a_key_a_run_is_offline(tmp_path):
    assert mode_with({}, tmp_path) == "offline"


NOT_FOUND, BROKEN = b"HTTP/1.0 404 Not Found\r\n\r\n", b"HTTP/1.0 500 Internal Server Error\r\n\r\n"


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param(None, id="hangs"),
        pytest.param(b"", id="hangs up", marks=pytest.mark.slow),
        pytest.param(BROKEN, id="is broken", marks=pytest.mark.slow),
        pytest.param(NOT_FOUND, id="answers", marks=pytest.mark.slow),
    ],
)
def test_with_a_key_the_server_is_asked_first(answers, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=(server, answers), daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        mode = mode_with({"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": address}, tmp_path)
    assert mode == ("online" if answers == NOT_FOUND else "offline")


def test_a_server_that_drips_is_late(monkeypatch):
    """A byte now and then keeps each read in time, and never makes an answer."""
    monkeypatch.setattr(server, "SERVER_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as dripping:
        threading.Thread(target=drip, args=(dripping,), daemon=True).start()
        began = time.monotonic()
        assert not server._answers(f"http://127.0.0.1:{dripping.getsockname()[1]}")
        assert 0.3 <= time.monotonic() - began < 1


def drip(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection, suppress(OSError):
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        for byte in b"Header: value\r\n" * 5:
            time.sleep(0.05)
            connection.sendall(bytes([byte]))


def test_to_look_for_a_key_asks_no_server(monkeypatch):
    """W&B's own greeting asks for the user's name, and waits for 5 seconds."""
    import wandb

    settings, seen = SimpleNamespace(silent=False), []
    monkeypatch.setattr(wandb, "login", lambda prompt, verify: seen.append((settings.silent, prompt, verify)) or True)
    assert server._has_key(settings) and seen == [(True, False, False)] and settings.silent is False


@pytest.mark.slow  # W&B tries for START_TIMEOUT
def test_a_server_that_answers_and_starts_no_run_leaves_one_offline(tmp_path):
    """It answers the question, and everything else with an error."""
    code = (
        "from fcnlab.tracking.connection import wandb_logger; run = wandb_logger('.', {}).experiment;"
        " print('offline', run.offline); run.finish()"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=(server, NOT_FOUND), daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        clean |= {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": address}
        done = subprocess.run(
            [sys.executable, "-c", code], env=clean, cwd=tmp_path, capture_output=True, text=True, timeout=90
        )
    assert done.returncode == 0 and "offline True" in done.stdout, done.stderr
    assert len(offline_runs(tmp_path)) == 1


def serve(server: socket.socket, answer: bytes | None) -> None:
    """Take connections; say something, nothing, or never anything."""
    kept = []
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        if answer is None:
            kept.append(connection)
        else:
            connection.recv(4096)
            connection.sendall(answer)
            connection.close()


def test_temporary_files_of_a_run_lie_where_the_next_one_finds_them(tmp_path, monkeypatch):
    before = tempfile.gettempdir()
    with temporary_files_in_own_folder():
        folder = Path(tempfile.gettempdir())
    assert folder.parent == Path(before) and folder.name.startswith("fcnlab-wandb-") and tempfile.gettempdir() == before
    os.utime(folder, (0, 0))
    remove_leftovers(folder.parent, "fcnlab-wandb-")
    assert folder.is_dir()  # this process holds it


def test_what_w_and_b_would_refuse_is_shortened_and_kept_apart(monkeypatch, tmp_path):
    """W&B's own settings are asked whether they take it."""
    asked = []
    monkeypatch.setattr(actual, "_started", lambda described, mode: asked.append(described) or MagicMock())
    monkeypatch.setattr(actual, "Mirror", lambda experiment, **settings: experiment)
    tags = ["", "short", "short", "t" * 64, "t" * 65, "t" * 65 + "u", os.fsdecode(b"caf\xe9")]
    config = {"data": {"root": os.fsdecode(b"/caf\xe9"), "lists": [os.fsdecode(b"\xff")], "seed": 1, "none": None}}
    actual.wandb_logger(tmp_path, config, name="n" * 300, group="g" * 300, tags=tags)
    (described,) = asked
    assert len(described["tags"]) == len(set(described["tags"])) == 5 and max(map(len, described["tags"])) == 64
    assert described["tags"][:2] == ["short", "t" * 64] and described["tags"][4] == "caf\\udce9"
    assert len(described["name"]) == len(described["group"]) == 128
    assert described["config"] == {"data": {"root": "/caf\\udce9", "lists": ["\\udcff"], "seed": 1, "none": None}}
    json.dumps(described["config"], ensure_ascii=False).encode()
    wandb.Settings(run_tags=tuple(described["tags"]), run_name=described["name"], run_group=described["group"])


def test_all_that_is_logged_at_once_is_within_w_and_b_s_limits():
    assert MOST_DRAWN <= wandb.Image.MAX_ITEMS and MOST_CLASSES <= wandb.Table.MAX_ROWS
    assert MOST_PIXELS <= wandb.Image.MAX_DIMENSION


def asked_for(monkeypatch, folder: Path, config: dict | None = None, **settings) -> dict:
    """What W&B is asked to start."""
    asked: list[dict] = []
    monkeypatch.setattr(actual, "_started", lambda described, mode: asked.append(described) or MagicMock())
    monkeypatch.setattr(actual, "Mirror", lambda experiment, **settings: experiment)
    actual.wandb_logger(folder, config or {}, **settings)
    return asked[0]


@pytest.mark.parametrize(
    ("typed", "taken"),
    [
        ("fcnlab", "fcnlab"),
        ("a/b\\c#d?e%f:g h", "a-b-c-d-e-f-g h"),
        (os.fsdecode(b"caf\xe9"), "caf-udce9"),
        ("p" * 129, None),
    ],
)
def test_a_project_name_that_wandb_refuses_is_replaced_and_reported(monkeypatch, tmp_path, caplog, typed, taken):
    """W&B's own settings are asked whether they take it."""
    project = asked_for(monkeypatch, tmp_path, project=typed)["project"]
    assert project == (taken or project) and len(project) <= 128
    assert wandb.Settings(project=project).project == project
    assert (f"The run is in the project {project}" in caplog.text) == (project != typed)


def test_a_kind_of_job_and_an_entity_are_such_as_w_and_b_takes(monkeypatch, tmp_path):
    """More than 64 characters of the first are refused by its server alone (wandb/wandb#6402)."""
    described = asked_for(monkeypatch, tmp_path, job_type="j" * 65, entity=os.fsdecode(b"caf\xe9"))
    assert len(described["job_type"]) == 64 and described["entity"] == "caf\\udce9"


def test_each_key_of_a_config_is_a_text(monkeypatch, tmp_path):
    """W&B strips the outermost; of data.dataset.ids={255: null} the inner ones are numbers."""
    config = asked_for(monkeypatch, tmp_path, {1: {255: None}, "a": [{None: 1}]})["config"]
    assert config == {"1": {"255": None}, "a": [{"None": 1}]}


@pytest.mark.parametrize("words", [[], ["trainer=ddp", "loss=weighted", "model/backbone=googlenet", "data=camvid"]])
def test_no_setting_lies_deeper_than_w_and_b_shows(composed, words):
    """Three dots in a name of its config, of which the settings of a data set take two."""
    assert max(path.count(".") for path in leaves_of(OmegaConf.to_container(composed(*words), resolve=False))) <= 3


@pytest.mark.parametrize(
    ("variable", "value"),
    [("WANDB_MODE", "bogus"), ("WANDB_TAGS", "t" * 65), ("WANDB_BASE_URL", "nowhere"), ("WANDB_SILENT", "maybe")],
)
def test_what_w_and_b_refuses_of_the_environment_is_told_in_a_sentence(monkeypatch, tmp_path, variable, value):
    """pydantic's errors are let through by W&B: here its own, of its own settings."""

    def setup() -> None:
        wandb.Settings().update_from_env_vars({variable: value})

    monkeypatch.setattr(wandb, "setup", setup)
    with pytest.raises(UserError, match=r"WANDB_\.\.\.") as refused:
        actual.wandb_logger(tmp_path, {})
    name = {"WANDB_TAGS": "run_tags"}.get(variable, variable.removeprefix("WANDB_").lower())
    assert f"{name}=" in str(refused.value) and "validation error" not in str(refused.value)


FOREIGN = "[default]\nbase_url = https://elsewhere.example\nmode = online\nproject = theirs\n"


@pytest.fixture
def begun(monkeypatch, tmp_path) -> list[str]:
    """The modes of W&B's runs that begin, with an empty folder as the current one; no server is asked."""
    modes: list[str] = []
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(wandb, "setup", lambda: None)
    monkeypatch.setattr(wandb, "init", lambda mode, **_: modes.append(mode))
    return modes


@pytest.mark.parametrize("folder", ["wandb", ".wandb"])
def test_a_file_in_the_current_folder_says_not_where_a_run_and_its_key_go(begun, tmp_path, monkeypatch, folder):
    """W&B follows it; a run's folder, which may be anybody's, holds a folder of that name."""
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "settings").write_text(FOREIGN)
    with pytest.raises(UserError, match=rf"{folder}/settings .*: base_url\..*WANDB_BASE_URL=\.\.\.") as refused:
        actual._started({"id": None, "entity": None}, "online")
    assert "elsewhere" not in str(refused.value) and not begun  # a value may be a key
    assert str(refused.value).endswith("remove the file. To train without W&B, set logger=csv")  # also for a push
    actual._started({"id": None, "entity": None}, "offline")
    monkeypatch.setenv("WANDB_BASE_URL", "https://mine.example")
    actual._started({"id": None, "entity": None}, "online")
    assert begun == ["offline", "online"]


def test_a_refused_start_names_no_setting_of_one_command(begun, monkeypatch):
    def refuse(**described: object) -> None:
        raise wandb.Error("no such entity")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match=r"^W&B did not start a run in mode=online: no such entity$"):
        actual._started({"id": None, "entity": None}, "online")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[default]\nentity = theirs\n", "entity"),
        ("[DEFAULT]\napi_key = theirs\n[default]\n", "api_key"),
        ("[default]\nx_extra_http_headers = {}\nhttps_proxy = theirs\n", "https_proxy, x_extra_http_headers"),
        ("[default]\n" + "x = 1\n" * 20_000, "more than 65,536 bytes"),
        ("[default]\rbase_url = theirs\r", "base_url"),  # W&B opens it as text, where this ends a line
        ("[default]\nbase_url = caf\xe9\n", "codec can't decode byte 0xe9"),  # W&B reads it in a Latin-1 locale
        ("[default]\nproject = 50%\n", "must be written as %%"),  # W&B's parser raises an error
        ("[default]\nproject = %(x)s\nx = theirs", "must be written as %%"),
    ],
)
def test_nor_whose_it_is(begun, tmp_path, text, message):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        actual._started({"id": None, "entity": None}, "online")
    if message == "entity":
        actual._started({"id": None, "entity": "mine"}, "online")


@pytest.mark.parametrize(
    "text", ["", "[other]\nbase_url = x\n", "no settings", "[default]\nmode = offline\nproject = 50%%\n"]
)
def test_what_w_and_b_writes_there_is_let_be(begun, tmp_path, text):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text(text)
    actual._started({"id": None, "entity": None}, "online")
    assert begun == ["online"]


@pytest.mark.parametrize("value", ["a b", "i" * 97])
def test_invalid_run_id_in_the_environment_is_refused(opened, described_by, monkeypatch, value):
    monkeypatch.setenv("WANDB_RUN_ID", value)
    with pytest.raises(UserError, match="is not a valid id"):
        described_by()
    described_by(facts={"wandb": "recorded"})  # where it has no effect
    assert opened[-1]["id"] == "recorded"


def test_tables_and_images_are_within_w_and_bs_limits():
    """Of rows of a table, and of images at a step."""
    assert MOST_CLASSES <= wandb.Table.MAX_ROWS and MOST_DRAWN <= wandb.Image.MAX_ITEMS


@pytest.mark.slow  # W&B's own process, which writes the tables
def test_odd_names_of_as_many_classes_as_there_may_be_are_logged(tmp_path):
    """With an id so long that the name of the tables' artifact is as long as W&B takes it."""
    odd = ["a", "ground truth \\ prediction", "", "a.b", "é\n\x1b", os.fsdecode(b"\xe9"), "n" * 5000]
    classes = [*odd, *(f"class {place}" for place in range(MOST_CLASSES - len(odd)))]
    logger = actual.wandb_logger(tmp_path, {}, mode="offline", run_id="i" * 96)
    matrices = np.full((1, MOST_CLASSES, MOST_CLASSES), 2**40)
    selection = {"checkpoint": os.fsdecode(b"caf\xe9.ckpt"), "val_miou": 0.5}
    record = {"scored_as": "final", "selection": selection}
    media.log_evaluation(logger, media.Evaluation(record, [os.fsdecode(b"\xe9")], classes, matrices, tmp_path))
    logger.experiment.finish()
    tables = {path.parent.name + path.name.split("_")[1]: path for path in tmp_path.rglob("*.table.json")}
    rows = {name: len(json.loads(path.read_text())["data"]) for name, path in tables.items()}
    assert sorted(rows.values()) == [1, MOST_CLASSES, contents.TABLE_ROWS]


@pytest.fixture
def places(monkeypatch, tmp_path):
    """W&B's usual places, which can be taken away."""
    home = tmp_path / "home"
    for variable in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(variable, str(home / variable))
    folders._usual_folders.cache_clear()
    mirror._warn_about_missing.cache_clear()
    yield home
    folders._usual_folders.cache_clear()


def test_w_and_b_writes_where_it_can(places, tmp_path):
    """The user's places where they take files; for each run by itself, since these may come and go."""
    folders.set_folders(tmp_path / "run")
    assert os.environ["WANDB_DATA_DIR"] == str(places / "WANDB_DATA_DIR")
    remove_tree(places)
    places.write_text("a home that takes no folder")
    for run in ("run", "next"):
        folders.set_folders(tmp_path / run)
        assert os.environ["WANDB_DATA_DIR"] == str(tmp_path / run / "wandb_data_dir")
        assert os.environ["WANDB_CACHE_DIR"] == str(tmp_path / run / "wandb_cache_dir")
    places.unlink()
    folders.set_folders(tmp_path / "last")
    assert os.environ["WANDB_CACHE_DIR"] == str(places / "WANDB_CACHE_DIR")


def test_a_place_without_room_is_none(tmp_path, monkeypatch):
    assert folders._is_writable(tmp_path / "new")

    def full(**arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    assert not folders._is_writable(tmp_path)


def test_what_w_and_b_raises_is_a_warning_once_for_each_kind(places, caplog):
    logger = actual.Mirror(experiment=MagicMock(spec=wandb.Run))
    logger._experiment.log.side_effect = OSError(errno.ENOSPC, "No space left on device")
    for step in range(3):
        logger.log_metrics({"x": 1.0}, step)
    media.log_evaluation(logger, media.Evaluation({}, ["image"], ["a"], np.ones((1, 1, 1), int), Path()))
    assert caplog.text.count("some metrics of this run are missing in W&B ([Errno 28]") == 1
    assert caplog.text.count("some tables of this run are missing in W&B") == 1


def test_w_and_b_is_not_asked_to_write_into_a_folder_that_it_cannot_name(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(actual, "_started", lambda described, mode: asked.append((mode, sys.argv[1])) or MagicMock())
    monkeypatch.setattr(actual, "Mirror", lambda experiment, **settings: experiment)
    monkeypatch.setattr(sys, "argv", ["fcnlab", os.fsdecode(b"\xe9")])
    actual.wandb_logger(tmp_path / "run", {})
    actual.wandb_logger(tmp_path / os.fsdecode(b"d\xe9j\xe0"), {})
    assert asked == [("auto", "\\udce9"), ("disabled", "\\udce9")] and sys.argv[1] == os.fsdecode(b"\xe9")


@pytest.mark.slow
def test_nothing_that_w_and_b_raises_ends_a_run(train, places, monkeypatch, capsys):
    """Each call from the start of the training on, and a line for each kind that is missing."""
    for name in ("log", "finish"):
        monkeypatch.setattr(wandb.Run, name, lambda *words, **further: broken())
    folder = train("logger=default", "callbacks.sample_images.count=3", "trainer.max_steps=4")
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished" and (folder / "metrics.json").is_file()
    shown = capsys.readouterr().out
    for what in ("metrics", "images", "tables"):
        assert shown.count(f"some {what} of this run are missing in W&B (its process is gone)") == 1


def broken() -> None:
    raise ConnectionError("its process is gone")


@pytest.mark.slow
def test_names_that_are_not_utf8_end_no_run(tmp_path, monkeypatch, caplog):
    """Among the words of the command W&B gets them as they are shown; a folder's it cannot write to."""
    odd = os.fsdecode(b"d\xe9j\xe0")
    monkeypatch.setattr(sys, "argv", ["fcnlab", f"data.root={odd}"])
    for folder in (tmp_path / "run", tmp_path / odd):
        logger = actual.wandb_logger(folder, {})
        logger.log_metrics({"x": 1.0}, 1)
        logger.experiment.finish()
    assert sys.argv[1] == f"data.root={odd}" and len(offline_runs(tmp_path / "run")) == 1
    assert caplog.text.count("whose name is not UTF-8: this run is not logged there") == 1
    assert not (tmp_path / odd / "wandb").exists() and logger.experiment.disabled
