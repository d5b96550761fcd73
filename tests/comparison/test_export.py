"""Tables and figures for a paper: all files, LaTeX that compiles, and folders of others that are left alone."""

import re
import shutil
import subprocess

import pytest

import fcnlab
from fcnlab.comparison import pdf
from fcnlab.comparison.latex import escape_latex, latex
from fcnlab.comparison.tables import Cell, Column, Table
from fcnlab.errors import UserError

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
        r"d & 60.00 $\pm$ 0.10 & - \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_long_titles_of_latex_tables_are_broken_into_lines():
    columns = [Column("pair", False), Column("difference, in % points"), Column("over images only")]
    rows = [[Cell("a - b"), Cell("0.1", 0.1), Cell("-0.5 to +0.5", 0.0)]]
    header = latex(Table("differences", "Differences", "", columns, rows)).splitlines()[3]
    assert header == (r"pair & \shortstack[r]{difference, \\ in \% points} & \shortstack[r]{over images \\ only} \\")


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


DOCUMENT = r"""\documentclass[10pt]{article}
\usepackage[textwidth=6.9in]{geometry}
\usepackage{booktabs,graphicx}
\begin{document}
\noindent\input{scores.tex}

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
