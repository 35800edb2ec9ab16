"""Which scans a fold leaves out, and the training on real scans that follows the one on drawn scans.

A patient who is left out is left out everywhere: all scans, and the trunks that were drawn from the patient's
organs.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.real.facts import ScanFacts
from experiments.real.prepare import PREFIX
from experiments.steps import Script, script

#: Masks of organs, their names, mask of the vertebrae and CT that trunks are drawn from, as the facts have
#: their paths.
ORGANS = (
    Path("real-ct/chest-total/chest_seg-total_msk.nii.gz"),
    Path("real-ct/chest-total/chest_seg-total_names.csv"),
    Path("data/other-ct/chest_seg-vert_msk.nii.gz"),
    Path("data/other-ct/chest_ct.nii.gz"),
)
#: Training cases drawn from them.
TRUNKS = "drawn-trunk-*"
#: Training cases that are there for the segmentation network: masks, of which the facts have the centres, and
#: spines with rare levels.
FOR_SEGMENTATION = ("sub-real-*", "sub-mask-*", "sub-half*", "sub-rare*")

#: Options of the training on real scans: short and gentle, half of it on drawn scans, so that what few real
#: scans do not show is not forgotten.
FINE_TUNING = "--origins 0 0.5 0.5 --learning-rate 3e-4 --final-learning-rate 3e-5 --seed 1"
#: Its steps, and how many of them make an epoch.
STEPS, STEPS_PER_EPOCH = 240, 40


@dataclass(frozen=True)
class Fold:
    """The scans of one patient, which a network does not see.

    Attributes
    ----------
    scans : tuple of str
        Names in the facts; none for the network that sees all.
    """

    scans: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        """What the names of its networks end with."""
        return "-without-" + "-".join(self.scans) if self.scans else ""


def folds_of(facts: Mapping[str, ScanFacts]) -> list[Fold]:
    """Give a fold for every patient with a spine, in the order of the facts."""
    patients = dict.fromkeys(scan.patient for scan in facts.values() if scan.points_mm)
    return [Fold(scans_of_patients([patient], facts)) for patient in patients]


def fold_without(names: Collection[str], facts: Mapping[str, ScanFacts]) -> Fold:
    """Give the fold that leaves out the patients of some scans, and so all their scans."""
    return Fold(scans_of_patients({facts[name].patient for name in names}, facts))


def scans_of_patients(patients: Collection[str], facts: Mapping[str, ScanFacts]) -> tuple[str, ...]:
    """Give the names of the scans of patients, in the order of the facts."""
    return tuple(name for name, scan in facts.items() if scan.patient in patients)


def left_out_cases(fold: Fold, facts: Mapping[str, ScanFacts]) -> list[str]:
    """Give the training cases of the localiser that a fold leaves out.

    Parameters
    ----------
    fold : Fold
        Names of scans.
    facts : mapping of str to ScanFacts
        What is known of all scans.

    Returns
    -------
    list of str
        Keys and patterns; the trunks, if any of the patient's files is among those they were drawn from.
    """
    files = {path for name in fold.scans for path in (facts[name].ct, *facts[name].others)}
    keys = [f"{PREFIX}{name}" for name in fold.scans]
    return [*keys, TRUNKS] if files & set(ORGANS) else keys


def patterns_there(patterns: Sequence[str], keys: Collection[str]) -> list[str]:
    """Give the patterns that some key matches: a training refuses the others."""
    return [pattern for pattern in patterns if fnmatch.filter(keys, pattern)]


def fine_tuning(
    work_dir: Path,
    *,
    base: Path,
    name: str,
    exclude: Sequence[str],
    steps: int = STEPS,
    options: Sequence[str] = (),
) -> Script:
    """Give the training on real scans.

    Parameters
    ----------
    work_dir : Path
        Folder with the prepared scans; receives `models/<name>`.
    base : Path
        Directory of the network that it begins with.
    name : str
        Name of its own.
    exclude : sequence of str
        Cases that are left out.
    steps : int
        How many, in whole epochs of `STEPS_PER_EPOCH`.
    options : sequence of str
        Further options.

    Returns
    -------
    Script
    """
    epochs = max(1, round(steps / STEPS_PER_EPOCH))
    place = ("--work-dir", work_dir, "--name", name, "--preset", "starter", "--start-from", base)
    left_out = ("--exclude", *exclude) if exclude else ()
    length = ("--epochs", epochs, "--examples-per-epoch", STEPS_PER_EPOCH, "--validate-every", epochs)
    return script("train_heatmap.py", *place, *left_out, *length, *FINE_TUNING.split(), *options)
