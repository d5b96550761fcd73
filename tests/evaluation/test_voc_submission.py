"""The archive for VOC's server is written completely or not at all."""

import tarfile

import numpy as np
import pytest
from PIL import Image

from fcnlab.data.formats.voc import voc_palette
from fcnlab.evaluation.voc_submission import submission


def test_labels_are_written_and_read_back(tmp_path):
    labels = np.arange(21, dtype=np.int64).reshape(3, 7)
    with submission(tmp_path / "new/a.tar.gz", "results/x", voc_palette(21)) as add:
        add("one", labels)
        assert not (tmp_path / "new/a.tar.gz").exists()
    with tarfile.open(tmp_path / "new/a.tar.gz", "r:gz") as archive:
        (member,) = archive.getmembers()
        assert member.name == "results/x/one.png" and member.isreg()
        np.testing.assert_array_equal(np.array(Image.open(archive.extractfile(member))), labels)


def test_a_failure_keeps_the_old_archive(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), submission(tmp_path / "a.tar.gz", "results/x", voc_palette(21)):
        _ = 1 / 0
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
