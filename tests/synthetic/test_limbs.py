"""Drawn limbs: poses within bounds, mirrored sides, hollow shafts, joints where they belong, no two alike."""

import numpy as np
import pytest

from utils.synthetic.limb_bones import STEEPEST_DEG, draw_arm, draw_thigh, draw_tilt
from utils.synthetic.limbs import draw_limb, draw_limb_values


def angle_deg(a, b):
    return np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))


def test_tilts_go_in_every_plane_up_to_the_steepest():
    ways = np.array([draw_tilt(np.random.default_rng(n), STEEPEST_DEG)[:, 2] for n in range(400)])
    angles = np.array([angle_deg(way, np.array([0, 0, 1])) for way in ways])
    assert 35 < angles.max() <= STEEPEST_DEG + 0.1 and angles.min() < 5
    assert ways[:, :2].min() < -0.5 and ways[:, :2].max() > 0.5


@pytest.mark.parametrize(("draw", "shaft", "ends"), [
    (draw_thigh, "femur", ("hip", "knee")), (draw_arm, "humerus", ("shoulder", "elbow")),
])  # fmt: skip
def test_a_shaft_runs_from_joint_to_joint(draw, shaft, ends):
    for number in range(20):
        limb = draw(np.random.default_rng(number), 1, origin=np.zeros(3))
        line = limb.shafts[shaft]
        assert np.linalg.norm(line[0] - limb.places[ends[0]]) < 75
        np.testing.assert_allclose(line[-1], limb.places[ends[1]])
        assert all(part.wall_mm > 0 for bone in limb.bones for part in bone)


@pytest.mark.parametrize("draw", [draw_thigh, draw_arm])
def test_the_neck_of_a_bone_goes_to_the_side_of_the_body(draw):
    """The top of a shaft lies lateral of its joint, whether the limb is a right or a left one."""
    for side in (1, -1):
        tops = [
            next(iter(draw(np.random.default_rng(n), side, origin=np.zeros(3)).shafts.values()))[0][1]
            for n in range(40)
        ]
        assert side * np.mean(tops) > 5


def test_knees_are_straight_and_bent():
    bends = []
    for number in range(60):
        shafts = draw_thigh(np.random.default_rng(number), 1, origin=np.zeros(3)).shafts
        femur, tibia = (shafts[name][-1] - shafts[name][0] for name in ("femur", "tibia"))
        bends.append(angle_deg(femur, tibia))
    assert min(bends) < 15 and max(bends) > 80


def test_values_reach_from_dull_to_bright_bone():
    cortex, marrow = np.array([
        (v.cortex, v.marrow) for v in (draw_limb_values(np.random.default_rng(n)) for n in range(300))
    ]).T  # fmt: skip
    assert cortex.min() < 300 and cortex.max() > 1600 and (marrow < cortex).all()


@pytest.mark.parametrize("kind", ["thigh", "arm"])
def test_a_limb_holds_bone_and_flesh_and_is_a_function_of_its_seed(kind):
    bony, muscular = [], []
    for number in range(10):
        hu, step_mm = draw_limb(np.random.default_rng(number), kind=kind)
        assert hu.dtype == np.float32 and np.isfinite(hu).all() and 1.5 < step_mm <= 3
        bony.append((hu > 200).mean())
        muscular.append(((hu > 0) & (hu < 110)).mean())
    again, _ = draw_limb(np.random.default_rng(9), kind=kind)
    np.testing.assert_array_equal(again, hu)
    assert np.median(bony) > 0.005 and max(bony) < 0.5 and np.median(muscular) > 0.08
