"""Draw segmentations: colours, overlays, legends, contact sheets."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from fcnlab.metrics.scores import IGNORE_INDEX

RGB = UInt8[ndarray, "rows cols 3"]
Drawing = UInt8[ndarray, "_ _ 3"]  # its size differs from that of its class maps
Labels = Integer[ndarray, "rows cols"]
Palette = UInt8[ndarray, "classes 3"]

IGNORE_COLOUR = (224, 224, 192)  # the devkit's
OPACITY = 0.6
GAP = 4  # pixels between the images of a panel
STRIP = 64  # rows of an image tinted at a time, to limit memory
ROW = 20  # pixels: height of a line of the legend
OVERLAY_SIDE = 400  # pixels: longer side of an image of an overlay panel


def colours(labels: Labels, palette: Palette) -> RGB:
    """Return the colour of each class, and the devkit's cream for ignored pixels."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    table[IGNORE_INDEX] = IGNORE_COLOUR
    return table[labels]


def overlay(image: RGB, labels: Labels, palette: Palette) -> RGB:
    """Return the image tinted by class; classes with black colour (background) stay unchanged."""
    drawn = np.empty_like(image)
    for top in range(0, len(image), STRIP):  # the whole image in floats would need too much memory
        rows = slice(top, top + STRIP)
        tints = colours(labels[rows], palette)
        tinted = (1 - OPACITY) * image[rows] + OPACITY * tints
        plain = np.all(tints == 0, axis=-1, keepdims=True)
        drawn[rows] = np.where(plain, image[rows], tinted.round().astype(np.uint8))
    return drawn


def legend(labels: Sequence[int], classes: Sequence[str], palette: Palette, width: int) -> RGB:
    """Draw a box and a name for each class, in as many lines as the width (pixels) requires."""
    font = ImageFont.load_default(size=13)
    entries = [(classes[label], tuple(map(int, palette[label]))) for label in labels]
    sizes = [ROW + int(font.getlength(name)) + 12 for name, _ in entries]
    places, x, y = [], 4, 2
    for size in sizes:
        if x + size > width and x > 4:
            x, y = 4, y + ROW
        places.append((x, y))
        x += size
    canvas = Image.new("RGB", (width, y + ROW + 2), "white")
    draw = ImageDraw.Draw(canvas)
    for (name, colour), (left, top) in zip(entries, places, strict=True):
        draw.rectangle((left, top + 3, left + 13, top + 16), fill=colour, outline="black")
        draw.text((left + ROW, top + 1), name, fill="black", font=font)
    return np.array(canvas)


def with_legend(image: Drawing, shown: Sequence[Labels], classes: Sequence[str], palette: Palette) -> Drawing:
    """Return the image above a legend of the classes in its class maps, without ignored pixels."""
    present = sorted({int(label) for labels in shown for label in np.unique(labels)} - {IGNORE_INDEX})
    names = legend(present, classes, palette, image.shape[1])
    return np.concatenate([image, names])


def _with_ignored(image: Drawing, shown: Sequence[Labels], classes: Sequence[str], palette: Palette) -> Drawing:
    """Return the image above a legend that names ignored pixels, too."""
    labels = [np.where(each == IGNORE_INDEX, len(classes), each) for each in shown]
    return with_legend(image, labels, [*classes, "ignored"], np.vstack([palette, np.array([IGNORE_COLOUR], np.uint8)]))


def panel(image: RGB, target: Labels, prediction: Labels, classes: Sequence[str], palette: Palette) -> Drawing:
    """Draw image, ground truth and prediction side by side, above a legend."""
    row = _side_by_side([image, colours(target, palette), colours(prediction, palette)])
    return with_legend(row, [target, prediction], classes, palette)


def overlay_panel(
    image: RGB,
    target: UInt8[ndarray, "_ _"],
    prediction: UInt8[ndarray, "_ _"],
    classes: Sequence[str],
    palette: Palette,
) -> Drawing:
    """Draw an image, and the image tinted by ground truth and by prediction, side by side, above a legend.

    The image may be a smaller copy of what was segmented. All three are scaled to ``OVERLAY_SIDE`` pixels.
    """
    size = ImageOps.contain(Image.fromarray(target), (OVERLAY_SIDE, OVERLAY_SIDE)).size
    scaled = np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    labels = [np.array(Image.fromarray(each).resize(size, Image.Resampling.NEAREST)) for each in (target, prediction)]
    row = _side_by_side([scaled, *(overlay(scaled, each, palette) for each in labels)])
    margin = max(0, OVERLAY_SIDE - row.shape[1])  # so that a narrow image has room for its legend
    return _with_ignored(np.pad(row, ((0, 0), (0, margin), (0, 0)), constant_values=255), labels, classes, palette)


def _side_by_side(images: Sequence[RGB]) -> Drawing:
    first, *others = images
    gap = np.full((first.shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([first, *(part for image in others for part in (gap, image))], axis=1)


def contact_sheet(
    samples: Sequence[tuple[str, RGB, Labels]],
    classes: Sequence[str],
    palette: Palette,
    side: int = 224,
    columns: int = 4,
) -> Drawing:
    """Draw images beside their tinted versions, ``columns`` pairs in a row, above a common legend.

    Each image is scaled to a square of ``side`` pixels, with its name below.
    """
    tiles = [_tile(name, image, labels, palette, side) for name, image, labels in samples]
    blank = np.full_like(tiles[0], 255)
    tiles += [blank] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[start : start + columns], axis=1) for start in range(0, len(tiles), columns)]
    return _with_ignored(np.concatenate(rows), [labels for _, _, labels in samples], classes, palette)


def _tile(name: str, image: RGB, labels: Labels, palette: Palette, side: int) -> Drawing:
    canvas = Image.new("RGB", (2 * (side + GAP) + GAP, side + GAP + ROW), "white")
    for place, tile in enumerate((image, overlay(image, labels, palette))):
        fitted = ImageOps.contain(Image.fromarray(tile), (side, side))
        canvas.paste(fitted, (GAP + place * (fitted.width + GAP), GAP))
    font = ImageFont.load_default(size=13)
    ImageDraw.Draw(canvas).text((GAP, side + GAP + 1), name, fill="black", font=font)
    return np.array(canvas)


def save_png(path: Path, image: RGB) -> None:
    """Write an image as PNG, and create missing folders."""
    _save(path, Image.fromarray(image))


def save_labels(path: Path, labels: Labels, palette: Palette) -> None:
    """Write class ids as a palette PNG."""
    _save(path, with_palette(labels, palette))


def _save(path: Path, image: Image.Image) -> None:
    """Write a new file, because an existing file may be a link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        image.save(file, "PNG")


def with_palette(labels: Labels, palette: Palette) -> Image.Image:
    """Return class ids as a palette image, as in VOC's masks: programs read back the ids."""
    image = Image.fromarray(labels.astype(np.uint8), mode="L")
    image.putpalette(colours(np.arange(256)[None], palette).tobytes())
    return image
