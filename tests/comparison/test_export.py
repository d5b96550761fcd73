"""Tables and figures for a paper: all files, LaTeX that compiles, and folders of others that are left alone."""

import csv
import re
import shutil
import subprocess
import zipfile

import numpy as np
import pytest
from PIL import Image

import fcnlab
from fcnlab.comparison import pdf
from fcnlab.comparison.formats import MINUS
from fcnlab.comparison.latex import escape_latex, latex
from fcnlab.comparison.tables import Cell, Column, Table
from fcnlab.errors import UserError
from fcnlab.metrics.scores import scores
from run_folders import PALETTE, write_run_with_predictions

PDFLATEX = shutil.which("pdflatex")


def test_latex_has_the_best_in_bold_and_deviations():
    columns = [Column("group", False), Column("mIoU, %"), Column("difference")]
    rows = [
        [Cell("a_b & c"), Cell("61.20 ± 0.30", 61.2, 0.3, best=True), Cell("-0.50", -0.5)],
        [Cell("d"), Cell("60.00 ± 0.10", 60, 0.1), Cell("-")],
    ]
    text = latex(Table("scores", "Scores", "Percent.", columns, rows))
    assert text.splitlines()[1:] == [
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"group & mIoU, \% & difference \\",
        r"\midrule",
        r"a\_b \& c & \textbf{61.20} $\pm$ 0.30 & $-$0.50 \\",
        r"d & 60.00 $\pm$ 0.10 & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_long_titles_of_latex_tables_are_broken_into_lines():
    columns = [Column("pair", False), Column("difference, in % points"), Column("over images only"), Column("acc., %")]
    rows = [[Cell("a - b"), Cell("0.1", 0.1), Cell("-0.5 to +0.5", 0.0), Cell("1", 1)]]
    header = latex(Table("differences", "Differences", "", columns, rows)).splitlines()[3]
    stacked = r"\shortstack[r]{difference, \\ in \% points} & \shortstack[r]{over images \\ only}"
    assert header == rf"pair & {stacked} & acc., \% \\"  # a unit stands behind its word


def test_long_text_of_latex_tables_is_broken_between_words():
    rows = [[Cell(f"FCN-8s on GoogLeNet {MINUS} FCN-8s on VGG16"), Cell("1", 1)]]
    lines = latex(Table("differences", "Differences", "", [Column("pair", False), Column("x")], rows)).splitlines()
    assert lines[5] == r"\shortstack[l]{FCN-8s on GoogLeNet $-$ \\ FCN-8s on VGG16} & 1 \\"


def test_titles_of_a_table_with_many_columns_are_turned():
    """A confusion matrix of 21 classes would be wider than any page."""
    columns = [Column("ground truth", False), *(Column(f"class_{place}") for place in range(21))]
    lines = latex(Table("confusion", "Matrix", "", columns, [[Cell("a"), *[Cell("0.1", 0.1)] * 21]])).splitlines()
    assert lines[0].endswith(r"Needs \usepackage{booktabs,graphicx}.")
    assert lines[3].startswith(
        r"\shortstack[l]{ground \\ truth} & \rotatebox{90}{class\_0} & \rotatebox{90}{class\_1} & "
    )


def test_text_of_others_is_no_command_of_latex():
    hostile = "\\input{/etc/passwd} $x$ %\n~^#"
    text = escape_latex(hostile)
    assert "\n" not in text and not re.search(r"(?<!\\)[$%#&]|\\input|\\write", text.replace(r"\textbackslash{}", ""))


def test_without_matplotlib_the_export_says_what_is_missing(sweep, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(pdf, "is_available", lambda: False)
    monkeypatch.setattr("fcnlab.comparison.report.is_available", lambda: False)
    written = fcnlab.compare(sweep, resamples=500).export(tmp_path / "paper")
    names = {path.name for path in written}
    assert {"scores.tex", "scores.csv", "scores.svg", "confusion_of_3.csv", "about.txt"} <= names
    assert not any(name.endswith(".pdf") for name in names) and "pip install 'fcnlab[paper]'" in caplog.text
    assert names == {path.name for path in (tmp_path / "paper").iterdir()}
    about = (tmp_path / "paper" / "about.txt").read_text().split("\n\n")[1].splitlines()
    assert about[0] == "Tables (.csv and .tex)" and "scores: Scores" in about[: about.index("Figures (.svg)")]
    assert "scores: mIoU of each group" in about[about.index("Figures (.svg)") :]


def test_a_folder_of_others_is_not_written_to(sweep, tmp_path):
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "scores.tex").write_text("mine")
    report = fcnlab.compare(sweep, resamples=500)
    with pytest.raises(UserError, match=r"contains files, but no about\.txt of an earlier export"):
        report.export(tmp_path / "paper")
    (tmp_path / "paper" / "about.txt").write_text("my data set")
    with pytest.raises(UserError, match=r"contains files, but no about\.txt of an earlier export"):
        report.export(tmp_path / "paper")
    assert (tmp_path / "paper" / "scores.tex").read_text() == "mine"
    with pytest.raises(UserError, match="is not a folder"):
        report.export(tmp_path / "paper" / "scores.tex")


def test_an_export_replaces_all_files_of_an_earlier_one(sweep, tmp_path, monkeypatch):
    """Tables of groups that are no longer compared would be of another comparison."""
    monkeypatch.setattr(pdf, "is_available", lambda: False)
    fcnlab.compare(sweep, resamples=500).export(tmp_path / "paper")
    (tmp_path / "paper" / "notes.txt").write_text("mine")
    for place in (0, 1, 2):
        shutil.rmtree(sweep / str(place))
    written = fcnlab.compare(sweep, resamples=500).export(tmp_path / "paper")
    assert {path.name for path in (tmp_path / "paper").iterdir()} == {path.name for path in written} | {"notes.txt"}
    assert not (tmp_path / "paper" / "confusion_of_3.csv").exists()


def test_names_of_images_never_name_a_file_that_is_removed(kept, tmp_path):
    """The list of files that an export leaves is also read by the next one, which removes them."""
    names = [f"im\nthesis: {place:02}" for place in range(36)]
    for name, quality in {"fcn8s": 0.9, "fcn32s": 0.3}.items():
        shutil.rmtree(kept / name)
        write_run_with_predictions(kept / name, quality, names, model=name)
    report = fcnlab.compare(kept, resamples=200)
    report.export(tmp_path / "paper", worst=2)
    assert "thesis: " in (tmp_path / "paper" / "about.txt").read_text()
    (tmp_path / "paper" / "thesis.tex").write_text("mine")
    report.export(tmp_path / "paper", worst=2)
    assert (tmp_path / "paper" / "thesis.tex").read_text() == "mine"


DOCUMENT = r"""\documentclass[10pt]{article}
\usepackage[textwidth=6.9in]{geometry}
\usepackage{booktabs,graphicx}
\begin{document}
\noindent\input{scores.tex}

\noindent\input{differences.tex}

\noindent\includegraphics{differences.pdf}
\end{document}
"""


@pytest.mark.slow
@pytest.mark.skipif(not PDFLATEX, reason="no pdflatex: apt-get install texlive-latex-base texlive-latex-recommended")
def test_a_table_and_a_figure_compile_into_one_page(sweep, tmp_path):
    """Also over an earlier export, and with a name that has characters of LaTeX."""
    report = fcnlab.compare(sweep, names={"fcn8s": "FCN-8s & co_1, 5 %"}, resamples=500)
    assert report.export(tmp_path / "paper") == report.export(tmp_path / "paper")
    (tmp_path / "paper" / "document.tex").write_text(DOCUMENT)
    words = [PDFLATEX, "-interaction=nonstopmode", "-halt-on-error", "document.tex"]
    done = subprocess.run(words, cwd=tmp_path / "paper", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "(1 page," in done.stdout, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Write two runs with predictions.zip; return the folder of both."""
    monkeypatch.setattr("fcnlab.files.writing._sync", lambda path: None)
    monkeypatch.setattr(pdf, "is_available", lambda: False)
    monkeypatch.setattr("fcnlab.comparison.report.is_available", lambda: True)  # no warning
    for name, quality in {"fcn8s": 0.9, "fcn32s": 0.3}.items():
        write_run_with_predictions(tmp_path / "runs" / name, quality, model=name)
    return tmp_path / "runs"


def test_the_worst_images_are_drawn_over_image_ground_truth_and_prediction(kept, tmp_path):
    """Their order, and the tint of each class, are computed here from the records."""
    report = fcnlab.compare(kept, resamples=200)
    names = {path.name for path in report.export(tmp_path / "paper", worst=2)}
    assert {f"worst_of_{rank}_{place}.png" for rank in (1, 2) for place in (1, 2)} < names
    matrices = np.load(kept / "fcn32s" / "confusions.npz")["matrices"]
    mious = [scores(matrix).miou for matrix in matrices]
    worst = int(np.argmin(mious))
    with (tmp_path / "paper" / "worst_images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    row = next(row for row in rows if row["file"] == "worst_of_2_1.png")
    assert len(rows) == 4 and row["image"] == f"image_{worst:03}" and row["group"] == "model=fcn32s"
    assert float(row["mIoU, %"]) == pytest.approx(100 * mious[worst])
    drawing = np.array(Image.open(tmp_path / "paper" / "worst_of_2_1.png").convert("RGB")).astype(float)
    side, gap = 400, 4  # the image of 16 x 12 pixels is drawn 25 times as large
    assert drawing.shape[1] == 3 * side + 2 * gap
    with zipfile.ZipFile(kept / "fcn32s" / "predictions.zip") as archive:
        for place, member in ((1, "ground_truth"), (2, "class_maps")):
            labels = np.array(Image.open(archive.open(f"{member}/image_{worst:03}.png")))
            shown = drawing[:300, place * (side + gap) :][12::25, 12:side:25]
            plain = drawing[:300, :side][12::25, 12::25]
            tints = np.vstack([PALETTE, np.full((252, 3), (224, 224, 192))])[labels]
            expected = np.where((labels == 0)[..., None], plain, 0.4 * plain + 0.6 * tints)
            assert np.abs(shown - expected).max() <= 1
    about = (tmp_path / "paper" / "about.txt").read_text()
    assert f"worst_of_2_1: image image_{worst:03}, mIoU {100 * mious[worst]:.2f} %, number 1 of the worst" in about


def test_worst_images_that_no_run_keeps_are_named_in_one_sentence(kept, tmp_path, caplog):
    fcnlab.compare(kept, resamples=200).export(tmp_path / "paper", worst=3)
    assert not caplog.messages and (tmp_path / "paper" / "worst_of_2_3.png").is_file()
    matrices = np.load(kept / "fcn8s" / "confusions.npz")["matrices"]
    first = int(np.argmin([scores(matrix).miou for matrix in matrices]))
    with zipfile.ZipFile(kept / "fcn8s" / "predictions.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist() if f"image_{first:03}" not in name}
    with zipfile.ZipFile(kept / "fcn8s" / "predictions.zip", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    (kept / "fcn32s" / "predictions.zip").unlink()
    fcnlab.compare(kept, resamples=200).export(tmp_path / "paper", worst=3)
    assert sorted(path.name for path in (tmp_path / "paper").glob("*.png")) == ["worst_of_1_2.png", "worst_of_1_3.png"]
    none, some = caplog.messages
    assert none.startswith("The worst images of model=fcn32s are not drawn, because no run keeps")
    assert (
        some.startswith("1 of the 3 worst images of model=fcn8s are not drawn")
        and f": image_{first:03}. fcnlab eval" in some
    )


def test_predictions_of_another_evaluation_are_not_drawn(kept, tmp_path, caplog):
    write_run_with_predictions(tmp_path / "other", 0.5)
    shutil.copy(tmp_path / "other" / "predictions.zip", kept / "fcn32s")
    fcnlab.compare(kept, resamples=200).export(tmp_path / "paper", worst=1)
    assert [path.name for path in (tmp_path / "paper").glob("*.png")] == ["worst_of_1_1.png"]
    assert "The worst images of model=fcn32s are not drawn" in caplog.messages[0]
    assert len(caplog.messages) == 2 and "they are of another evaluation" in caplog.messages[1]
