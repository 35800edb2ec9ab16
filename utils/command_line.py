"""The command line of a stage, built from its settings."""

from __future__ import annotations

import itertools
import sys

import tyro

from utils.bounds import checks_put_off, wrong_values
from utils.presets import PRESETS, Settings, preset_settings


def settings_from_command_line(stage: type[Settings], arguments: list[str] | None = None) -> Settings:
    """Read the settings of a stage from the command line; a wrong one ends the program with status 2.

    Parameters
    ----------
    stage : type
        One of the dataclasses of `utils.settings`.
    arguments : list of str, optional
        The command line without the program's name; by default that of the running program.

    Returns
    -------
    Settings
        An instance of `stage`: the preset's defaults, changed by the options given.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    default = preset_settings(stage, _preset_named_in(arguments))
    with checks_put_off():
        settings = tyro.cli(stage, args=arguments, default=default)
    wrong = wrong_values(settings)
    for name, text in wrong:
        print(f"--{name.replace('_', '-')}: {text}", file=sys.stderr)
    if wrong:
        raise SystemExit(2)
    return settings


def _preset_named_in(arguments: list[str]) -> str:
    """Give the last preset, whose defaults the parser is built with; it takes no option for a value."""
    named = "full"
    for option, after in itertools.pairwise([*arguments, ""]):
        name, has_value, value = option.partition("=")
        if name == "--preset":
            named = value if has_value else after
    return named if named in PRESETS else "full"
