"""The pages: their commands, links and names of code agree with the project, and the README stays short."""

import re
import subprocess
import sys

import pytest

from tests import run_docs
from tests.doc_pages import (
    PAGES,
    PROJECT,
    anchors_of,
    blocks_of,
    check_command,
    check_link,
    check_name,
    commands_of,
    inline_code,
    links_of,
)

#: Folders of a machine, which must not stand in a page.
MACHINE_PATH = re.compile(r"(?<![\w./~])(/(tmp|home|root|work|mnt|Users|opt|var)/|[A-Z]:\\)")
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
MADE_UP = """# A made-up page

Run `python train_heatmap.py --work-dir work
--preset small`, with `--batch-size 2`.

<!-- run -->
```
python infer.py my_ct.nii.gz \\
    --output predictions   # a comment
nohup make demo > demo.log 2>&1 &
```

```python
print("a program")
```
"""


def problems(page, check, items):
    """What a check says of a page's items, so that all wrong ones are shown at once."""
    found = []
    for item in items:
        try:
            check(item)
        except ValueError as error:
            found.append(f"{page.name}: {error}")
    return found


@pages
def test_commands_are_understood(page):
    assert problems(page, check_command, commands_of(page.read_text())) == []


@pages
def test_links_lead_somewhere(page):
    assert problems(page, lambda target: check_link(page, target), links_of(page.read_text())) == []


@pages
def test_names_of_code_exist(page):
    assert problems(page, lambda code: check_name(page, code), inline_code(page.read_text())) == []


@pages
def test_no_page_holds_a_path_of_a_machine(page):
    assert [found.group() for found in MACHINE_PATH.finditer(page.read_text())] == []


def test_the_readme_is_short():
    assert len((PROJECT / "README.md").read_text().splitlines()) <= 150


def test_the_readme_leads_to_every_page_of_docs():
    linked = {target.partition("#")[0] for target in links_of((PROJECT / "README.md").read_text())}
    assert {f"docs/{path.name}" for path in (PROJECT / "docs").glob("*.md")} <= linked


def test_commands_of_a_page_are_found_in_blocks_and_in_lines():
    assert [" ".join(command.split()) for command in commands_of(MADE_UP)] == [
        "python infer.py my_ct.nii.gz --output predictions # a comment",
        "nohup make demo > demo.log 2>&1 &",
        "python train_heatmap.py --work-dir work --preset small",
        "--batch-size 2",
    ]
    assert problems(PAGES[0], check_command, commands_of(MADE_UP)) == []


def test_marked_blocks_and_programs_are_run():
    blocks = [*blocks_of(MADE_UP), *blocks_of("```\nmake demo\n```\n")]
    assert [block.is_run for block in blocks] == [True, True, False]
    assert [block.language for block in blocks] == ["", "python", ""]


@pytest.mark.parametrize(
    "command",
    [
        "python train_heatmap.py --no-such-option",
        "python train_heatmap.py --preset huge",
        "python train_heatmap.py --epochs many",
        "python evaluate.py --first-label L1",
        "srun --nodes 2 python train_heatmap.py --no-such-option",
        "python infer.py scan.nii.gz --outptu predictions",
        "python no_such_script.py",
        "python -m utils.learning.no_such_module",
        "python experiments/average.py A B --no-such-option",
        "infer.py --no-such-option",
        "--no-such-option 3",
        "--epochs many",
        "--first-label L1 --epochs 3",
        "make no-such-target",
        "make demo NO_SUCH_VARIABLE=3",
        "python train_heatmap.py --preset small|huge",
        "make demo && python train_heatmap.py --no-such-option",
        "pip install -r no-such-file.txt",
        "pyhton infer.py",
    ],
)
def test_a_wrong_command_is_refused(command):
    with pytest.raises(ValueError, match=re.escape(command)):
        check_command(command)


@pytest.mark.parametrize(
    "command",
    [
        "python train_heatmap.py --work-dir work … --device auto|gpu|cpu",
        "CUDA_VISIBLE_DEVICES=1 .venv/bin/python infer.py a.nii.gz b.nii.gz 2> log",
        "taskset -c 0 python ...",
        "--replicas one",
        "--workers --shard",
        "--preset paper|full|small|starter",
        "make PYTHON=python3.12 .venv",
        "pip install -r requirements.txt",
    ],
)
def test_a_right_command_is_accepted(command):
    check_command(command)


def test_a_wrong_link_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One title\n\n## A `code` heading, twice\n")
    assert anchors_of(page.read_text()) == {"one-title", "a-code-heading-twice"}
    for target in ("page.md#one-title", "#a-code-heading-twice", "https://example.org/nothing"):
        check_link(page, target)
    for target in ("other.md", "page.md#no-such-heading", "#two-titles"):
        with pytest.raises(ValueError, match=re.escape(target)):
            check_link(page, target)


@pytest.mark.parametrize(
    "name",
    [
        "utils/settings.py",
        "utils/walk",
        "utils.verse.labels",
        "utils.layers_func.create_unet3d",
        "utils.verse.labels.CODES",
        "utils.settings.DataSettings.seed",
        "ML_3D_Unet.utils.train.Trainer.train",
        "work/models/heatmap",
    ],
)
def test_a_name_of_code_is_accepted(name):
    check_name(PROJECT / "README.md", name)


@pytest.mark.parametrize(
    "name",
    [
        "utils/no_such.py",
        "utils.verse.no_such",
        "utils.verse.labels.no_such",
        "ML_3D_Unet.utils.train.Trainer.no_such",
    ],
)
def test_a_wrong_name_of_code_is_refused(name):
    with pytest.raises(ValueError, match=re.escape(name.split(".")[-1])):
        check_name(PROJECT / "README.md", name)


def test_blocks_are_run_in_order_in_a_copy_of_the_project(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- run -->\n```\necho first > left\ntest -f README.md\n```\n\n"
        "```\nexit 3\n```\n\n```python\nprint(open('left').read())\n```\n"
    )
    assert run_docs.run_page(page, folder=tmp_path / "copy") == []
    assert (tmp_path / "copy" / "left").read_text() == "first\n"
    assert not (PROJECT / "left").exists()


def test_a_block_that_fails_is_named(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- run -->\n```\nfalse\ntrue\n```\n\n```python\nraise SystemExit(4)\n```\n")
    failed = run_docs.run_page(page, folder=tmp_path / "copy")
    assert [line.splitlines()[0] for line in failed] == [
        "page.md: expected exit status 0, found 1 of the block",
        "page.md: expected exit status 0, found 4 of the block",
    ]


def test_no_check_loads_tensorflow():
    program = (
        "import sys; from tests import doc_pages, run_docs; "
        "doc_pages.check_command('python train_heatmap.py --preset small'); "
        "doc_pages.check_name(doc_pages.PAGES[0], 'utils.learning.losses.vertebra_loss'); "
        "print({'tensorflow', 'keras'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True)
    assert ran.stdout == "set()\n", ran.stderr
