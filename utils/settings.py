"""Settings: one frozen dataclass a stage, and the command line that is built from it.

Defaults are those of the preset `full`; `PRESETS` holds what the others change. Every
length is in millimetres and says so in its name. A stage saves its settings as `settings.json`
beside its results, and the stages after it read them there instead of guessing.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

Preset = Literal["paper", "full", "small", "starter"]
Device = Literal["auto", "gpu", "cpu"]
Split = Literal["training", "validation", "test"]
Settings = TypeVar("Settings")
#: Shares of the CTs of phantoms, of other CTs, of images drawn from the masks of phantoms, and from others.
Mixture = tuple[float, float, float, float]

#: Range of Hounsfield units that the networks see, mapped linearly to [-1, 1]; air is the lower end.
HU_RANGE = (-1024, 3071)
SETTINGS_FILE = "settings.json"
#: Smallest values of settings that would otherwise fail late, after files of an earlier run were touched.
LEAST = {
    "seed": 0,
    "workers": 0,
    "connections": 1,
    "margin_mm": 0.0,
    "spacing_mm": 0.1,
    "epochs": 1,
    "examples_per_epoch": 0,
    "batch_size": 1,
    "validate_every": 1,
    "accumulate": 1,
    "moving_average": 0.0,
    "stop_after": 0,
    "plateau_after": 0,
    "plateau_factor": 0.01,
    "save_minutes": 0.0,
}


@dataclass(frozen=True)
class DataSettings:
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
    connections: int = 4
    """With "osf" and "zip": files downloaded at the same time."""
    verify: bool = False
    """Hash again what earlier downloads left in data_dir, and get again only what is wrong or missing."""
    report: bool = False
    """Read every case of data_dir, and write what is there and what is odd about it to data_dir/report; get
    nothing."""
    phantoms: tuple[int, int, int] = (12, 3, 5)
    """With "phantom": number of generated series for training, validation and test."""
    ct: Path | None = None
    """With "pairs": the CT, a NIfTI file in Hounsfield units; none (and a --key) for a mask alone, which
    serves for images drawn from it."""
    mask: Path | None = None
    """With "pairs": its mask, a NIfTI file with VerSe labels on the grid of the CT."""
    key: str | None = None
    """With "pairs": name of the case, such as sub-mine01; by default that of the CT."""
    workers: int = 0
    """Processes that generate phantoms or read cases for the report; 0 means one a core."""
    seed: int = 0
    """The same seed gives the same phantoms."""
    skip_bad: bool = False
    """End with exit status 0 although cases were bad (they are listed and left out)."""


@dataclass(frozen=True)
class HeatmapPreparationSettings:
    """Bring every CT and its centroids to the small grid of the heatmap network."""

    data_dir: Path = Path("data")
    """Folder with the data set in VerSe layout."""
    work_dir: Path = Path("work")
    """Folder that receives `heatmap/training` and `heatmap/validation`."""
    preset: Preset = "full"
    """Set of defaults that the other options start from."""
    spacing_mm: float = 1.0
    """Isotropic spacing of the working grid, in mm, that the CT is brought to before it is resized."""
    heatmap_shape: tuple[int, int, int] = (64, 64, 128)
    """Shape in voxels (P, R, I) of the grid that every whole volume is resized to."""
    label_maps: bool = False
    """Prepare masks too, for images drawn from them, and training cases that have a mask but no CT."""
    workers: int = 0
    """Processes that prepare cases; 0 means one a core, fewer where memory is short."""
    scheduler: str | None = None
    """Address of a Dask scheduler, such as tcp://host:8786, whose workers prepare the cases instead."""
    shard: str | None = None
    """Of n runs over the same data, as in an array job, this is the i-th, as "i/n" from 1/n to n/n."""
    seed: int = 0
    """Not used by this stage; accepted so that every script takes it."""
    skip_bad: bool = False
    """End with exit status 0 although cases were bad (they are listed and left out)."""


@dataclass(frozen=True)
class SegmentationPreparationSettings:
    """Resample every CT and mask once to the working grid, for training the segmentation network."""

    data_dir: Path = Path("data")
    """Folder with the data set in VerSe layout."""
    work_dir: Path = Path("work")
    """Folder that receives `segmentation/training` and `segmentation/validation`."""
    preset: Preset = "full"
    """Set of defaults that the other options start from."""
    spacing_mm: float = 1.0
    """Isotropic spacing of the working grid in mm (2 in the preset small: an eighth of the voxels)."""
    margin_mm: float = 128.0
    """Part of the scan that is kept: up to this far from the centres of the vertebrae, in mm. 128 is half the
    edge of the crop that the published code makes around a vertebra; beyond it patches repeat the border."""
    label_maps: bool = False
    """Prepare training cases too that have a mask but no CT, for images drawn from it."""
    workers: int = 0
    """Processes that prepare cases; 0 means one a core, fewer where memory is short."""
    scheduler: str | None = None
    """Address of a Dask scheduler, such as tcp://host:8786, whose workers prepare the cases instead."""
    shard: str | None = None
    """Of n runs over the same data, as in an array job, this is the i-th, as "i/n" from 1/n to n/n."""
    seed: int = 0
    """Not used by this stage; accepted so that every script takes it."""
    skip_bad: bool = False
    """End with exit status 0 although cases were bad (they are listed and left out)."""


@dataclass(frozen=True)
class AugmentationSettings:
    """Ranges that the random transformations of one example are drawn from; "U" is uniform."""

    flip_probability: float = 0.5
    """Probability of mirroring left and right."""
    gain: tuple[float, float] = (0.75, 1.25)
    """Range of the factor on normalised intensities."""
    offset: tuple[float, float] = (-0.25, 0.25)
    """Range of the offset added to normalised intensities."""
    zoom_p: tuple[float, float] = (0.8, 1.2)
    """Range of the zoom along P."""
    zoom_r: tuple[float, float] = (0.8, 1.2)
    """Range of the zoom along R."""
    zoom_i: tuple[float, float] = (0.7, 1.3)
    """Range of the zoom along I."""
    rotation_degrees: float = 20.0
    """Largest rotation about each axis, either way, in degrees."""
    noise_probability: float = 0.8
    """Probability of adding Gaussian noise."""
    noise_sigma: tuple[float, float] = (0.001, 0.03)
    """Range of the noise's standard deviation, in normalised intensities."""
    blur_probability: float = 0.8
    """Probability of blurring."""
    blur_sigma_mm: tuple[float, float] = (0.5, 1.5)
    """Range of the blur's standard deviation in mm (for the heatmap network: in its voxels)."""


#: The heatmap network's augmentation, in voxels of its own grid (Serrador et al. 2024).
HEATMAP_AUGMENTATION = AugmentationSettings(
    zoom_p=(0.9, 1.1),
    zoom_r=(0.9, 1.1),
    zoom_i=(0.9, 1.1),
    rotation_degrees=10.0,
    noise_sigma=(0.001, 0.005),
    blur_sigma_mm=(0.5, 1.0),
)


#: Narrower ranges for the preset small. In its thousand steps the published ranges cost more than they
#: bring. Validation Dice after 300 steps on 12 generated spines: .48 with them (learning rate 1e-3), .57
#: with the geometry halved, .67 with none, .71 with these and the preset's shares (2e-3). Most of it is the
#: intensities: the published offset of up to 512 HU is several times the contrast of bone and muscle.
SMALL_AUGMENTATION = AugmentationSettings(
    gain=(0.9, 1.1),
    offset=(-0.05, 0.05),
    zoom_p=(0.9, 1.1),
    zoom_r=(0.9, 1.1),
    zoom_i=(0.85, 1.15),
    rotation_degrees=10.0,
)

#: Narrow ranges for the labelling network: how the sizes of a vertebra compare is what tells its level.
LABELLING_AUGMENTATION = AugmentationSettings(
    gain=(0.9, 1.1),
    offset=(-0.05, 0.05),
    zoom_p=(0.93, 1.07),
    zoom_r=(0.93, 1.07),
    zoom_i=(0.93, 1.07),
    rotation_degrees=10.0,
    noise_sigma=(0.001, 0.02),
    blur_probability=0.5,
    blur_sigma_mm=(0.5, 1.5),
)


#: Wider in its geometry: few real patients must stand for all sizes and postures.
STARTER_AUGMENTATION = dataclasses.replace(
    SMALL_AUGMENTATION, zoom_p=(0.85, 1.15), zoom_r=(0.85, 1.15), zoom_i=(0.8, 1.2), rotation_degrees=15.0
)
#: The heatmap network's with the intensities of the preset small, for the reason given there.
STARTER_HEATMAP_AUGMENTATION = dataclasses.replace(
    HEATMAP_AUGMENTATION, gain=SMALL_AUGMENTATION.gain, offset=SMALL_AUGMENTATION.offset
)


@dataclass(frozen=True)
class RunSettings:
    """How a training runs: devices, numbers, checkpoints. What all trainings share."""

    accumulate: int = 1
    """Batches whose gradients are added up for one update: the effective batch is batch_size times this, in
    the memory of one batch."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Numbers that the network computes in; losses and the last layer are float32 always. "auto" is bfloat16
    on GPUs that have it, float16 on one older GPU with tensor cores, else float32. float16 scales its loss
    and runs on one GPU only."""
    replicas: Literal["auto", "one", "mirrored", "workers"] = "auto"
    """Devices that train together: "one", "mirrored" (every GPU of this machine), "workers" (several
    processes, from TF_CONFIG or SLURM); "auto" takes workers where either is set, else every visible GPU."""
    moving_average: float = 0.0
    """Decay of a moving average of the weights, such as .999; it is validated and saved then. 0 is none."""
    keep_last: bool = False
    """Keep the last network as best.keras, not that of the lowest validation loss: for where the validation
    shows other scans than the network is meant for."""
    stop_after: int = 0
    """Stop after so many validations without a lower loss; 0 never stops early."""
    plateau_after: int = 0
    """Lower the learning rate after so many validations without a lower loss; 0 never does."""
    plateau_factor: float = 0.5
    """What the learning rate is multiplied by then."""
    save_minutes: float = 15.0
    """Minutes between two checkpoints within an epoch; 0 saves at the ends of epochs alone."""
    tensorboard: bool = True
    """Write scalars and a panel of pictures for TensorBoard beside the model."""
    device: Device = "auto"
    """Device to train on; "auto" takes a GPU if there is one."""
    skip_bad: bool = False
    """End with exit status 0 although prepared cases were bad (they are listed and left out)."""


@dataclass(frozen=True)
class HeatmapTrainingSettings(RunSettings):
    """Train the network that finds the spine as a heatmap over the whole volume."""

    work_dir: Path = Path("work")
    """Folder with `heatmap/`; receives `models/heatmap`."""
    preset: Preset = "full"
    """Set of defaults that the other options start from."""
    start_from: Path | None = None
    """Directory of a trained network of the same filters, whose weights the training begins with, such as
    work/models/heatmap, to adapt it to data of your own; by default they are drawn from the seed."""
    filters: tuple[int, ...] = (8, 16, 32)
    """Filters a level of the U-Net, from full resolution down."""
    norm: Literal["batch", "instance"] = "batch"
    """Statistics of the normalisation: of a batch, and their moving average when the network is used; or of
    each example alone."""
    sigma_voxels: float = 10.0
    """Standard deviation of the target's Gaussians, in voxels of the heatmap grid."""
    shift_voxels: float = 20.0
    """Largest random shift along each axis, in voxels of the heatmap grid."""
    outside: Literal["air", "edge"] = "air"
    """What an example shows where turns and shifts reach beyond the scan: air (as published), or its edge
    repeated. The network is only ever shown whole scans."""
    crop_least_mm: tuple[float, float, float] | None = None
    """Smallest part of a volume along P, R and I, in mm, that an example shows, as of a scan with a smaller
    field of view; without it all is shown."""
    mixture: Mixture | None = None
    """Shares of an epoch: CTs of phantoms, other CTs, images drawn anew from the masks of phantoms, and from
    other masks. Without it every CT counts alike, and none is drawn."""
    augmentation: AugmentationSettings = HEATMAP_AUGMENTATION
    """Random transformations of the training volumes."""
    epochs: int = 300
    """Epochs to train."""
    examples_per_epoch: int = 0
    """Examples in an epoch; 0 takes every case once, or, with a mixture, as often as the levels' balance
    asks for."""
    batch_size: int = 4
    """Examples a step and replica."""
    learning_rate: float = 1e-3
    """Learning rate of Adam."""
    final_learning_rate: float = 1e-3
    """Learning rate that a cosine reaches in the last epoch; equal to learning_rate it stays constant."""
    norm_momentum: float = 0.99
    """Momentum of the batch normalisation's moving statistics."""
    validate_every: int = 5
    """Epochs between two validations."""
    seed: int = 0
    """Seed of weights and examples."""


@dataclass(frozen=True)
class SegmentationTrainingSettings(RunSettings):
    """Train the iterative 3D U-Net that segments the first vertebra its memory does not hold yet."""

    work_dir: Path = Path("work")
    """Folder with `segmentation/`; receives `models/segmentation`."""
    preset: Preset = "full"
    """Set of defaults that the other options start from."""
    start_from: Path | None = None
    """Directory of a trained network of the same filters, whose weights the training begins with, such as
    work/models/segmentation, to adapt it to data of your own; by default they are drawn from the seed."""
    filters: tuple[int, ...] = (16, 32, 64, 128)
    """Filters a level of the U-Net, from full resolution down."""
    norm: Literal["batch", "instance"] = "batch"
    """Statistics of the normalisation: of a batch, and their moving average when the network is used; or of
    each example alone."""
    patch_voxels: int = 128
    """Edge of the cubic patch in voxels of the working grid."""
    patch_kinds: Literal["paper", "walk"] = "walk"
    """How patches are drawn: as published ("paper"), or as the walk of the inference meets them."""
    empty_memory_probability: float = 0.3
    """With patch_kinds "paper": probability of emptying the memory."""
    walk_shares: tuple[float, float, float, float] = (0.6, 0.2, 0.1, 0.1)
    """With patch_kinds "walk": shares of patches with memory, with emptied memory, at the natural top of the
    spine, and with nothing left to find."""
    shift_mm: float = 32.0
    """Largest shift of a patch around its target along each axis, in mm."""
    outside: Literal["air", "edge"] = "edge"
    """What a patch shows beyond the scan, in training and when the network is used: air (as published), or
    the edge of the scan repeated. A model saved without it means "edge"."""
    augmentation: AugmentationSettings = AugmentationSettings()
    """Random transformations of the training patches."""
    mixture: Mixture | None = None
    """Shares of an epoch: CTs of phantoms, other CTs, images drawn anew from the masks of phantoms, and from
    other masks. Without it every CT counts alike, and none is drawn."""
    fp_weight_schedule: Literal["ramp", "constant"] = "ramp"
    """Weight of false positives in the loss: rising from .1 to 1 as published, or the constant .132 at
    which the released code stayed."""
    epochs: int = 45
    """Epochs to train."""
    examples_per_epoch: int = 0
    """Examples in an epoch; 0 takes every vertebra as often as the levels' balance asks for."""
    batch_size: int = 1
    """Examples a step and replica."""
    learning_rate: float = 1e-3
    """Learning rate of Adam."""
    final_learning_rate: float = 1e-3
    """Learning rate that a cosine reaches in the last epoch; equal to learning_rate it stays constant."""
    norm_momentum: float = 0.99
    """Momentum of the batch normalisation's moving statistics."""
    validate_every: int = 5
    """Epochs between two validations."""
    seed: int = 0
    """Seed of weights and examples."""


@dataclass(frozen=True)
class LabellingTrainingSettings(RunSettings):
    """Train the network that tells the level of one segmented vertebra, and whether the scan cuts it."""

    work_dir: Path = Path("work")
    """Folder with `segmentation/`; receives `models/labelling`."""
    preset: Preset = "full"
    """Set of defaults that the other options start from."""
    filters: tuple[int, ...] = (16, 32, 64, 96)
    """Filters a level of the classifier; each level halves the resolution."""
    patch_voxels: tuple[int, int, int] = (40, 44, 72)
    """Shape of the patch (P, R, I) in voxels of 2 mm: ribs beside the vertebra, and the skull or the sacrum
    from two or three vertebrae away."""
    rank_smoothing: float = 0.1
    """Part of a target's probability that goes to the levels next to it."""
    not_a_vertebra_share: float = 0.1
    """Share of examples whose mask is no vertebra: blobs, fragments, halves of two, pieces of other bones."""
    cut_share: float = 0.2
    """Share of examples whose vertebra is cut by the field of view."""
    dropout: float = 0.3
    """Dropout before the last layers."""
    augmentation: AugmentationSettings = LABELLING_AUGMENTATION
    """Random transformations of the training patches."""
    epochs: int = 60
    """Epochs to train."""
    examples_per_epoch: int = 0
    """Examples in an epoch; 0 takes every vertebra as often as the levels' balance asks for."""
    batch_size: int = 8
    """Examples a step and replica."""
    learning_rate: float = 1e-3
    """Learning rate of Adam."""
    final_learning_rate: float = 1e-5
    """Learning rate that a cosine reaches in the last epoch."""
    norm_momentum: float = 0.99
    """Momentum of the batch normalisation's moving statistics."""
    validate_every: int = 1
    """Epochs between two validations."""
    seed: int = 0
    """Seed of weights and examples."""


@dataclass(frozen=True)
class DistillationSettings(RunSettings):
    """Train small segmentation networks, alone and with the trained one as their teacher, and compare them.

    Data, patches, augmentation, batches and learning rates are those that the teacher was trained with.
    """

    work_dir: Path = Path("work")
    """Folder with `segmentation/` and `models/segmentation`; receives `models/student`."""
    preset: Preset = "full"
    """Set of defaults that the other options start from; that of the teacher."""
    teacher: Path | None = None
    """Directory of the teacher; by default work_dir/models/segmentation."""
    filters: tuple[int, ...] = (8, 16, 32, 64)
    """Filters a level of the student, from full resolution down."""
    methods: tuple[Literal["soft", "logits"], ...] = ("soft", "logits")
    """What students learn from the teacher, one student each: "soft", probabilities at a temperature, or
    "logits", the numbers before the sigmoid."""
    temperatures: tuple[float, ...] = (2.0,)
    """With "soft": temperatures, one student each."""
    distillation_weight: float = 0.5
    """Share of the teacher in the loss; the rest is that of the labels."""
    distillation_voxels: Literal["even", "loss"] = "loss"
    """Weights of the voxels in the loss against the teacher: "even", as published, or as in the "loss"
    against the labels, where the boundary counts more and, in the first epochs, the background less. Evenly
    weighted, background is so much of a patch that a student learns it alone for hundreds of steps."""
    epochs: int | None = None
    """Epochs to train each student; by default as many as the teacher."""
    seed: int = 0
    """Seed of the students' weights, the same for all of them, and of the examples."""


@dataclass(frozen=True)
class InferenceSettings:
    """Segment and number the vertebrae of CT scans."""

    inputs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Scans (NIfTI, NRRD, MetaImage), or folders of them or of DICOM (of one with *_ct.nii.gz only those)."""
    work_dir: Path = Path("work")
    """Folder with the trained networks under `models/`; without any, the starter weights are used."""
    output: Path = Path("predictions")
    """Folder that receives the predictions in VerSe layout."""
    formats: tuple[Literal["nifti", "seg.nrrd", "itksnap"], ...] = ("nifti",)
    """Also write the mask for 3D Slicer (seg.nrrd) or its labels for ITK-SNAP (itksnap); NIfTI always."""
    report: bool = False
    """Also write output/report.html: every scan of the folder with its picture, numbers and warnings."""
    model: Path | None = None
    """Directory of the segmentation network; by default work_dir/models/segmentation, else that shipped."""
    heatmap_model: Path | None = None
    """Directory of the heatmap network; by default the one beside the segmentation network, or
    work_dir/models/heatmap."""
    labelling_model: Path | None = None
    """Directory of the labelling network; by default the one beside the segmentation network, or
    work_dir/models/labelling. Without any, vertebrae are counted from 1."""
    first_label: str | None = None
    """Level of the top-most vertebra, such as L1; the others follow from it."""
    fix: tuple[str, ...] = ()
    """Levels that are known, such as 3=T12: the third vertebra from the top is T12. The others follow."""
    relabel: bool = False
    """Change the labels of predictions that are there already, without segmenting again."""
    heat_threshold: float = 0.3
    """Heat at which the spine begins."""
    max_steps: int = 10
    """Most steps spent on one vertebra before its last centres are averaged."""
    max_vertebrae: int = 26
    """Most vertebrae in one scan."""
    min_volume_mm3: float = 1000.0
    """Smallest volume of a vertebra, in cubic millimetres; less counts as nothing found."""
    trace: bool = False
    """Write the steps of the walk beside the prediction (`<key>_trace.jsonl`, a JSON object a line)."""
    workers: int = 1
    """Processes that segment scans, each with networks of its own."""
    scheduler: str | None = None
    """Address of a Dask scheduler, such as tcp://host:8786, whose workers segment the scans instead."""
    shard: str | None = None
    """Of n runs over the same scans, as in an array job, this is the i-th, as "i/n" from 1/n to n/n."""
    seed: int = 0
    """Not used by this stage; accepted so that every script takes it."""
    device: Device = "auto"
    """Device to run on; "auto" takes a GPU if there is one."""
    skip_bad: bool = False
    """End with exit status 0 although scans were bad (they are listed and left out)."""


@dataclass(frozen=True)
class EvaluationSettings:
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
    found_dice: float = 0.5
    """Dice from which a reference vertebra counts as found."""
    resamples: int = 10_000
    """Resamples of the patients that the 95 % intervals are made of. With 10,000, chance moves a limit by
    about 1 % of the interval's width."""
    workers: int = 0
    """Processes that score cases; 0 means one a core."""
    seed: int = 0
    """Seed of the resamples."""
    skip_bad: bool = False
    """End with exit status 0 although cases were bad (they are listed and left out)."""


#: A laptop's few hundred steps: small epochs, a falling rate, and statistics that keep up.
_SMALL: dict[type, dict[str, Any]] = {
    HeatmapPreparationSettings: {"spacing_mm": 2.0},
    SegmentationPreparationSettings: {"spacing_mm": 2.0},
    HeatmapTrainingSettings: {
        "epochs": 8,
        "examples_per_epoch": 24,
        "batch_size": 1,
        "learning_rate": 3e-3,
        "final_learning_rate": 1e-4,
        # With batches of one volume, and volumes of any field of view, no average of statistics fits all: on
        # drawn scans of the whole trunk heat was .1 with them where the example's own gave .6.
        "norm": "instance",
    },
    SegmentationTrainingSettings: {
        "filters": (8, 16, 32, 64),
        "patch_voxels": 64,
        "augmentation": SMALL_AUGMENTATION,
        # Fewer emptied memories in mid-spine, which the walk never meets, and more natural tops, where
        # every walk begins: a few hundred steps must be spent on what inference needs.
        "walk_shares": (0.7, 0.05, 0.15, 0.1),
        "epochs": 15,
        "examples_per_epoch": 120,
        "batch_size": 2,
        "learning_rate": 2e-3,
        "final_learning_rate": 1e-4,
        "norm_momentum": 0.9,
    },
    # Thirty-two thousand patches: about 20 minutes of CPU time (see benchmarks/trial_labelling.py).
    LabellingTrainingSettings: {
        "filters": (12, 24, 48, 64),
        "epochs": 40,
        "examples_per_epoch": 800,
        "learning_rate": 2e-3,
        "norm_momentum": 0.95,
    },
    # The segmentation network of this preset has the size of the others' student.
    DistillationSettings: {"filters": (4, 8, 16, 32)},
}
#: What the starter weights change of it: longer, on a mixture that carries over to real scans, and averaged.
_STARTER: dict[type, dict[str, Any]] = {
    HeatmapPreparationSettings: {"label_maps": True},
    SegmentationPreparationSettings: {"label_maps": True},
    HeatmapTrainingSettings: {
        "epochs": 40,
        "examples_per_epoch": 48,
        # Scans of one centre show all of the trunk, of another the spine alone.
        "crop_least_mm": (110.0, 75.0, 110.0),
        "augmentation": STARTER_HEATMAP_AUGMENTATION,
        # Phantoms show the surroundings of the spine alone; images from their masks show the whole trunk too.
        "mixture": (0.2, 0.15, 0.4, 0.25),
        "moving_average": 0.99,
        # Generated spines alone are held out, and say little of real scans.
        "keep_last": True,
    },
    SegmentationTrainingSettings: {
        # No average of statistics fits generated, drawn and real scans alike. Networks trained on phantoms
        # alone, only changed to the example's own statistics, gained .02 to .08 of Dice on three real CTs.
        "norm": "instance",
        # Few real scans are shown often, and their masks oftener, in looks that no scan repeats; phantoms
        # bring the neck and the chest, of which the real ones show little.
        "mixture": (0.3, 0.2, 0.25, 0.25),
        "augmentation": STARTER_AUGMENTATION,
        # More of "nothing left": the walk ends by itself where a scan shows bones that VerSe does not label.
        "walk_shares": (0.65, 0.05, 0.15, 0.15),
        # The last 720 steps, gentle ones, of a network that knows images drawn from masks (see the Makefile):
        # what few real scans do not show is not to be forgotten.
        "epochs": 12,
        "learning_rate": 5e-4,
        "final_learning_rate": 5e-5,
        "moving_average": 0.995,
        "keep_last": True,
    },
}
#: What the presets change in the defaults above. `full` changes nothing.
PRESETS: dict[str, dict[type, dict[str, Any]]] = {
    "paper": {
        SegmentationTrainingSettings: {"patch_kinds": "paper", "outside": "air"},
        DistillationSettings: {"distillation_voxels": "even"},
    },
    "full": {},
    "small": _SMALL,
    "starter": {stage: {**_SMALL[stage], **_STARTER.get(stage, {})} for stage in _SMALL},
}


def preset_settings(stage: type[Settings], preset: str = "full", **changes: Any) -> Settings:
    """Give the settings of a stage under a preset.

    Parameters
    ----------
    stage : type
        One of the dataclasses of this module.
    preset : str
        "paper", "full", "small" or "starter".
    **changes
        Fields that differ from the preset.

    Returns
    -------
    Settings
        An instance of `stage`.

    Raises
    ------
    ValueError
        If there is no such preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"Expected a preset of {sorted(PRESETS)}, received {preset!r}.")
    own = PRESETS[preset].get(stage, {})
    names = {field.name for field in dataclasses.fields(stage)}
    named = {"preset": preset} if "preset" in names else {}
    return stage(**{**own, **named, **changes})


def settings_from_command_line(stage: type[Settings], arguments: list[str] | None = None) -> Settings:
    """Read the settings of a stage from the command line; a wrong one ends the program with status 2.

    Parameters
    ----------
    stage : type
        One of the dataclasses of this module.
    arguments : list of str, optional
        The command line without the program's name; by default that of the running program.

    Returns
    -------
    Settings
        An instance of `stage`: the preset's defaults, changed by the options given.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    preset = _preset_named_in(arguments)
    settings = tyro.cli(stage, args=arguments, default=preset_settings(stage, preset))
    for name, least in LEAST.items():
        value = getattr(settings, name, least)
        if value is not None and not value >= least:  # true for NaN too
            option = "--" + name.replace("_", "-")
            print(f"{option}: expected {least} or more, received {value}.", file=sys.stderr)
            raise SystemExit(2)
    try:
        shard_numbers(getattr(settings, "shard", None))
    except ValueError as error:
        print(f"--shard: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    return settings


def _preset_named_in(arguments: list[str]) -> str:
    """The preset must be known before the parser is built, since it gives the parser's defaults."""
    joined = [argument.partition("=")[2] for argument in arguments if argument.startswith("--preset=")]
    apart = [after for option, after in itertools.pairwise(arguments) if option == "--preset"]
    chosen = [*joined, *apart, "full"][0]
    return chosen if chosen in PRESETS else "full"


def settings_as_json(settings: Any) -> dict[str, Any]:
    """Give a settings object as a dictionary that JSON can hold, with its class name as "stage"."""
    return {"stage": type(settings).__name__, **_plain(dataclasses.asdict(settings))}


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
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / SETTINGS_FILE
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(json.dumps({**settings_as_json(settings), **_plain(facts)}, indent=2) + "\n")
    temporary.replace(path)
    return path


def load_settings(directory: Path) -> dict[str, Any]:
    """Read the `settings.json` that an earlier stage left in a directory.

    Raises
    ------
    ValueError
        If the file is not there or is no JSON object; the text names it.
    """
    path = directory / SETTINGS_FILE
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: expected the settings of an earlier stage, found no such file.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected JSON, found {error}.") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(found).__name__}.")
    return found


def shard_numbers(shard: str | None) -> tuple[int, int]:
    """Give i and n of the shard "i/n"; without one this is the first of one.

    Raises
    ------
    ValueError
        If the text has another form, or i is not from 1 to n.
    """
    if shard is None:
        return 1, 1
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"Expected i/n with i from 1 to n, such as 2/8, received {shard!r}.")
    return int(match[1]), int(match[2])


def worker_count(workers: int) -> int:
    """Give the number of processes to use: the number asked for, or one a core for 0."""
    if workers < 0:
        raise ValueError(f"Expected a number of workers from 0 up, received {workers}.")
    if workers:
        return workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
