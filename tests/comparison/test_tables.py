"""The tables in terminal, Markdown and CSV contain the computed values; sentences rank the groups."""

import csv
import re

import numpy as np
import pytest

from fcnlab.comparison import terminal as terminal_text
from fcnlab.comparison.comparison import compare
from fcnlab.comparison.csv_files import table_csv, write_csv
from fcnlab.comparison.formats import points, probability
from fcnlab.comparison.markdown import markdown
from fcnlab.comparison.page import write_page
from fcnlab.comparison.plan import plans
from fcnlab.comparison.ranking import answers, ranks
from fcnlab.comparison.runs import read_runs
from fcnlab.comparison.tables import (
    Cell,
    Column,
    Table,
    class_difference_tables,
    class_table,
    difference_table,
    score_table,
)
from fcnlab.comparison.terminal import _aligned, plan_text, terminal
from fcnlab.escaping import CONTROL_CHARACTERS, escape_line
from run_folders import CLASSES, toy_matrices


@pytest.fixture
def compared(tmp_path):
    return lambda **kwargs: compare(read_runs([tmp_path / "runs"])[0], **{"resamples": 500, **kwargs})


def read(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_terminal_tables(sweep, compared):
    comparison = compared()
    text = terminal(comparison)
    assert text.startswith("3 groups, 9 runs on toys val, 36 images\n")
    best = comparison.groups[0]
    assert f"{100 * best.mean():.2f} ± {100 * best.spread():.2f}" in text
    assert re.search(r"model=fcn8s \N{MINUS SIGN} model=fcn32s +\+\d+\.\d\d +\+\d+\.\d\d to \+\d+\.\d\d +(0|<)", text)
    assert re.search(r"\n  model=fcn8s +1 +3 +", text) and text.splitlines()[-1].startswith(
        "Ranking by mIoU: 1. model=fcn8s ("
    )


def test_groups_have_ranks_and_one_sentence(sweep, compared):
    """Three groups that all differ have the ranks 1 to 3."""
    comparison = compared()
    assert ranks(comparison) == {"model=fcn8s": 1, "model=fcn16s": 2, "model=fcn32s": 3}
    scores = [f"{100 * group.mean():.2f}" for group in comparison.groups]
    different = "Groups of different ranks differ significantly, over seeds and images."
    names = ("1. model=fcn8s ({} %); 2. model=fcn16s ({} %); 3. model=fcn32s ({} %)").format(*scores)
    assert answers(comparison) == [f"Ranking by mIoU: {names}. {different}"]


def test_equal_groups_share_a_rank_and_exceptions_are_named(make_run, compared):
    """Two groups are the same model; a third one has one seed only, so that nothing is known about retraining."""
    for seed in (1, 2, 3):
        for model, quality in {"fcn8s": 0.9, "fcn16s": 0.9, "fcn32s": 0.4}.items():
            if model != "fcn32s" or seed == 1:
                make_run(f"{model}{seed}", toy_matrices(quality, seed=seed), model=model, seed=seed)
    comparison = compared()
    assert list(ranks(comparison).values()) == [1, 1, 3]
    ranking, exception = answers(comparison)
    assert re.match(
        r"Ranking by mIoU: 1\. model=fcn\d+s \([\d.]+ %\) and model=fcn\d+s \(.*; 3\. model=fcn32s \(", ranking
    )
    assert ranking.endswith("Between groups that share a rank, no difference was found.")
    assert exception.startswith("Different for these trained models only, because retraining was not tested: model=fcn")


def test_a_sentence_names_the_better_group_first(make_run, compared):
    """The difference from the best group as baseline is negative, but the sentence is positive."""
    for seed in (1, 2, 3):
        for model, quality in {"fcn8s": 0.9, "fcn32s": 0.4}.items():
            make_run(f"{model}{seed}", toy_matrices(quality, seed=seed), model=model, seed=seed)
    comparison = compared(baseline="fcn8s")
    assert comparison.pairs[0].difference < 0
    interval = r"95 % interval \+\d+.\d\d to \+\d+.\d\d, over 3 paired seeds and 36 images"
    size = rf"\+\d+\.\d\d points of mIoU \({interval}\)\."
    (sentence,) = answers(comparison)
    assert re.fullmatch(r"model=fcn8s is better than model=fcn32s: " + size, sentence)


def test_groups_are_counted_against_a_baseline(sweep, compared):
    (sentence,) = answers(compared(baseline="fcn16s"))
    first, second = r"1 group is better: model=fcn8s \(\+[\d.]+\)", r"1 group is worse: model=fcn32s \(-[\d.]+\)"
    assert re.fullmatch(rf"Compared with model=fcn16s \([\d.]+ %\), {first}; {second}\.", sentence)


def test_answers_for_equal_models_and_for_one_group(make_run, compared):
    make_run("a", toy_matrices(0.7))
    assert answers(compared()) == ["Only one group: there is nothing to compare."]
    make_run("b", toy_matrices(0.7), model="fcn32s")
    (sentence,) = answers(compared())
    assert sentence.startswith("Undecided between ") and sentence.endswith("One seed: retraining not tested.")


def test_an_undecided_answer_says_what_would_decide(make_run, compared):
    for model, qualities in {"fcn8s": (0.6, 0.7, 0.9), "fcn32s": (0.6, 0.65, 0.5)}.items():
        for seed, quality in enumerate(qualities, start=1):
            make_run(f"{model}{seed}", toy_matrices(quality, seed=seed), model=model, seed=seed)
    comparison = compared()
    (pair,), (sentence,) = comparison.pairs, answers(comparison)
    assert sentence.startswith("Undecided between ") and f"would need {pair.design.seeds} seeds" in sentence
    assert "with a probability of 80 %" in plan_text(comparison, plans(comparison.pairs))
    assert f"find differences of {100 * pair.design.detectable:.1f} points or more" in sentence


def test_many_groups_are_counted_and_shortened(make_run, compared):
    for place in range(terminal_text.ROWS + 3):
        make_run(str(place), toy_matrices(0.3 + 0.02 * place, seed=place), settings={"optim.lr": place})
    comparison = compared(baseline="optim.lr=10", resamples=2000)
    (sentence,) = answers(comparison)
    trained = r" for these trained models \(retraining was not tested\): [^;]+"
    undecided = r"(?:(\d+) groups? (?:is|are) undecided: [^;]+; )?"
    pattern = rf"(\d+) groups are higher{trained}; {undecided}(\d+) groups are lower{trained}"
    counted = re.fullmatch(rf"Compared with optim.lr=10 \([\d.]+ %\), {pattern}\.", sentence)
    assert counted, sentence
    higher, undecided, lower = (int(count or 0) for count in counted.groups())
    assert higher + lower + undecided == terminal_text.ROWS + 2 and higher > 5 and lower > 5
    assert "(3 more rows in the files)" in terminal(comparison) and "optim.lr=0 " in markdown(comparison)


def test_long_names_are_shown_once(make_run, compared):
    """Their rank replaces them elsewhere."""
    for place in range(2):
        settings = {"optim.a_setting_with_a_long_name": "a/value/that/is/long/too", "optim.lr": place}
        make_run(str(place), toy_matrices(0.5 + 0.3 * place), settings=settings | {f"augment.{'x' * 30}": place})
    assert re.search(r"\n  #1 augment.x+=1 optim.lr=1 ", terminal(compared()))
    assert "#1 has a higher mIoU than #2, for these trained models: +" in terminal(compared())


def test_markdown_tables(sweep, compared):
    text = markdown(compared())
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert len(tables) == 12
    for table in tables:
        assert len({row.count("|") for row in table.splitlines()}) == 1
    assert re.search(rf"\n\| {CLASSES[-1]} \| [\d.]+ ± [\d.]+ \|", text)


def test_markdown_escapes_cell_separators(make_run, compared):
    make_run("a", settings={"optim.lr": "a|b"})
    make_run("b", settings={"optim.lr": "c"})
    assert r"optim.lr=a\|b" in markdown(compared())


def test_csv_contains_unrounded_numbers(sweep, compared, tmp_path):
    comparison = compared()
    write_csv(tmp_path, comparison)
    groups, pairs, runs = (read(tmp_path / f"{name}.csv") for name in ("groups", "pairs", "runs"))
    assert [row["group"] for row in groups] == [group.name for group in comparison.groups]
    assert float(groups[0]["miou"]) == comparison.groups[0].mean() and groups[0]["model"] == "fcn8s"
    assert float(groups[0]["iou/cat"]) == comparison.groups[0].iou()[1] and groups[0]["seeds"] == "1 2 3"
    assert float(pairs[0]["images_low"]) == comparison.pairs[0].over_images.low
    assert float(pairs[0]["p_holm"]) == comparison.pairs[0].p and pairs[0]["verdict"] == "better"
    assert float(pairs[0]["degrees_of_freedom"]) == comparison.pairs[0].two_factor.freedom
    assert len(runs) == 9 and float(runs[0]["miou"]) == comparison.groups[0].runs[0].scores.miou
    assert runs[0]["folder"] == str(sweep / "6")


def test_classes_are_rows_and_groups_are_columns(sweep, compared):
    comparison = compared()
    table = class_table(comparison)
    assert [column.title for column in table.columns] == ["class", *(group.name for group in comparison.groups)]
    assert [row[0].text for row in table.rows] == [*CLASSES, "mIoU"]
    first = comparison.groups[0]
    by_seed = [run.scores.iou[1] for run in first.runs]
    cell = table.rows[1][1]
    assert (cell.value, cell.spread) == pytest.approx((100 * np.mean(by_seed), 100 * np.std(by_seed, ddof=1)))
    assert cell.best and not table.rows[1][2].best and table.rows[-1][1].value == pytest.approx(100 * first.mean())


def test_table_csv_has_percent_and_a_column_for_each_number(sweep, compared):
    comparison = compared()
    (row, *_) = csv.DictReader(table_csv(score_table(comparison)).splitlines())
    first, pair = comparison.groups[0], comparison.pairs[0]
    assert float(row["mIoU, %"]) == 100 * first.mean()
    assert float(row["mIoU, %, standard deviation"]) == 100 * first.spread()
    (row, *_) = csv.DictReader(table_csv(difference_table(comparison)).splitlines())
    ends = [float(row[f"95 % interval, {end}"]) for end in ("low", "high")]
    assert ends == [100 * pair.interval.low, 100 * pair.interval.high]
    assert float(row["difference, points"]) == 100 * pair.difference


def test_csv_without_seeds_or_absent_classes(make_run, compared, tmp_path):
    matrices = toy_matrices(0.7)
    matrices[:, 3], matrices[:, :, 3] = 0, 0
    make_run("a", matrices)
    write_csv(tmp_path, compared())
    (row,) = read(tmp_path / "groups.csv")
    assert row["iou/cow"] == row["miou_deviation"] == "" and (tmp_path / "pairs.csv").read_text().strip() == ""


def test_published_scores_are_shown_next_to_measured_ones(make_run, compared):
    make_run("a", published={"miou": 65.5, "other": 1})
    comparison = compared()
    actual = 100 * comparison.groups[0].mean()
    row = f"all runs  mIoU   {actual:.2f}        65.50         {actual - 65.5:+.2f}"
    assert row in terminal(comparison) and "Measured and published scores" in markdown(comparison)


@pytest.mark.parametrize(
    ("p", "text"), [(None, "-"), (1e-9, "< 0.0001"), (0.0123, "0.0123"), (0.5, "0.50"), (1, "1.00")]
)
def test_probability(p, text):
    assert probability(p) == text


def test_points():
    assert points(0.0123) == "+1.23" and points(-0.1) == "-10.00"


def test_hostile_names_are_escaped_in_all_outputs(make_run, tmp_path):
    """A folder, an option, a class and a reason contain text that a terminal, browser or spreadsheet interprets."""
    hostile = "<script>alert(1)</script> ![x](//y) \x1b[2J\r\n=1"
    classes = ("background", hostile, "dog", "cow")
    make_run("<b>\x1b[2J", toy_matrices(0.7), options={"optim": hostile}, classes=classes)
    make_run("b", toy_matrices(0.6), options={"optim": "=1+1"}, classes=classes)
    make_run("<i>c\x1b", status="failed")
    runs, left_out = read_runs([tmp_path / "runs"])
    comparison = compare(runs, "=1+1", resamples=100)
    comparison.left_out[:0] = left_out
    text, message = markdown(comparison), terminal(comparison)
    assert len(runs) == 2 and "&lt;script&gt;" in text and not re.search(r"<[a-z/]|(?<!\\)\]\(", text)
    assert not set(text + message) & {"\x1b", "\r"}
    write_csv(tmp_path, comparison)
    assert {row["optim"] for row in read(tmp_path / "groups.csv")} == {escape_line(hostile), "'=1+1"}
    write_page(tmp_path / "comparison.html", comparison, "fcnlab compare")
    written = [path.read_text() for path in (*tmp_path.glob("*.csv"), tmp_path / "comparison.html")]
    assert len(written) == 6 and sum("x1b[2J" in text for text in written) >= 3
    assert not any(CONTROL_CHARACTERS.search(without_line_breaks(text)) for text in written)


def without_line_breaks(text: str) -> str:
    """Remove line ends and tabs from a text."""
    return text.replace("\r\n", "").replace("\n", "").replace("\t", "")


def test_hostile_text_adds_no_line_and_no_column(make_run, tmp_path):
    """An option group is the name of a column; versions are part of a sentence."""
    make_run("a", toy_matrices(0.7), options={"=1+1": "x"}, torch="2.9.0\n\nAll runs are equal.")
    make_run("b", toy_matrices(0.6), options={"=1+1": "y"}, torch="2.10.0")
    runs, _ = read_runs([tmp_path / "runs"])
    comparison = compare(runs, resamples=100)
    assert "2.9.0\\n\\nAll runs are equal." in terminal(comparison)
    assert not re.search("^All runs", terminal(comparison) + markdown(comparison), re.MULTILINE)
    write_csv(tmp_path, comparison)
    assert [row["'=1+1"] for row in read(tmp_path / "groups.csv")] == ["x", "y"]


def test_columns_that_do_not_fit_a_line_follow_below():
    """Each block begins with the first column, and all cells are printed once."""
    columns = [Column(name) for name in ("pair", *(f"column {place}" for place in range(9)))]
    rows = [[Cell(f"row {row}"), *(Cell(f"{row}:{place}" + " " * 10 + "|") for place in range(9))] for row in range(2)]
    text = _aligned(Table("name", "title", "", columns, rows))
    blocks = [block.splitlines() for block in text.split("\n\n")]
    assert len(blocks) == 2 and max(map(len, text.splitlines())) <= 120
    assert [block[1].split()[:2] for block in blocks] == [["row", "0"]] * 2
    assert text.count("|") == 18 and all(text.count(f"{row}:{place} ") == 1 for row in range(2) for place in range(9))


def test_a_class_without_an_interval_has_the_reason(make_run, compared):
    """One seed of each group misses the last class, in a set where the others find it in all images."""
    for model, quality in {"fcn8s": 0.8, "fcn32s": 0.7}.items():
        for seed in range(3):
            matrices = toy_matrices(quality, seed=seed)
            if seed == 0:
                matrices[:, -1, 0] += matrices[:, -1, -1]
                matrices[:, -1, -1] = 0
            make_run(f"{model}{seed}", matrices, model=model, seed=seed)
    (table,) = class_difference_tables(compared())
    assert [(row[6].text == "-", row[7].text) for row in table.rows] == [
        *[(False, "")] * (len(CLASSES) - 1),
        (True, "not found with all seeds"),
    ]
