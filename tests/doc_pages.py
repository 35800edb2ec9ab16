"""What the pages of the documentation hold, and whether the project has what they speak of.

A block of code under the comment `<!-- run -->`, and every block of Python, is run by `tests/run_docs.py`. A
command is checked here without being run: options by the parser of the script, targets by the Makefile.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import io
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from utils import settings as stages
from utils.command_line import run_script, settings_from_command_line

PROJECT = Path(__file__).resolve().parents[1]
PAGES = tuple(
    PROJECT / name
    for name in (
        "README.md",
        "CHANGELOG.md",
        "ML_3D_Unet/README.md",
        "models/starter/README.md",
        *sorted(path.relative_to(PROJECT).as_posix() for path in (PROJECT / "docs").glob("*.md")),
    )
)
#: Programs of others that the pages may call. Their options are not checked.
FOREIGN = {"source", "pip", "tensorboard", "dask", "cd", "git", "docker", "apptainer"}
#: What may stand for "and so on" in a command.
ELLIPSES = {"…", "..."}

_FENCE = re.compile(r"(?P<mark><!-- run -->\n+)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
_INLINE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_REDIRECTION = re.compile(r"\d?>+ *&?\S+")
_CHOICE = re.compile(r"[\w.-]+(\|[\w.-]+)+")
_HEADING = re.compile(r"^#+ +(.+)$", re.M)


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of code of a page.

    Attributes
    ----------
    language : str
        "python", or empty for the shell and for what is not to be run.
    text : str
        Its lines.
    is_run : bool
        Whether `make docs-check` runs it.
    """

    language: str
    text: str
    is_run: bool


def blocks_of(text: str) -> list[Block]:
    """Give the blocks of code of a page, in order."""
    return [
        Block(found["language"], found["text"], bool(found["mark"]) or found["language"] == "python")
        for found in _FENCE.finditer(text)
    ]


def inline_code(text: str) -> list[str]:
    """Give what stands between backticks outside the blocks, on one line each."""
    return [" ".join(code.split()) for code in _INLINE.findall(_FENCE.sub("", text))]


def commands_of(text: str) -> list[str]:
    """Give the commands of a page: lines of shell blocks, and inline code that is a command or options."""
    in_blocks = [
        line.strip()
        for block in blocks_of(text)
        if block.language != "python" and not _is_drawing(block.text)
        for line in block.text.replace("\\\n", " ").splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]
    inline = [code for code in inline_code(text) if _is_command(code)]
    return in_blocks + inline


def _is_drawing(text: str) -> bool:
    return any(sign in text for sign in "─│└├►▼")


def _is_command(code: str) -> bool:
    """Whether inline code is a command: with arguments, as the bare name of a script is a file."""
    first, *others = code.split()
    names_script = first.endswith(".py") and bool(others) and (PROJECT / first).is_file()
    return first.startswith("--") or first == "make" or "python " in code or names_script


def check_command(command: str) -> None:
    """Raise a `ValueError` if a line of shell holds a command that the project does not understand."""
    try:
        for spelled_out in _spell_out(command):
            for words in _simple_commands(spelled_out):
                _check_words(words)
    except ValueError as error:
        raise ValueError(f"{command}: {error}") from None


def _spell_out(command: str) -> list[str]:
    """Give a line once for each of the choices that a `one|other` in it offers."""
    choice = _CHOICE.search(command)
    if choice is None:
        return [command]
    lines = (command[: choice.start()] + word + command[choice.end() :] for word in choice[0].split("|"))
    return [spelled_out for line in lines for spelled_out in _spell_out(line)]


def _simple_commands(command: str) -> Iterator[list[str]]:
    """Give the words of each command of a line, without redirections and comments."""
    lexer = shlex.shlex(_REDIRECTION.sub(" ", command), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for token in lexer:
        if set(token) <= {"&", "|", ";"}:
            yield words
            words = []
        elif token not in ELLIPSES:
            words.append(token)
    yield words


def _check_words(words: list[str]) -> None:
    if not words or words[0] in FOREIGN:
        _check_files(words)
    elif words[0].startswith("--"):
        _check_options(words)
    elif words[0].endswith(".py"):
        _check_script(words)
    else:
        _check_program(words)


def _check_program(words: list[str]) -> None:
    """Look for make or Python behind programs that start others, such as srun."""
    for index, word in enumerate(words):
        if word == "make":
            return _check_make(words[index + 1 :])
        if re.fullmatch(r"python(3(\.\d+)?)?", Path(word).name):
            rest = words[index + 1 :]
            return _check_module(rest[1:]) if rest[:1] == ["-m"] else _check_script(rest)
    raise ValueError(f"expected make, python or one of {sorted(FOREIGN)}, found {words[0]!r}.")


def _check_files(words: list[str]) -> None:
    for option, name in itertools.pairwise(words):
        if option == "-r" and not (PROJECT / name).is_file():
            raise ValueError(f"expected a file of the project, found {name!r}.")


def _check_make(words: list[str]) -> None:
    makefile = (PROJECT / "Makefile").read_text()
    targets = {name for line in re.findall(r"^([\w. -]+):(?!=)", makefile, re.M) for name in line.split()}
    for word in words:
        name, is_variable, _ = word.partition("=")
        if is_variable and f"$({name})" not in makefile and not re.search(rf"^{name}\b", makefile, re.M):
            raise ValueError(f"expected a variable of the Makefile, found {name!r}.")
        if not is_variable and not word.startswith("-") and word not in targets:
            raise ValueError(f"expected a target of the Makefile, found {word!r}.")


def _check_module(words: list[str]) -> None:
    path = PROJECT / (words[0].replace(".", "/") + ".py")
    if not path.is_file():
        raise ValueError(f"expected a module of the project, found {words[0]!r}.")
    _check_declared(path, words[1:])


def _check_script(words: list[str]) -> None:
    if not words:
        return
    path = PROJECT / words[0]
    if not path.is_file():
        raise ValueError(f"expected a script of the project, found {words[0]!r}.")
    stage = stage_of(path)
    if stage is None:
        _check_declared(path, words[1:])
    else:
        parse(stage, words[1:])


def _check_declared(path: Path, words: list[str]) -> None:
    """Compare options with those that a script names itself, or has as fields of its settings."""
    text = path.read_text()
    declared = set(re.findall(r"--[a-z][\w-]*", text))
    declared |= {"--" + field.replace("_", "-") for field in re.findall(r"^    (\w+):", text, re.M)}
    for word in words:
        if re.match(r"--[\w-]+(=|$)", word) and word.partition("=")[0] not in declared:
            raise ValueError(f"expected an option of {path.name}, found {word!r}.")


def _check_options(words: list[str]) -> None:
    """Accept options that one script takes together: with their values, or their names alone."""
    named = [word.partition("=")[0] for word in words if word.startswith("--")]
    takers = [stage for stage in all_stages() if set(named) <= options_of(stage)]
    if named == words and takers:
        return
    reasons = [f"expected options of one script, found {' '.join(named)}."]
    for stage in takers:
        try:
            return parse(stage, words)
        except ValueError as error:
            reasons.append(str(error))
    for path in (PROJECT / "experiments").glob("*.py") if not takers else ():
        with contextlib.suppress(ValueError):
            return _check_declared(path, words)
    raise ValueError(reasons[-1])


def stage_of(path: Path) -> type | None:
    """Give the settings class that a script reads its command line into, or None if it has no such class."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == run_script.__name__:
            return getattr(stages, node.args[1].id, None)
    return None


@functools.cache
def all_stages() -> tuple[type, ...]:
    """Give the settings classes of all scripts."""
    found = (stage_of(path) for path in sorted(PROJECT.glob("*.py")))
    return tuple(stage for stage in found if stage is not None)


def parse(stage: type, words: list[str]) -> None:
    """Parse a command line as its script does; raise a `ValueError` where that would end with status 2."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            settings_from_command_line(stage, list(words))
    except SystemExit as end:
        if end.code:
            raise ValueError(f"refused by the parser of {stage.__name__}: {printed.getvalue()}") from None


@functools.cache
def options_of(stage: type) -> set[str]:
    """Give the names of all options of a script, read off its help."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        settings_from_command_line(stage, ["--help"])
    return set(re.findall(r"--[a-z][\w.-]*\w", printed.getvalue()))


def links_of(text: str) -> list[str]:
    """Give where the links and pictures of a page lead."""
    return _LINK.findall(_FENCE.sub("", text))


def check_link(page: Path, target: str) -> None:
    """Raise a `ValueError` if a link within the project leads nowhere; other links are not followed."""
    if re.match(r"https?://", target):
        return
    name, _, anchor = target.partition("#")
    path = (page.parent / name).resolve() if name else page
    if not path.exists():
        raise ValueError(f"{page.name}: expected a file of the project, found the link {target!r}.")
    if anchor and anchor not in anchors_of(path.read_text()):
        raise ValueError(f"{page.name}: expected a heading of {path.name}, found the link {target!r}.")


def anchors_of(text: str) -> set[str]:
    """Give the names that headings of a page can be linked by, made as GitHub makes them."""
    headings = _HEADING.findall(_FENCE.sub("", text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def check_name(page: Path, code: str) -> None:
    """Raise a `ValueError` if inline code is a path or a dotted name of the project, and nothing has it.

    Both may begin at the project's root; a path in the page's folder, a name in ML_3D_Unet, too.
    """
    rooms = "utils|ML_3D_Unet|benchmarks|experiments|tests|docs"
    is_there = any((folder / code).exists() for folder in (PROJECT, page.parent))
    if re.fullmatch(rf"({rooms})(/[\w.-]+)+/?", code) and not is_there:
        raise ValueError(f"expected a file of the project, found {code!r}.")
    if re.fullmatch(rf"({rooms})(\.\w+)+", code):
        roots = [root for root in (PROJECT, PROJECT / "ML_3D_Unet") if not _unknown_part(root, code)]
        if not roots:
            raise ValueError(
                f"{code}: expected a name of the project, found no {_unknown_part(PROJECT, code)}."
            )


def _unknown_part(root: Path, name: str) -> str:
    """Follow a dotted name through folders to a module, and in it to a class, a function or a constant."""
    path, parts = root, name.split(".")
    while parts and (path / parts[0]).is_dir():
        path /= parts.pop(0)
    if parts and (path / f"{parts[0]}.py").is_file():
        path /= f"{parts.pop(0)}.py"
        body = ast.parse(path.read_text()).body
        while parts:
            found = [node for node in body if parts[0] in _names_bound(node)]
            if not found:
                break
            body = getattr(found[0], "body", [])
            del parts[0]
    return ".".join(parts)


def _names_bound(node: ast.stmt) -> set[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}
