"""Format the findings of an inspection, one line per check, for the terminal, Markdown and JSON."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import groupby
from typing import Any

from fcnlab.escaping import escape_line, escape_markdown


class Verdict(StrEnum):
    """The result of a check; an error causes wrong scores or makes training fail."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


SIGNS = {Verdict.OK: "✓", Verdict.WARNING: "!", Verdict.ERROR: "✗"}
COLOURS = {Verdict.OK: "32", Verdict.WARNING: "33", Verdict.ERROR: "1;31"}  # of terminals: green, yellow, bold red
MOST_NAMED = {Verdict.OK: 0, Verdict.WARNING: 3, Verdict.ERROR: 10}  # lines under a finding in the terminal
EXAMPLES = 3  # files listed in the terminal for equal messages
FILE = "FILE"  # placeholder for their names


@dataclass(frozen=True)
class Finding:
    """A line of the report.

    Attributes
    ----------
    about
        The subject, such as "train" or "this machine".
    check
        The name of the check, in one or two words.
    found
        The result.
    each
        A message for every affected file or pair.
    files
        The affected file of each message, if it has one.
    """

    about: str
    check: str
    verdict: Verdict
    found: str
    each: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


def findings_table(findings: Sequence[Finding], colour: bool = False, columns: int = 1000) -> str:
    """Format findings under a heading per subject, with the first files; ``columns`` is the terminal width."""
    width = max((len(finding.check) for finding in findings), default=0)
    lines = []
    for about, group in groupby(findings, key=lambda finding: finding.about):
        lines += ["", _painted(escape_line(about), "1", colour)]
        for finding in group:
            sign = _painted(SIGNS[finding.verdict], COLOURS[finding.verdict], colour)
            wrapped = textwrap.wrap(escape_line(finding.found), max(20, columns - width - 6), break_on_hyphens=False)
            lines.append(f"  {sign} {finding.check:<{width}}  {wrapped[0]}")
            lines += [" " * (width + 6) + line for line in wrapped[1:]]
            lines += [f"      {escape_line(message)}" for message in _shown(finding, MOST_NAMED[finding.verdict])]
    return "\n".join(lines[1:])


def findings_markdown(findings: Sequence[Finding]) -> str:
    """Format a Markdown table for each subject, followed by all affected files."""
    parts = []
    for about, group in groupby(findings, key=lambda finding: finding.about):
        group = list(group)
        rows = [f"| {finding.verdict} | {_cell(finding.check)} | {_cell(finding.found)} |" for finding in group]
        parts += [f"## {escape_markdown(about)}", "\n".join(["| verdict | check | found |", "|---|---|---|", *rows])]
        for finding in group:
            if finding.each:
                messages = (_sentence(text, files, len(files)) for text, files in grouped_messages(finding))
                parts += [f"{finding.check}:", "\n".join(f"- {escape_markdown(message)}" for message in messages)]
    return "\n\n".join(parts) + "\n"


def findings_facts(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Return the findings for JSON."""
    return [asdict(finding) for finding in findings]


def summary(findings: Sequence[Finding]) -> str:
    """Return the number of errors, warnings and passed checks as text."""
    verdicts = [finding.verdict for finding in findings]
    errors, warnings, fine = (verdicts.count(kind) for kind in (Verdict.ERROR, Verdict.WARNING, Verdict.OK))
    return f"{_count(errors, 'error')}, {_count(warnings, 'warning')}, {_count(fine, 'check')} passed"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number or 'no'} {noun}s"


def worst_verdict(findings: Sequence[Finding]) -> Verdict:
    """Return the worst verdict of all findings."""
    return max((finding.verdict for finding in findings), key=list(Verdict).index, default=Verdict.OK)


def text_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a text table: names left-aligned, numbers right-aligned."""
    lines = [list(map(escape_line, line)) for line in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def markdown_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table: names left-aligned, numbers right-aligned."""
    ruler = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in [header, ruler, *rows])


def grouped_messages(finding: Finding) -> list[tuple[str, list[str]]]:
    """Group equal messages: each message with its files, whose names are replaced by ``FILE`` if there are several."""
    files = finding.files or finding.each
    groups: dict[str, list[tuple[str, str]]] = {}
    for text, file in zip(finding.each, files, strict=True):
        groups.setdefault(text if text == file else text.replace(file, FILE), []).append((text, file))
    return [(text if len(group) > 1 else group[0][0], [file for _, file in group]) for text, group in groups.items()]


def _sentence(text: str, files: Sequence[str], most: int) -> str:
    if len(files) == 1:
        return text
    prefix = "" if len(files) <= most else "such as "
    return f"{text} ({len(files):,} files: {prefix}{', '.join(files[:most])})"


def _shown(finding: Finding, most: int) -> list[str]:
    """Return the first messages, and the number of files and pairs that are not shown."""
    messages = grouped_messages(finding)
    hidden = sum(len(files) for _, files in messages[most:])
    more = [f"… and {hidden:,} more"] if hidden else []
    return [*(_sentence(text, files, EXAMPLES) for text, files in messages[:most]), *more]


def _painted(text: str, code: str, colour: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour else text


def _cell(text: str) -> str:
    return text if set(text) <= set("-:") else escape_markdown(text)
