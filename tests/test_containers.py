"""The Dockerfile by its text, as no daemon can be counted on: what it copies, and as whom it runs."""

import fnmatch
import re
import shutil
import subprocess
import sys

from utils.command_line import citation_of
from utils.execution import PROJECT_DIR

DOCKERFILE = (PROJECT_DIR / "Dockerfile").read_text()
LET_THROUGH = [
    line[1:] for line in (PROJECT_DIR / ".dockerignore").read_text().splitlines() if line.startswith("!")
]


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)


def copied() -> list[str]:
    """Names and patterns that are copied from the project."""
    return [source for line in instructions("COPY") for source in line.split()[:-1]]


def test_what_is_copied_is_there_and_sent_to_the_builder():
    for pattern in copied():
        assert list(PROJECT_DIR.glob(pattern)), pattern
        assert pattern in LET_THROUGH
    assert set(LET_THROUGH) == set(copied())


def test_every_requirements_file_that_is_named_is_there():
    named = set(re.findall(r"requirements[\w-]*\.txt", DOCKERFILE))
    assert {"requirements.txt", "requirements-gpu.txt", "requirements-train.txt"} <= named
    assert all((PROJECT_DIR / name).is_file() for name in named)
    assert "REQUIREMENTS=requirements.txt" in instructions("ARG")


def test_it_is_pinned_and_not_roots():
    (base,) = instructions("FROM")
    assert fnmatch.fnmatch(base, "python:3.1[0-2]-slim-*")
    (user,) = instructions("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert DOCKERFILE.index("\nUSER ") < DOCKERFILE.index("\nENTRYPOINT ")


def test_the_copied_files_are_all_that_the_inference_needs(tmp_path):
    for pattern in copied():
        for source in PROJECT_DIR.glob(pattern):
            target = tmp_path / source.name
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    assert 'ENTRYPOINT ["python", "/vertebrae/infer.py"]' in DOCKERFILE
    assert "WORKDIR /vertebrae\n" in DOCKERFILE
    code = (
        "import utils.prediction.predict as predict\n"
        "from utils.command_line import citation_of\n"
        "from utils.prediction.networks import STARTER_DIR, load_networks, with_networks_of\n"
        "networks = load_networks(with_networks_of(STARTER_DIR))\n"
        "print(predict.__file__, citation_of('version'), networks.spacing_mm)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    expected = f"{tmp_path / 'utils/prediction/predict.py'} {citation_of('version')} 2.0\n"
    assert ran.stdout == expected, ran.stderr
