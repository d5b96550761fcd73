"""Generate a data set of textured shapes in VOC's format, for quick runs that show the effect of skip connections.

A class is a shape and a texture; its colours vary. Shapes overlap, many are small or thin, and their borders are void,
so that a network of stride 32 cannot segment them well.
"""

from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

from fcnlab.config.ranges import MOST_PIXELS, Count, Meaning, Seed
from fcnlab.data.dataset import CHOOSE_SPLIT, IGNORE_INDEX, SegmentationDataset
from fcnlab.data.formats.voc import CLASSES, list_name, read_list, voc_images, voc_palette
from fcnlab.data.image_files import DataError
from fcnlab.data.temporary_folders import held_folder, remove_leftovers
from fcnlab.messages import log_info

DRAWING = 1  # increase it when the drawings change, so that old ones are not reused
DRAWING_ASIDE = ".drawing-"  # prefix of folders while they are drawn
FORMS = ("disc", "box", "star", "ring", "cross")
TEXTURES = ("plain", "stripes", "checks", "dots")
LEAST, MOST = 2, MOST_PIXELS * 4 // 5  # limits on the mean side; sides are 3/4 to 5/4 of it, at least one pixel
Size = Annotated[int, Meaning(f"pixels from {LEAST} to {MOST}", lambda value: LEAST <= value <= MOST)]


def open_shapes(
    root: str,
    split: str,
    num_train: Count = 800,
    num_val: Count = 200,
    size: Size = 160,
    drawing_seed: Seed = 0,
    draw: bool = True,
) -> SegmentationDataset:
    """Open the list ``train`` or ``val`` of a data set of shapes, and draw it under ``root`` if it is missing.

    ``size`` is the mean side of images in pixels. Each combination of settings has its own folder.

    Raises
    ------
    DataError
        The data set is missing, and ``draw`` is false.
    """
    settings = {"train": num_train, "val": num_val, "size": size, "seed": drawing_seed, "drawing": DRAWING}
    folder = Path(root) / "-".join(f"{name}{value}" for name, value in settings.items())
    if draw:
        remove_leftovers(Path(root), DRAWING_ASIDE)
    if not folder.is_dir():
        if not draw:
            raise DataError(f"no shapes in data.root={root}: {folder} does not exist, and drawing is disabled")
        if split not in ("train", "val"):
            raise DataError(f"no list {split!r} of shapes: available are train, val. {CHOOSE_SPLIT}")
        _draw_aside(folder, num_train, num_val, size, drawing_seed)
    voc = folder / "VOCdevkit" / "VOC2012"
    return voc_images(voc, f"shapes {list_name(split)}", read_list(voc / "ImageSets" / "Segmentation", split))


def _draw_aside(folder: Path, num_train: int, num_val: int, size: int, seed: int) -> None:
    """Draw in a temporary folder and move it into place, so that there is never an incomplete data set."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    log_info(f"Drawing {num_train + num_val:,} images of shapes into {folder}")
    with held_folder(folder.parent, DRAWING_ASIDE) as aside:
        whole = aside / folder.name  # aside is created by mkdtemp, without permissions for others
        try:
            write_data_set(whole / "VOCdevkit" / "VOC2012", num_train, num_val, size, seed)
            whole.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process created the same images
                raise


def write_data_set(folder: Path, num_train: int, num_val: int, size: int, seed: int) -> None:
    """Write JPEG images, palette masks and lists in the layout of the devkit."""
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    palette = voc_palette(256).tobytes()
    for split, count in (("train", num_train), ("val", num_val)):
        names = [f"{split}_{index:06d}" for index in range(count)]
        for index, name in enumerate(names):
            rng = np.random.default_rng([seed, split == "val", index])
            image, mask = draw(rng, size)
            Image.fromarray(image).save(folder / "JPEGImages" / f"{name}.jpg", quality=90)
            labels = Image.fromarray(mask, mode="L")
            labels.putpalette(palette)
            labels.save(folder / "SegmentationClass" / f"{name}.png")
        (folder / "ImageSets/Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def draw(rng: np.random.Generator, size: int) -> tuple[UInt8[ndarray, "rows cols 3"], UInt8[ndarray, "rows cols"]]:
    """Draw an image with sides of 3/4 to 5/4 ``size``, and its mask."""
    rows, cols = (int(side) for side in rng.integers(size * 3 // 4, size * 5 // 4, 2, endpoint=True))
    image, mask = _background(rng, rows, cols), np.zeros((rows, cols), np.uint8)
    for _ in range(rng.integers(3, 8)):
        label = int(rng.integers(1, len(CLASSES)))
        form = _form(rng, FORMS[(label - 1) % len(FORMS)], rows, cols, size)
        texture = _texture(rng, label, rows, cols)
        image[form], mask[form] = texture[form], label
        border = cv2.morphologyEx(form.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        mask[border] = IGNORE_INDEX
    noise = rng.normal(0, 6, image.shape)
    return np.clip(cv2.GaussianBlur(image, (3, 3), 0.6) + noise, 0, 255).astype(np.uint8), mask


def _background(rng: np.random.Generator, rows: int, cols: int) -> UInt8[ndarray, "rows cols 3"]:
    """Draw smooth clouds of two colours, with thin lines as clutter."""
    clouds = cv2.resize(rng.random((5, 5)), (cols, rows), interpolation=cv2.INTER_CUBIC).clip(0, 1)[..., None]
    image = (clouds * rng.integers(40, 200, 3) + (1 - clouds) * rng.integers(40, 200, 3)).astype(np.uint8)
    for _ in range(rng.integers(0, 4)):
        ends = [tuple(int(value) for value in rng.integers(0, (cols, rows))) for _ in range(2)]
        cv2.line(image, *ends, color=rng.integers(0, 255, 3).tolist(), thickness=1, lineType=cv2.LINE_AA)
    return image


def _form(rng: np.random.Generator, form: str, rows: int, cols: int, size: int) -> ndarray:
    """Draw the mask of a shape with a radius of 0.06 to 0.33 of the image side; small radii are more frequent."""
    radius = size * np.exp(rng.uniform(np.log(0.06), np.log(0.33)))
    centre = rng.uniform((0, 0), (cols, rows))
    turn, slim = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.0)
    canvas = np.zeros((rows, cols), np.uint8)
    if form in ("disc", "ring"):
        axes = (max(2, int(radius)), max(2, int(radius * slim)))
        place = tuple(int(value) for value in centre)
        thickness = -1 if form == "disc" else max(3, int(radius * 0.35))
        cv2.ellipse(canvas, place, axes, np.degrees(turn), 0, 360, 1, thickness)
    else:
        outline = _outline(form) * (radius, radius * slim)
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        cv2.fillPoly(canvas, [(outline @ rotation.T + centre).round().astype(np.int32)], 1)
    return canvas.astype(bool)


def _outline(form: str) -> ndarray:
    """Return the corners (x, y) of a shape of radius 1."""
    if form == "box":
        return np.array([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)])
    if form == "star":
        angles = np.arange(10) * np.pi / 5
        lengths = np.where(np.arange(10) % 2, 0.45, 1.0)
        return np.stack([np.cos(angles), np.sin(angles)], axis=1) * lengths[:, None]
    arm = 0.25
    corner = np.array([(1, -arm), (1, arm), (arm, arm)])
    turns = [np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) for a in np.arange(4) * np.pi / 2]
    return np.concatenate([corner @ turn for turn in turns])


def _texture(rng: np.random.Generator, label: int, rows: int, cols: int) -> UInt8[ndarray, "rows cols 3"]:
    """Draw the texture of a class, in two colours near the hue of the class."""
    hue = (label * 67 % 180 + rng.normal(0, 8)) % 180
    bright, dark = (
        cv2.cvtColor(np.array([[[hue, rng.integers(130, 230), value]]]).astype(np.uint8), cv2.COLOR_HSV2RGB)[0, 0]
        for value in (rng.integers(190, 250), rng.integers(60, 120))
    )
    kind, period = TEXTURES[(label - 1) // len(FORMS)], rng.uniform(5, 9)
    turn = rng.uniform(0, np.pi)
    y, x = np.mgrid[:rows, :cols]
    u = (x * np.cos(turn) + y * np.sin(turn)) * 2 * np.pi / period
    v = (y * np.cos(turn) - x * np.sin(turn)) * 2 * np.pi / period
    light = {
        "plain": np.ones((rows, cols), bool),
        "stripes": np.sin(u) > 0,
        "checks": np.sin(u) * np.sin(v) > 0,
        "dots": np.cos(u) + np.cos(v) > 0.6,
    }[kind]
    return np.where(light[..., None], bright, dark).astype(np.uint8)
