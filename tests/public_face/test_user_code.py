"""The example of a user's file and the page docs/how-to/python.md run."""

import re
from pathlib import Path

import pytest
from PIL import Image

from public_face import user_code

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow  # two runs, and everything that a user does with them
def test_the_example_of_a_users_file_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    user_code.main(tmp_path)
    assert "Did you mean model=fcn8s?" in capsys.readouterr().out


@pytest.mark.slow  # two runs, and VGG16
def test_the_page_on_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (83, 70)).save("photo.jpg")
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/how-to/python.md").read_text(), re.DOTALL):
        exec(code, names)
    assert names["labels"].shape == (70, 83) and names["probabilities"].shape == (21, 70, 83)
    assert names["output"].shape == (1, 21, 224, 256) and names["loss"].item() > 0
    assert (tmp_path / "comparison" / "comparison.html").is_file() and (tmp_path / "second" / "run.json").is_file()
