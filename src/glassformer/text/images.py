"""A folder of small images, one sub-folder for each class -> one column for each pixel, and `class`.

    photos/cat/1.png  photos/cat/2.png  photos/dog/1.png  ...

Grey images give (height, width) numbers from 0 to 255 (65,535 when they have 16 bits), colour images three for
each pixel. Reading needs the extra `images` (Pillow).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glassformer.errors import TextError

SUFFIXES = (".png", ".pgm")
_MODES = {"L": None, "RGB": None, "I;16": None, "1": "L", "P": "RGB"}
"""Pillow's kinds of image that are read, and what the others among them are turned into."""

Images = tuple[dict[str, NDArray[Any]], list[tuple[str, int]], tuple[int, ...], list[str]]


def read_images(folder: Path) -> Images:
    """(columns, (file, 1) of each row, shape of an image, warnings)."""
    files: list[Path] = []
    passed_over = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_dir() or any(part.startswith(".") for part in relative.parts):
            continue
        if path.suffix.lower() in SUFFIXES and len(relative.parts) == 2:
            files.append(path)
        else:
            passed_over.append(relative.as_posix())
    if not files:
        raise TextError(
            f"{folder.name} holds no images in class sub-folders.",
            expected=f"Files such as {folder.name}/cat/1.png, ending in {' or '.join(SUFFIXES)}.",
            do="Make one sub-folder for each class, or give a table instead.",
        )
    first = _pixels(files[0], folder)
    block = np.empty((len(files), *first.shape), first.dtype)
    for number, file in enumerate(files):
        pixels = _pixels(file, folder)
        if pixels.shape != first.shape or pixels.dtype != first.dtype:
            raise TextError(
                f"{_name(file, folder)} is {_describe(pixels)}; {_name(files[0], folder)} is {_describe(first)}.",
                expected="Images of one size and kind.",
                do="Resize or convert it; a plain network reads a fixed number of pixels.",
            )
        block[number] = pixels
    flat = block.reshape(len(files), -1)
    columns: dict[str, NDArray[Any]] = {
        f"pixel[{','.join(map(str, place))}]": flat[:, n] for n, place in enumerate(np.ndindex(*first.shape))
    }
    columns["class"] = np.array([file.parent.name for file in files], object)
    found = []
    if passed_over:
        some = ", ".join(passed_over[:3]) + (", ..." if len(passed_over) > 3 else "")
        found.append(
            f"{len(passed_over)} files that are no images in class sub-folders were passed over: {some}."
        )
    return columns, [(_name(file, folder), 1) for file in files], first.shape, found


def _pixels(file: Path, folder: Path) -> NDArray[Any]:
    try:
        from PIL import Image
    except ImportError:
        raise TextError(
            "Reading images needs Pillow, which is not installed.",
            do="Install it with: pip install 'glassformer[images]'.",
        ) from None
    try:
        with Image.open(file) as image:
            mode = image.mode
            if mode in _MODES:
                return np.asarray(image.convert(_MODES[mode]) if _MODES[mode] else image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise TextError(
            f"{_name(file, folder)} cannot be read as an image: {str(error).rstrip('.')}.",
            do="Mend or remove it.",
        ) from None
    raise TextError(
        f"{_name(file, folder)} is an image of kind {mode!r}.",
        expected="Grey or colour, without transparency.",
        do="Convert it to one of these.",
    )


def _name(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def _describe(pixels: NDArray[Any]) -> str:
    kind = "colour" if pixels.ndim == 3 else f"{8 * pixels.dtype.itemsize}-bit grey"
    return f"{pixels.shape[1]}x{pixels.shape[0]} {kind}"
