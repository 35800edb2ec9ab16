"""Settings of the augmentation: the ranges that random transformations are drawn from."""

from __future__ import annotations

from dataclasses import dataclass

from utils.bounds import NOT_NEGATIVE, POSITIVE, SHARE, CheckedSettings, bounded, low_to_high, number


@dataclass(frozen=True)
class AugmentationRanges(CheckedSettings):
    """Ranges that the random transformations of one example are drawn from, evenly."""

    flip_probability: float = bounded(0.5, SHARE)
    """Probability of mirroring left and right."""
    gain: tuple[float, float] = bounded((0.75, 1.25), low_to_high(NOT_NEGATIVE))
    """Range of the factor on normalised intensities."""
    offset: tuple[float, float] = bounded((-0.25, 0.25), low_to_high(number()))
    """Range of the offset added to normalised intensities."""
    zoom_p: tuple[float, float] = bounded((0.8, 1.2), low_to_high(POSITIVE))
    """Range of the zoom along P."""
    zoom_r: tuple[float, float] = bounded((0.8, 1.2), low_to_high(POSITIVE))
    """Range of the zoom along R."""
    zoom_i: tuple[float, float] = bounded((0.7, 1.3), low_to_high(POSITIVE))
    """Range of the zoom along I."""
    rotation_degrees: float = bounded(20.0, number(least=0, most=180))
    """Largest rotation about each axis, either way, in degrees."""
    noise_probability: float = bounded(0.8, SHARE)
    """Probability of adding Gaussian noise."""
    noise_sigma: tuple[float, float] = bounded((0.001, 0.03), low_to_high(NOT_NEGATIVE))
    """Range of the noise's standard deviation, in normalised intensities."""
    blur_probability: float = bounded(0.8, SHARE)
    """Probability of blurring."""

    @property
    def blur_sigma(self) -> tuple[float, float]:
        """Range of the blur's standard deviation, in the unit that its field names."""
        raise NotImplementedError


@dataclass(frozen=True)
class AugmentationSettings(AugmentationRanges):
    """The ranges for patches, whose blur is in mm."""

    blur_sigma_mm: tuple[float, float] = bounded((0.5, 1.5), low_to_high(NOT_NEGATIVE))
    """Range of the blur's standard deviation in mm."""

    @property
    def blur_sigma(self) -> tuple[float, float]:
        """Range of the blur's standard deviation in mm."""
        return self.blur_sigma_mm


@dataclass(frozen=True)
class HeatmapAugmentationSettings(AugmentationRanges):
    """The ranges for the heatmap network, whose grid has voxels of another size in every scan."""

    blur_sigma_voxels: tuple[float, float] = bounded((0.5, 1.0), low_to_high(NOT_NEGATIVE))
    """Range of the blur's standard deviation in voxels of the heatmap grid."""

    @property
    def blur_sigma(self) -> tuple[float, float]:
        """Range of the blur's standard deviation in voxels of the heatmap grid."""
        return self.blur_sigma_voxels


#: The heatmap network's augmentation (Serrador et al. 2024).
HEATMAP_AUGMENTATION = HeatmapAugmentationSettings(
    zoom_p=(0.9, 1.1),
    zoom_r=(0.9, 1.1),
    zoom_i=(0.9, 1.1),
    rotation_degrees=10.0,
    noise_sigma=(0.001, 0.005),
)
#: That of the networks that find and name vertebrae, which are to know all sizes and postures; its
#: intensities are those of the preset small.
LOCALISER_AUGMENTATION = HeatmapAugmentationSettings(
    gain=(0.9, 1.1),
    offset=(-0.05, 0.05),
    zoom_p=(0.85, 1.18),
    zoom_r=(0.85, 1.18),
    zoom_i=(0.85, 1.18),
    rotation_degrees=15.0,
    noise_sigma=(0.001, 0.015),
    noise_probability=0.5,
    blur_sigma_voxels=(0.2, 0.6),
    blur_probability=0.3,
)
