"""Write the tables and figures of a comparison for a paper: CSV and LaTeX, SVG and PDF, and PNG for images."""

import logging
from pathlib import Path

from PIL import Image

from fcnlab.comparison import pdf
from fcnlab.comparison.comparison import Comparison
from fcnlab.comparison.confusions import confusion, confusions
from fcnlab.comparison.csv_files import table_csv
from fcnlab.comparison.drawing import paper_svg
from fcnlab.comparison.figures import paper_figures
from fcnlab.comparison.image_panels import Archives
from fcnlab.comparison.latex import latex
from fcnlab.comparison.ranking import answers
from fcnlab.comparison.tables import Table, confusion_table, headline, result_tables
from fcnlab.comparison.worst_images import WorstImage, not_kept, overlays, worst_images, worst_table
from fcnlab.errors import UserError, unwritable_reason
from fcnlab.escaping import escape_line
from fcnlab.files.writing import atomic_write

ABOUT = "about.txt"  # lists the files of an export, which the next one replaces
MARK = "Exported by fcnlab compare. "  # how this file begins
SUFFIXES = (".csv", ".tex", ".svg", ".pdf", ".png")
log = logging.getLogger("fcnlab")


def check_export_folder(folder: Path) -> None:
    """Check that an export to a folder replaces no foreign files: it is new, empty, or contains an earlier export.

    Raises
    ------
    UserError
        It contains other files, is a file, or cannot be written.
    """
    advice = "Choose a new or an empty folder, or that of an earlier export"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"export={folder} is not a folder. {advice}")
    if folder.is_dir() and any(folder.iterdir()) and _titles(folder) is None:
        raise UserError(f"export={folder} contains files, but no {ABOUT} of an earlier export. {advice}")
    if reason := unwritable_reason(folder):
        raise UserError(f"export={folder}: {reason}. {advice}")


def export(folder: Path, comparison: Comparison, command: str, worst: int = 0) -> list[str]:
    """Write all tables and figures to a folder; return the names of the files.

    PDF files are written only if matplotlib is installed (``pdf.is_available``). ``worst`` is the number of images of
    each group that are drawn: those with the lowest mean IoU.
    """
    archives = Archives()
    images = worst_images(comparison, worst, archives) if worst else []
    figures = paper_figures(comparison, confusions(comparison))
    tables = [*result_tables(comparison), *_confusion_tables(comparison)]
    tables += [worst_table(images, comparison)] if images else []
    folder.mkdir(parents=True, exist_ok=True)
    drawn = figures if pdf.is_available() else []
    titles = ["Tables (.csv and .tex)", *(f"{each.name}: {each.title}" for each in tables)]
    titles += [f"Figures (.svg{' and .pdf' if drawn else ''})", *(f"{each.name}: {each.title}" for each in figures)]
    kept = [f"{each.file}: {each.title}" for each in images if each.run]
    titles += ["Images (.png)", *kept] if kept else []
    about = [f"{MARK}Command: {command}", headline(comparison), *answers(comparison), "", *titles]
    _remove_earlier(folder)
    _write(folder / ABOUT, "\n".join(map(escape_line, about)) + "\n")  # first: an interrupted export is one
    texts = {f"{table.name}.csv": table_csv(table) for table in tables}
    texts |= {f"{table.name}.tex": latex(table) for table in tables}
    texts |= {f"{figure.name}.svg": paper_svg(figure.drawing) for figure in figures}
    for name, text in texts.items():
        _write(folder / name, text)
    for figure in drawn:
        with atomic_write(folder / f"{figure.name}.pdf") as part:
            pdf.write_pdf(part, figure.drawing)
    files = [*texts, *(f"{figure.name}.pdf" for figure in drawn)]
    return [*files, *_write_overlays(folder, images, comparison, archives), ABOUT]


def _write_overlays(folder: Path, images: list[WorstImage], comparison: Comparison, archives: Archives) -> list[str]:
    """Draw the images whose predictions are kept, and warn about the others; return the names of the files."""
    written = []
    for file, drawing in overlays(images, comparison, archives):
        with atomic_write(folder / f"{file}.png") as part:
            Image.fromarray(drawing).save(part, "PNG")
        written.append(f"{file}.png")
    for message in [*not_kept(images, comparison), *archives.notes.values()]:
        log.warning("%s", escape_line(message))
    return written


def _titles(folder: Path) -> list[str] | None:
    """Return the lines on the files of an earlier export, those after the empty line; None if there was none."""
    path = folder / ABOUT
    if path.is_symlink() or not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or not lines[0].startswith(MARK):
        return None
    return lines[lines.index("") + 1 :] if "" in lines else []


def _remove_earlier(folder: Path) -> None:
    """Remove the files of an earlier export, which may have had other groups."""
    names = {line.partition(":")[0] for line in _titles(folder) or []}
    for path in folder.iterdir():
        if path.stem in names and path.suffix in SUFFIXES:
            path.unlink()


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8", errors="replace", newline="")


def _confusion_tables(comparison: Comparison) -> list[Table]:
    """Return the matrix of each group, by its rank; a matrix that cannot be read any more is left out."""
    found = [(rank, group, confusion(group)) for rank, group in enumerate(comparison.groups, start=1)]
    return [
        confusion_table(comparison, f"confusion_of_{rank}", group, matrix)
        for rank, group, matrix in found
        if matrix is not None
    ]
