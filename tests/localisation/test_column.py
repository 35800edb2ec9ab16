"""From a scan to its column: centres and levels, the sacrum, and whether there is a spine."""

import numpy as np
import pytest

from tests.localisation.simulated_spines import AFFINE, draw_spine
from tests.walk.column import heat_of
from utils.imaging.volume import Volume
from utils.localisation.column import find_column, number_column
from utils.localisation.tiles import BODY, LEVELS, RIB, SACRUM
from utils.verse.labels import LEVEL_NAMES, MAX_RANK, code_of_name

SHAPE = (48, 32, 64)
NAMES = ("T11", "T12", "L1", "L2", "L3", "L4", "L5")


def spine():
    """Centres of T11 to L5 and of S1 in mm, in the frame of a small scan."""
    first = LEVEL_NAMES.index("T11")
    points = draw_spine(
        np.random.default_rng(2), count=7, first=first, scale=0.75, noise=0.02, cobb_degrees=0.0
    ).points_mm
    points = np.vstack([points, points[-1] + [0, -16.0, -20.0]])
    affine = AFFINE.copy()
    affine[:3, 3] = points.mean(axis=0) - AFFINE[:3, :3] @ (np.array(SHAPE) / 2)
    return points, affine


def network_for(points, affine, *, height=0.9):
    """A network that finds the points, all but the last as vertebrae; ribs down to T12."""
    inverse = np.linalg.inv(affine)
    voxels = points @ inverse[:3, :3].T + inverse[:3, 3]
    heats = [heat_of([voxel], SHAPE, affine, sigma=1.5).data * height for voxel in voxels]
    outputs = np.zeros((*SHAPE, LEVELS + MAX_RANK), np.float32)
    nearest = np.argmax(np.add(heats[:-1], 1e-9), axis=0)
    for place, name in enumerate(NAMES):
        outputs[nearest == place, LEVELS + LEVEL_NAMES.index(name)] = 4.0
        outputs[nearest == place, RIB] = 3.0 if name.startswith("T") else -3.0
    outputs[..., BODY], outputs[..., SACRUM] = np.max(heats[:-1], axis=0), heats[-1]
    return lambda ct: outputs


def found_by(network, affine):
    return find_column(Volume(np.zeros(SHAPE, np.int16), affine), network, outside="edge")


def test_a_column_is_found_with_its_sacrum_and_numbered():
    points, affine = spine()
    column = found_by(network_for(points, affine), affine)
    np.testing.assert_allclose(column.centres_mm, points[:-1], atol=1.0)
    assert column.sacrum.above == 6 and column.sacrum.probability > 0.9
    votes = column.votes(1.5)
    assert votes.temperature == 1.5 and votes.sacrum == column.sacrum
    np.testing.assert_allclose(votes.rib_probability, [0.95, 0.95, *[0.05] * 5], atol=0.15)
    found = number_column(votes)
    assert found.names == NAMES and "sacrum below" in found.anchor
    assert number_column(votes, fixed={0: code_of_name("T10")}).names[0] == "T10"


@pytest.mark.parametrize("height", [0.2, 0.0])
def test_without_a_spine_there_are_no_centres(height):
    points, affine = spine()
    column = found_by(network_for(points, affine, height=height), affine)
    assert not column.chain.has_spine and column.centres_mm.shape == (0, 3)
    # The best peak, which is not believed, stays known to the chain alone; heat that is noise has none.
    assert len(column.chain) == (1 if height else 0)
    votes = column.votes(1.0)
    assert votes.level_log_probabilities.shape == (0, MAX_RANK) and votes.sacrum is None
    assert number_column(votes).codes == ()
