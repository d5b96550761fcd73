"""Foreign text, such as a folder's name or a reason, where it could act: it is shown, and nothing more."""

import html
import logging
import re

# What moves a terminal's cursor, renames its window, turns a line's direction; surrogates, which no encoding has.
CONTROL_CHARACTERS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
MARKDOWN_SYNTAX = re.compile(r"([\\`*\[\]|])")  # links and images, which a reader's browser would fetch, among them
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def escape_line(text: str) -> str:
    """With ``\\x1b`` for what would act, line ends among it: a name must not make a line of its own."""
    return CONTROL_CHARACTERS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def escape_terminal(text: str) -> str:
    """The same for a message of ours, whose lines and tabs stay."""
    return "".join(part if part in ("\n", "\t") else escape_line(part) for part in re.split(r"([\n\t])", text))


def escape_log_record(record: logging.LogRecord) -> bool:
    """A filter of logs: names of files and what records say may be anybody's, and move no cursor."""
    record.msg, record.args = escape_terminal(record.getMessage()), ()
    return True


def escape_markdown(text: str) -> str:
    """As it would be read: neither HTML nor Markdown."""
    return MARKDOWN_SYNTAX.sub(r"\\\1", html.escape(escape_line(text), quote=False))


def escape_csv(text: str) -> str:
    """In a line, and with an apostrophe where a spreadsheet would take it for a formula."""
    text = escape_line(text)
    return f"'{text}" if text.startswith(FORMULA_STARTS) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
