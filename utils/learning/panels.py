"""Pictures of one example for TensorBoard: what goes into a network, what should come out, and what does.

Each is one sagittal slice, posterior to the right and inferior down, in tiles side by side.
"""

from __future__ import annotations

import numpy as np

from utils.imaging.intensities import HU_GAIN, LOWEST, LOWEST_HU

#: Bones in soft tissue, in HU, from black to white.
PANEL_WINDOW_HU = (-200.0, 1300.0)
MEMORY_COLOUR, TARGET_COLOUR, PREDICTION_COLOUR = (0.25, 0.55, 1.0), (0.2, 0.9, 0.3), (1.0, 0.35, 0.2)
OPACITY = 0.6


def vertebra_panel(x: np.ndarray, y: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Draw patch, memory, target and prediction of the segmentation network.

    Parameters
    ----------
    x : array, (1, P, R, I, 2)
        CT in [-1, 1] and memory.
    y : array, (1, P, R, I, 2)
        The vertebra, and weights that are not drawn.
    prediction : array, (1, P, R, I, 1)
        Probability of the vertebra.

    Returns
    -------
    np.ndarray of float32, (1, I, 4 P, 3)
        Values from 0 to 1; the slice is the one that shows most of the vertebra.
    """
    ct, memory, vertebra, found = (
        np.asarray(array)[0, ..., channel].astype(np.float32)
        for array, channel in ((x, 0), (x, 1), (y, 0), (prediction, 0))
    )
    overlays = ((memory, MEMORY_COLOUR), (vertebra, TARGET_COLOUR), (found, PREDICTION_COLOUR))
    return _tiles(ct, _fullest_slice(vertebra), overlays)


def heatmap_panel(x: np.ndarray, y: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Draw CT, target and prediction of the heatmap network.

    Parameters
    ----------
    x : array, (1, P, R, I, 1)
        CT in normalised intensities.
    y, prediction : array, (1, P, R, I, 2)
        Heat and its complement.

    Returns
    -------
    np.ndarray of float32, (1, I, 3 P, 3)
        Values from 0 to 1; the slice is the one with most heat.
    """
    ct, heat, found = (np.asarray(array)[0, ..., 0].astype(np.float32) for array in (x, y, prediction))
    return _tiles(ct, _fullest_slice(heat), ((heat, TARGET_COLOUR), (found, PREDICTION_COLOUR)))


def localiser_panel(x: np.ndarray, y: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Draw CT, target and prediction of the localiser's heat, as `heatmap_panel` does."""
    return heatmap_panel(x, y[..., :2], prediction[..., :2])


def _fullest_slice(volume: np.ndarray) -> int:
    """Give the sagittal slice that holds most; the middle one of an empty volume."""
    amounts = volume.sum(axis=(0, 2))
    return int(amounts.argmax()) if amounts.any() else volume.shape[1] // 2


def _tiles(ct: np.ndarray, place: int, overlays: tuple) -> np.ndarray:
    """Put the plain slice, and the slice under each coloured overlay, side by side."""
    black, white = ((hu - LOWEST_HU) * HU_GAIN + LOWEST for hu in PANEL_WINDOW_HU)
    grey = np.clip((ct[:, place].T - black) / (white - black), 0.0, 1.0)
    plain = np.repeat(grey[..., None], 3, axis=-1)
    tiles = [plain]
    for volume, colour in overlays:
        opacity = OPACITY * np.clip(volume[:, place].T[..., None], 0.0, 1.0)
        tiles.append((1.0 - opacity) * plain + opacity * np.array(colour, np.float32))
    return np.concatenate(tiles, axis=1)[None].astype(np.float32)
