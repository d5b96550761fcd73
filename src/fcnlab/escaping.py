"""Escapes for foreign text, such as folder names, in terminals, Markdown and CSV."""

import html
import logging
import os
import re

# They move a terminal's cursor, rename its window or turn the direction of a line; surrogates, which no encoding has.
CONTROL_CHARACTERS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
MARKDOWN_SYNTAX = re.compile(r"([\\`*\[\]|])")  # among them links and images, which a browser would fetch
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
HIDDEN = "[hidden]"
# fcnlab logs no secrets, but a log also has what libraries and the user's own code print, and a command what was typed.
# All repetitions are bounded, so that a long foreign line takes no quadratic time.
SECRETS = re.compile(
    r"""(?ix)
    (?P<name> (?:secret|passw(?:or)?d|passphrase|private[_-]?key) [a-z0-9_-]{0,40} ["']? \s{0,9} [:=] \s{0,9} )
        (?: "[^"]{1,999} | '[^']{1,999} | [^\s"'][^"'\n]{0,999} )
    | (?P<key> (?:api[_-]?key|access[_-]?key|token|authorization) [a-z0-9_-]{0,40} ["']? \s{0,9} [:=] \s{0,9} ["']?
              (?:bearer\s+|basic\s+)? )  [^\s"'&,;]{6,999}
    | (?P<option> --[a-z0-9_-]{0,40} (?:key|token|secret|passw(?:or)?d|passphrase) \s{1,9} )
        (?: "[^"]{1,999} | '[^']{1,999} | [^\s"'-]\S{0,999} )
    | (?<=://) (?: [^\s/:@"'<>]{0,99} : (?! \d{1,5} (?:\s|$) ) (?: (?!://) [^"'<>\n] ){1,500}
                 | [^\s/"'<>]{1,500} ) (?=@)
    | \b (?:wandb_v\d_|hf_|gh[pousr]_|sk-) [a-z0-9_-]{20,}
    """
)


def escape_line(text: str) -> str:
    """Return text with escapes such as ``\\x1b`` for control characters and line ends, so that it stays one line."""
    return CONTROL_CHARACTERS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def escape_terminal(text: str) -> str:
    """Return a message with escaped control characters; line ends and tabs stay."""
    return "".join(part if part in ("\n", "\t") else escape_line(part) for part in re.split(r"([\n\t])", text))


def escape_log_record(record: logging.LogRecord) -> bool:
    """Escape a log record; a filter of loggers, because file names and records may be foreign."""
    record.msg, record.args = escape_terminal(record.getMessage()), ()
    return True


def escape_markdown(text: str) -> str:
    """Return text escaped for Markdown and HTML."""
    return MARKDOWN_SYNTAX.sub(r"\\\1", html.escape(escape_line(text), quote=False))


def escape_csv(text: str) -> str:
    """Return text as one line, with an apostrophe where a spreadsheet would read a formula."""
    text = escape_line(text)
    return f"'{text}" if text.startswith(FORMULA_STARTS) and not _is_number(text) else text


def without_secrets(text: str) -> str:
    """Return a text in which what looks like a key, a token or a password is hidden."""
    key = os.environ.get("WANDB_API_KEY", "")
    if len(key) > 5:
        text = text.replace(key, HIDDEN)
    return SECRETS.sub(lambda found: (found["name"] or found["key"] or found["option"] or "") + HIDDEN, text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
