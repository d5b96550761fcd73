"""What an inspection found, a line to each check, as the terminal, Markdown and JSON show it."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import groupby
from typing import Any

from fcnlab.escaping import escape_line, escape_markdown


class Verdict(StrEnum):
    """How bad it is; an error makes numbers wrong or training fail."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


SIGNS = {Verdict.OK: "✓", Verdict.WARNING: "!", Verdict.ERROR: "✗"}
COLOURS = {Verdict.OK: "32", Verdict.WARNING: "33", Verdict.ERROR: "1;31"}  # of terminals: green, yellow, bold red
MOST_NAMED = {Verdict.OK: 0, Verdict.WARNING: 3, Verdict.ERROR: 10}  # lines under a finding in the terminal
EXAMPLES = 3  # files that the terminal names of those of which it says the same
FILE = "FILE"  # stands for their names


@dataclass(frozen=True)
class Finding:
    """A line of the report.

    Attributes
    ----------
    about
        What was looked at, such as "train" or "this machine".
    check
        What for, in a word or two.
    found
        The answer in a sentence.
    each
        What is said of the files or pairs behind a warning or an error, all of them.
    files
        The file that each of these is said of, where each is said of one.
    """

    about: str
    check: str
    verdict: Verdict
    found: str
    each: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


def findings_table(findings: Sequence[Finding], colour: bool = False, columns: int = 1000) -> str:
    """Lines under a heading for each thing that was looked at, with the first files; ``columns`` has the terminal."""
    width = max((len(finding.check) for finding in findings), default=0)
    lines = []
    for about, group in groupby(findings, key=lambda finding: finding.about):
        lines += ["", _painted(escape_line(about), "1", colour)]
        for finding in group:
            sign = _painted(SIGNS[finding.verdict], COLOURS[finding.verdict], colour)
            found = textwrap.wrap(escape_line(finding.found), max(20, columns - width - 6), break_on_hyphens=False)
            lines.append(f"  {sign} {finding.check:<{width}}  {found[0]}")
            lines += [" " * (width + 6) + more for more in found[1:]]
            lines += [f"      {escape_line(one)}" for one in _shown(finding, MOST_NAMED[finding.verdict])]
    return "\n".join(lines[1:])


def findings_markdown(findings: Sequence[Finding]) -> str:
    """A table for each thing that was looked at, and below it every file that a line is about."""
    parts = []
    for about, group in groupby(findings, key=lambda finding: finding.about):
        group = list(group)
        rows = [f"| {one.verdict} | {_cell(one.check)} | {_cell(one.found)} |" for one in group]
        parts += [f"## {escape_markdown(about)}", "\n".join(["| verdict | check | found |", "|---|---|---|", *rows])]
        for finding in group:
            if finding.each:
                said = (_sentence(what, files, len(files)) for what, files in said_once(finding))
                parts += [f"{finding.check}:", "\n".join(f"- {escape_markdown(one)}" for one in said)]
    return "\n\n".join(parts) + "\n"


def findings_facts(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """As JSON holds them."""
    return [asdict(finding) for finding in findings]


def summary(findings: Sequence[Finding]) -> str:
    """How many checks ended how."""
    verdicts = [finding.verdict for finding in findings]
    errors, warnings, fine = (verdicts.count(kind) for kind in (Verdict.ERROR, Verdict.WARNING, Verdict.OK))
    return f"{_count(errors, 'error')}, {_count(warnings, 'warning')}, {_count(fine, 'check')} passed"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number or 'no'} {what}s"


def worst_verdict(findings: Sequence[Finding]) -> Verdict:
    """The verdict on all of them together."""
    return max((finding.verdict for finding in findings), key=list(Verdict).index, default=Verdict.OK)


def text_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Names to the left, numbers to the right, each column as wide as it needs."""
    lines = [list(map(escape_line, line)) for line in (header, *rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def markdown_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same for Markdown."""
    ruler = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in [header, ruler, *rows])


def said_once(finding: Finding) -> list[tuple[str, list[str]]]:
    """Each sentence with the files that it is said of, whose name is ``FILE`` in it where they are several."""
    files = finding.files or finding.each
    alike: dict[str, list[tuple[str, str]]] = {}
    for text, file in zip(finding.each, files, strict=True):
        alike.setdefault(text if text == file else text.replace(file, FILE), []).append((text, file))
    return [(what if len(found) > 1 else found[0][0], [file for _, file in found]) for what, found in alike.items()]


def _sentence(what: str, files: Sequence[str], most: int) -> str:
    if len(files) == 1:
        return what
    such = "" if len(files) <= most else "such as "
    return f"{what} ({len(files):,} files: {such}{', '.join(files[:most])})"


def _shown(finding: Finding, most: int) -> list[str]:
    """The first sentences, and of how many files and pairs nothing is said here."""
    said = said_once(finding)
    left = sum(len(files) for _, files in said[most:])
    more = [f"… and {left:,} more"] if left else []
    return [*(_sentence(what, files, EXAMPLES) for what, files in said[:most]), *more]


def _painted(text: str, code: str, colour: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour else text


def _cell(text: str) -> str:
    return text if set(text) <= set("-:") else escape_markdown(text)
