"""The report in the terminal, in Markdown and in JSON."""

import json

import pytest

from fcnlab.data.checks.report import (
    Finding,
    Verdict,
    findings_facts,
    findings_markdown,
    findings_table,
    markdown_columns,
    summary,
    text_columns,
    worst_verdict,
)

FINDINGS = [
    Finding("train", "list", Verdict.OK, "no name twice"),
    Finding("train", "files", Verdict.ERROR, "3 wrong", ("a.jpg is missing", "b|c.jpg is missing", "d.jpg is missing")),
    Finding("machine", "GPU", Verdict.WARNING, "none | here"),
]


def test_findings_table():
    assert findings_table(FINDINGS).splitlines() == [
        "train",
        "  ✓ list   no name twice",
        "  ✗ files  3 wrong",
        "      a.jpg is missing",
        "      b|c.jpg is missing",
        "      d.jpg is missing",
        "",
        "machine",
        "  ! GPU    none | here",
    ]


@pytest.mark.parametrize(("verdict", "shown"), [(Verdict.ERROR, 10), (Verdict.WARNING, 3)])
def test_findings_table_names_the_first_files(verdict, shown):
    each = tuple(f"{place}.jpg" for place in range(1200))
    lines = findings_table([Finding("train", "files", verdict, "1,200 missing", each)]).splitlines()
    assert lines[2:-1] == [f"      {name}" for name in each[:shown]]
    assert lines[-1] == f"      … and {1200 - shown:,} more"


def test_long_lines_are_wrapped_next_to_the_check_name():
    (_, *lines) = findings_table([Finding("x", "check", Verdict.OK, "word " * 12)], columns=42).splitlines()
    assert lines == ["  ✓ check  word word word word word word", "           word word word word word word"]


@pytest.mark.parametrize(
    ("findings", "text"),
    [(FINDINGS, "1 error, 1 warning, 1 check passed"), (FINDINGS[:1] * 2, "no errors, no warnings, 2 checks passed")],
)
def test_summary(findings, text):
    assert summary(findings) == text


def test_colour_changes_no_text():
    painted = findings_table(FINDINGS, colour=True)
    for code in ("\x1b[1m", "\x1b[32m", "\x1b[33m", "\x1b[1;31m"):
        assert code in painted
        painted = painted.replace(code, "")
    assert painted.replace("\x1b[0m", "") == findings_table(FINDINGS)


def test_markdown_names_every_file_and_escapes_columns():
    lines = findings_markdown(FINDINGS).splitlines()
    assert lines[:6] == [
        "## train",
        "",
        "| verdict | check | found |",
        "|---|---|---|",
        "| ok | list | no name twice |",
        "| error | files | 3 wrong |",
    ]
    assert sum(line.startswith("- ") for line in lines) == 3
    assert "| warning | GPU | none \\| here |" in lines


def test_findings_facts_are_valid_json():
    facts = json.loads(json.dumps(findings_facts(FINDINGS)))
    assert facts[1]["verdict"] == "error" and facts[1]["each"][2] == "d.jpg is missing"


def test_worst_verdict_is_the_most_severe():
    assert (
        worst_verdict(FINDINGS) == Verdict.ERROR
        and worst_verdict(FINDINGS[::2]) == Verdict.WARNING
        and worst_verdict([]) == Verdict.OK
    )


def test_columns():
    header, rows = ["class", "pixels"], [["cat", "1,200"], ["background", "7"]]
    assert text_columns(header, rows).splitlines() == ["class       pixels", "cat          1,200", "background       7"]
    assert markdown_columns(header, rows).splitlines()[:3] == [
        "| class | pixels |",
        "| --- | ---: |",
        "| cat | 1,200 |",
    ]


SAME_MESSAGE = tuple(f"d/{place}.png cannot be read: no image in d/{place}.png" for place in range(400))
FILES = tuple(f"d/{place}.png" for place in range(400))


def test_equal_messages_about_many_files_are_merged():
    """The terminal shows a count and the first names, the file every name; other messages stay separate."""
    separate = ("d/x.png is missing",)
    finding = Finding("train", "formats", Verdict.ERROR, "401 wrong", SAME_MESSAGE + separate, (*FILES, "d/x.png"))
    message = "FILE cannot be read: no image in FILE (400 files: "
    shown = findings_table([finding]).splitlines()[2:]
    assert shown == [f"      {message}such as d/0.png, d/1.png, d/2.png)", f"      {separate[0]}"]
    (first, second) = [line for line in findings_markdown([finding]).splitlines() if line.startswith("- ")]
    assert first == f"- {message}{', '.join(FILES)})" and second == f"- {separate[0]}"
    assert findings_facts([finding])[0]["each"] == SAME_MESSAGE + separate


def test_files_beyond_the_first_messages_are_counted():
    each = tuple(f"d/{place}.png has {place // 2} pixels" for place in range(40))
    lines = findings_table([Finding("train", "sizes", Verdict.ERROR, "40", each, FILES[:40])]).splitlines()
    assert lines[2] == "      FILE has 0 pixels (2 files: d/0.png, d/1.png)" and lines[-1] == "      … and 20 more"
