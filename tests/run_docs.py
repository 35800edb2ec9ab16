"""Run the examples of the documentation: blocks under `<!-- run -->`, and every block of Python.

Reads   the pages that `tests/test_docs.py` checks, or those named.
Writes  nothing that stays: each page runs in a copy of the project, its blocks one after the other.
Command python -m tests.run_docs [PAGE ...]
Time    about three minutes on two cores.

Exit status 1 if a block ended with another status than 0.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.doc_pages import PAGES, PROJECT, Block, blocks_of


def main(names: Sequence[str]) -> int:
    """Run the pages named, or all, and give the exit status."""
    failed = []
    for page in [Path(name).resolve() for name in names] or PAGES:
        with tempfile.TemporaryDirectory() as folder:
            failed += run_page(page, folder=Path(folder) / "project")
    for line in failed:
        print(line, file=sys.stderr)
    return 1 if failed else 0


def run_page(page: Path, *, folder: Path) -> list[str]:
    """Run the blocks of a page in a copy of the project.

    Parameters
    ----------
    page : Path
        The page.
    folder : Path
        Receives the copy.

    Returns
    -------
    list of str
        A text for every block that failed, which holds the block.
    """
    blocks = [block for block in blocks_of(page.read_text()) if block.is_run]
    if blocks:
        copy_project(folder)
    failed = []
    for block in blocks:
        print(f"== {page.name}\n{block.text}", flush=True)
        status = _run(block, folder)
        if status:
            failed.append(f"{page.name}: expected exit status 0, found {status} of the block\n{block.text}")
    return failed


def copy_project(folder: Path) -> None:
    """Copy the files that git knows or would not ignore, as they are now."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (PROJECT / name).is_file():  # not one that is deleted, but not yet in a commit
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PROJECT / name, folder / name)


def _run(block: Block, folder: Path) -> int:
    """Run a block with this Python as `python`, and give its exit status."""
    shell = ["bash", "-euo", "pipefail", "-c", block.text]
    command = [sys.executable, "-c", block.text] if block.language == "python" else shell
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
