"""Small copies of pictures that stand in a page itself, so that a folder of large ones is seen at once."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

#: Pixels at most: twice what the page shows, for fine screens.
SIZE = (320, 224)
_QUALITY = 75


def thumbnail(path: Path) -> str:
    """Give a small copy of a picture, about 5 KB, as the address of an image (`data:`).

    Raises
    ------
    ValueError
        If it is no picture; the text names the file.
    """
    small = io.BytesIO()
    try:
        with Image.open(path) as picture:
            copy = picture.convert("RGB")
        copy.thumbnail(SIZE)
        copy.save(small, "WEBP", quality=_QUALITY)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        found = getattr(error, "strerror", None) or "another file, or one that is cut off"
        raise ValueError(f"{path}: expected a picture, found {found}.") from None
    return f"data:image/webp;base64,{base64.b64encode(small.getvalue()).decode()}"
