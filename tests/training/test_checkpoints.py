"""Checkpoints are read from the file alone, and refused before they run code or take memory."""

import zipfile

import pytest
import torch

from fcnlab.errors import UserError
from fcnlab.models import FCN, Tiny
from fcnlab.training.checkpoints import read_checkpoint, rebuild_model, without_memory

NET = FCN(Tiny(width=2), 2, levels=[32])


@pytest.fixture
def rebuilt(tmp_path):
    """The net of a checkpoint of which ``change`` has changed the record or the weights."""

    def rebuilding(change=lambda record, state: None, trust=()) -> FCN:
        tiny = {"_target_": "fcnlab.models.Tiny", "width": 2, "weights": "none"}
        model = {"_target_": "fcnlab.models.FCN", "num_classes": 2, "levels": [32], "backbone": tiny}
        record = {"model": model, "classes": ["ground", "cat"], "palette": [[0, 0, 0], [9, 9, 9]]}
        state = {f"net.{key}": value for key, value in NET.state_dict().items()}
        change(record, state)
        torch.save({"fcnlab": record, "state_dict": state}, tmp_path / "a.ckpt")
        return rebuild_model(read_checkpoint(tmp_path / "a.ckpt"), "checkpoint=a.ckpt", trust)

    return rebuilding


@pytest.mark.parametrize("trust", [(), ("torch.nn",)])
def test_rebuilt_model_has_the_weights_of_the_checkpoint(rebuilt, trust):
    state = rebuilt(trust=trust).state_dict()
    assert all(torch.equal(value, state[key]) for key, value in NET.state_dict().items())
    assert {value.device.type for value in state.values()} == {"cpu"}


def test_a_target_in_a_tuple_is_not_run(rebuilt, tmp_path):
    made = {"_target_": "os.mkdir", "path": str(tmp_path / "made")}
    with pytest.raises(UserError, match=r"_target_='os\.mkdir', and building that would run code"):
        rebuilt(lambda record, state: record["model"].update(backbone=(made,)))
    assert not (tmp_path / "made").exists()


def test_model_larger_than_its_weights_takes_no_memory(rebuilt):
    """A width of a million would be terabytes."""
    with pytest.raises(UserError, match=r"do not fit: .* of another shape"):
        rebuilt(lambda record, state: record["model"]["backbone"].update(width=1_000_000))


@pytest.mark.parametrize("encoder", ["mit_b0", pytest.param("every", marks=pytest.mark.slow)])
def test_networks_of_smp_are_built_without_memory(encoder):
    """Sizes are compared so. MiT encoders read numbers out of a list while they are built."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    names = smp.encoders.encoders if encoder == "every" else [encoder]
    for name in (name for name in names if not name.startswith("timm-")):  # those are deprecated
        with without_memory():
            net = smp.Unet(encoder_name=name, encoder_weights=None, classes=4)
        assert {value.device.type for value in net.state_dict().values()} == {"meta"}, name


def endless(record, state) -> None:
    record["model"]["levels"] = levels = []
    levels.append(levels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record, state: record.pop("model"), "its record has no valid model"),
        (lambda record, state: record.update(model="fcnlab.models.FCN"), "its record has no valid model"),
        (lambda record, state: record.update(classes=[1, 2]), "its classes are not valid names"),
        (lambda record, state: record.update(palette=[[0, 0, 256]] * 2), "its palette is not RGB"),
        (lambda record, state: record.update(palette=[[0, 0, 0]]), "its palette is not RGB"),
        (lambda record, state: record["model"].update(levels={32}), "its record contains a set"),
        (lambda record, state: record["model"].update({(1, 2): 3}), "its record contains a dict"),
        (endless, "more than 20 levels"),
        (lambda record, state: state.update({"net.x": [1]}), "its state_dict contains more than named tensors"),
        (lambda record, state: state.update({5: torch.zeros(1)}), "its state_dict contains more than named tensors"),
        (lambda record, state: state.update(x=torch.zeros(1, device="meta")), "without their numbers: x"),
        (lambda record, state: record["model"].update(num_classes=1), "the model of checkpoint=a.ckpt cannot be built"),
        (
            lambda record, state: record.update(model=record["model"]["backbone"]),
            r"names it\._target_=.fcnlab\.models\.Tiny.",
        ),
        (
            lambda record, state: record.update(classes=["x"] * 3, palette=[[0] * 3] * 3),
            "3 classes, but its model predicts 2",
        ),
    ],
)
def test_changed_checkpoints_are_refused(rebuilt, change, message):
    with pytest.raises(UserError, match=message):
        rebuilt(change)


def test_message_about_plain_torch_weights(tmp_path):
    torch.save(NET.state_dict(), tmp_path / "net.pth")
    with pytest.raises(
        UserError, match=r"was not written by fcnlab train\. To start from weights alone, use model\.weights="
    ):
        read_checkpoint(tmp_path / "net.pth")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        *(({"global_step": value}, "its global_step is not an integer") for value in ("abc", float("inf"), [1], -5)),
        ({"epoch": "x"}, "its epoch is not an integer"),
        ({"resume": [1]}, "its resume is a list"),
        ({"resume": torch.zeros(3)}, "its resume is a Tensor"),
    ],
)
def test_invalid_progress_is_refused(rebuilt, tmp_path, facts, message):
    rebuilt()
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    torch.save(checkpoint | facts, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=message):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1: 1, "a": 2}, "both names and numbers as keys"),
        ({"x": "\ud800"}, "text that is not valid Unicode"),
        ({"\ud800": 1}, "text that is not valid Unicode"),
        ({"x": 10**500}, "more than 64 bits"),
        ([1], "its trained entry is a list"),
    ],
)
def test_values_that_json_cannot_store_are_refused(rebuilt, value, message):
    with pytest.raises(UserError, match=message):
        rebuilt(lambda record, state: record.update(trained=value))


SEGMENT = {"from_step": 0, "started": "2026-11-29", "changed": {"optim.lr": [0.1, None]}}


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"segments": [{"step": "x"}, 5, None]}, "its segments are invalid"),
        ({"segments": [SEGMENT | {"from_step": -1}]}, "its segments are invalid"),
        ({"segments": [SEGMENT | {"from_step": 9}, SEGMENT]}, "its segments are invalid"),
        ({"segments": [SEGMENT | {"changed": {"optim.lr": 3}}]}, "its segments are invalid"),
        ({"settings": {5: 1}}, "its settings have a key that is not a string"),
        ({"images": {"train": 5}}, "its images entry is invalid"),
        ({"images": {"train": {"count": 2**62, "names": "a"}}}, "its images entry is invalid"),
        ({"trained": {"sources": [5]}}, r"its trained\.sources are invalid"),
        ({"trained": {"files": {"model.weights": "x"}}}, r"its trained\.files are invalid"),
    ],
)
def test_invalid_copied_facts_are_refused(rebuilt, facts, message):
    rebuilt(lambda record, state: record.update(segments=[SEGMENT, SEGMENT | {"from_step": 3}]))
    with pytest.raises(UserError, match=message):
        rebuilt(lambda record, state: record.update(facts))


def test_names_of_files_that_are_not_utf8_are_kept(rebuilt):
    rebuilt(lambda record, state: record.update(trained={"root": "/data/\udce9"}))


@pytest.mark.parametrize(
    "name", ["builtins\nbytearray", "torch\nTensor", "torch\nFloatTensor", "__builtin__\nbytearray"]
)
@pytest.mark.parametrize("legacy", [False, True])
def test_file_that_claims_huge_memory_is_refused(tmp_path, monkeypatch, name, legacy):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was unpickled"))
    content = b"c" + name.encode() + b"\nJ\xff\xff\xff\x7f\x85R."
    if legacy:
        (tmp_path / "a.ckpt").write_bytes(content)
    else:
        with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
            archive.writestr("archive/DATA.PKL", content)
    with pytest.raises(UserError, match="run code or fill the memory: it names"):
        read_checkpoint(tmp_path / "a.ckpt")
