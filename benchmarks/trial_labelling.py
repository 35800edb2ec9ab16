"""Trial of the anatomical labels on held-out phantoms: identification, second sequences, calibration.

Labels phantoms looked for their levels (L6, T13, T12 absent, none), of which every other one ends at C1 or at
the sacrum (`get_verse_data.py --source phantom --variants natural --phantoms 0 0 40 --seed 978` writes them
too).

Reads   WORK/models/labelling (from train_labelling.py), with --predictions masks from infer.py
Writes  DATA, a VerSe tree; what is there already is kept

    python -m benchmarks.trial_labelling --data heldout --cases 40 --seed 978 --work-dir work

Takes about a minute and a half on two cores, and four to generate. With the preset small (32,000 patches of
60 phantoms, 48 with --variants half and 60 with --variants rare; 22 minutes of CPU time) it measures on
variants about as often as in VerSe (seed 978):

- with --predictions (networks of the preset small, trained on 60 phantoms) an identification rate of .942 in
  25 cases with C1/C2, the last rib or the sacrum in view; elsewhere the truth among the first two sequences
  in 15 of 15; expected calibration errors of .098 (sequences) and .055 (labels). Vertebrae that the reference
  leaves out, as the scan cuts them, do not count. What is left: where the walk takes two vertebrae for one or
  cuts one in two, no count over those is right.
- The temperature is 2.12, fitted on what those networks predict in cut validation scans. Fitted on reference
  masks, disturbed by hand as predictions are, it was 1.26, and the errors were .134 and .076.

With half of the patches, and 9,600 of them of natural and half-rare phantoms alone, it was .922, 14 of 15
and .054 (reference masks), and .892, 14 of 15 and .104 (predictions). On a set with a rare variant in every
second case (--variants half, seed 977; that first network) it was .774 in 31 cases, 9 of 9, and .154: none of
the nine with T13 or a missing T12 was found, since their lowest rib looks like T12's and C1 to count from is
not in view.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.imaging.nifti import read_ct, read_mask
from utils.localisation.identify import Identification, names_of
from utils.prediction.derivatives import MASK_SUFFIX, case_path
from utils.prediction.levels import Levels, identify_vertebrae, load_levels, numbers_from_the_top
from utils.synthetic.phantom.variants import VARIANTS
from utils.synthetic.phantom.write import write_phantom_data_set
from utils.verse.cases import Case, index_cases


@dataclass(frozen=True)
class Answer:
    """What was found for one case."""

    key: str
    truth: tuple[int, ...]
    found: Identification

    @property
    def anchors(self) -> list[str]:
        """What of the anchors the field of view shows, by the truth."""
        names = set(names_of(self.truth))
        lowest = next(name for name in ("T13", "T12", "T11", "-") if name in names or name == "-")
        seen = {
            "C1/C2": names & {"C1", "C2"},
            "last rib": {lowest, "L1"} <= names,
            "sacrum": names & {"L5", "L6"},
        }
        return [name for name, is_seen in seen.items() if is_seen]

    @property
    def right(self) -> list[bool]:
        """Whether each vertebra that the reference has bears its label."""
        return [code == true for code, true in zip(self.found.codes, self.truth) if true]

    def agrees(self, codes: tuple[int, ...]) -> bool:
        """Whether a sequence is right; what the reference leaves out, as the scan cuts it, does not count."""
        return bool(codes) and all(code == true for code, true in zip(codes, self.truth) if true)


def true_codes(mask: np.ndarray, reference: np.ndarray, numbers: list[int]) -> tuple[int, ...]:
    """Give the reference label that most of each vertebra of a mask lies in; 0 where most has none."""
    return tuple(int(np.bincount(reference[mask == number]).argmax()) for number in numbers)


def answer(case: Case, predictions: Path | None, levels: Levels) -> Answer:
    """Label one case: its reference mask, or what was predicted for it."""
    ct, reference = read_ct(case.ct), read_mask(case.mask)
    mask = reference if predictions is None else read_mask(case_path(predictions, case.key, MASK_SUFFIX))
    numbers = numbers_from_the_top(mask)
    found = identify_vertebrae(ct, mask, numbers, levels=levels, fixed={})
    return Answer(case.key, true_codes(mask.data, reference.data, numbers), found)


def calibration_error(probabilities: np.ndarray, right: np.ndarray, bins: int = 5) -> float:
    """Give the expected calibration error: |share right - mean probability| over bins of equal width."""
    places = np.minimum((probabilities * bins).astype(int), bins - 1)
    parts = [(places == k) for k in range(bins) if (places == k).any()]
    return float(sum(part.mean() * abs(right[part].mean() - probabilities[part].mean()) for part in parts))


def line_of(item: Answer) -> str:
    """Give one line of the table."""
    truth, found = names_of([code for code in item.truth if code]), item.found
    place = "1st" if item.agrees(found.codes) else "2nd" if item.agrees(found.second_codes) else "-"
    cells = [
        f"{truth[0]}-{truth[-1]}",
        f"{found.names[0]}-{found.names[-1]}",
        f"{sum(item.right)}/{len(truth)}",
    ]
    cells += [place, f"{found.sequence_probability:.2f}", f"{found.second_probability:.2f}"]
    return (
        f"{item.key:18}"
        + "".join(f"{cell:>9}" for cell in cells)
        + f"  {','.join(item.anchors)}|{found.anchor}"
    )


def report(answers: list[Answer]) -> None:
    """Print the cases and what the project asks for."""
    titles = ("truth", "found", "right", "place", "p first", "p second")
    print(f"{'case':18}" + "".join(f"{title:>9}" for title in titles) + "  in view|anchor")
    for item in answers:
        print(line_of(item))
    anchored = [item for item in answers if item.anchors]
    elsewhere = [item for item in answers if not item.anchors]
    for name in ("C1/C2", "last rib", "sacrum"):
        labels = [right for item in anchored if name in item.anchors for right in item.right]
        print(f"identification rate, {name} in view: {np.mean(labels):.3f} of {len(labels)} vertebrae")
    labels = [right for item in anchored for right in item.right]
    print(
        f"identification rate, any of them: {np.mean(labels):.3f} of {len(labels)} in {len(anchored)} cases"
    )
    second = [item.agrees(item.found.codes) or item.agrees(item.found.second_codes) for item in elsewhere]
    print(f"truth among the first two elsewhere: {np.mean(second):.3f} of {len(second)} cases")
    first = np.array([item.agrees(item.found.codes) for item in answers])
    sure = np.array([item.found.sequence_probability for item in answers])
    print(f"sequences right: {first.mean():.3f}, mean probability {sure.mean():.3f}")
    print(f"expected calibration error of sequences: {calibration_error(sure, first):.3f}")
    right = np.array([right for item in answers for right in item.right])
    sure = [p for item in answers for p, true in zip(item.found.probabilities, item.truth) if true]
    sure = np.array(sure)
    print(f"expected calibration error of labels: {calibration_error(sure, right):.3f}")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the phantoms")
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--seed", type=int, default=978)
    parser.add_argument("--variants", choices=sorted(VARIANTS), default="natural")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work-dir", type=Path, default=Path("work"))
    parser.add_argument("--predictions", type=Path, help="label these masks of infer.py, not the references")
    return parser.parse_args()


def main() -> int:
    """Generate, label, print."""
    options = arguments()
    how = {"seed": options.seed, "variants": options.variants, "workers": options.workers}
    made = set(write_phantom_data_set(options.data, (0, 0, options.cases), **how))
    cases = [case for case in index_cases(options.data) if case.ct in made]
    levels = load_levels(options.work_dir / "models" / "labelling")
    answers = [answer(case, options.predictions, levels) for case in tqdm(cases, desc="labels", unit="scan")]
    report([item for item in answers if any(item.truth)])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
