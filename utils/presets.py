"""Presets: what each changes in the defaults of the settings, with the reason beside it."""

from __future__ import annotations

import dataclasses
from collections import ChainMap
from typing import Any, TypeVar

from utils import settings
from utils.augmentation_settings import HEATMAP_AUGMENTATION, AugmentationSettings

Settings = TypeVar("Settings")

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
#: Wider in its geometry: few real patients must stand for all sizes and postures, and the upper chest leans.
STARTER_AUGMENTATION = dataclasses.replace(
    SMALL_AUGMENTATION, zoom_p=(0.85, 1.15), zoom_r=(0.85, 1.15), zoom_i=(0.8, 1.2), rotation_degrees=25.0
)

#: A laptop's few hundred steps: small epochs, a falling rate, and statistics that keep up.
_SMALL: dict[type, dict[str, Any]] = {
    settings.SegmentationPreparationSettings: {"spacing_mm": 2.0},
    settings.HeatmapTrainingSettings: {
        "filters": (8, 16, 32, 48),
        # Small crops, several at once: to tell bodies apart is a matter of their surroundings.
        "crop_voxels": (32, 32, 48),
        "epochs": 10,
        "examples_per_epoch": 400,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "final_learning_rate": 1e-4,
        # In these thousand steps half of the loss on held-out spines that adam reached (.006 and .013).
        "optimizer": "muon",
    },
    settings.LabellingTrainingSettings: {
        "epochs": 40,
        "examples_per_epoch": 640,
        "validate_every": 8,
        "optimizer": "muon",
    },
    settings.SegmentationTrainingSettings: {
        "spacing_mm": 2.0,
        "filters": (8, 16, 32, 64),
        # 112 mm around a vertebra's centre hold all of it.
        "patch_voxels": 56,
        "augmentation": SMALL_AUGMENTATION,
        # No average of statistics fits generated, drawn and real scans alike. Networks trained on phantoms
        # alone, only changed to the example's own statistics, gained .02 to .08 of Dice on three real CTs.
        "norm": "instance",
        # Ten epochs of the base of the starter weights reached Dice .861, by adam .807 (121 held-out
        # generated vertebrae).
        "optimizer": "muon",
        "epochs": 15,
        "examples_per_epoch": 120,
        "batch_size": 2,
        "learning_rate": 2e-3,
        "final_learning_rate": 1e-4,
        "norm_momentum": 0.9,
    },
    # The segmentation network of this preset has the size of the others' student.
    settings.DistillationSettings: {"filters": (4, 8, 16, 32), "optimizer": "muon"},
}
#: What the starter weights change of it: longer, on a mixture that carries over to real scans, and averaged.
_STARTER: dict[type, dict[str, Any]] = {
    settings.SegmentationPreparationSettings: {"label_maps": True},
    settings.HeatmapPreparationSettings: {"drawn": (400, 24)},
    settings.HeatmapTrainingSettings: {
        "filters": (8, 24, 48, 64, 96),
        "crop_voxels": (32, 32, 48),
        "epochs": 100,
        "examples_per_epoch": 400,
        "batch_size": 4,
        "validate_every": 5,
        "learning_rate": 2e-3,
        "final_learning_rate": 1e-4,
        # Muon was not tried on it.
        "optimizer": "adam",
        "moving_average": 0.99,
        "keep_last": True,
    },
    settings.LabellingTrainingSettings: {
        "epochs": 60,
        "examples_per_epoch": 1600,
        "validate_every": 5,
        "keep_last": True,
    },
    settings.SegmentationTrainingSettings: {
        # After eight epochs of the base .881 of Dice held out; .855 by "residual", in bfloat16.
        "network": "fine_residual",
        # Multiples of 16, for which convolutions and normalisation are fast.
        "filters": (16, 32, 64, 128),
        # Few real scans are shown often, and their masks too, in looks that no scan repeats; phantoms bring
        # the neck and the sacrum, of which the real ones show little.
        "mixture": (0.25, 0.5, 0.0, 0.25),
        "augmentation": STARTER_AUGMENTATION,
        # From nothing; what goes on from the base of the starter weights takes four (experiments/starter.py).
        "epochs": 20,
        "examples_per_epoch": 240,
        "validate_every": 8,
        "learning_rate": 2e-3,
        "final_learning_rate": 5e-5,
        "moving_average": 0.995,
        "keep_last": True,
    },
}
#: What the presets change in the defaults of a stage, or of all stages that inherit from a class. `full`
#: changes nothing.
PRESETS: dict[str, dict[type, dict[str, Any]]] = {
    "paper": {
        settings.RunSettings: {"precision": "float32"},
        settings.HeatmapPreparationSettings: {"target": "spine", "spacing_mm": 1.0},
        settings.HeatmapTrainingSettings: {
            "target": "spine",
            "spacing_mm": 1.0,
            "filters": (8, 16, 32),
            "norm": "batch",
            "augmentation": HEATMAP_AUGMENTATION,
        },
        settings.SegmentationPreparationSettings: {"fine_masks": False},
        settings.SegmentationTrainingSettings: {
            "network": "unet",
            "patch_kinds": "paper",
            "outside": "air",
            "targets": "bits",
            "cut_share": 0.0,
            "t13": False,
        },
        settings.DistillationSettings: {"distillation_voxels": "even"},
    },
    "full": {},
    "small": _SMALL,
    "starter": {s: {**_SMALL.get(s, {}), **_STARTER.get(s, {})} for s in {**_SMALL, **_STARTER}},
}


def preset_settings(stage: type[Settings], preset: str = "full", **changes: Any) -> Settings:
    """Give the settings of a stage under a preset.

    Parameters
    ----------
    stage : type
        One of the dataclasses of `utils.settings`.
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
    own = ChainMap(*(PRESETS[preset].get(kind, {}) for kind in stage.__mro__))
    named = {"preset": preset} if hasattr(stage, "preset") else {}
    return stage(**{**own, **named, **changes})
