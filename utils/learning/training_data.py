"""The prepared data of a training: their folder and facts, the cases left out, and those that take part."""

from __future__ import annotations

import dataclasses
import fnmatch
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from utils import settings as stages
from utils.files import printable
from utils.learning import epochs, prepared_data, spine_cases
from utils.learning.runtime import Runtime
from utils.preparation.prepared import PREPARED_SPLITS, spacing_folder
from utils.presets import preset_settings
from utils.settings import SETTINGS_FILE, load_settings
from utils.verse.labels import T13_CODE

#: What later stages must know of prepared data, by stage and target.
_FACTS = {
    ("heatmap", "centres"): ("spacing_mm", "target"),
    ("heatmap", "spine"): ("spacing_mm", "target", "heatmap_shape"),
    ("segmentation", None): ("spacing_mm",),
}
_PREPARATIONS = {
    "heatmap": stages.HeatmapPreparationSettings,
    "segmentation": stages.SegmentationPreparationSettings,
}
#: Keys that a message about an unknown one shows.
_SHOWN_KEYS = 4


def prepared_folder(
    stage: str,
    *,
    work_dir: Path,
    preset: str,
    spacing_mm: float,
    target: str | None = None,
    needs_fine_masks: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """Give the folder of a stage's prepared data, and what of them goes into the settings of a model.

    Parameters
    ----------
    stage : str
        "heatmap" or "segmentation".
    work_dir : Path
        The work folder.
    preset : str
        The training's preset, for the command that a message names.
    spacing_mm : float
        Spacing of the working grid, in mm.
    target : str, optional
        With "heatmap": what the data must be prepared for, "centres" or "spine".
    needs_fine_masks : bool
        With "segmentation": whether targets are occupancies.

    Returns
    -------
    folder : Path
        It holds `training` and `validation`.
    facts : dict
        "spacing_mm", of the heatmap stage "target", and with "spine" also "heatmap_shape".

    Raises
    ------
    ValueError
        If there are no such data; the text names the folder and the command that prepares them.
    """
    folder = spacing_folder(work_dir, stage, spacing_mm)
    usual, command = preset_settings(_PREPARATIONS[stage], preset), f"python pre_processing_{stage}.py"
    command += f" --work-dir {work_dir} --preset {preset}"
    command += f" --target {target}" if target and usual.target != target else ""
    command += f" --spacing-mm {spacing_mm:g}" if usual.spacing_mm != spacing_mm else ""
    if not (folder / SETTINGS_FILE).is_file():
        raise ValueError(f"{folder}: expected prepared data, found none; run `{command}`.")
    found = load_settings(folder)
    facts = _FACTS[stage, target]
    missing = [name for name in facts if name not in found]
    if missing:
        raise ValueError(f"{folder / SETTINGS_FILE}: expected {missing}, found {sorted(found)}.")
    if found["spacing_mm"] != spacing_mm:
        raise ValueError(
            f"{folder}: expected data of {spacing_mm:g} mm, found data of {found['spacing_mm']} mm; "
            f"run `{command}`."
        )
    if target and found["target"] != target:
        raise ValueError(
            f"{folder}: expected data for the target {target!r}, found data for {found['target']!r}; "
            f"run `{command}`, or train with --target {found['target']}."
        )
    if needs_fine_masks and not found.get("fine_masks"):
        raise ValueError(
            f"{folder}: expected masks at half the spacing for targets that are occupancies, found none; run "
            f"`{command} --fine-masks`, or train with --targets bits."
        )
    return folder, {name: found[name] for name in facts}


def read_heatmap_splits(
    folder: Path, chosen: Runtime, *, exclude: Sequence[str] = ()
) -> tuple[list[prepared_data.HeatmapCase], list[prepared_data.HeatmapCase], list[str]]:
    """Read both splits of the heatmap stage without their bad cases, which are printed.

    Parameters
    ----------
    folder : Path
        From `prepared_folder`.
    chosen : Runtime
        Its chief prints what is bad.
    exclude : sequence of str
        Cases to leave out: keys or patterns.

    Returns
    -------
    cases, held_out : list of HeatmapCase
        Training and validation.
    bad : list of str
        A line for every bad case.

    Raises
    ------
    ValueError
        If nothing is left to train on, or a key or pattern belongs to no case.
    """
    keys = {key for split in PREPARED_SPLITS for key in prepared_data.heatmap_keys(folder / split)}
    left_out = excluded_cases(keys, exclude, folder)
    (cases, bad), (held_out, bad_held_out) = (
        prepared_data.read_heatmap_cases(folder / split, exclude=left_out) for split in PREPARED_SPLITS
    )
    bad = print_bad_cases([*bad, *bad_held_out], chosen)
    _expect_cases(cases, folder / "training", left_out)
    return cases, held_out, bad


def read_spine_splits(
    folder: Path, chosen: Runtime, *, exclude: Sequence[str] = ()
) -> tuple[spine_cases.SpineData, spine_cases.SpineData, list[str]]:
    """Read both splits of the scans for centres and levels without their bad ones, which are printed.

    Parameters, result and errors are those of `read_heatmap_splits`.
    """
    keys = {key for split in PREPARED_SPLITS for key in spine_cases.spine_keys(folder / split)}
    left_out = excluded_cases(keys, exclude, folder)
    (data, bad), (held_out, bad_held_out) = (
        spine_cases.read_spine_data(folder / split, exclude=left_out) for split in PREPARED_SPLITS
    )
    bad = print_bad_cases([*bad, *bad_held_out], chosen)
    _expect_cases(data.cases, folder / "training", left_out)
    return data, held_out, bad


def read_segmentation_splits(
    folder: Path,
    chosen: Runtime,
    *,
    exclude: Sequence[str] = (),
    also_without: Iterable[str] = (),
    t13: bool = True,
) -> tuple[prepared_data.SegmentationData, prepared_data.SegmentationData, list[str]]:
    """Read both splits of the segmentation stage without their bad cases, which are printed.

    Parameters, result and errors are those of `read_heatmap_splits`. Patterns in `also_without`, such as
    those of another training, may belong to no case here. Without `t13` no vertebra of that level is read.
    """
    splits = [prepared_data.read_segmentation_data(folder / split) for split in PREPARED_SPLITS]
    splits = splits if t13 else [data.without_level(T13_CODE) for data in splits]
    keys = {vertebra.case for data in splits for vertebra in data.vertebrae}
    left_out = excluded_cases(keys, exclude, folder) | _matching(keys, also_without)
    (data, bad), (held_out, bad_held_out) = (
        _without_cases(data, left_out).without_bad_cases() for data in splits
    )
    bad = print_bad_cases([*bad, *bad_held_out], chosen)
    _expect_cases(data.vertebrae, folder / "training", left_out)
    return data, held_out, bad


def excluded_cases(keys: Collection[str], patterns: Sequence[str], folder: Path) -> set[str]:
    """Give the cases that keys or patterns name.

    Parameters
    ----------
    keys : collection of str
        All cases.
    patterns : sequence of str
        Keys, or patterns as a shell has them, such as "sub-real-*".
    folder : Path
        Where the cases lie, for the message.

    Returns
    -------
    set of str

    Raises
    ------
    ValueError
        If a pattern belongs to no case; the text names some that are there.
    """
    for pattern in patterns:
        if not _matching(keys, [pattern]):
            some = ", ".join(sorted(keys)[:_SHOWN_KEYS]) or "none"
            more = ", ..." if len(keys) > _SHOWN_KEYS else ""
            raise ValueError(
                f"--exclude: expected keys or patterns of cases in {folder}, received {pattern!r}; found "
                f"{some}{more}."
            )
    return _matching(keys, patterns)


def case_facts(
    data: epochs.SplitData, held_out: epochs.SplitData, settings: epochs.TrainingSettings
) -> dict[str, list[str]]:
    """Give the keys of the cases that examples are made of: "training_cases" and "validation_cases"."""
    return {"training_cases": _taking_part(data, settings), "validation_cases": _taking_part(held_out, None)}


def print_bad_cases(bad: list[str], chosen: Runtime) -> list[str]:
    """Print a line for every bad case, once for all workers, and give them back."""
    for line in bad if chosen.is_chief else ():
        print(printable(f"bad case: {line}"), file=sys.stderr)
    return bad


def _taking_part(data: epochs.SplitData, settings: epochs.TrainingSettings | None) -> list[str]:
    """Give the keys of the items of all groups that have a share; items beyond the keys are drawn ones."""
    if isinstance(data, prepared_data.SegmentationData):
        keys = [vertebra.case for vertebra in data.vertebrae]
    else:
        keys = [case.key for case in (data.cases if isinstance(data, spine_cases.SpineData) else data)]
    groups = epochs.groups_of(data, settings)
    shares = epochs.shares_of(settings)[1] if len(groups) > 1 else [1.0]
    used = [items for items, share in zip(groups, shares) if share]
    return sorted({keys[item % len(keys)] for items in used for item in items})


def _matching(keys: Iterable[str], patterns: Iterable[str]) -> set[str]:
    return {key for pattern in patterns for key in keys if fnmatch.fnmatchcase(key, pattern)}


def _without_cases(
    data: prepared_data.SegmentationData, left_out: set[str]
) -> prepared_data.SegmentationData:
    return dataclasses.replace(
        data,
        vertebrae=tuple(vertebra for vertebra in data.vertebrae if vertebra.case not in left_out),
        phantoms=data.phantoms - left_out,
        masks_alone=data.masks_alone - left_out,
    )


def _expect_cases(cases: Any, folder: Path, left_out: Collection[str]) -> None:
    """Raise a `ValueError` that names the folder if there is no case to train on."""
    if cases:
        return
    why = f"{len(left_out)} are left out by --exclude" if left_out else "run the pre-processing script first"
    raise ValueError(f"{folder}: expected prepared cases, found none; {why}.")
