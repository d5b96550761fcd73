"""The report in the terminal, in Markdown and in JSON."""

import json

from fcnlab.results.findings import (
    Finding,
    Verdict,
    findings_facts,
    findings_markdown,
    findings_table,
    markdown_columns,
    text_columns,
    worst,
)

FINDINGS = [
    Finding("train", "list", Verdict.OK, "no name twice"),
    Finding("train", "files", Verdict.ERROR, "3 wrong", ("a.jpg is missing", "b|c.jpg is missing", "d.jpg is missing")),
    Finding("machine", "GPU", Verdict.WARNING, "none | here"),
]


def test_terminal():
    assert findings_table(FINDINGS, most=2).splitlines() == [
        "train",
        "  ✓ list   no name twice",
        "  ✗ files  3 wrong",
        "      a.jpg is missing",
        "      b|c.jpg is missing",
        "      … and 1 more",
        "",
        "machine",
        "  ! GPU    none | here",
    ]


def test_colour_is_added_and_nothing_else():
    painted = findings_table(FINDINGS, colour=True)
    for code in ("\x1b[1m", "\x1b[32m", "\x1b[33m", "\x1b[1;31m"):
        assert code in painted
        painted = painted.replace(code, "")
    assert painted.replace("\x1b[0m", "") == findings_table(FINDINGS)


def test_markdown_names_every_file_and_keeps_its_columns():
    lines = findings_markdown(FINDINGS).splitlines()
    assert lines[:6] == [
        "## train",
        "",
        "| verdict | check | found |",
        "|---|---|---|",
        "| ok | list | no name twice |",
        "| error | files | 3 wrong |",
    ]
    assert sum(line.startswith("- `") for line in lines) == 3
    assert "| warning | GPU | none \\| here |" in lines


def test_json():
    facts = json.loads(json.dumps(findings_facts(FINDINGS)))
    assert facts[1]["verdict"] == "error" and facts[1]["each"][2] == "d.jpg is missing"


def test_the_worst_counts():
    assert worst(FINDINGS) == Verdict.ERROR and worst(FINDINGS[::2]) == Verdict.WARNING and worst([]) == Verdict.OK


def test_columns():
    header, rows = ["class", "pixels"], [["cat", "1,200"], ["background", "7"]]
    assert text_columns(header, rows).splitlines() == ["class       pixels", "cat          1,200", "background       7"]
    assert markdown_columns(header, rows).splitlines()[:3] == [
        "| class | pixels |",
        "| --- | ---: |",
        "| cat | 1,200 |",
    ]
