"""Settings: one frozen dataclass a stage, whose fields stand with their bounds.

Defaults are those of the preset `full`; `utils.presets` holds what the others change, and
`utils.command_line` reads them from the command line. A length is in millimetres or in voxels, and says so in
its name. A stage saves its settings as `settings.json` beside its results, and the stages after it read them
there instead of guessing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from utils import bounds
from utils.augmentation_settings import (
    LOCALISER_AUGMENTATION,
    AugmentationSettings,
    HeatmapAugmentationSettings,
)
from utils.bounds import BELOW_1, FROM_0, FROM_1, NOT_NEGATIVE, POSITIVE, SHARE, CheckedSettings, bounded
from utils.files import read_json, write_text_whole

Preset = Literal["paper", "full", "small", "starter"]
HeatmapTarget = Literal["centres", "spine"]
Device = Literal["auto", "gpu", "cpu"]
ExportFormat = Literal["nifti", "seg.nrrd", "itksnap", "dicom-seg"]
Split = Literal["training", "validation", "test"]
#: Shares of the CTs of phantoms, of other CTs, of images drawn from the masks of phantoms, and from others.
Mixture = tuple[float, float, float, float]

#: Range of Hounsfield units that the networks see, mapped linearly to [-1, 1]; air is the lower end.
HU_RANGE = (-1024, 3071)
SETTINGS_FILE = "settings.json"
#: A walk numbers vertebrae in a byte, with two numbers for what is none (`utils.walk.records`).
MOST_VERTEBRAE = 254

#: What NumPy, TensorFlow and Python all take.
_SEED = bounds.whole(0, most=2**32 - 1)
_SPACING = bounds.number(least=0.1)
#: A U-Net has two levels or more.
_FILTERS = bounds.several(FROM_1, least=2)
_EVEN_SHAPE = bounds.several(bounds.multiple_of(2), count=3)
#: Of any sum but 0.
_SHARES = bounds.several(NOT_NEGATIVE, count=4, not_all_0=True)
_THREE_SHARES = bounds.several(NOT_NEGATIVE, count=3, not_all_0=True)
_METHODS = bounds.Rule("one method or more", bool)
_NAME = bounds.Rule(
    "a name for a folder, without / or a dot before it",
    lambda name: re.fullmatch(r"[^./\\\s][^/\\]*", name) is not None,
)
#: Axes of a patient, as nibabel names them.
_ORIENTATION = bounds.Rule(
    "one of L or R, one of A or P and one of I or S, in the order of the voxel axes, such as RAS",
    lambda text: sorted(text.upper().translate(str.maketrans("RPS", "LAI"))) == ["A", "I", "L"],
)
_SHARD = bounds.Rule("i/n with i from 1 to n, such as 2/8", lambda text: _shard_match(text) is not None)


@dataclass(frozen=True)
class DataSettings(CheckedSettings):
    """Put a VerSe data set on disk: downloaded, generated, copied from a folder or zips, or a labelled CT."""

    source: str = "osf"
    """"osf" (VerSe file by file from the Open Science Framework), "zip" (its six archives below --zip-url),
    "phantom" (generated, no network), "pairs" (with --ct and --mask), or a path: a folder that holds a
    VerSe tree or its zip archives, or one such archive."""
    data_dir: Path = Path("data")
    """Folder that receives the data set."""
    subset: Literal["19", "20", "all"] = "all"
    """With "osf" and "zip": VerSe 2019, 2020, or both."""
    split: Split | None = None
    """With "osf" and "zip": the one split to get, by default all. With "pairs": the split that the case
    joins, by default training."""
    subjects: tuple[str, ...] = ()
    """With "osf" and "zip": subjects to get, such as sub-verse004; by default all."""
    exclude_noncommercial: bool = False
    """With "osf" and "zip": leave out the sub-gl* series, whose licence (CC BY-NC-ND) forbids commercial use
    and derivatives."""
    api_url: str = "https://api.osf.io/v2"
    """With "osf": address of the programming interface."""
    zip_url: str | None = None
    """With "zip": address of the folder that holds dataset-verse19training.zip and the five others, such as
    a mirror's or your lab's."""
    connections: int = bounded(4, FROM_1)
    """With "osf" and "zip": files downloaded at the same time."""
    verify: bool = False
    """Hash again what earlier downloads left in data_dir, and get again only what is wrong or missing."""
    replace_changed: bool = False
    """Take what the source has also for files that you have changed; without, they stay and are named."""
    max_unpacked_gigabytes: float | None = bounded(None, POSITIVE)
    """Most that one archive may unpack to, by default 20 times its own size and 1 GB."""
    report: bool = False
    """Read every case of data_dir, and write what is there and what is odd about it to data_dir/report; get
    nothing."""
    phantoms: tuple[int, int, int] = bounded((12, 3, 5), bounds.several(FROM_0, count=3, not_all_0=True))
    """With "phantom": number of generated series for training, validation and test."""
    variants: Literal["natural", "half", "rare"] | None = None
    """With "phantom": spines looked for their levels (T13, L6, T12 absent), about as often as in VerSe
    ("natural"), in half of them, or in all ("rare"), half of the scans with an end of the spine in view. They
    are named sub-<variants><seed>x<number>, so that they may lie beside others. By default spines come as
    they are drawn, and are named like those of VerSe."""
    ranges: Literal["usual", "old", "wide"] = "usual"
    """With "phantom": bounds that everything is drawn in. "old" has dull bone; "wide" holds what is not tame:
    thin bone, strong kyphosis, ribs of any length, wear, collapse, cement, screws, every phase of contrast.
    One folder holds phantoms named like those of VerSe of one kind only; with --variants they are named
    sub-<ranges><...> (sub-<...> with "usual")."""
    ct: Path | None = None
    """With "pairs": the CT in Hounsfield units: a NIfTI, NRRD or MetaImage file, or the folder of a DICOM
    series; none (and a --key) for a mask alone, which serves for images drawn from it."""
    mask: Path | None = None
    """With "pairs": its mask with VerSe labels, in any of these formats, on the grid of the CT (axes in any
    order)."""
    key: str | None = None
    """With "pairs": name of the case, such as sub-mine01; by default that of the CT."""
    workers: int = bounded(0, FROM_0)
    """Processes that generate phantoms or read cases for the report; 0 means one a core."""
    max_gigabytes: float = bounded(4.0, POSITIVE)
    """With "pairs" and for the report: memory that a CT or mask may take at 4 bytes a voxel, of its own or of
    1 mm; a larger one is bad."""
    seed: int = bounded(0, _SEED)
    """The same seed gives the same phantoms."""
    skip_bad: bool = False
    """End with exit status 0 although cases were bad (they are listed and left out)."""


@dataclass(frozen=True)
class PreparationSettings(CheckedSettings):
    """What the two preparations share."""

    data_dir: Path = Path("data")
    """Folder with the data set in VerSe layout."""
    preset: Preset = "full"
    """Set of defaults that the other options start from."""
    workers: int = bounded(0, FROM_0)
    """Processes that prepare cases; 0 means one a core, fewer where memory is short."""
    scheduler: str | None = None
    """Address of a Dask scheduler, such as tcp://host:8786, whose workers prepare the cases instead."""
    shard: str | None = bounded(None, _SHARD)
    """Of n runs over the same data, as in an array job, this is the i-th, as "i/n" from 1/n to n/n."""
    max_gigabytes: float = bounded(4.0, POSITIVE)
    """Memory that a CT or mask may take at 4 bytes a voxel, of its own or of 1 mm; a larger one is bad."""
    seed: int = bounded(0, _SEED)
    """Not used by this stage; accepted so that every script takes it."""
    skip_bad: bool = False
    """End with exit status 0 although cases were bad (they are listed and left out)."""


@dataclass(frozen=True)
class HeatmapPreparationSettings(PreparationSettings):
    """Bring every CT and its centroids to the grid of the network that finds the vertebrae."""

    work_dir: Path = Path("work")
    """Folder that receives `heatmap/<spacing>/training` and `heatmap/<spacing>/validation`."""
    target: HeatmapTarget = "centres"
    """What the network is to find: every vertebra by the centre of its body, in the whole scan at the
    spacing; or, as published, the spine as a whole, in a scan squeezed to `heatmap_shape`."""
    spacing_mm: float = bounded(3.0, _SPACING)
    """Isotropic spacing of the working grid, in mm (1 for "spine", before the scan is resized)."""
    heatmap_shape: tuple[int, int, int] = bounded((64, 64, 128), _EVEN_SHAPE)
    """With "spine": shape in voxels (P, R, I) of the grid that every whole volume is resized to."""
    drawn: tuple[int, int] = bounded((0, 0), bounds.several(FROM_0, count=2))
    """With "centres": scans to draw beside those of the data set, for training and validation, with and
    without a spine, in more kinds than any data set has; the seed decides which. A later run with fewer, or
    another seed, removes those that it does not ask for."""
    organs: tuple[Path, Path, Path, Path] | None = None
    """With "centres": masks of the organs of a CT, the table of their names (code, structure), the mask of
    its vertebrae, and the CT, whose trunk is drawn anew."""
    trunks: int = bounded(0, FROM_0)
    """With "organs": training scans to draw from them."""
    seed: int = bounded(0, _SEED)
    """With "drawn" and "trunks": the same seed gives the same scans."""


@dataclass(frozen=True)
class SegmentationPreparationSettings(PreparationSettings):
    """Resample every CT and mask once to the working grid, for training the segmentation network."""

    work_dir: Path = Path("work")
    """Folder that receives `segmentation/<spacing>/training` and `segmentation/<spacing>/validation`."""
    spacing_mm: float = bounded(1.0, _SPACING)
    """Isotropic spacing of the working grid in mm (2 in the preset small: an eighth of the voxels)."""
    margin_mm: float = bounded(128.0, NOT_NEGATIVE)
    """Part of the scan that is kept: up to this far from the centres of the vertebrae, in mm. 128 is half the
    edge of the crop that the published code makes around a vertebra; beyond it patches repeat the border."""
    label_maps: bool = False
    """Prepare training cases too that have a mask but no CT, for images drawn from it. A folder that has them
    keeps them: they serve trainings that need none as well."""
    fine_masks: bool = True
    """Prepare masks at half the spacing too, from whose eight samples a voxel targets are occupancies. A
    folder that has them keeps them."""


@dataclass(frozen=True)
class RunSettings(CheckedSettings):
    """How a training runs: cases, devices, numbers, checkpoints. What all trainings share."""

    exclude: tuple[str, ...] = ()
    """Cases to leave out of training and validation: keys, or patterns such as "sub-real-*"."""
    accumulate: int = bounded(1, FROM_1)
    """Batches whose gradients are added up for one update: the effective batch is batch_size times this, in
    the memory of one batch."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Numbers that the network computes in; losses and the last layer are float32 always. "auto" is bfloat16
    on GPUs that have it, float16 on one older GPU with tensor cores, else float32. float16 scales its loss
    and runs on one GPU only."""
    xla: Literal["auto", "on", "off"] = "auto"
    """Let XLA compile: "on" network and examples, "off" neither. "auto" compiles the examples, and on one GPU
    times the network both ways at the first batch and takes the faster. What fails is left out."""
    replicas: Literal["auto", "one", "mirrored", "workers"] = "auto"
    """Devices that train together: "one", "mirrored" (every GPU of this machine), "workers" (several
    processes, from TF_CONFIG or SLURM); "auto" takes workers where either is set, else every visible GPU."""
    optimizer: Literal["adam", "muon"] = "adam"
    """How gradients change the weights. "muon" changes kernels of convolutions by orthogonal matrices, all
    else as "adam" does: the segmentation network of the preset starter needs a third of the steps by it."""
    moving_average: float = bounded(0.0, BELOW_1)
    """Decay of a moving average of the weights, such as .999; it is validated and saved then. 0 is none."""
    keep_last: bool = False
    """Keep the last network as best.weights.h5, not that of the lowest validation loss: for where the
    validation shows other scans than the network is meant for."""
    stop_after: int = bounded(0, FROM_0)
    """Stop after so many validations without a lower loss; 0 never stops early."""
    plateau_after: int = bounded(0, FROM_0)
    """Lower the learning rate after so many validations without a lower loss; 0 never does."""
    plateau_factor: float = bounded(0.5, bounds.number(least=0.01, most=1))
    """What the learning rate is multiplied by then."""
    save_minutes: float = bounded(15.0, NOT_NEGATIVE)
    """Minutes between two checkpoints within an epoch; 0 saves at the ends of epochs alone."""
    tensorboard: bool = True
    """Write scalars and a panel of pictures for TensorBoard beside the model."""
    device: Device = "auto"
    """Device to train on; "auto" takes a GPU if there is one."""
    skip_bad: bool = False
    """End with exit status 0 although prepared cases were bad (they are listed and left out)."""


@dataclass(frozen=True)
class TrainingSettings(RunSettings):
    """What the trainings on prepared data share; epochs, batches and rates are those of the segmentation."""

    work_dir: Path = Path("work")
    """Folder with `segmentation/`; receives `models/<name>`."""
    preset: Preset = "full"
    """Set of defaults that the other options start from."""
    spacing_mm: float = bounded(1.0, _SPACING)
    """Spacing of the prepared data to train on, in mm."""
    epochs: int = bounded(45, FROM_1)
    """Epochs to train."""
    examples_per_epoch: int = bounded(0, FROM_0)
    """Examples in an epoch; 0 takes every vertebra as often as the levels' balance asks for."""
    batch_size: int = bounded(1, FROM_1)
    """Examples a step and replica."""
    learning_rate: float = bounded(1e-3, POSITIVE)
    """Learning rate of the first epoch."""
    final_learning_rate: float = bounded(1e-3, NOT_NEGATIVE)
    """Learning rate that a cosine reaches in the last epoch; equal to learning_rate it stays constant."""
    norm_momentum: float = bounded(0.99, BELOW_1)
    """Momentum of the batch normalisation's moving statistics."""
    validate_every: int = bounded(5, FROM_1)
    """Epochs between two validations."""
    seed: int = bounded(0, _SEED)
    """Seed of weights and examples."""


@dataclass(frozen=True)
class HeatmapTrainingSettings(TrainingSettings):
    """Train the network that finds the vertebrae, or, as published, the spine as a heatmap."""

    work_dir: Path = Path("work")
    """Folder with `heatmap/`; receives `models/<name>`."""
    target: HeatmapTarget = "centres"
    """What the network is to find: every vertebra by the centre of its body; or the spine."""
    spacing_mm: float = bounded(3.0, _SPACING)
    name: str = bounded("heatmap", _NAME)
    """Name of the model's folder, so that several experiments may share a work folder."""
    start_from: Path | None = None
    """Directory of a trained network of the same filters, whose weights the training begins with, such as
    work/models/heatmap, to adapt it to data of your own; by default they are drawn from the seed."""
    filters: tuple[int, ...] = bounded((12, 24, 48, 64, 96), _FILTERS)
    """Filters a level of the U-Net, from full resolution down."""
    norm: Literal["batch", "instance"] = "instance"
    """Statistics of the normalisation: of a batch, and their moving average when the network is used; or of
    each example alone."""
    crop_voxels: tuple[int, int, int] = bounded((64, 96, 96), _EVEN_SHAPE)
    """With "centres": shape (P, R, I) of the crops that the network sees, of scans in tiles later on. At 3 mm
    the default shows ribs from the spine to the side walls of the chest."""
    sigma_mm: float = bounded(4.5, POSITIVE)
    """With "centres": standard deviation of the Gaussian around a body's centre. Neighbours in the upper
    chest, 15 to 18 mm apart, must stay apart."""
    anywhere_share: float = bounded(0.25, SHARE)
    """With "centres": share of crops that lie anywhere in the scan, the others around a vertebra of it."""
    cut_share: float = bounded(0.5, SHARE)
    """With "centres": share of examples that show a part of the scan alone, as one of a smaller field of view
    would."""
    cut_least_mm: tuple[float, float, float] = bounded((70.0, 70.0, 50.0), bounds.several(POSITIVE, count=3))
    """With "centres": smallest such part along P, R and I, in mm."""
    origins: tuple[float, float, float] | None = bounded(None, _THREE_SHARES)
    """With "centres": shares of an epoch: scans of phantoms of the data set, drawn scans, and all others.
    Without it every scan counts alike."""
    sigma_voxels: float = bounded(10.0, POSITIVE)
    """With "spine": standard deviation of the target's Gaussians, in voxels of the heatmap grid."""
    shift_voxels: float = bounded(20.0, NOT_NEGATIVE)
    """With "spine": largest random shift along each axis, in voxels of the heatmap grid."""
    outside: Literal["air", "edge"] = "air"
    """With "centres": what a crop shows beyond the scan, in training and when the network is used: air, or
    the edge of the scan repeated. With "spine" it is air, as published."""
    augmentation: HeatmapAugmentationSettings = LOCALISER_AUGMENTATION
    """Random transformations of the training volumes."""
    epochs: int = bounded(300, FROM_1)
    examples_per_epoch: int = bounded(0, FROM_0)
    """Examples in an epoch; 0 takes every case once."""
    batch_size: int = bounded(4, FROM_1)

    def joint_rules(self) -> dict[str, bounds.Rule]:
        """Ask for crops that every level but the first can halve, with "centres"."""
        if self.target != "centres":
            return {}
        step = bounds.multiple_of(2 ** (len(self.filters) - 1))
        return {"crop_voxels": bounds.several(step, count=3)}


@dataclass(frozen=True)
class LabellingTrainingSettings(TrainingSettings):
    """Train the network that tells, of a point, whether a vertebra's body lies around it, and which level."""

    work_dir: Path = Path("work")
    """Folder with `heatmap/`; receives `models/<name>`."""
    spacing_mm: float = bounded(3.0, _SPACING)
    name: str = bounded("labelling", _NAME)
    """Name of the model's folder, so that several experiments may share a work folder."""
    start_from: Path | None = None
    """Directory of a trained network of the same filters, whose weights the training begins with, such as
    work/models/labelling, to adapt it to data of your own; by default they are drawn from the seed."""
    filters: tuple[int, ...] = bounded((16, 32, 64, 96), _FILTERS)
    """Filters a level, from half of the resolution down; each level has half of that of the one above."""
    patch_voxels: int = bounded(54, FROM_1)
    """Edge of the cubic patch around the point. At 3 mm the default shows 81 mm to each side."""
    dropout: float = bounded(0.3, BELOW_1)
    """Share of the features before the last layers that is left out at random in training."""
    jitter_mm: float = bounded(12.0, NOT_NEGATIVE)
    """How far off a body's centre is shown at most, any distance up to this alike: peaks of the heat do not
    lie quite at it. The network tells where it lies."""
    none_share: float = bounded(0.3, SHARE)
    """Share of examples around a point that is no body's centre."""
    none_least_mm: float = bounded(14.0, POSITIVE)
    """How far such a point lies from every body's centre, at least."""
    cut_share: float = bounded(0.5, SHARE)
    """Share of examples that show a part of the scan alone, as one of a smaller field of view would."""
    cut_least_mm: tuple[float, float, float] = bounded((70.0, 70.0, 50.0), bounds.several(POSITIVE, count=3))
    """Smallest such part along P, R and I, in mm."""
    origins: tuple[float, float, float] | None = bounded(None, _THREE_SHARES)
    """Shares of an epoch: scans of phantoms of the data set, drawn scans, and all others. Without it every
    scan counts alike."""
    outside: Literal["air", "edge"] = "air"
    """What a patch shows beyond the scan, in training and when the network is used."""
    augmentation: HeatmapAugmentationSettings = LOCALISER_AUGMENTATION
    """Random transformations of the training patches."""
    epochs: int = bounded(60, FROM_1)
    examples_per_epoch: int = bounded(0, FROM_0)
    """Examples in an epoch; 0 takes every scan once."""
    batch_size: int = bounded(16, FROM_1)
    final_learning_rate: float = bounded(1e-4, NOT_NEGATIVE)
    moving_average: float = bounded(0.99, BELOW_1)


@dataclass(frozen=True)
class SegmentationTrainingSettings(TrainingSettings):
    """Train the iterative 3D U-Net that segments one vertebra, and is shown those above it."""

    name: str = bounded("segmentation", _NAME)
    """Name of the model's folder, so that several experiments may share a work folder."""
    start_from: Path | None = None
    """Directory of a trained network of the same filters, whose weights the training begins with, such as
    work/models/segmentation, to adapt it to data of your own; by default they are drawn from the seed."""
    filters: tuple[int, ...] = bounded((16, 32, 64, 128), _FILTERS)
    """Filters a level of the U-Net, from full resolution down."""
    norm: Literal["batch", "instance"] = "batch"
    """Statistics of the normalisation: of a batch, and their moving average when the network is used; or of
    each example alone."""
    network: Literal["unet", "residual", "fine_residual"] = "residual"
    """The published U-Net; one of residual blocks that works from half the resolution down; or that with a
    convolution and a residual block at full resolution too, at 1.3 times the time."""
    patch_voxels: int = bounded(128, FROM_1)
    """Edge of the cubic patch in voxels of the working grid."""
    patch_kinds: Literal["paper", "centred"] = "centred"
    """How patches are drawn and what is asked for: as published, the first vertebra that the memory does not
    hold ("paper"), or the one around whose centre the patch lies ("centred")."""
    empty_memory_probability: float = bounded(0.3, SHARE)
    """With patch_kinds "paper": probability of emptying the memory."""
    patch_shares: tuple[float, float, float] = bounded((0.7, 0.22, 0.08), _THREE_SHARES)
    """With patch_kinds "centred": shares of patches with memory, with emptied memory, and with nothing left
    to find."""
    memory_error: float = bounded(0.5, NOT_NEGATIVE)
    """With patch_kinds "centred": how wrong the memory is at most, as what is found is not what is true: one
    standard deviation of the share of a blurred voxel from which it counts as memory. Parts of it are missing
    in some patches then, and parts of the target are in it in others. 0 leaves it as it is."""
    centre_error_mm: float = bounded(4.0, NOT_NEGATIVE)
    """With patch_kinds "centred": how far the given centre is off along each axis, as one standard deviation;
    a third of the patches have twice as much."""
    shift_mm: float = bounded(32.0, NOT_NEGATIVE)
    """Largest shift along each axis of a patch around its target ("paper"), or of one with nothing left to
    find ("centred"), in mm."""
    outside: Literal["air", "edge"] = "edge"
    """What a patch shows beyond the scan, in training and when the network is used: air (as published), or
    the edge of the scan repeated. A model saved without it means "edge"."""
    augmentation: AugmentationSettings = AugmentationSettings()
    """Random transformations of the training patches."""
    mixture: Mixture | None = bounded(None, _SHARES)
    """Shares of an epoch: CTs of phantoms, other CTs, images drawn anew from the masks of phantoms, and from
    other masks. Without it every CT counts alike, and none is drawn."""
    cut_share: float = bounded(0.35, SHARE)
    """Share of the patches whose scan is made to end in or beside the target: vertebrae that a field of view
    cuts are found too."""
    targets: Literal["occupancies", "bits"] = "occupancies"
    """What is learned: the share of every voxel that is vertebra, by cross-entropy and soft Dice, or whether
    most of it is, by the published loss."""
    boundary_weight: bool = False
    """With "occupancies": weigh the cross-entropy more near the boundary, as the published loss does."""
    fp_weight_schedule: Literal["ramp", "constant"] = "ramp"
    """With "bits": weight of false positives in the loss, rising from .1 to 1 as published, or the constant
    .131 at which the released code stayed."""
    t13: bool = True
    """Learn T13, which few spines have, like the other levels. Without it T13 is no target and in no memory,
    as in the released code of the paper, which goes through VerSe's labels 1 to 25."""

    def joint_rules(self) -> dict[str, bounds.Rule]:
        """Let every level of the network halve the patch."""
        return {"patch_voxels": bounds.multiple_of(2 ** (len(self.filters) - 1))}


@dataclass(frozen=True)
class DistillationSettings(RunSettings):
    """Train small segmentation networks, alone and with the trained one as their teacher, and compare them.

    Data, patches, augmentation, batches and learning rates are those that the teacher was trained with.
    """

    work_dir: Path = Path("work")
    """Folder with `segmentation/` and `models/segmentation`; receives `models/<name>`."""
    name: str = bounded("student", _NAME)
    """Name of the folder of the best student; the others' is `models/<name>_runs`."""
    preset: Preset = "full"
    """Set of defaults that the other options start from; that of the teacher."""
    segmentation: Annotated[Path | None, tyro.conf.arg(aliases=["--teacher"])] = None
    """Directory of the teacher; by default work_dir/models/segmentation. What its training left out is left
    out for the students too."""
    filters: tuple[int, ...] = bounded((8, 16, 32, 64), _FILTERS)
    """Filters a level of the student, from full resolution down."""
    methods: tuple[Literal["soft", "logits"], ...] = bounded(("soft", "logits"), _METHODS)
    """What students learn from the teacher, one student each: "soft", probabilities at a temperature, or
    "logits", the numbers before the sigmoid."""
    temperatures: tuple[float, ...] = bounded((2.0,), bounds.several(POSITIVE))
    """With "soft": temperatures, one student each."""
    distillation_weight: float = bounded(0.5, bounds.number(above=0, most=1))
    """Share of the teacher in the loss; the rest is that of the labels."""
    distillation_voxels: Literal["even", "loss"] = "loss"
    """Weights of the voxels in the loss against the teacher: "even", as published, or as in the "loss"
    against the labels, where the boundary counts more and, in the first epochs, the background less. Evenly
    weighted, background is so much of a patch that a student learns it alone for hundreds of steps."""
    t_squared: bool = True
    """With "soft": multiply the loss against the teacher by the square of the temperature, which keeps its
    gradient's scale. The released code of the paper does not."""
    reduction: Literal["mean", "sum"] = "mean"
    """Whether the loss against the labels is the mean over a patch's voxels, or their sum, as in the released
    code of the paper, where it then outweighs that against the teacher."""
    epochs: int | None = bounded(None, FROM_1)
    """Epochs to train each student; by default as many as the teacher."""
    seed: int = bounded(0, _SEED)
    """Seed of the students' weights, the same for all of them, and of the examples."""

    def joint_rules(self) -> dict[str, bounds.Rule]:
        """Ask for a temperature where students learn from probabilities at one."""
        return {"temperatures": bounds.several(POSITIVE, least=1)} if "soft" in self.methods else {}


@dataclass(frozen=True)
class ScanOptions(CheckedSettings):
    """What is segmented, and what is written."""

    inputs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Scans (NIfTI, NRRD, MetaImage), or folders of them or of DICOM (of one with *_ct.nii.gz only those)."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("predictions")
    """Folder that receives the predictions in VerSe layout."""
    formats: tuple[ExportFormat, ...] = ("nifti",)
    """Also write the mask for 3D Slicer (seg.nrrd), its labels for ITK-SNAP (itksnap), or, of a DICOM series,
    a DICOM segmentation (dicom-seg, which needs requirements-seg.txt); NIfTI always."""
    report: bool = False
    """Also write output/report.html: every scan of the folder with its picture, numbers and warnings."""
    measure: bool = False
    """Also measure the vertebrae: heights, angles, density (docs/measurements.md)."""
    max_gigabytes: float = bounded(4.0, POSITIVE)
    """Memory that a scan may take at 4 bytes a voxel, of its own or of 1 mm; a larger one is refused. At work
    a scan takes about three times as much."""
    assume_orientation: str | None = bounded(None, _ORIENTATION)
    """Where the voxel axes lead in scans whose header does not say it, such as RAS (towards the right, the
    front and the head); without it such scans are refused, as left and right would be a guess."""
    trace: bool = False
    """Also write the steps of the walk (`<key>_trace.jsonl`, a JSON object a line)."""


@dataclass(frozen=True)
class NetworkOptions(CheckedSettings):
    """With which networks."""

    work_dir: Path = Path("work")
    """Folder with the trained networks under `models/`; without any, the starter weights are used."""
    segmentation: Annotated[Path | None, tyro.conf.arg(aliases=["--model"])] = None
    """Directory of the segmentation network; by default work_dir/models/segmentation, else that shipped."""
    heatmap: Annotated[Path | None, tyro.conf.arg(aliases=["--heatmap-model"])] = None
    """Directory of the heatmap network; by default the one beside the segmentation network, or
    work_dir/models/heatmap."""
    labelling: Path | None = None
    """Directory of the labelling network; by default work_dir/models/labelling, else the one beside the
    heatmap network, else that shipped. With a heatmap network of preset paper none is used."""


@dataclass(frozen=True)
class LevelOptions(CheckedSettings):
    """What is known of the levels."""

    first_label: str | None = None
    """Level of the top-most vertebra, such as L1; the others follow from it."""
    fix: tuple[str, ...] = ()
    """Levels that are known, such as 3=T12: the third vertebra from the top is T12. The others follow."""
    relabel: bool = False
    """Change the labels of predictions that are there already, without segmenting again."""
    corrections: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """With --relabel: the corrections that the page of --report saved. Each scan in them gets its own levels,
    the others are left alone."""


@dataclass(frozen=True)
class WalkOptions(CheckedSettings):
    """How the column is walked down."""

    min_volume_mm3: float = bounded(1000.0, NOT_NEGATIVE)
    """Smallest volume of a vertebra, in cubic millimetres; less counts as nothing found."""
    heat_threshold: float = bounded(0.3, bounds.number(above=0, most=1))
    """Heat at which the spine begins, with a network of preset paper."""
    max_steps: int = bounded(10, FROM_1)
    """Most steps spent on one vertebra before its last centres are averaged, with such a network."""
    max_vertebrae: int = bounded(26, bounds.whole(1, most=MOST_VERTEBRAE))
    """Most vertebrae in one scan, with such a network."""


@dataclass(frozen=True)
class RunOptions(CheckedSettings):
    """How the scans are shared out, and on what they run."""

    workers: int = bounded(1, FROM_0)
    """Processes that segment scans, each with networks of its own; 0 means one a core."""
    scheduler: str | None = None
    """Address of a Dask scheduler, such as tcp://host:8786, whose workers segment the scans instead."""
    shard: str | None = bounded(None, _SHARD)
    """Of n runs over the same scans, as in an array job, this is the i-th, as "i/n" from 1/n to n/n."""
    seed: int = bounded(0, _SEED)
    """Not used by this stage; accepted so that every script takes it."""
    device: Device = "auto"
    """Device to run on; "auto" takes a GPU if there is one."""
    skip_bad: bool = False
    """End with exit status 0 although scans were bad (they are listed and left out)."""


@dataclass(frozen=True)
class InferenceSettings(RunOptions, WalkOptions, LevelOptions, NetworkOptions, ScanOptions):
    """Segment and number the vertebrae of CT scans."""


@dataclass(frozen=True)
class EvaluationSettings(CheckedSettings):
    """Score predictions against the reference masks of a VerSe data set."""

    data_dir: Path = Path("data")
    """Folder with the reference data set in VerSe layout."""
    split: Literal["training", "validation", "test", "all"] = "test"
    """Split that is scored."""
    predictions: Path = Path("predictions")
    """Folder with predictions in VerSe layout."""
    output: Path = Path("evaluation")
    """Folder that receives tables, figure and summary."""
    compare: Path | None = None
    """Other folder with predictions of the same cases, to be scored too and compared pair by pair."""
    found_dice: float = bounded(0.5, bounds.number(above=0, most=1))
    """Dice from which a reference vertebra counts as found."""
    resamples: int = bounded(10_000, FROM_1)
    """Resamples of the patients that the 95 % intervals are made of. With 10,000, chance moves a limit by
    about 1 % of the interval's width."""
    workers: int = bounded(0, FROM_0)
    """Processes that score cases; 0 means one a core."""
    max_gigabytes: float = bounded(4.0, POSITIVE)
    """Memory that a mask may take at 4 bytes a voxel, of its own or of 1 mm; a larger one is a bad case."""
    seed: int = bounded(0, _SEED)
    """Seed of the resamples."""
    skip_bad: bool = False
    """End with exit status 0 although cases were bad (they are listed and left out)."""


@dataclass(frozen=True)
class ExportSettings(CheckedSettings):
    """Export trained networks for other programs and languages."""

    models: Path = Path("models/starter")
    """Folder with the networks `segmentation`, `heatmap` and `labelling`, such as work/models."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("onnx")
    """Folder that receives the networks."""
    format: Literal["onnx"] = "onnx"
    """Form of the exported networks."""
    seed: int = bounded(0, _SEED)
    """Not used by this stage; accepted so that every script takes it."""


def settings_as_json(settings: Any) -> dict[str, Any]:
    """Give a settings object as a dictionary that JSON can hold, with its class name as "stage"."""
    text = json.dumps({"stage": type(settings).__name__, **dataclasses.asdict(settings)}, default=os.fspath)
    return json.loads(text)


def save_settings(settings: Any, directory: Path, **facts: Any) -> Path:
    """Write `settings.json` into a directory, whole or not at all.

    Parameters
    ----------
    settings : Settings
        A settings object.
    directory : Path
        Folder, made if it is not there.
    **facts
        What a later stage must know beside the settings, such as the spacing of the data used.

    Returns
    -------
    Path
        The file written.
    """
    path = directory / SETTINGS_FILE
    content = {**settings_as_json(settings), **facts}
    write_text_whole(path, json.dumps(content, indent=2, default=os.fspath) + "\n")
    return path


def load_settings(directory: Path) -> dict[str, Any]:
    """Read the `settings.json` that an earlier stage left in a directory.

    Raises
    ------
    ValueError
        If the file is not there or is no JSON object; the text names it.
    """
    path = directory / SETTINGS_FILE
    if not path.exists():
        raise ValueError(f"{path}: expected the settings of an earlier stage, found no such file.")
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(found).__name__}.")
    return _with_names_of_today(found)


def _with_names_of_today(found: dict[str, Any]) -> dict[str, Any]:
    """Earlier versions knew one target of the heatmap stage, and called the voxels of its blur mm."""
    stage, augmentation = found.get("stage"), found.get("augmentation")
    if stage in (HeatmapPreparationSettings.__name__, HeatmapTrainingSettings.__name__):
        found = {"target": "spine", **found}
    if stage != HeatmapTrainingSettings.__name__ or not isinstance(augmentation, dict):
        return found
    renamed = {"blur_sigma_mm": "blur_sigma_voxels"}
    return {**found, "augmentation": {renamed.get(name, name): v for name, v in augmentation.items()}}


def shard_numbers(shard: str | None) -> tuple[int, int]:
    """Give i and n of the shard "i/n"; without one this is the first of one.

    Raises
    ------
    ValueError
        If the text has another form, or i is not from 1 to n.
    """
    if shard is None:
        return 1, 1
    match = _shard_match(shard)
    if match is None:
        raise ValueError(f"Expected {_SHARD.words}, received {shard!r}.")
    return int(match[1]), int(match[2])


def _shard_match(shard: Any) -> re.Match[str] | None:
    match = re.fullmatch(r"(\d+)/(\d+)", shard) if isinstance(shard, str) else None
    return match if match and 1 <= int(match[1]) <= int(match[2]) else None


def worker_count(workers: int) -> int:
    """Give the number of processes to use: the number asked for, or one a core for 0."""
    if workers < 0:
        raise ValueError(f"Expected a number of workers from 0 up, received {workers}.")
    if workers:
        return workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
