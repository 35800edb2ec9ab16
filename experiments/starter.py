"""The starter weights (preset `starter`), from drawn scans, generated spines and a few real scans.

Command python experiments/starter.py --data ../shared/data --options --precision bfloat16
        python experiments/starter.py --data ../shared/data --without chest     leaves a patient out: a fold
        python experiments/starter.py --dry-run                                 prints the steps, does nothing
        nohup make starter > starter.log 2>&1 &                                 in the background
Time    about nine hours on two CPU cores (AMD EPYC, bfloat16). In minutes of CPU time: segmentation 70, 56,
        27 and 12; heatmap some 300 and labelling some 90, as they came about in pieces
        (models/starter/README.md)
Result  three networks in FOLDER/shipped

Reads   every <name>_seg-vert_msk.nii.gz below DATA, with <name>_ct.nii.gz if there is one, for the
        segmentation. The series sub-gl* are left out: their licence forbids derivatives.
Writes  FOLDER/data, FOLDER/work, FOLDER/shipped. Folds share FOLDER; what they leave out stands in their
        names.

Heatmap and labelling network learn from drawn scans and generated spines alone, so that every real scan is a
test of them; how far the levels may be trusted is fitted on drawn scans held out. The segmentation network of
generated spines goes on, first with images drawn from masks and no real CT, then with real CTs too; what is
shipped is an average of both. A killed run goes on with the same command.
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
from utils.preparation.prepared import PREPARED_SPLITS, spacing_folder
from utils.presets import preset_settings
from utils.settings import HeatmapTrainingSettings
from utils.verse.cases import visible_files

MASK_END, CT_END = "_seg-vert_msk.nii.gz", "_ct.nii.gz"
FORBIDDEN = "sub-gl"

#: Scans that are drawn for heatmap and labelling network, for training and validation.
DRAWN_SCANS = (1500, 40)
SPACING_MM = preset_settings(HeatmapTrainingSettings, "starter").spacing_mm
#: Networks that learn from them, by stage, with the last of their options: shares of generated spines and of
#: drawn scans. In bfloat16 the heatmap network's loss was no number after a while.
ON_DRAWN = {
    "heatmap": "--origins 0.2 0.8 0 --precision float32",
    "labelling": "--origins 0.2 0.8 0",
}

#: The segmentation network for generated spines that the others begin with.
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
        Further options of all trainings but that of the segmentation network on generated spines. They must
        stay the same until these are done.
    natural, rare_levels
        Generated spines, as the constants of these names.
    drawn
        Numbers of drawn scans, as `DRAWN_SCANS`.
    more : mapping of str to tuple of str
        Last options of a training script, such as those of a trial of seconds.
    """

    data: Path = Path("../shared/data")
    folder: Path = Path("starter")
    without: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    natural: tuple = NATURAL
    rare_levels: tuple = RARE_LEVELS
    drawn: tuple[int, int] = DRAWN_SCANS
    more: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def models(self) -> Path:
        """Folder of the trained networks."""
        return self.folder / "work" / "models"


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
    """Generate spines, add the labelled scans, and prepare all that either network learns from."""
    data, work = ("--data-dir", recipe.folder / "data"), ("--work-dir", recipe.folder / "work")
    steps = []
    for counts, variants, seed in (recipe.natural, *recipe.rare_levels):
        looked_for = ("--variants", variants) if variants else ()
        what = ("--source", "phantom", *data, *looked_for, "--phantoms", *counts, "--seed", seed)
        steps.append(script("get_verse_data.py", *what))
    for case in cases:
        ct = ("--ct", case.ct) if case.ct else ()
        pair = ("--source", "pairs", "--mask", case.mask, *ct, "--key", case.key)
        steps.append(script("get_verse_data.py", *pair, *data))
    place = (*data, *work, "--preset", "starter")
    steps.append(script("pre_processing_heatmap.py", *place, "--drawn", *recipe.drawn))
    return [*steps, script("pre_processing_segmentation.py", *place)]


def localisation_steps(recipe: Recipe, cases: list[RealCase]) -> list[Step]:
    """Train heatmap and labelling network, and fit how far the levels may be trusted."""
    # Of the prepared cases these are for the segmentation alone.
    left_out = [*_rare_patterns(recipe), *(["sub-real-*"] if any(case.ct for case in cases) else [])]
    trainings = [
        _training(recipe, name, name, "starter", left_out, *recipe.options, *last.split())
        for name, last in ON_DRAWN.items()
    ]
    held_out = spacing_folder(recipe.folder / "work", "heatmap", SPACING_MM) / PREPARED_SPLITS[1]
    networks = [recipe.models / name for name in ON_DRAWN]
    return [*trainings, script("experiments/fit_temperature.py", *networks, held_out)]


def segmentation_steps(recipe: Recipe, cases: list[RealCase]) -> list[Step]:
    """Train the segmentation network in its stages, each in a folder of its own."""
    left_out, masks_left_out = _left_out(recipe, cases)
    fold, drawn_fold = _suffix(left_out), _suffix(masks_left_out)
    real = ["sub-real-*"] if any(case.ct for case in cases) else []
    masks = ["sub-mask-*"] if any(case.ct is None for case in cases) else []
    without_real = [*real, *(case.key for case in masks_left_out)]

    def go_on(name: str, exclude: list[str], start: str, options: str = "") -> Step:
        more = ("--start-from", recipe.models / start, *options.split(), *recipe.options)
        return _training(recipe, "segmentation", name, "starter", exclude, *more)

    first = [*_rare_patterns(recipe), *real, *masks]
    drawn = f"segmentation-drawn{drawn_fold}"
    phantoms = ("segmentation", "segmentation-phantoms", "small", first, *ON_PHANTOMS.segmentation.split())
    return [
        _training(recipe, *phantoms),
        go_on(drawn, without_real, "segmentation-phantoms", DRAWN),
        go_on(f"segmentation-turned{drawn_fold}", without_real, drawn, TURNED),
        go_on(f"segmentation-real{fold}", [case.key for case in left_out], drawn),
    ]


def shipping_steps(recipe: Recipe, cases: list[RealCase]) -> list[Step]:
    """Leave what inference needs in `shipped`: the segmentation network is an average of two."""
    left_out, masks_left_out = _left_out(recipe, cases)
    names = [f"segmentation-turned{_suffix(masks_left_out)}", f"segmentation-real{_suffix(left_out)}"]
    shipped = recipe.folder / f"shipped{_suffix(left_out)}"
    output = ("--shares", *SHARES, "--output", shipped / "segmentation")
    return [
        *(CopyModel(recipe.models / name, shipped / name) for name in ON_DRAWN),
        script("experiments/average.py", *(recipe.models / name for name in names), *output),
    ]


def all_steps(recipe: Recipe) -> list[Step]:
    """Give the steps of the recipe in their order.

    Raises
    ------
    ValueError
        If there is no mask, or no case of a name that is to be left out.
    """
    cases = real_cases(recipe.data)
    known = {case.name for case in cases}
    unknown = sorted(set(recipe.without) - known)
    if unknown:
        names = ", ".join(sorted(known))
        raise ValueError(f"--without: expected names of cases ({names}), found no {', no '.join(unknown)}.")
    return [
        *data_steps(recipe, cases),
        *localisation_steps(recipe, cases),
        *segmentation_steps(recipe, cases),
        *shipping_steps(recipe, cases),
    ]


def _training(
    recipe: Recipe, stage: str, name: str, preset: str, exclude: list[str], *options: object
) -> Step:
    program = f"train_{stage}.py"
    place = ("--work-dir", recipe.folder / "work", "--name", name, "--preset", preset)
    excluded = ("--exclude", *exclude) if exclude else ()
    return script(program, *place, *excluded, *options, *recipe.more.get(program, ()))


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
        help="the last one: further options of the trainings but that on generated spines",
    )
    chosen = parser.parse_args(arguments)
    options = tuple(word for text in chosen.options for word in shlex.split(text))
    return Recipe(chosen.data, chosen.folder, without=tuple(chosen.without), options=options), chosen.dry_run


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
