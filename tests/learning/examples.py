"""Small prepared data sets and parameters that the tests of this folder share."""

import csv
import json
from pathlib import Path

import numpy as np

from utils.imaging.nifti import write_volume
from utils.imaging.volume import Volume
from utils.preparation.prepared import spacing_folder
from utils.preparation.spine_case import spine_of_points, write_spine_case
from utils.presets import preset_settings
from utils.settings import (
    AugmentationSettings,
    HeatmapPreparationSettings,
    HeatmapTrainingSettings,
    LabellingTrainingSettings,
    SegmentationPreparationSettings,
    SegmentationTrainingSettings,
    save_settings,
)
from utils.verse.labels import rank_of_code

SPACING_MM = 2.0
SCAN_SHAPE, HEATMAP_SHAPE = (16, 14, 24), (8, 8, 16)
SPINE_SPACING_MM, SPINE_SHAPE = 3.0, (24, 26, 30)
#: Working axes (P, R, I) at 2 mm.
AFFINE = np.array([[0, 2.0, 0, 5], [-2.0, 0, 0, 7], [0, 0, -2.0, 9], [0, 0, 0, 1]])
#: Codes from the top down; 28 is T13, between T12 (19) and L1 (20).
CASES = {
    "training": {"sub-a": (19, 28, 20), "sub-b": (20, 21)},
    "validation": {"sub-c": (8, 9)},
}


def scan(codes, seed=0):
    """CT and mask of a column of blocks 6 x 6 x 5, 7 voxels apart; give the rows of its table too."""
    mask = np.zeros(SCAN_SHAPE, np.uint8)
    rows = []
    for place, code in enumerate(codes):
        begin, end = np.array([5, 4, 2 + 7 * place]), np.array([11, 10, 7 + 7 * place])
        mask[tuple(slice(*pair) for pair in zip(begin, end))] = code
        rows.append(table_row(code, begin, end))
    noise = np.random.default_rng(seed).integers(-40, 40, SCAN_SHAPE)
    return (np.where(mask > 0, 500, -100) + noise).astype(np.int16), mask, rows


def table_row(code, begin, end):
    row = {
        "label": code,
        "rank": rank_of_code(code),
        "voxels": int(np.prod(end - begin)),
        "touches_border": 0,
    }
    named = {"centre": (begin + end - 1) / 2, "begin": begin, "end": end}
    return {**row, **{f"{name}_{axis}": v for name, point in named.items() for axis, v in zip("pri", point)}}


def write_table(path: Path, rows):
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_segmentation_stage(work_dir: Path, preset="small") -> Path:
    """Write what pre-processing leaves for the segmentation network; give the folder."""
    folder = spacing_folder(work_dir, "segmentation", SPACING_MM)
    save_settings(preset_settings(SegmentationPreparationSettings, preset, spacing_mm=SPACING_MM), folder)
    for split, cases in CASES.items():
        table = []
        for seed, (key, codes) in enumerate(cases.items()):
            ct, mask, rows = scan(codes, seed)
            write_volume(folder / split / f"{key}_ct.nii", Volume(ct, AFFINE))
            write_volume(folder / split / f"{key}_msk.nii", Volume(mask, AFFINE))
            write_volume(folder / split / f"{key}_fine.nii", fine_mask(mask))
            table += [{"case": key, **row} for row in rows]
        write_table(folder / split / "vertebrae.csv", table)
    return folder


def fine_mask(mask):
    """The same mask at half the spacing."""
    fine = np.kron(mask, np.ones((2, 2, 2), np.uint8))
    return Volume(fine, divided_affine(AFFINE))


def divided_affine(affine):
    """That of a grid with two samples along each axis of a voxel."""
    divided = affine.copy()
    divided[:3, :3] /= 2
    divided[:3, 3] -= divided[:3, :3].sum(axis=1) / 2
    return divided


def write_heatmap_stage(work_dir: Path, preset="small") -> Path:
    """Write what pre-processing leaves for the heatmap network as published; give the folder."""
    folder = spacing_folder(work_dir, "heatmap", SPACING_MM)
    grid = {"target": "spine", "spacing_mm": SPACING_MM, "heatmap_shape": HEATMAP_SHAPE}
    settings = preset_settings(HeatmapPreparationSettings, preset, **grid)
    save_settings(settings, folder)
    generator = np.random.default_rng(0)
    for split, cases in CASES.items():
        for key, codes in cases.items():
            ct = generator.integers(-1024, 1500, HEATMAP_SHAPE).astype(np.int16)
            write_volume(folder / split / f"{key}_ct.nii", Volume(ct, AFFINE))
            points = [{"label": c, "X": 3.5, "Y": 4.0, "Z": 2.0 + 4 * i} for i, c in enumerate(codes)]
            text = json.dumps([{"direction": ["P", "R", "I"]}, *points])
            (folder / split / f"{key}_ctd.json").write_text(text)
    return folder


def spine_scan(codes, seed=0, *, is_complete=False):
    """A scan in which the centres of vertebrae, 8 voxels apart, are bright; and its spine."""
    points = np.array([[11.0, 12.0, 6.0 + 8 * place] for place in range(len(codes))])
    data = np.random.default_rng(seed).integers(-900, -700, SPINE_SHAPE)
    for point in points.astype(int):
        data[tuple(slice(p - 1, p + 2) for p in point)] = 1500
    spine = spine_of_points(np.array(codes), points, is_complete=is_complete)
    return Volume(data.astype(np.int16), AFFINE), spine


def write_spine_stage(work_dir: Path, preset="small") -> Path:
    """Write what pre-processing leaves for the networks of centres and of levels; give the folder."""
    folder = spacing_folder(work_dir, "heatmap", SPINE_SPACING_MM)
    save_settings(preset_settings(HeatmapPreparationSettings, preset), folder)
    for split, cases in CASES.items():
        for seed, (key, codes) in enumerate(cases.items()):
            write_spine_case(folder / split, key, *spine_scan(codes, seed))
    return folder


def training_settings(work_dir: Path, **changes) -> SegmentationTrainingSettings:
    """Settings of a training of seconds: 3 epochs of 4 examples, whose blocks all have one edge."""
    tiny = {
        "patch_voxels": 16,
        "filters": (2, 3),
        "epochs": 3,
        "examples_per_epoch": 4,
        "batch_size": 2,
    }
    augmentation = AugmentationSettings(zoom_i=(0.9, 1.1))
    more = {"shift_mm": 8.0, "augmentation": augmentation, "validate_every": 2, "device": "cpu", **changes}
    return preset_settings(SegmentationTrainingSettings, "small", work_dir=work_dir, **{**tiny, **more})


def localiser_settings(work_dir: Path, **changes) -> HeatmapTrainingSettings:
    """Settings of a training of centres, of seconds: 3 epochs of 4 examples."""
    network = {"filters": (2, 3, 4), "crop_voxels": (8, 8, 12)}
    run = {"epochs": 3, "examples_per_epoch": 4, "batch_size": 2, "validate_every": 2, "device": "cpu"}
    return preset_settings(
        HeatmapTrainingSettings, "small", work_dir=work_dir, **{**network, **run, **changes}
    )


def labelling_settings(work_dir: Path, **changes) -> LabellingTrainingSettings:
    """Settings of a training of levels, of seconds: 3 epochs of 4 examples."""
    network = {"filters": (2, 3), "patch_voxels": 12}
    run = {"epochs": 3, "examples_per_epoch": 4, "batch_size": 2, "validate_every": 2, "device": "cpu"}
    return preset_settings(
        LabellingTrainingSettings, "small", work_dir=work_dir, **{**network, **run, **changes}
    )


def history_of(directory: Path) -> list[dict[str, str]]:
    with (directory / "history.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))
