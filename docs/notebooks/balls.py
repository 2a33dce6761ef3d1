"""Draws balls, in Pascal VOC's format: data for the notebooks."""

import random
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = [(200, 60, 50), (60, 90, 210), (50, 160, 80)]
OBJECT = (
    '<object><name>ball</name><bndbox><xmin>{}</xmin><ymin>{}</ymin>'
    '<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>'
)
SIZE = '<size><width>256</width><height>192</height><depth>3</depth></size>'


def draw(folder: str, train: int, val: int) -> None:
    """Draw images with one to three balls, and write where they are."""
    dice = random.Random(0)
    for name in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        Path(folder, name).mkdir(parents=True, exist_ok=True)
    for split, number in (('train', train), ('val', val)):
        names = [f'{split}{index}' for index in range(number)]
        for name in names:
            image, objects = _image(dice)
            image.save(Path(folder, 'JPEGImages', f'{name}.jpg'))
            text = f'<annotation>{SIZE}{"".join(objects)}</annotation>'
            Path(folder, 'Annotations', f'{name}.xml').write_text(text)
        Path(folder, 'ImageSets/Main', f'{split}.txt').write_text(
            '\n'.join(names)
        )


def _image(dice: random.Random) -> tuple[Image.Image, list[str]]:
    grey = dice.randint(90, 200)
    image = Image.new('RGB', (256, 192), (grey, grey, grey))
    pen = ImageDraw.Draw(image)
    for _ in range(20):  # clutter
        x, y = dice.randint(0, 255), dice.randint(0, 191)
        shade = dice.randint(60, 220)
        end = (x + dice.randint(-40, 40), y + dice.randint(-40, 40))
        pen.line((x, y, *end), fill=(shade, shade, shade), width=2)
    objects = []
    for left in dice.sample([6, 90, 174], dice.randint(1, 3)):
        top, size = dice.randint(6, 110), dice.randint(48, 72)
        box = (left, top, left + size, top + size)
        pen.ellipse(box, fill=dice.choice(COLOURS))
        objects.append(OBJECT.format(*box))
    return image, objects
