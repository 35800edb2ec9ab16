"""The pipeline and the quick tests under other versions; `make test-oldest` runs it under the lowest allowed.

Makes one generated spine, prepares it and trains on it for an epoch, segments it with the networks that are
shipped, and scores it, all from the command line in a folder of its own. Then come the tests of what reads,
writes and scores files, which together use every requirement.

    python -m tests.oldest [--lowest]

Ends with exit status 1 where a command or a test fails or a vertebra of the spine is not found; with --lowest
also where a version is not the lowest that the requirements allow.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from packaging.version import Version

PROJECT = Path(__file__).resolve().parents[1]
REQUIREMENTS = tuple(f"requirements{part}.txt" for part in ("", "-common", "-train", "-dev"))
#: Vertebrae of the spine of this seed.
SEED, VERTEBRAE = 1, 4
TESTS = (
    *("tests/imaging", "tests/verse", "tests/evaluation", "tests/prediction/test_exports.py"),
    "tests/prediction/test_thumbnails.py",
    *(
        "tests/download/test_data_set.py",
        "tests/download/test_sources.py",
        "tests/learning/test_model_files.py",
    ),
    *("tests/preparation/test_own_cases.py", "tests/preparation/test_data_report.py"),
    *(
        "tests/test_command_line.py",
        "tests/test_settings.py",
        "tests/test_files.py",
        "tests/test_execution.py",
    ),
)
_BOUND = re.compile(r"^([\w.-]+)(?:\[[^]]*\])?[>=]=([\w.]+)", re.MULTILINE)


def commands(folder: Path) -> list[list[str]]:
    """Give the scripts with their arguments; networks trained here are none of those that segment."""
    data, work, predictions = (str(folder / name) for name in ("data", "work", "predictions"))
    trained = ["--work-dir", str(folder / "trained"), "--preset", "small"]
    test = str(folder / "data" / "VerSe19" / "dataset-verse19test")
    source = ["--source", "phantom", "--phantoms", "1", "1", "1", "--seed", str(SEED)]
    evaluation = str(folder / "evaluation")
    return [
        ["get_verse_data.py", "--data-dir", data, *source],
        ["get_verse_data.py", "--data-dir", data, "--report"],
        ["pre_processing_heatmap.py", "--data-dir", data, *trained],
        ["train_heatmap.py", *trained, "--epochs", "1", "--device", "cpu"],
        ["infer.py", test, "--work-dir", work, "--output", predictions, "--device", "cpu", "--report"],
        ["evaluate.py", "--data-dir", data, "--predictions", predictions, "--output", evaluation],
    ]


def lowest_versions() -> dict[str, str]:
    """Give the lowest version of each requirement, by its name."""
    return dict(_BOUND.findall("\n".join((PROJECT / name).read_text() for name in REQUIREMENTS)))


def not_lowest(version_of: Callable[[str], str] = importlib.metadata.version) -> list[str]:
    """Give a line for every requirement that is installed in another version than the lowest."""
    found = {name: (version_of(name), lowest) for name, lowest in lowest_versions().items()}
    return [
        f"{name}: expected {lowest}, the lowest that is allowed, found {installed}."
        for name, (installed, lowest) in found.items()
        if Version(installed) != Version(lowest)
    ]


def run(*command: str) -> bool:
    """Run Python with arguments in the project's folder, and say whether it ended well."""
    print("+", *command, flush=True)
    status = subprocess.run([sys.executable, *command], cwd=PROJECT, check=False).returncode
    if status:
        print(f"{command[0]}: expected exit status 0, found {status}.", file=sys.stderr)
    return status == 0


def main(arguments: list[str]) -> int:
    """Run commands and tests; 1 where one fails or not all is found."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in lowest_versions()]
    print(f"Python {platform.python_version()}, {', '.join(versions)}")
    if sys.version_info[:2] != (3, 10):
        print("NOT on Python 3.10, the oldest that is allowed: set PYTHON_OLDEST=... to one.")
    others = not_lowest() if "--lowest" in arguments else []
    if others:
        print("\n".join(others), file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        if not all(run(*command) for command in commands(Path(folder))):
            return 1
        scores = json.loads((Path(folder) / "evaluation" / "summary.json").read_text())
    print({name: scores[name] for name in ("vertebrae", "found", "missed", "extra", "mean_dice")})
    if (scores["vertebrae"], scores["found"]) != (VERTEBRAE, VERTEBRAE):
        print(f"Expected all {VERTEBRAE} vertebrae found.", file=sys.stderr)
        return 1
    return 0 if run("-m", "pytest", "-o", "addopts=", "-q", "-rs", "-p", "no:cacheprovider", *TESTS) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
