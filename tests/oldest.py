"""The first commands of the README under other versions; `make test-oldest` runs it under the lowest allowed.

Makes one generated spine, segments it with the networks that are shipped, and scores it, all from the command
line in a folder of its own.

    python -m tests.oldest

Ends with exit status 1 where a command fails or a vertebra of the spine is not found.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
#: Vertebrae of the spine of this seed.
SEED, VERTEBRAE = 1, 4


def commands(folder: Path) -> list[list[str]]:
    """Give the scripts with their arguments; the work folder stays empty, so the shipped networks serve."""
    data, work, predictions = (str(folder / name) for name in ("data", "work", "predictions"))
    test = str(folder / "data" / "VerSe19" / "dataset-verse19test")
    source = ["--source", "phantom", "--phantoms", "0", "0", "1", "--seed", str(SEED)]
    evaluation = str(folder / "evaluation")
    return [
        ["get_verse_data.py", "--data-dir", data, *source],
        ["infer.py", test, "--work-dir", work, "--output", predictions, "--device", "cpu"],
        ["evaluate.py", "--data-dir", data, "--predictions", predictions, "--output", evaluation],
    ]


def versions() -> str:
    """Say which versions this is."""
    names = ("keras", "tensorflow", "h5py", "numpy")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def main() -> int:
    """Run the commands; 1 where one fails or not all is found."""
    print(f"Python {platform.python_version()}, {versions()}")
    if sys.version_info[:2] != (3, 10):
        print("NOT on Python 3.10, the oldest that is allowed: set PYTHON_OLDEST=... to one.")
    with tempfile.TemporaryDirectory() as folder:
        for script, *arguments in commands(Path(folder)):
            print("+", script, *arguments, flush=True)
            status = subprocess.run([sys.executable, script, *arguments], cwd=PROJECT, check=False).returncode
            if status:
                print(f"{script}: expected exit status 0, found {status}.", file=sys.stderr)
                return 1
        scores = json.loads((Path(folder) / "evaluation" / "summary.json").read_text())
    print({name: scores[name] for name in ("vertebrae", "found", "missed", "extra", "mean_dice")})
    if (scores["vertebrae"], scores["found"]) != (VERTEBRAE, VERTEBRAE):
        print(f"Expected all {VERTEBRAE} vertebrae found.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
