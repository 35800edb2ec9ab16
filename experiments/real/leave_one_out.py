"""Leave every patient of the real scans out once, and score what a network that never saw them finds.

Command python experiments/real/leave_one_out.py --work-dir starter/work --options --precision bfloat16
Time    on two CPU cores (AMD EPYC, bfloat16) five minutes a patient, and half a minute to segment a scan
Result  measured: see models/starter/README.md

Reads   experiments/real/centres.json and the CTs that it names; the prepared scans and the network BASE of
        experiments/starter.py; a labelling network that saw no real scan
Writes  WORK/models/<final>, and one network a patient beside it; in OUTPUT networks (with the confidence that
        belongs to each), predictions and leave_one_out.md, the tables that are printed; the temperature in
        the settings of the labelling network

Every fold goes on from the network that saw no real scan, without the scans of one patient; the labelling
and the segmentation network are the same for all. How far the votes on the levels may be trusted, their
temperature, is fitted on the scans that were left out: for each patient on those of the others, and on all of
them for the labelling network as it is shipped. A fold that is done is not run again; a killed run goes on
with the same command.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.real.facts import ScanFacts, available_scans, read_facts
from experiments.real.findings import (
    Finding,
    finding_of_votes,
    load_localiser,
    look_for_vertebrae,
    read_prediction,
)
from experiments.real.folds import (
    FOR_SEGMENTATION,
    STEPS,
    TRUNKS,
    Fold,
    fine_tuning,
    folds_of,
    left_out_cases,
    patterns_there,
)
from experiments.real.prepare import PREFIX
from experiments.real.score import report, true_codes
from experiments.steps import CopyModel, run_steps, script
from utils.files import sha256_of, write_text_whole
from utils.learning.model_files import copy_model, model_file
from utils.learning.spine_cases import spine_keys
from utils.localisation.chain import Votes
from utils.localisation.evidence import ColumnVotes
from utils.localisation.temperature import fit_temperature
from utils.prediction.levels import column_json, read_column
from utils.prediction.networks import STARTER_DIR
from utils.preparation.prepared import PREPARED_SPLITS, spacing_folder
from utils.presets import preset_settings
from utils.settings import SETTINGS_FILE, HeatmapTrainingSettings, load_settings
from utils.tables import markdown_table

#: Beside the network of a fold: what it was made with. It is written last.
RECORD = "fold.json"
#: Training cases that are real scans, or drawn from one.
REAL = (f"{PREFIX}*", "sub-real-*", TRUNKS)
#: The fold that leaves nobody out.
EVERYBODY = Fold()


@dataclass(frozen=True)
class LeaveOneOut:
    """What is left out in turn, and where everything lies.

    Attributes
    ----------
    shared : Path
        Folder that the paths of the facts start from; scans that are not there take no part.
    work_dir : Path
        With the prepared scans and the base.
    base, final : str
        Names of the network that the folds go on from, and of the one that sees every patient.
    segmentation : Path
        Directory of the segmentation network.
    labelling : Path
        Directory of the labelling network, which receives the temperature fitted on all scans.
    output : Path
        Folder that receives the results.
    steps : int
        Of every training.
    options : tuple of str
        Further options of the trainings.
    """

    shared: Path
    work_dir: Path
    base: str
    final: str
    segmentation: Path
    labelling: Path
    output: Path
    steps: int = STEPS
    options: tuple[str, ...] = ()

    @cached_property
    def facts(self) -> dict[str, ScanFacts]:
        """The scans that are there."""
        return available_scans(self.shared)

    @cached_property
    def folds(self) -> list[Fold]:
        """One a patient with a spine."""
        return folds_of(self.facts)

    @property
    def models(self) -> Path:
        """Folder of the trained networks."""
        return self.work_dir / "models"

    def network(self, fold: Fold) -> Path:
        """Folder of a fold's network, as it is used."""
        return self.output / "networks" / f"{self.final}{fold.suffix}"

    def labelling_of(self, fold: Fold) -> Path:
        """Folder of the labelling network with the temperature of a fold."""
        return self.output / "networks" / f"labelling{fold.suffix}"


# Trainings -----------------------------------------------------------------------------------------


def train_fold(plan: LeaveOneOut, fold: Fold) -> None:
    """Train the network of a fold, unless it is there.

    Parameters
    ----------
    plan : LeaveOneOut
        What is left out in turn.
    fold : Fold
        What this network does not see.

    Raises
    ------
    ValueError
        If the base is not there, or the fold's network was made from another base or in another way.
    SystemExit
        If the training fails.
    """
    base, target = plan.models / plan.base, plan.network(fold)
    exclude = excluded_cases_of(plan, fold)
    made_with = {
        "base_sha256": sha256_of(model_file(base)),
        "exclude": exclude,
        "steps": plan.steps,
        "options": list(plan.options),
    }
    record, name = target / RECORD, f"{plan.final}{fold.suffix}"
    if record.is_file():
        _expect_record(record, made_with, plan.models / name)
        return
    how = {"base": base, "name": name, "exclude": exclude, "steps": plan.steps, "options": plan.options}
    training = fine_tuning(plan.work_dir, **how)
    run_steps([training, CopyModel(plan.models / name, target)], dry_run=False)
    write_text_whole(record, json.dumps(made_with, indent=1) + "\n")


def excluded_cases_of(plan: LeaveOneOut, fold: Fold) -> list[str]:
    """Give what the training of a fold excludes, of the cases that are prepared."""
    spacing_mm = preset_settings(HeatmapTrainingSettings, "starter").spacing_mm
    folder = spacing_folder(plan.work_dir, "heatmap", spacing_mm) / PREPARED_SPLITS[0]
    # Of every scan that is known: one may have been prepared whose CT is not there any more.
    return patterns_there([*FOR_SEGMENTATION, *left_out_cases(fold, read_facts())], spine_keys(folder))


def _expect_record(path: Path, wanted: Mapping[str, Any], model: Path) -> None:
    found = json.loads(path.read_text())
    differing = sorted(name for name in wanted if found.get(name) != wanted[name])
    if differing:
        raise ValueError(
            f"{path.parent}: expected a network made in the same way, found other values of "
            f"{', '.join(differing)}; delete it and {model}, or choose other names."
        )


# Votes and their temperature -----------------------------------------------------------------------


def held_out_votes(plan: LeaveOneOut, fold: Fold, names: Sequence[str]) -> dict[str, Votes]:
    """Give what the networks of a fold say of scans; it is kept beside the one that finds vertebrae.

    Parameters
    ----------
    plan : LeaveOneOut
        What is left out in turn.
    fold : Fold
        Whose networks look.
    names : sequence of str
        The scans.

    Returns
    -------
    dict of str to Votes
        By scan, at temperature 1.
    """
    # Another labelling network says something else.
    content = sha256_of(model_file(plan.labelling))[:12]
    paths = {name: plan.network(fold) / f"{name}_votes_{content}.json" for name in names}
    missing = [name for name, path in paths.items() if not path.is_file()]
    networks = load_localiser(plan.network(fold), plan.labelling) if missing else None
    for name in missing:
        votes = look_for_vertebrae(plan.shared / plan.facts[name].ct, networks)
        untempered = dataclasses.replace(votes, temperature=1.0)
        write_text_whole(paths[name], column_json(untempered, (), ()))
    return {name: read_column(path)[0] for name, path in paths.items()}


def temperature_of(votes: Mapping[str, Votes], facts: Mapping[str, ScanFacts]) -> float:
    """Fit the temperature on scans that took no part in the training.

    Parameters
    ----------
    votes : mapping of str to Votes
        By scan.
    facts : mapping of str to ScanFacts
        What is known of them.

    Returns
    -------
    float
        Rounded to three decimals; 1 if no vertebra was found in any scan.
    """
    known = [
        (
            ColumnVotes(said.level_log_probabilities, said.centres_mm, said.anchors),
            true_codes(facts[name], finding_of_votes(said)),
        )
        for name, said in votes.items()
        if len(said.centres_mm)
    ]
    return round(fit_temperature(*map(list, zip(*known))), 3) if known else 1.0


def expect_unseen(labelling: Path) -> None:
    """Raise a `ValueError` if a labelling network was trained with a real scan."""
    for case in load_settings(labelling).get("training_cases", ()):
        if any(fnmatch.fnmatchcase(case, pattern) for pattern in REAL):
            raise ValueError(f"{labelling}: expected a network that saw no real scan, found {case}.")


def write_temperature(directory: Path, temperature: float) -> None:
    """Write a temperature into the settings of a network; all else stays.

    Raises
    ------
    ValueError
        If the directory has no settings.
    """
    settings = {**load_settings(directory), "temperature": temperature}
    write_text_whole(directory / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")


# The whole -----------------------------------------------------------------------------------------


def run(plan: LeaveOneOut, *, pictures: Path | None = None) -> str:
    """Leave every patient out once, and give the tables.

    Parameters
    ----------
    plan : LeaveOneOut
        What, and where.
    pictures : Path, optional
        Folder that receives a picture a scan and table.

    Returns
    -------
    str
        Markdown.

    Raises
    ------
    ValueError
        If there are not two patients, a network is missing, or one was made in another way; if the labelling
        network saw a real scan.
    SystemExit
        If a training or an inference fails.
    """
    if len(plan.folds) < 2:
        raise ValueError(f"{plan.shared}: expected scans of two patients or more, found {len(plan.folds)}.")
    expect_unseen(plan.labelling)
    without_spine = [name for name, facts in plan.facts.items() if not facts.points_mm]
    seen_by = {**{fold: fold.scans for fold in plan.folds}, EVERYBODY: tuple(without_spine)}
    for fold in seen_by:
        train_fold(plan, fold)
    votes = {fold: held_out_votes(plan, fold, names) for fold, names in seen_by.items()}
    temperatures = fitted_temperatures(plan, votes)
    findings: tuple[dict[str, Finding], ...] = ({}, {})
    for fold, names in seen_by.items():
        copy_model(plan.labelling, plan.labelling_of(fold))
        write_temperature(plan.labelling_of(fold), temperatures[fold])
        predict(plan, fold, names)
        for name in names:
            told = dataclasses.replace(votes[fold][name], temperature=temperatures[fold])
            findings[0][name] = finding_of_votes(told)
            findings[1][name] = read_prediction(plan.facts[name], plan.output / "predictions")
    write_temperature(plan.labelling, temperatures[EVERYBODY])
    titles = ("peaks left out", "predictions left out")
    tables = [report(found, plan.shared, what=w, pictures=pictures) for found, w in zip(findings, titles)]
    return "\n".join([*tables, temperature_table(temperatures)])


def fitted_temperatures(plan: LeaveOneOut, votes: Mapping[Fold, Mapping[str, Votes]]) -> dict[Fold, float]:
    """Fit the temperature of each fold on the scans of the other patients; that which is shipped, on all."""
    with_spine = {fold: said for fold, said in votes.items() if fold.scans}
    return {
        fold: temperature_of(
            {name: v for other, said in with_spine.items() if other != fold for name, v in said.items()},
            plan.facts,
        )
        for fold in votes
    }


def predict(plan: LeaveOneOut, fold: Fold, names: Sequence[str]) -> None:
    """Segment scans with the networks of a fold; what is there and was made with them is not made again."""
    found = ("--heatmap", plan.network(fold), "--labelling", plan.labelling_of(fold))
    networks = ("--segmentation", plan.segmentation, *found)
    scans = [plan.shared / plan.facts[name].ct for name in names]
    step = script("infer.py", *scans, *networks, "--output", plan.output / "predictions")
    run_steps([step] if scans else [], dry_run=False)


def temperature_table(temperatures: Mapping[Fold, float]) -> str:
    """Give the temperatures as a table in Markdown."""
    rows = [
        {"left out": ", ".join(fold.scans) or "nobody (shipped)", "temperature": temperature}
        for fold, temperature in temperatures.items()
    ]
    return f"## temperatures\n\n{markdown_table(pd.DataFrame(rows))}\n"


def plan_from_command_line(arguments: Sequence[str] | None = None) -> tuple[LeaveOneOut, Path | None]:
    """Read the command line: the plan, and the folder of the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder of the real scans")
    parser.add_argument("--work-dir", type=Path, default=Path("starter/work"), help="work folder")
    parser.add_argument("--base", default="heatmap-drawn", help="name of the network that saw no real scan")
    parser.add_argument("--final", default="heatmap", help="name of the network that sees every patient")
    for kind, more in (("segmentation", ""), ("labelling", ", which gets the temperature")):
        text = f"model directory{more}; that shipped"
        parser.add_argument(f"--{kind}", type=Path, default=STARTER_DIR / kind, help=text)
    parser.add_argument("--output", type=Path, help="folder of the results; WORK/leave-one-out")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of every training")
    parser.add_argument("--pictures", type=Path, help="folder that receives pictures")
    remainder = {"nargs": argparse.REMAINDER, "default": []}
    parser.add_argument("--options", **remainder, help="the last one: further options of the trainings")
    chosen = parser.parse_args(arguments)
    plan = LeaveOneOut(
        *(chosen.shared, chosen.work_dir, chosen.base, chosen.final, chosen.segmentation),
        labelling=chosen.labelling,
        output=chosen.output or chosen.work_dir / "leave-one-out",
        steps=chosen.steps,
        options=tuple(word for text in chosen.options for word in shlex.split(text)),
    )
    return plan, chosen.pictures


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and run; gives the exit status."""
    plan, pictures = plan_from_command_line(arguments)
    try:
        tables = run(plan, pictures=pictures)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(tables)
    write_text_whole(plan.output / "leave_one_out.md", tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
