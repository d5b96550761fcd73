"""Test that text with active contents is escaped where it is shown."""

import csv
import io
import logging

import pytest

from fcnlab.data.checks.report import Finding, Verdict, findings_markdown, findings_table, text_columns
from fcnlab.escaping import escape_csv, escape_line, escape_log_record, escape_markdown, escape_terminal

HOSTILE = "a\x1b]0;owned\x07\x1b[2J\r\n\x9b31m\u202egpj.exe\ud800"


def test_control_characters_are_escaped_for_a_terminal():
    for text in (escape_line(HOSTILE), escape_terminal(HOSTILE)):
        assert all(letter.isprintable() or letter == "\n" for letter in text) and "\\x1b[2J" in text
    assert "\n" not in escape_line(HOSTILE) and "\n" in escape_terminal(HOSTILE)
    assert escape_terminal("straße\t±: 1\n") == "straße\t±: 1\n"


def test_html_and_markdown_are_escaped():
    text = escape_markdown("<img src=x onerror=alert(1)> ![x](//evil) `a` | b & c\n# d")
    assert text == r"&lt;img src=x onerror=alert(1)&gt; !\[x\](//evil) \`a\` \| b &amp; c\\n# d"


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "@SUM(1)", "+1+1", "-1+1"])
def test_spreadsheet_formulas_are_escaped(text):
    assert escape_csv(text) == f"'{text}" and next(csv.reader(io.StringIO(escape_csv("-1.5"))))[0] == "-1.5"


def test_tables_of_doctor_show_names_unchanged():
    findings = [Finding(f"train: {HOSTILE}", "files", Verdict.ERROR, HOSTILE, (HOSTILE, "<b>|</b>"))]
    for text in (findings_table(findings), text_columns(["class"], [[HOSTILE]])):
        assert not set(text) & {"\x1b", "\r", "\x9b", "\u202e", "\ud800"}
    written = findings_markdown(findings)
    assert "<b>" not in written and "\x1b" not in written and written.encode()


def test_messages_do_not_move_the_cursor(caplog):
    record = logging.LogRecord("fcnlab", logging.INFO, "", 0, "%s: %s", ("x", HOSTILE), None)
    assert escape_log_record(record)
    assert record.getMessage() == f"x: {escape_terminal(HOSTILE)}"
