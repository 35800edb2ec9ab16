"""The starter weights (preset `starter`), from generated spines and a few labelled scans.

Command python experiments/starter.py --data ../shared/data --options --precision bfloat16
        python experiments/starter.py --data ../shared/data --without chest     leaves a case out: a fold
        python experiments/starter.py --dry-run                                 prints the steps, does nothing
        nohup make starter > starter.log 2>&1 &                                 in the background
Time    about four hours on two CPU cores (AMD EPYC, bfloat16). In minutes of CPU time: heatmap 12 and 26,
        segmentation 70, 56, 27 and 12, labelling 22. A fold takes 38, and 83 more without a mask alone.
Result  three networks in FOLDER/shipped. On 40 generated spines that none has seen (--variants natural,
        --phantoms 0 0 40, --seed 978) they found 288 of 290 vertebrae, 3 false, with a mean Dice of .898
        matched by overlap and an identification rate of .948. Of three real CTs, each segmented by a fold
        that left it out, all 18 complete vertebrae were found, with a mean Dice of .808
        (models/starter/README.md).

Reads   every <name>_seg-vert_msk.nii.gz below DATA, with <name>_ct.nii.gz if there is one. The series sub-gl*
        are left out: their licence forbids derivatives.
Writes  FOLDER/data, FOLDER/work, FOLDER/shipped. Folds share FOLDER; what they leave out stands in their
        names.

The networks for generated spines go on, first with images drawn from masks and no real CT (segmentation
alone), then with real CTs too. The segmentation network that is shipped is an average of both. A labelling
network of its own sees more of the rare levels. A killed run goes on with the same command.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.phantoms import TRIALS
from experiments.steps import CopyModel, Step, run_steps, script
from utils.verse.cases import visible_files

MASK_END, CT_END = "_seg-vert_msk.nii.gz", "_ct.nii.gz"
FORBIDDEN = "sub-gl"

#: The networks for generated spines that the others begin with.
ON_PHANTOMS = TRIALS["train-small"]
#: Generated spines: series for training, validation and test, variants, seed.
NATURAL = (ON_PHANTOMS.spines, None, 0)
RARE_LEVELS = (
    ((48, 0, 0), "half", 3001),
    ((60, 0, 0), "rare", 3003),
    ((0, 15, 0), "half", 5005),
)

#: Options of the training on images drawn from masks: longer, and with the learning rate of the first stage.
DRAWN = "--epochs 60 --mixture 0.45 0 0.33 0.22 --learning-rate 2e-3 --final-learning-rate 1e-4 --seed 1"
#: Turned further, as the upper chest leans more than generated spines do.
TURNED = (
    "--epochs 28 --mixture 0.35 0 0.35 0.3 --learning-rate 1e-3 --final-learning-rate 1e-4 --seed 2 "
    "--augmentation.rotation-degrees 30"
)
#: Shares of *turned*, and of the network with real CTs, in the average that is shipped.
SHARES = (3, 1)


@dataclass(frozen=True)
class Recipe:
    """What is made, and where.

    Attributes
    ----------
    data : Path
        Folder with masks and CTs.
    folder : Path
        Folder that receives everything.
    without : tuple of str
        Names of cases that a fold leaves out.
    options : tuple of str
        Further options of the trainings after those on generated spines, the labelling network's apart. They
        must stay the same until these are done.
    natural, rare_levels
        Generated spines, as the constants of these names.
    more : mapping of str to tuple of str
        Last options of a training script, such as those of a trial of seconds.
    """

    data: Path = Path("../shared/data")
    folder: Path = Path("starter")
    without: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    natural: tuple = NATURAL
    rare_levels: tuple = RARE_LEVELS
    more: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class RealCase:
    """A mask below the data folder, with its CT if there is one."""

    name: str
    mask: Path
    ct: Path | None

    @property
    def key(self) -> str:
        """A name of its own, as phantoms are named like cases of VerSe: those with a CT are `sub-real-*`."""
        return f"sub-{'real' if self.ct else 'mask'}-{self.name.removeprefix('sub-')}"


def real_cases(data: Path) -> list[RealCase]:
    """Find the masks below a folder, and their CTs, sorted by name.

    Raises
    ------
    ValueError
        If there is none.
    """
    paths = list(visible_files(data))
    cts = {path.name.removesuffix(CT_END): path for path in paths if path.name.endswith(CT_END)}
    masks = {path.name.removesuffix(MASK_END): path for path in paths if path.name.endswith(MASK_END)}
    names = sorted(name for name in masks if not name.startswith(FORBIDDEN))
    if not names:
        raise ValueError(f"{data}: expected masks (*{MASK_END}), found none.")
    return [RealCase(name, masks[name], cts.get(name)) for name in names]


def data_steps(recipe: Recipe, cases: list[RealCase]) -> list[Step]:
    """Generate spines, add the labelled scans, and prepare all of them for both networks."""
    data = ("--data-dir", recipe.folder / "data")
    steps = []
    for counts, variants, seed in (recipe.natural, *recipe.rare_levels):
        looked_for = ("--variants", variants) if variants else ()
        what = ("--source", "phantom", *data, *looked_for, "--phantoms", *counts, "--seed", seed)
        steps.append(script("get_verse_data.py", *what))
    for case in cases:
        ct = ("--ct", case.ct) if case.ct else ()
        pair = ("--source", "pairs", "--mask", case.mask, *ct, "--key", case.key)
        steps.append(script("get_verse_data.py", *pair, *data))
    place = (*data, "--work-dir", recipe.folder / "work", "--preset", "starter")
    return [*steps, *(script(f"pre_processing_{stage}.py", *place) for stage in ("heatmap", "segmentation"))]


def training_steps(recipe: Recipe, cases: list[RealCase]) -> list[Step]:
    """Train the networks, each in a folder of its own, on the cases that it is to see."""
    left_out, masks_left_out = _left_out(recipe, cases)
    fold, drawn_fold = _suffix(left_out), _suffix(masks_left_out)
    natural_only = _rare_patterns(recipe)
    real = ["sub-real-*"] if any(case.ct for case in cases) else []
    masks = ["sub-mask-*"] if any(case.ct is None for case in cases) else []
    generated = [*real, *masks]
    models = recipe.folder / "work" / "models"

    def train(stage: str, name: str, preset: str, exclude: list[str], *options: object) -> Step:
        program = f"train_{stage}.py"
        place = ("--work-dir", recipe.folder / "work", "--name", name, "--preset", preset)
        excluded = ("--exclude", *exclude) if exclude else ()
        return script(program, *place, *excluded, *options, *recipe.more.get(program, ()))

    def go_on(stage: str, name: str, exclude: list[str], start: str, options: str = "") -> Step:
        more = ("--start-from", models / start, *options.split(), *recipe.options)
        return train(stage, name, "starter", exclude, *more)

    first = [*natural_only, *generated]
    drawn = f"segmentation-drawn{drawn_fold}"
    without_real = [*real, *(case.key for case in masks_left_out)]
    without = [case.key for case in left_out]
    return [
        train("heatmap", "heatmap-phantoms", "small", first, *ON_PHANTOMS.heatmap.split()),
        train("segmentation", "segmentation-phantoms", "small", first, *ON_PHANTOMS.segmentation.split()),
        train("labelling", "labelling", "small", generated),
        go_on("heatmap", f"heatmap{fold}", [*natural_only, *without], "heatmap-phantoms"),
        go_on("segmentation", drawn, without_real, "segmentation-phantoms", DRAWN),
        go_on("segmentation", f"segmentation-turned{drawn_fold}", without_real, drawn, TURNED),
        go_on("segmentation", f"segmentation-real{fold}", without, drawn),
    ]


def shipping_steps(recipe: Recipe, cases: list[RealCase]) -> list[Step]:
    """Leave what inference needs in `shipped`: the segmentation network is an average of two."""
    fold, drawn_fold = map(_suffix, _left_out(recipe, cases))
    models, shipped = recipe.folder / "work" / "models", recipe.folder / f"shipped{fold}"
    averaged = (models / f"segmentation-turned{drawn_fold}", models / f"segmentation-real{fold}")
    output = ("--shares", *SHARES, "--output", shipped / "segmentation")
    return [
        CopyModel(models / f"heatmap{fold}", shipped / "heatmap"),
        CopyModel(models / "labelling", shipped / "labelling"),
        script("experiments/average.py", *averaged, *output),
    ]


def all_steps(recipe: Recipe) -> list[Step]:
    """Give the steps of the recipe in their order.

    Raises
    ------
    ValueError
        If there is no mask, or no case of a name that is to be left out.
    """
    cases = real_cases(recipe.data)
    unknown = sorted(set(recipe.without) - {case.name for case in cases})
    if unknown:
        names = ", ".join(case.name for case in cases)
        raise ValueError(
            f"--without: expected names of cases below {recipe.data} ({names}), found no "
            f"{', no '.join(unknown)}."
        )
    return [*data_steps(recipe, cases), *training_steps(recipe, cases), *shipping_steps(recipe, cases)]


def _left_out(recipe: Recipe, cases: list[RealCase]) -> tuple[list[RealCase], list[RealCase]]:
    """Give the cases that a fold leaves out, and those of them that are a mask alone."""
    left_out = [case for case in cases if case.name in recipe.without]
    return left_out, [case for case in left_out if case.ct is None]


def _suffix(left_out: list[RealCase]) -> str:
    return "-without" + "".join(f"-{case.name}" for case in left_out) if left_out else ""


def _rare_patterns(recipe: Recipe) -> list[str]:
    variants = dict.fromkeys(variants for _, variants, _ in recipe.rare_levels)
    return [f"sub-{name}*" for name in variants]


def recipe_from_command_line(arguments: list[str] | None = None) -> tuple[Recipe, bool]:
    """Read the command line: the recipe, and whether this is a dry run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Recipe.data, help="folder with masks and CTs")
    parser.add_argument("--folder", type=Path, default=Recipe.folder, help="folder that receives everything")
    parser.add_argument("--without", nargs="+", default=(), help="names of cases that a fold leaves out")
    parser.add_argument("--dry-run", action="store_true", help="print the steps, do nothing")
    parser.add_argument(
        "--options",
        nargs=argparse.REMAINDER,
        default=[],
        help="the last one: further options of the trainings after those on generated spines",
    )
    chosen = parser.parse_args(arguments)
    options = tuple(word for text in chosen.options for word in shlex.split(text))
    recipe = Recipe(chosen.data, chosen.folder, without=tuple(chosen.without), options=options)
    return recipe, chosen.dry_run


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
    sys.exit(main(chosen_recipe, dry_run=is_dry_run))
