"""What the terminal, Markdown and CSV say is what was computed."""

import csv
import re

import pytest

from fcnlab.comparison.comparison import compare
from fcnlab.comparison.page import write_page
from fcnlab.comparison.runs import read_runs
from fcnlab.comparison.tables import TERMINAL_ROWS, answers, markdown, points, probability, terminal, write_csv
from fcnlab.escaping import CONTROL_CHARACTERS, escape_line
from run_folders import CLASSES, toy_matrices


@pytest.fixture
def compared(tmp_path):
    return lambda **kwargs: compare(read_runs([tmp_path / "runs"])[0], **{"resamples": 500, **kwargs})


def read(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_terminal(sweep, compared):
    found = compared()
    text = terminal(found)
    assert text.startswith("3 groups, 9 runs on toys val, 36 images;")
    best = found.groups[0]
    assert f"{100 * best.mean():.2f} ± {100 * best.spread():.2f}" in text
    assert re.search(r"model=fcn8s - model=fcn32s, n = 36 +\+\d+\.\d\d +\+\d+\.\d\d to \+\d+\.\d\d +0.0120 +\+", text)
    assert text.splitlines()[-1].startswith(
        "model=fcn16s is better than model=fcn32s, significant over images and seeds: +"
    )


def test_answers_are_from_the_leaders_side(sweep, compared):
    """Against the best, the differences are negative; the sentences are not."""
    assert compared(baseline="fcn8s").pairs[0].difference < 0
    for sentence in answers(compared(baseline="fcn8s")):
        leader = r"model=fcn8s is better than \S+, significant over images and seeds: "
        assert re.match(leader + r"\+\d+\.\d\d points of mIoU, \+\d+.\d\d to \+", sentence)


def test_equal_nets_and_one_group(make_run, compared):
    make_run("a", toy_matrices(0.7))
    assert answers(compared()) == ["Only one group: there is nothing to compare."]
    make_run("b", toy_matrices(0.7), model="fcn32s")
    (sentence,) = answers(compared())
    assert sentence.startswith("No significant difference between ") and "only one seed in common: no claim" in sentence


def test_many_groups_are_counted_and_cut(make_run, compared):
    for place in range(TERMINAL_ROWS + 3):
        make_run(str(place), toy_matrices(0.3 + 0.02 * place, seed=place), settings={"optim.lr": place})
    found = compared(baseline="optim.lr=10", resamples=2000)
    first = answers(found)[0]
    pattern = r"Compared with optim.lr=10: (\d+) better, (\d+) worse \((\d+) of these significant over images only, "
    counted = re.fullmatch(pattern + r"seeds not tested\), (\d+) inconclusive\.", first)
    assert counted, first
    better, worse, unknown, rest = map(int, counted.groups())
    assert better + worse + rest == TERMINAL_ROWS + 2 and better > 5 and worse > 5 and unknown == better + worse
    assert "(3 more in the files)" in terminal(found) and "optim.lr=0 " in markdown(found)


def test_long_names_are_said_once(make_run, compared):
    """Elsewhere their rank stands for them."""
    for place in range(2):
        settings = {"optim.a_setting_with_a_long_name": "a/value/that/is/long/too", "optim.lr": place}
        make_run(str(place), toy_matrices(0.5 + 0.3 * place), settings=settings | {f"augment.{'x' * 30}": place})
    assert re.search(r"\n  #1 augment.x+=1 optim.lr=1 ", terminal(compared()))
    assert "#1 is better than #2, significant over images only (seeds not tested): +" in terminal(compared())


def test_markdown(sweep, compared):
    text = markdown(compared())
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert len(tables) == 5
    for table in tables:
        assert len({row.count("|") for row in table.splitlines()}) == 1
    assert f"| group | {' | '.join(CLASSES)} |" in text


def test_markdown_escapes_what_would_end_a_cell(make_run, compared):
    make_run("a", settings={"optim.lr": "a|b"})
    make_run("b", settings={"optim.lr": "c"})
    assert r"optim.lr=a\|b" in markdown(compared())


def test_csv_holds_the_numbers_unrounded(sweep, compared, tmp_path):
    found = compared()
    write_csv(tmp_path, found)
    groups, pairs, runs = (read(tmp_path / f"{name}.csv") for name in ("groups", "pairs", "runs"))
    assert [row["group"] for row in groups] == [group.name for group in found.groups]
    assert float(groups[0]["miou"]) == found.groups[0].mean() and groups[0]["model"] == "fcn8s"
    assert float(groups[0]["iou/cat"]) == found.groups[0].iou()[1] and groups[0]["seeds"] == "1 2 3"
    assert float(pairs[0]["images_low"]) == found.pairs[0].over_images.low
    assert float(pairs[0]["seeds_p_holm"]) == found.pairs[0].p_seeds
    assert len(runs) == 9 and float(runs[0]["miou"]) == found.groups[0].runs[0].scores.miou
    assert runs[0]["folder"] == str(sweep / "6")


def test_csv_without_seeds_or_absent_classes(make_run, compared, tmp_path):
    matrices = toy_matrices(0.7)
    matrices[:, 3], matrices[:, :, 3] = 0, 0
    make_run("a", matrices)
    write_csv(tmp_path, compared())
    (row,) = read(tmp_path / "groups.csv")
    assert row["iou/cow"] == row["miou_deviation"] == "" and (tmp_path / "pairs.csv").read_text().strip() == ""


def test_published_scores_stand_beside_ours(make_run, compared):
    make_run("a", published={"miou": 65.5, "other": 1})
    found = compared()
    actual = 100 * found.groups[0].mean()
    row = f"all runs  miou   {actual:.2f}     65.50      {actual - 65.5:+.2f}"
    assert row in terminal(found) and "Measured and published scores" in markdown(found)


@pytest.mark.parametrize(
    ("p", "text"), [(None, "-"), (1e-9, "< 0.0001"), (0.0123, "0.0123"), (0.5, "0.50"), (1, "1.00")]
)
def test_probability(p, text):
    assert probability(p) == text


def test_points():
    assert points(0.0123) == "+1.23" and points(-0.1) == "-10.00"


def test_foreign_names_do_nothing_where_they_are_shown(make_run, tmp_path):
    """A folder, an option, a class and a reason, each with what a terminal, a browser or a spreadsheet would act on."""
    hostile = "<script>alert(1)</script> ![x](//y) \x1b[2J\r\n=1"
    classes = ("background", hostile, "dog", "cow")
    make_run("<b>\x1b[2J", toy_matrices(0.7), options={"optim": hostile}, classes=classes)
    make_run("b", toy_matrices(0.6), options={"optim": "=1+1"}, classes=classes)
    make_run("<i>c\x1b", status="failed")
    runs, left_out = read_runs([tmp_path / "runs"])
    found = compare(runs, resamples=100)
    found.left_out[:0] = left_out
    text, message = markdown(found), terminal(found)
    assert len(runs) == 2 and "&lt;script&gt;" in text and not re.search(r"<[a-z/]|(?<!\\)\]\(", text)
    assert not set(text + message) & {"\x1b", "\r"}
    write_csv(tmp_path, found)
    assert {row["optim"] for row in read(tmp_path / "groups.csv")} == {escape_line(hostile), "'=1+1"}
    write_page(tmp_path / "comparison.html", found, "fcnlab compare")
    written = [path.read_text() for path in (*tmp_path.glob("*.csv"), tmp_path / "comparison.html")]
    assert len(written) == 4 and sum("x1b[2J" in text for text in written) >= 3
    assert not any(CONTROL_CHARACTERS.search(lines_apart(text)) for text in written)


def lines_apart(text: str) -> str:
    """Without what ends and indents the lines of a file."""
    return text.replace("\r\n", "").replace("\n", "").replace("\t", "")


def test_a_foreign_text_makes_no_line_and_no_column_of_its_own(make_run, tmp_path):
    """An option's group is the name of a column; versions stand in a sentence."""
    make_run("a", toy_matrices(0.7), options={"=1+1": "x"}, torch="2.9.0\n\nAll runs are equal.")
    make_run("b", toy_matrices(0.6), options={"=1+1": "y"}, torch="2.10.0")
    runs, _ = read_runs([tmp_path / "runs"])
    found = compare(runs, resamples=100)
    assert "2.9.0\\n\\nAll runs are equal." in terminal(found)
    assert not re.search("^All runs", terminal(found) + markdown(found), re.MULTILINE)
    write_csv(tmp_path, found)
    assert [row["'=1+1"] for row in read(tmp_path / "groups.csv")] == ["x", "y"]
