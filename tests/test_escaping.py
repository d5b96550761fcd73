"""Test that text with active contents is escaped where it is shown."""

import csv
import io
import logging
import time

import pytest

from fcnlab.data.checks.report import Finding, Verdict, findings_markdown, findings_table, text_columns
from fcnlab.escaping import (
    escape_csv,
    escape_line,
    escape_log_record,
    escape_markdown,
    escape_terminal,
    without_secrets,
)

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


KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        (f"WANDB_API_KEY={KEY}", "WANDB_API_KEY=[hidden]"),
        (f"{{'api_key': '{KEY}', 'x': 1}}", "{'api_key': '[hidden]', 'x': 1}"),
        (f"https://wandb.ai/authorize?apiKey={KEY}&x=1", "https://wandb.ai/authorize?apiKey=[hidden]&x=1"),
        ("Authorization: Bearer abcdefgh", "Authorization: Bearer [hidden]"),
        ("https://me:pass@host/x", "https://[hidden]@host/x"),
        ("key wandb_v1_abcdefghijklmnopqrstuvwxyz", "key [hidden]"),
        ("SECRET_KEY=x1", "SECRET_KEY=[hidden]"),
        ("private_key: a b", "private_key: [hidden]"),
        ('{"db_password": "two words", "x": 1}', '{"db_password": [hidden]", "x": 1}'),
        ("tool --password x --steps 3", "tool --password [hidden] --steps 3"),
        ("clone https://abcdef@host/x", "clone https://[hidden]@host/x"),
        ("mysql://u:p@ss@host, s3://u:p/w x@host", "mysql://[hidden]@host, s3://[hidden]@host"),
        ("pip install git+https://host/x.git@v1", "pip install git+https://host/x.git@v1"),
        ("at http://127.0.0.1:8600 for a@b", "at http://127.0.0.1:8600 for a@b"),
        (f"commit {KEY}", f"commit {KEY}"),
        ("[12:00:00] Step 20 of 60: about 3.8 s left", "[12:00:00] Step 20 of 60: about 3.8 s left"),
    ],
)
def test_secrets_are_hidden(text, hidden, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert without_secrets(text) == hidden


def test_the_key_of_this_process_is_hidden(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert without_secrets(f"a {KEY} b") == "a [hidden] b"


@pytest.mark.parametrize("word", ["a", "token", "secret", "://", "://a:", "--", "--key", "password = "])
def test_hiding_takes_no_long_time_for_a_long_line(word):
    text = word * (65536 // len(word))
    began = time.process_time()
    without_secrets(text)
    assert time.process_time() - began < 1
