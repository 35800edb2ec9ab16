"""Writing a file whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path, *, suffix: str = "") -> Iterator[Path]:
    """Give a temporary name beside a file, and rename it to the file if the block ends without an error.

    Parameters
    ----------
    path : Path
        The file to write; its folder is made if it is not there.
    suffix : str
        End of the temporary name, for writers that take the format from it.

    Yields
    ------
    Path
        Hidden name with ".part" and the suffix at its end, in the same folder. A block that fails leaves
        neither file behind; a file that was there stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part{suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
