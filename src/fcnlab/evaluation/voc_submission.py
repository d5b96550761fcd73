"""Write the archive for PASCAL VOC's evaluation server: a palette PNG of class ids for each image of a list."""

import io
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fcnlab.files.writing import atomic_write
from fcnlab.runs.drawing import Labels, Palette, with_palette


@contextmanager
def submission(path: Path, folder: str, palette: Palette) -> Iterator[Callable[[str, Labels], None]]:
    """Yield a function that adds the class map of an image, by its name, to ``folder`` of a tar.gz.

    The archive is written atomically: ``path`` exists only after success.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part, tarfile.open(part, "w:gz") as tar:

        def add(name: str, labels: Labels) -> None:
            png = io.BytesIO()
            with_palette(labels, palette).save(png, "PNG")
            member = tarfile.TarInfo(f"{folder}/{name}.png")
            member.size = len(png.getvalue())
            png.seek(0)
            tar.addfile(member, png)

        yield add
