"""The starter weights (preset `starter`), from drawn scans, generated spines and a few real scans.

Command python experiments/starter.py --shared ../shared --options --precision bfloat16
        python experiments/starter.py --shared ../shared --without chest_ct     leaves a patient out: a fold
        python experiments/starter.py --trained models/starter --without chest_ct     a fold, in an hour
        python experiments/starter.py --dry-run                                 prints the steps, does nothing
        nohup make starter > starter.log 2>&1 &                                 in the background
Time    on two CPU cores (bfloat16), in minutes of wall time: heatmap some 150, as it came about in pieces;
        labelling 55 on one of the cores; the base of the segmentation 70 (float32, without AVX-512); what
        follows it on a slow processor of 2017, in float32: outlined 17, real and again 15 each, and so a
        fold 30 (56 minutes of CPU); besides some 15 for their data
Result  four networks in FOLDER/shipped

Reads   SHARED, as experiments/real/centres.json names the scans in it, and the masks in SHARED/data that have
        no CT. The series sub-gl* are left out: their licence forbids derivatives.
Writes  FOLDER/data and FOLDER/work (generated), and with real scans FOLDER/data-masks; FOLDER/labels-first,
        FOLDER/data-labels-first, FOLDER/work-outlined; FOLDER/labels, FOLDER/data-labels, FOLDER/work-real;
        FOLDER/shipped. Folds share all but the networks that have learned from scans with a mask, in whose
        names stands what they leave out; a scan without a mask that is left out stands in the names of all
        that follow it too.

Heatmap and labelling network learn from drawn scans and generated spines alone, so that every real scan is a
test of them; how far the levels may be trusted is fitted on drawn scans held out. So does the base of the
segmentation network. It outlines the real scans that have no mask (experiments/real/label.py), with the
corrections that are written down, and goes on with these: *outlined*. That outlines them once more, corrected
again, and goes on with these, with the scans that have a mask, and with trunks drawn from the organs of one
of them: *real*. The average of *base*, *outlined* and *real* goes on with the same scans: *again*; the
average of that and of what it began with is shipped. Held-out generated vertebrae liked averages better than
what they are made of. A fold leaves a patient out of all that; *outlined* has seen none of those with a mask,
so one is enough for all of their folds. A killed run goes on with the same command.

The base might find nothing for ever: by Adam and with another seed its accuracy still stood at .07 after six
epochs, where .52 is usual after two (history.csv); then start it again with another seed.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.real.facts import read_facts
from experiments.real.label import CORRECTIONS, case_key
from experiments.real.masks import reference_of
from experiments.steps import Step, run_steps, script
from utils.command_line import ended_in_a_line
from utils.preparation.prepared import PREPARED_SPLITS, spacing_folder
from utils.presets import preset_settings
from utils.settings import HeatmapTrainingSettings
from utils.verse.cases import visible_files

#: Corrections of the outlines of the base; those of the outlines of *outlined* lie above.
FIRST_CORRECTIONS = CORRECTIONS / "first"
MASK_END, CT_END = "_seg-vert_msk.nii.gz", "_ct.nii.gz"
FORBIDDEN = "sub-gl"

#: Scans that are drawn for heatmap and labelling network, for training and validation.
DRAWN_SCANS = (1500, 40)
SPACING_MM = preset_settings(HeatmapTrainingSettings, "starter").spacing_mm
#: Shares of generated spines and of drawn scans, for both networks.
SHARES = "--origins 0.2 0.8 0"
#: In bfloat16 the heatmap network's loss was no number after a while.
HEATMAP = "--precision float32"
#: The labelling network's trainings, by the name of its folder; each goes on from the one before.
LABELLING = {
    "labelling-first": "--epochs 40",
    "labelling": "--epochs 60 --final-learning-rate 3e-5 --seed 1",
}
#: Networks of `Recipe.models` that are shipped: those that find and name, and the base of the segmentation,
#: from which folds and trainings on scans of one's own go on.
LOCALISATION = ("heatmap", "labelling")
BASE_NAME = "segmentation-base"

#: Generated spines: series for training, validation and test, variants, ranges, seed.
SPINES = (
    ((70, 10, 0), "natural", "wide", 6101),
    ((40, 6, 0), "natural", "usual", 6103),
    ((20, 0, 0), "rare", "wide", 6105),
    ((30, 0, 0), "natural", "old", 6107),
)
#: Trunks drawn from the organs of a real scan, and its name. Few: with twenty of them three in a hundred
#: patches showed a real CT, and the network fitted those that it trained on no better than others.
TRUNKS, TRUNK_SCAN = 4, "chest_ct"
#: Options of the base, on generated spines and images drawn from their masks; of what goes on from it on
#: scans that it has outlined; and of what goes on from that on these and on scans that have a mask.
BASE = "--epochs 38 --mixture 0.45 0 0.55 0 --learning-rate 2e-3 --final-learning-rate 1e-4 --seed 5"
OUTLINED = "--epochs 4 --learning-rate 2e-3 --final-learning-rate 2e-4 --seed 2"
REAL = "--epochs 4 --seed 3"
#: What goes on from the average of these three, by a lower rate: 2e-3 undid what averaging had brought.
AGAIN = "--epochs 4 --learning-rate 5e-4 --seed 4"


@dataclass(frozen=True)
class Recipe:
    """What is made, and where.

    Attributes
    ----------
    shared : Path
        Folder of the real scans.
    folder : Path
        Folder that receives everything.
    without : tuple of str
        Names of scans, as in `centres.json`, whose patients a fold leaves out.
    options : tuple of str
        Further options of all trainings. They must stay the same until these are done.
    spines
        Generated spines, as `SPINES`.
    drawn
        Numbers of drawn scans, as `DRAWN_SCANS`.
    trunks
        Number of drawn trunks, as `TRUNKS`.
    trained : Path, optional
        Folder with the networks that saw no real scan, if they are trained already: all folds share them.
    more : mapping of str to tuple of str
        Last options of a training script, such as those of a trial of seconds.
    """

    shared: Path = Path("../shared")
    folder: Path = Path("starter")
    without: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    spines: tuple = SPINES
    drawn: tuple[int, int] = DRAWN_SCANS
    trunks: int = TRUNKS
    trained: Path | None = None
    more: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def models(self) -> Path:
        """Folder of the networks that saw no real scan."""
        return self.trained or self.folder / "work" / "models"

    def own(self, name: str, *, sees_masks: bool = True) -> str:
        """Give the name of what depends on the scans that are left out; on those without a mask alone."""
        facts = read_facts()
        left_out = [each for each in sorted(self.without) if sees_masks or reference_of(facts[each]) is None]
        return "-".join([name, *(["without"] if left_out else []), *left_out])

    def outlined(self, name: str) -> Path:
        """Give a folder of what is made of scans that have no mask."""
        return self.folder / self.own(name, sees_masks=False)


def masks_alone(shared: Path) -> dict[str, Path]:
    """Find the masks that have no CT, by the key of their case, sorted.

    Parameters
    ----------
    shared : Path
        Folder of the real scans; masks are looked for below its `data`.

    Returns
    -------
    dict of str to Path
    """
    paths = list(visible_files(shared / "data"))
    with_ct = {path.name.removesuffix(CT_END) for path in paths if path.name.endswith(CT_END)}
    masks = {path.name.removesuffix(MASK_END): path for path in paths if path.name.endswith(MASK_END)}
    names = sorted(name for name in masks.keys() - with_ct if not name.startswith(FORBIDDEN))
    return {f"sub-mask-{name.removeprefix('sub-')}": masks[name] for name in names}


def spine_steps(recipe: Recipe) -> list[Step]:
    """Generate spines."""
    steps = []
    for counts, variants, ranges, seed in recipe.spines:
        kind = ("--variants", variants, "--ranges", ranges)
        what = ("--data-dir", recipe.folder / "data", *kind, "--phantoms", *counts, "--seed", seed)
        steps.append(script("get_verse_data.py", "--source", "phantom", *what))
    return steps


def data_steps(recipe: Recipe) -> list[Step]:
    """Generate spines, and prepare them; take in scans and masks that are labelled, and draw trunks."""
    data, masks = (("--data-dir", recipe.folder / name) for name in ("data", "data-masks"))
    steps, shared = spine_steps(recipe), ("--shared", recipe.shared)
    for key, mask in masks_alone(recipe.shared).items():
        steps.append(script("get_verse_data.py", "--source", "pairs", "--mask", mask, "--key", key, *masks))
    work = ("--work-dir", recipe.folder / "work", "--preset", "starter")
    drawn = script("pre_processing_heatmap.py", *data, *work, "--drawn", *recipe.drawn)
    return [
        *steps,
        script("experiments/real/trunks.py", *shared, *masks, "--count", recipe.trunks),
        script("experiments/real/label.py", "add", *shared, *masks),
        *([] if recipe.trained else [drawn, *preparation_steps(recipe.folder / "work", data[1])]),
    ]


def localisation_steps(recipe: Recipe) -> list[Step]:
    """Train heatmap and labelling network, and fit how far the levels may be trusted."""
    trainings = [training_step(recipe, recipe.models / "heatmap", *SHARES.split(), *HEATMAP.split())]
    start = ()
    for name, own in LABELLING.items():
        model = recipe.models / name
        trainings.append(training_step(recipe, model, *start, *SHARES.split(), *own.split()))
        start = ("--start-from", model)
    held_out = spacing_folder(recipe.folder / "work", "heatmap", SPACING_MM) / PREPARED_SPLITS[1]
    networks = [recipe.models / name for name in LOCALISATION]
    return [*trainings, script("experiments/fit_temperature.py", *networks, held_out)]


def segmentation_steps(recipe: Recipe) -> list[Step]:
    """Train the base, go on with scans that it outlines, outline them again, go on with all; average."""
    data, base = recipe.folder / "data", recipe.models / BASE_NAME
    outlined = recipe.outlined("work-outlined") / "models" / "segmentation-outlined"
    real, so_far, again, average = (
        _of_masks(recipe, name) for name in ("real", "so-far", "again", "average")
    )
    without = _left_out(recipe, sees_masks=True)
    first, labels = recipe.outlined("data-labels-first"), recipe.outlined("data-labels")
    return [
        *([] if recipe.trained else [training_step(recipe, base, *BASE.split())]),
        *outlining_steps(recipe, base, first, "--corrections", FIRST_CORRECTIONS),
        *preparation_steps(outlined.parents[1], data, first),
        training_step(
            recipe, outlined, *_left_out(recipe, sees_masks=False), "--start-from", base, *OUTLINED.split()
        ),
        *outlining_steps(recipe, outlined, labels),
        *preparation_steps(real.parents[1], data, recipe.folder / "data-masks", labels),
        training_step(recipe, real, *without, "--start-from", outlined, *REAL.split()),
        script("experiments/average.py", real, outlined, base, "--output", so_far),
        training_step(recipe, again, *without, "--start-from", so_far, *AGAIN.split()),
        script("experiments/average.py", again, so_far, "--output", average),
    ]


def outlining_steps(recipe: Recipe, network: Path, data: Path, *corrections: object) -> list[Step]:
    """Outline the scans that have no mask, correct the outlines, and make training cases of them."""
    outlines = data.with_name(data.name.removeprefix("data-"))
    label, shared = "experiments/real/label.py", ("--shared", recipe.shared)
    return [
        script(label, "predict", *shared, "--segmentation", network, "--output", outlines),
        script(label, "add", *shared, "--labels", outlines, *corrections, "--data-dir", data),
    ]


def shipping_steps(recipe: Recipe) -> list[Step]:
    """Leave what inference needs in `shipped`."""
    alike = (*LOCALISATION, BASE_NAME)
    networks = {name: recipe.models / name for name in alike}
    networks["segmentation"] = _of_masks(recipe, "average")
    shipped = recipe.folder / recipe.own("shipped")
    return [
        script("experiments/compact.py", network, "--output", shipped / name)
        for name, network in networks.items()
    ]


def all_steps(recipe: Recipe) -> list[Step]:
    """Give the steps of the recipe in their order.

    Raises
    ------
    ValueError
        If there is no scan of a name that is to be left out.
    """
    left_out_keys(recipe)
    return [
        *data_steps(recipe),
        *([] if recipe.trained else localisation_steps(recipe)),
        *segmentation_steps(recipe),
        *shipping_steps(recipe),
    ]


def left_out_keys(recipe: Recipe) -> list[str]:
    """Give the cases that a fold leaves out: all scans of its patients, and what is drawn from them.

    Raises
    ------
    ValueError
        If a scan is not known.
    """
    facts = read_facts()
    unknown = sorted(set(recipe.without) - set(facts))
    if unknown:
        names = ", ".join(facts)
        raise ValueError(f"--without: expected names of scans ({names}), found no {', no '.join(unknown)}.")
    patients = {facts[name].patient for name in recipe.without}
    scans = [name for name, scan in facts.items() if scan.patient in patients]
    trunks = ["sub-trunk*"] if TRUNK_SCAN in scans else []
    return [*(case_key(name) for name in scans), *trunks]


def preparation_steps(work: Path, *data: Path) -> list[Step]:
    """Prepare data sets for the segmentation; masks without a CT serve for images drawn from them."""
    place = ("--work-dir", work, "--preset", "starter")
    return [script("pre_processing_segmentation.py", "--data-dir", folder, *place) for folder in data]


def _of_masks(recipe: Recipe, name: str) -> Path:
    return recipe.outlined("work-real") / "models" / recipe.own(f"segmentation-{name}")


def _left_out(recipe: Recipe, *, sees_masks: bool) -> tuple:
    """Give what leaves out the cases that a training may not see; a scan has a mask, or is outlined."""
    outlined = {case_key(name) for name, scan in read_facts().items() if reference_of(scan) is None}
    there = [key for key in left_out_keys(recipe) if sees_masks or key in outlined]
    return ("--exclude", *there) if there else ()


def training_step(recipe: Recipe, model: Path, *options: object) -> Step:
    """Train a model, whose name begins with that of its stage, in its folder."""
    program = f"train_{model.name.partition('-')[0]}.py"
    place = ("--work-dir", model.parents[1], "--name", model.name, "--preset", "starter")
    return script(program, *place, *recipe.options, *options, *recipe.more.get(program, ()))


def recipe_from_command_line(arguments: list[str] | None = None) -> tuple[Recipe, bool]:
    """Read the command line: the recipe, and whether this is a dry run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, default=Recipe.shared, help="folder of the real scans")
    parser.add_argument("--folder", type=Path, default=Recipe.folder, help="folder that receives everything")
    parser.add_argument("--without", nargs="+", default=(), help="scans whose patients a fold leaves out")
    parser.add_argument(
        "--trained", type=Path, help="folder with the networks that saw no real scan, such as models/starter"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the steps, do nothing")
    parser.add_argument(
        "--options",
        nargs=argparse.REMAINDER,
        default=[],
        help="the last one: further options of the trainings",
    )
    chosen = parser.parse_args(arguments)
    options = tuple(word for text in chosen.options for word in shlex.split(text))
    kept = {"without": tuple(chosen.without), "options": options, "trained": chosen.trained}
    return Recipe(chosen.shared, chosen.folder, **kept), chosen.dry_run


def main(recipe: Recipe, *, dry_run: bool = False) -> int:
    """Run the recipe, and give the exit status."""
    try:
        run_steps(all_steps(recipe), dry_run=dry_run)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    chosen_recipe, is_dry_run = recipe_from_command_line()
    sys.exit(ended_in_a_line(lambda: main(chosen_recipe, dry_run=is_dry_run)))
