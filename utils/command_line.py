"""The command line of a stage, built from its settings."""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import tyro

from utils.bounds import checks_put_off, wrong_values
from utils.files import printable, remove_left_overs
from utils.interruption import STANDARD_ERROR, Output, heed_signals, nothing_else_ends
from utils.packages import check_packages, line_about_missing
from utils.presets import PRESETS, Settings, preset_settings

#: The file that says what this is, and which version.
_CITATION = Path(__file__).resolve().parents[1] / "CITATION.cff"
_VERSION = "--version"
#: Settings that ask for a package which is not part of every installation.
_PACKAGE_OF = {"scheduler": "distributed", "tensorboard": "tensorboard"}


def run_script(main: Callable[[Settings], int], stage: type[Settings]) -> int:
    """Run what a script does with the settings of its command line, and give its exit status.

    What ends it before its work is done is one line: Ctrl-C and SIGTERM (status 130 and 143), an output that
    nothing reads any more (141), what the system refuses, such as a folder that may not be read (1), and a
    package that is not installed (2).
    Temporary files of runs that were killed are removed where the script writes.

    Parameters
    ----------
    main : callable
        What the script does; gives the exit status.
    stage : type
        As in `settings_from_command_line`.

    Returns
    -------
    int
    """

    def run() -> int:
        settings = settings_from_command_line(stage)
        check_packages(*(package for name, package in _PACKAGE_OF.items() if getattr(settings, name, None)))
        written_to = (getattr(settings, name, None) for name in ("output", "work_dir", "data_dir"))
        remove_left_overs(next(filter(None, written_to)))
        return main(settings)

    return ended_in_a_line(run)


def ended_in_a_line(run: Callable[[], int]) -> int:
    """Run all that a program does, and give its exit status; see `run_script`."""
    heed_signals()
    _guard_output()
    with nothing_else_ends():
        try:
            status = run()
        except (OSError, MemoryError) as error:
            found = error if isinstance(error, OSError) else "expected enough memory, found it used up."
            print(printable(f"error: {found}"), file=sys.stderr)
            status = 1
        except ModuleNotFoundError as error:
            line = line_about_missing(error)
            if line is None:
                raise
            print(line, file=sys.stderr)
            status = 2
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    return status


def _guard_output() -> None:
    """Let a stream that cannot be written to end the program in a line, whoever writes, and whatever then."""
    for name, file in {"stdout": "standard output", "stderr": STANDARD_ERROR}.items():
        old = getattr(sys, name)
        if isinstance(old, io.TextIOWrapper):
            old.flush()
            buffered = io.BufferedWriter(Output(old.fileno(), file))
            options = {"encoding": old.encoding, "errors": old.errors, "line_buffering": old.line_buffering}
            setattr(sys, name, io.TextIOWrapper(buffered, **options))


def settings_from_command_line(stage: type[Settings], arguments: list[str] | None = None) -> Settings:
    """Read the settings of a stage from the command line; a wrong one ends the program with status 2.

    Parameters
    ----------
    stage : type
        One of the dataclasses of `utils.settings`. Where it inherits from several, each is a group in its
        help.
    arguments : list of str, optional
        The command line without the program's name; by default that of the running program. With
        "--version" the program prints which version it is, and ends.

    Returns
    -------
    Settings
        An instance of `stage`: the preset's defaults, changed by the options given.
    """
    _prepare_surroundings()
    arguments = sys.argv[1:] if arguments is None else arguments
    if _VERSION in arguments:
        print(f"{Path(sys.argv[0]).name} {citation_of('version')}")
        raise SystemExit(0)
    default = preset_settings(stage, _preset_named_in(arguments))
    with checks_put_off():
        settings = _parsed(stage, arguments, default)
    wrong = wrong_values(settings)
    for name, text in wrong:
        print(f"--{name.replace('_', '-')}: {text}", file=sys.stderr)
    if wrong:
        raise SystemExit(2)
    return settings


def _prepare_surroundings() -> None:
    """Make a script run the same from a notebook and on a terminal that knows no letters but ASCII's."""
    # A notebook's names a module that this environment may lack, which ends the import of Matplotlib. Here
    # figures go into files alone, so none is needed; processes started from here go without it too.
    os.environ.pop("MPLBACKEND", None)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def citation_of(field: str) -> str | None:
    """Give a field of one line of `CITATION.cff`, such as "version"; None if it has no such field."""
    found = re.search(rf"^{field}: (.+)$", _CITATION.read_text(encoding="utf-8"), re.MULTILINE)
    return None if found is None else found[1]


def _parsed(stage: type[Settings], arguments: list[str], default: Settings) -> Settings:
    groups = list(reversed(stage.__bases__))
    description = f"{stage.__doc__} {_VERSION} says which version this is."
    options = {"args": arguments, "description": description}
    if len(groups) < 2:
        return tyro.cli(stage, **options, default=default)
    # tyro makes a group of every object within an object; the names of options stay as they are.
    parts = [group(**{name: getattr(default, name) for name in _names(group)}) for group in groups]
    fields = [(_title(group), group, part) for group, part in zip(groups, parts)]
    grouped = dataclasses.make_dataclass(stage.__name__, fields, frozen=True)
    found = tyro.cli(grouped, **options, config=(tyro.conf.OmitArgPrefixes,))
    parts = [getattr(found, _title(group)) for group in groups]
    return stage(**{name: getattr(part, name) for part in parts for name in _names(type(part))})


def _title(group: type) -> str:
    return group.__name__.removesuffix("Options").lower()


def _names(group: type) -> list[str]:
    return [field.name for field in dataclasses.fields(group)]


def _preset_named_in(arguments: list[str]) -> str:
    """Give the last preset, whose defaults the parser is built with; it takes no option for a value."""
    named = "full"
    for option, after in itertools.pairwise([*arguments, ""]):
        name, has_value, value = option.partition("=")
        if name == "--preset":
            named = value if has_value else after
    return named if named in PRESETS else "full"
