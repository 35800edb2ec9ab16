"""Fit how far the levels that a labelling network reads may be trusted, on scans held out of its training.

Command python experiments/fit_temperature.py MODELS/heatmap MODELS/labelling HEATMAP/3mm/validation
        python experiments/fit_temperature.py HEATMAP LABELLING FOLDER --keys "real-*" --also STAGE
Time    a minute on two CPU cores for 40 scans
Result  the temperature stands in the settings of the labelling network, and is printed with the share of
        scans whose true sequence is among those stated with 95 %

Reads   model directories of train_heatmap.py and train_labelling.py, and prepared scans
Writes  the temperature into the settings of the labelling network; all else stays

On few scans one network is right or wrong by chance. What others say of them, such as those of earlier stages
of the training (--also), is fitted with it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from experiments.fit_chain import HeldOut, body_of, candidates_of
from utils.files import write_text_whole
from utils.localisation.chain import Column, Votes, chain_of, sacrum_below
from utils.localisation.evidence import ColumnVotes
from utils.localisation.identify import number_column
from utils.localisation.temperature import fit_temperature
from utils.settings import SETTINGS_FILE, load_settings


def votes_and_truths(scans: Iterable[HeldOut]) -> tuple[list[Votes], list[list[int]]]:
    """Give what is said of the column of each scan, and the true codes of what was found, 0 for no vertebra.

    Left out are scans without a vertebra, and vertebrae whose truth is not known (`HeldOut.hidden_mm`).
    """
    votes, truths = [], []
    for scan in scans:
        chain = chain_of(scan.candidates)
        said = Column(chain, sacrum_below(chain, scan.sacra)).votes(1.0)
        bodies = body_of(said.centres_mm, scan.bodies_mm)
        _, is_false = scan.marks(said.centres_mm)
        if len(bodies) and np.all((bodies >= 0) | is_false):
            votes.append(said)
            truths.append([scan.codes[place] if place >= 0 else 0 for place in bodies])
    return votes, truths


def fitted_temperature(votes: list[Votes], truths: list[list[int]]) -> float:
    """Give the temperature under which the true sequences are the most probable, to three decimals."""
    columns = [ColumnVotes(said.level_log_probabilities, said.centres_mm, said.anchors) for said in votes]
    return round(fit_temperature(columns, truths), 3)


def coverage(votes: list[Votes], truths: list[list[int]], temperature: float) -> tuple[float, float]:
    """Give the share of columns whose true sequence is among those stated, and how many are stated."""
    told = (number_column(dataclasses.replace(said, temperature=temperature)) for said in votes)
    sets = [[list(codes) for codes, _ in each.sequence_set] for each in told]
    holds = [truth in each for each, truth in zip(sets, truths)]
    return float(np.mean(holds)), float(np.mean([*map(len, sets)]))


def write_temperature(directory: Path, temperature: float) -> None:
    """Write a temperature into the settings of a network; all else stays.

    Raises
    ------
    ValueError
        If the directory has no settings.
    """
    settings = {**load_settings(directory), "temperature": temperature}
    write_text_whole(directory / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")


def main(heatmap: Path, labelling: Path, folder: Path, *, keys: str, also: Sequence[Path]) -> None:
    """Fit, write and print; networks that have learned too little to see a vertebra keep what they have."""
    scans = (scan for each in (labelling, *also) for scan in candidates_of(heatmap, each, folder, keys=keys))
    votes, truths = votes_and_truths(scans)
    if not votes:
        print(f"{labelling}: the temperature stays; in no held-out scan of {folder} was a vertebra seen.")
        return
    temperature = fitted_temperature(votes, truths)
    write_temperature(labelling, temperature)
    share, size = coverage(votes, truths, temperature)
    print(f"{labelling}: temperature {temperature:g}.")
    print(f"Of {len(votes)} readings {share:.0%} have the truth in their set, of {size:.1f} on average.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("heatmap", type=Path, help="model directory")
    parser.add_argument("labelling", type=Path, help="model directory, which receives the temperature")
    parser.add_argument("folder", type=Path, help="prepared scans")
    parser.add_argument("--keys", default="*", help="pattern of the scans that count")
    parser.add_argument("--also", type=Path, nargs="+", default=(), help="further labelling networks")
    chosen = parser.parse_args()
    main(chosen.heatmap, chosen.labelling, chosen.folder, keys=chosen.keys, also=chosen.also)
