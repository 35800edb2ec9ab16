"""The starter weights (preset `starter`), from drawn scans, generated spines and a few real scans.

Command python experiments/starter.py --data ../shared/data --options --precision bfloat16
        python experiments/starter.py --data ../shared/data --without chest     leaves a patient out: a fold
        python experiments/starter.py --dry-run                                 prints the steps, does nothing
        nohup make starter > starter.log 2>&1 &                                 in the background
Time    about five hours on two CPU cores (AMD EPYC, bfloat16). In minutes of CPU time: segmentation 70, 56,
        27 and 12; the others measured: see models/starter/README.md
Result  three networks in FOLDER/shipped, and in leave-one-out of the work how they read each real scan whose
        patient the heatmap network never saw. Figures measured: see models/starter/README.md

Reads   every <name>_seg-vert_msk.nii.gz below DATA, with <name>_ct.nii.gz if there is one, for the
        segmentation. The series sub-gl* are left out: their licence forbids derivatives.
        For the heatmap network the CTs below SHARED that experiments/real/centres.json names, and the organs
        of one of them; what is not there is done without.
Writes  FOLDER/data, FOLDER/work, FOLDER/shipped. Folds share FOLDER; what they leave out stands in their
        names.

The heatmap network learns from drawn scans alone, then goes on with real ones. The segmentation network for
generated spines goes on, first with images drawn from masks and no real CT, then with real CTs too; what is
shipped is an average of both. How far the levels may be trusted is fitted on real scans, each read by a
network that left its patient out. A killed run goes on with the same command.
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
from experiments.real.facts import ScanFacts, read_facts, scans_there
from experiments.real.folds import ORGANS, TRUNKS, Fold, fine_tuning, fold_without, folds_of, left_out_cases
from experiments.real.prepare import PREFIX
from experiments.steps import CopyModel, Step, run_steps, script
from utils.verse.cases import visible_files

MASK_END, CT_END = "_seg-vert_msk.nii.gz", "_ct.nii.gz"
FORBIDDEN = "sub-gl"

#: Scans that are drawn for the heatmap network, for training and validation, and trunks of a real patient.
DRAWN_SCANS, DRAWN_TRUNKS = (1500, 40), 240
#: Its trainings on them, without any real scan: name and options, each going on from the one before. Small
#: crops first, four at once: enough to tell bodies apart, at a fraction of the work; then those that show the
#: whole chest.
ON_DRAWN = {
    "heatmap-small-crops": "--crop-voxels 32 32 48 --batch-size 4 --epochs 80 --examples-per-epoch 400 "
    "--validate-every 10 --learning-rate 2e-3 --final-learning-rate 2e-4 --seed 0",
    "heatmap-drawn": "--epochs 8 --examples-per-epoch 50 --validate-every 4 --learning-rate 5e-4 "
    "--final-learning-rate 3e-5 --seed 1",
}
#: The labelling network learns from them too, and from no real scan: what it says of those is a test.
LABELLING = "labelling"

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
    shared : Path
        Folder that the paths in `experiments/real/centres.json` start from.
    folder : Path
        Folder that receives everything.
    without : tuple of str
        Names of cases that a fold leaves out, or of scans of the facts.
    options : tuple of str
        Further options of all trainings but that of the segmentation network on generated spines. They must
        stay the same until these are done.
    natural, rare_levels
        Generated spines, as the constants of these names.
    drawn, trunks
        Numbers of drawn scans, as `DRAWN_SCANS` and `DRAWN_TRUNKS`.
    more : mapping of str to tuple of str
        Last options of a training script, such as those of a trial of seconds.
    """

    data: Path = Path("../shared/data")
    shared: Path = Path("../shared")
    folder: Path = Path("starter")
    without: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    natural: tuple = NATURAL
    rare_levels: tuple = RARE_LEVELS
    drawn: tuple[int, int] = DRAWN_SCANS
    trunks: int = DRAWN_TRUNKS
    more: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def models(self) -> Path:
        """Folder of the trained networks."""
        return self.folder / "work" / "models"

    @property
    def real_scans(self) -> dict[str, ScanFacts]:
        """Scans with a spine whose centres are known and whose CTs are there."""
        return {name: facts for name, facts in scans_there(self.shared).items() if facts.points_mm}

    @property
    def organs(self) -> tuple[Path, ...]:
        """The files that trunks are drawn from; none unless all are there."""
        files = tuple(self.shared / path for path in ORGANS)
        return files if self.trunks and all(path.is_file() for path in files) else ()

    @property
    def fold(self) -> Fold:
        """What the heatmap network leaves out."""
        named = [name for name in map(scan_of_case, self.without) if name is not None]
        return fold_without(named, read_facts())


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


def scan_of_case(name: str) -> str | None:
    """Give the name of a case in the facts, where it may have a longer one; None if they do not know it."""
    return next((known for known in read_facts() if known in (name, f"{name}_ct")), None)


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
    trunks = ("--trunks", recipe.trunks, "--organs", *recipe.organs) if recipe.organs else ()
    drawn = ("--drawn", *recipe.drawn, *trunks)
    steps.append(script("pre_processing_heatmap.py", *place, *drawn))
    if recipe.real_scans:
        steps.append(script("experiments/real/prepare.py", "--shared", recipe.shared, *work))
    return [*steps, script("pre_processing_segmentation.py", *place)]


def heatmap_steps(recipe: Recipe, cases: list[RealCase]) -> list[Step]:
    """Train heatmap and labelling network on drawn scans alone, then the first on real ones."""
    steps, start = [], ()
    trunks = [TRUNKS] if recipe.organs else []
    real = [f"{PREFIX}*"] if recipe.real_scans else []
    elsewhere = _for_segmentation(recipe, cases)
    for name, options in ON_DRAWN.items():
        more = (*start, *options.split(), *recipe.options)
        steps.append(_training(recipe, "heatmap", name, "starter", [*elsewhere, *real, *trunks], *more))
        start = ("--start-from", recipe.models / name)
    not_drawn = [*elsewhere, *real, *trunks]
    steps.append(_training(recipe, "labelling", LABELLING, "starter", not_drawn, *recipe.options))
    if not _goes_on(recipe):
        return steps
    there = {*trunks, *(f"{PREFIX}{name}" for name in recipe.real_scans)}
    left_out = [case for case in left_out_cases(recipe.fold, read_facts()) if case in there]
    options = (*recipe.options, *recipe.more.get("train_heatmap.py", ()))
    how = {"base": recipe.models / list(ON_DRAWN)[-1], "options": options}
    place, name = recipe.folder / "work", _heatmap_name(recipe)
    return [*steps, fine_tuning(place, name=name, exclude=[*elsewhere, *left_out], **how)]


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
    shipped = recipe.folder / f"shipped{_fold_name(recipe)}"
    output = ("--shares", *SHARES, "--output", shipped / "segmentation")
    return [
        CopyModel(recipe.models / _heatmap_name(recipe), shipped / "heatmap"),
        CopyModel(recipe.models / LABELLING, shipped / "labelling"),
        script("experiments/average.py", *(recipe.models / name for name in names), *output),
    ]


def confidence_steps(recipe: Recipe) -> list[Step]:
    """Fit the confidence of what is shipped on real scans that were left out; a fold has none of its own."""
    if recipe.without or len(folds_of(recipe.real_scans)) < 2:
        return []
    shipped = recipe.folder / "shipped"
    place = ("--shared", recipe.shared, "--work-dir", recipe.folder / "work", "--base", list(ON_DRAWN)[-1])
    networks = ("--segmentation", shipped / "segmentation", "--labelling", shipped / "labelling")
    options = (*recipe.options, *recipe.more.get("train_heatmap.py", ()))
    last = ("--options", *options) if options else ()
    return [script("experiments/real/leave_one_out.py", *place, *networks, *last)]


def all_steps(recipe: Recipe) -> list[Step]:
    """Give the steps of the recipe in their order.

    Raises
    ------
    ValueError
        If there is no mask, or no case of a name that is to be left out.
    """
    cases = real_cases(recipe.data)
    known = {case.name for case in cases}
    unknown = sorted(n for n in recipe.without if scan_of_case(n) is None and n not in known)
    if unknown:
        names = ", ".join(sorted({*known, *read_facts()}))
        raise ValueError(f"--without: expected names of cases ({names}), found no {', no '.join(unknown)}.")
    return [
        *data_steps(recipe, cases),
        *heatmap_steps(recipe, cases),
        *segmentation_steps(recipe, cases),
        *shipping_steps(recipe, cases),
        *confidence_steps(recipe),
    ]


def missing_scans(recipe: Recipe) -> str:
    """Say what the heatmap network has to do without, or ""."""
    absent = [str(facts.ct) for name, facts in read_facts().items() if name not in scans_there(recipe.shared)]
    absent += [] if recipe.organs or not recipe.trunks else [str(ORGANS[0].parent)]
    return f"{recipe.shared}: done without {', '.join(absent)}, not there." if absent else ""


def _training(
    recipe: Recipe, stage: str, name: str, preset: str, exclude: list[str], *options: object
) -> Step:
    program = f"train_{stage}.py"
    place = ("--work-dir", recipe.folder / "work", "--name", name, "--preset", preset)
    excluded = ("--exclude", *exclude) if exclude else ()
    return script(program, *place, *excluded, *options, *recipe.more.get(program, ()))


def _left_out(recipe: Recipe, cases: list[RealCase]) -> tuple[list[RealCase], list[RealCase]]:
    """Give the cases that a fold leaves out, and those of them that are a mask alone."""
    scans = recipe.fold.scans
    left_out = [case for case in cases if case.name in recipe.without or scan_of_case(case.name) in scans]
    return left_out, [case for case in left_out if case.ct is None]


def _suffix(left_out: list[RealCase]) -> str:
    return "-without" + "".join(f"-{case.name}" for case in left_out) if left_out else ""


def _fold_name(recipe: Recipe) -> str:
    return "-without" + "".join(f"-{name}" for name in recipe.without) if recipe.without else ""


def _goes_on(recipe: Recipe) -> bool:
    """Whether any real scan is left for the heatmap network."""
    return bool(set(recipe.real_scans) - set(recipe.fold.scans))


def _heatmap_name(recipe: Recipe) -> str:
    """Name the last heatmap network: without any real scan, the one for drawn scans."""
    return f"heatmap{recipe.fold.suffix}" if _goes_on(recipe) else list(ON_DRAWN)[-1]


def _for_segmentation(recipe: Recipe, cases: list[RealCase]) -> list[str]:
    """Name the prepared cases that the segmentation alone learns from."""
    return [*_rare_patterns(recipe), *(["sub-real-*"] if any(case.ct for case in cases) else [])]


def _rare_patterns(recipe: Recipe) -> list[str]:
    variants = dict.fromkeys(variants for _, variants, _ in recipe.rare_levels)
    return [f"sub-{name}*" for name in variants]


def recipe_from_command_line(arguments: list[str] | None = None) -> tuple[Recipe, bool]:
    """Read the command line: the recipe, and whether this is a dry run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Recipe.data, help="folder with masks and CTs")
    parser.add_argument("--shared", type=Path, default=Recipe.shared, help="folder of the real scans")
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
    places = (chosen.data, chosen.shared, chosen.folder)
    return Recipe(*places, without=tuple(chosen.without), options=options), chosen.dry_run


def main(recipe: Recipe, *, dry_run: bool = False) -> int:
    """Run the recipe, and give the exit status."""
    try:
        steps = all_steps(recipe)
        if absent := missing_scans(recipe):
            print(absent, flush=True)
        run_steps(steps, dry_run=dry_run)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    chosen_recipe, is_dry_run = recipe_from_command_line()
    sys.exit(main(chosen_recipe, dry_run=is_dry_run))
