"""The preset `paper` against the published definition, worked out from the formulas with NumPy alone.

Here are the parts that go through several rooms of the code. Single functions stand beside the others of
their room:

- the two schedules of the weight of false positives inside the compiled step:
  `tests/learning/test_training.py`, `test_weight_changes_inside_the_compiled_step`; their formula:
  `tests/learning/test_losses.py`, `test_weight_of_false_positives_rises` and what follows it
- the loss of two voxels: `tests/learning/test_losses.py`; the weight of the boundary against SciPy, kinds and
  places of patches: `tests/learning/test_vertebrae.py`
- each loss against the teacher alone: `tests/distillation/test_students.py`, under "losses"
- air around a patch of the walk: `tests/walk/test_look.py`
- constants: `tests/test_settings.py`, `test_paper_has_the_published_constants`
"""

import dataclasses
import math
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.learning import examples
from utils.distillation import students
from utils.imaging.nifti import write_volume
from utils.imaging.volume import Volume
from utils.learning import datasets, epochs, losses, models, prepared_data, runtime, training, training_data
from utils.learning.vertebrae import segmentation_batch_builder
from utils.preparation.prepared import spacing_folder
from utils.presets import preset_settings
from utils.settings import (
    AugmentationSettings,
    DistillationSettings,
    HeatmapTrainingSettings,
    SegmentationTrainingSettings,
    load_settings,
)

#: Nothing is moved, scaled, blurred or noisy: only where the patch lies is drawn.
STILL = AugmentationSettings(
    flip_probability=0.0,
    gain=(1.0, 1.0),
    offset=(0.0, 0.0),
    zoom_p=(1.0, 1.0),
    zoom_r=(1.0, 1.0),
    zoom_i=(1.0, 1.0),
    rotation_degrees=0.0,
    noise_probability=0.0,
    blur_probability=0.0,
)


def paper_settings(**changes):
    """The preset with networks and patches of seconds."""
    tiny = {"filters": (2, 3), "patch_voxels": 16, "spacing_mm": examples.SPACING_MM, "device": "cpu"}
    return preset_settings(SegmentationTrainingSettings, "paper", **{**tiny, **changes})


# ---------------------------------------------------------------- outside the scan is air

#: A scan smaller than a patch; T12 and L1 as blocks whose centres of mass are whole voxels.
SCAN_SHAPE, EDGE = (11, 9, 18), 32
BLOCKS = {19: ((3, 2, 2), (8, 7, 7)), 20: ((3, 2, 10), (8, 7, 15))}


@pytest.fixture
def border_case(tmp_path):
    """CT in HU, mask, and the case as pre-processing leaves it."""
    ct = np.random.default_rng(0).integers(-900, 1500, SCAN_SHAPE).astype(np.int16)
    mask, rows = np.zeros(SCAN_SHAPE, np.uint8), []
    for code, (begin, end) in BLOCKS.items():
        mask[tuple(slice(*pair) for pair in zip(begin, end))] = code
        rows.append({"case": "sub-a", **examples.table_row(code, np.array(begin), np.array(end))})
    write_volume(tmp_path / "sub-a_ct.nii", Volume(ct, examples.AFFINE))
    write_volume(tmp_path / "sub-a_msk.nii", Volume(mask, examples.AFFINE))
    examples.write_table(tmp_path / "vertebrae.csv", rows)
    return ct, mask, prepared_data.read_segmentation_data(tmp_path)


def normalised(ct):
    return (ct.astype(float) + 1024) * 2 / 4095 - 1


def test_a_patch_at_the_border_shows_air_beyond_the_scan(border_case):
    ct, mask, data = border_case
    settings = paper_settings(patch_voxels=EDGE)
    dataset = datasets.segmentation_dataset(data, settings, spacing_mm=2.0, training=False)
    build = segmentation_batch_builder(settings, 2.0)
    # In validation a patch lies around its vertebra, and the memory is all vertebrae above it.
    for batch, (code, memory), centre in zip(
        dataset(0), ((19, []), (20, [19])), ((5, 4, 4), (5, 4, 12)), strict=True
    ):
        x, y, _ = (tensor.numpy() for tensor in build(batch, False))
        before = EDGE // 2 - np.array(centre)
        around = [(b, EDGE - b - n) for b, n in zip(before, SCAN_SHAPE)]
        assert min(min(pair) for pair in around) > 0  # air on all six sides
        expected = np.pad(normalised(ct), around, constant_values=-1.0)
        np.testing.assert_allclose(x[0, ..., 0], expected, atol=1e-6)
        np.testing.assert_array_equal(x[0, ..., 1], np.pad(np.isin(mask, memory), around))
        np.testing.assert_array_equal(y[0, ..., 0], np.pad(mask == code, around))


def test_training_patches_at_the_border_show_air_that_keeps_its_value(border_case):
    ct, _, data = border_case
    brighter = dataclasses.replace(STILL, gain=(0.75, 0.75), offset=(0.25, 0.25))
    settings = paper_settings(patch_voxels=EDGE, augmentation=brighter, examples_per_epoch=6)
    dataset = datasets.segmentation_dataset(data, settings, spacing_mm=2.0, training=True)
    build = segmentation_batch_builder(settings, 2.0)
    lowest = 0.75 * normalised(ct).min() + 0.25
    for batch in dataset(0):
        assert np.array_equal(batch["affine"][0, :, :3], np.eye(3))
        x = build(batch, True)[0].numpy()[0]
        # Voxels of the patch in voxels of the block, which is all of the scan that the patch shows.
        first, last = batch["affine"].numpy()[0, :, 3], batch["last"].numpy()[0]
        places = np.stack(np.meshgrid(*(begin + np.arange(EDGE) for begin in first), indexing="ij"), -1)
        beyond = ((places < -0.501) | (places > last + 0.501)).any(-1)
        inside = ((places >= 0) & (places <= last)).all(-1)
        assert beyond.any() and (x[beyond, 0] == -1).all() and not x[beyond, 1].any()
        assert inside.any() and (x[inside, 0] >= lowest - 1e-6).all()


# ---------------------------------------------------------------- distillation

VOXELS = 4**3


def two_networks():
    keras.utils.set_random_seed(0)
    return [
        keras.Sequential(
            [
                keras.Input((4, 4, 4, 2)),
                keras.layers.Conv3D(1, 1, name="last_logits"),
                keras.layers.Activation("sigmoid"),
            ]
        )
        for _ in range(2)
    ]


def sigmoid(z):
    return 1 / (1 + np.exp(-z.astype(float)))


def soft_loss(teacher, student, method):
    """What the paper takes from the teacher, a mean over the voxels."""
    if method == "logits":
        return np.mean((student - teacher) ** 2)
    temperature, has_square = method
    p, q = sigmoid(teacher / temperature), sigmoid(student / temperature)
    divergence = np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    return divergence * (temperature**2 if has_square else 1)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("method", ["logits", (2.0, True), (2.0, False), (5.0, True), (5.0, False)])
def test_a_student_learns_half_from_the_labels_and_half_from_its_teacher(tmp_path, method, reduction):
    of_method = {"methods": ("logits",)}
    if method != "logits":
        of_method = {"methods": ("soft",), "temperatures": method[:1], "t_squared": method[1]}
    settings = preset_settings(DistillationSettings, "paper", reduction=reduction, **of_method)
    assert settings.distillation_voxels == "even" and settings.distillation_weight == 0.5
    networks, generator = two_networks(), np.random.default_rng(0)
    x = generator.normal(size=(1, 4, 4, 4, 2)).astype("float32")
    y = np.stack([x[..., 0] > 0.5, generator.uniform(1, 9, x.shape[:-1])], axis=-1).astype("float32")
    how = {"distill_on": "logits", "voxels": settings.distillation_voxels, "reduction": settings.reduction}
    how |= {"distillation_weight": settings.distillation_weight, "schedule": "ramp", "epochs": 3}
    trainer = students.VertebraDistiller(*networks, "sgd", 0.0, tmp_path, **how)
    trainer.distillation_fn = students.variants(settings)[1].distillation_fn
    one = tf.data.Dataset.from_tensors((x, y))
    rows = trainer.train(one, one, loss_fn=losses.vertebra_loss, EPOCHS=3)
    student, teacher = (np.array(network.layers[0](x))[..., 0] for network in networks)
    vertebra, weight = y[..., 0], y[..., 1]
    found = sigmoid(student)
    for epoch, row in enumerate(rows):
        rising = 0.1 + 0.9 / (1 + math.exp(-(epoch - 1) / 0.3))  # E = 3
        errors = weight * (rising * (1 - vertebra) * found + vertebra * (1 - found))
        hard = np.mean(errors) if reduction == "mean" else np.sum(errors)
        assert hard > 0
        assert row["loss"] == pytest.approx(0.5 * hard + 0.5 * soft_loss(teacher, student, method), rel=1e-4)


# ---------------------------------------------------------------- T13

#: Codes from the top down: with T13 in the middle, with T13 as the first one, and without it.
COLUMNS = {
    "training": {"sub-a": (19, 28, 20), "sub-b": (28, 20), "sub-d": (20, 21), "sub-e": (20, 21)},
    "validation": {"sub-c": (28, 20)},
}
T12, T13, L1, L2 = 19, 28, 20, 21


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Prepared data with T13 in both splits; give the work folder."""
    monkeypatch.setattr(examples, "CASES", COLUMNS)
    examples.write_segmentation_stage(tmp_path, "paper")
    return tmp_path


def splits_of(work_dir, *, t13):
    folder = spacing_folder(work_dir, "segmentation", examples.SPACING_MM)
    alone = types.SimpleNamespace(is_chief=True)
    return training_data.read_segmentation_splits(folder, alone, t13=t13)[:2]


def test_paper_leaves_t13_out_and_the_other_presets_do_not():
    presets = ("paper", "full", "small", "starter")
    learned = [preset_settings(SegmentationTrainingSettings, preset).t13 for preset in presets]
    assert learned == [False, True, True, True]


@pytest.mark.parametrize(("t13", "labels"), [(True, [T12, L1, L2, T13]), (False, [T12, L1, L2])])
def test_t13_is_sampled_like_every_level_or_never(stage, t13, labels):
    data, held_out = splits_of(stage, t13=t13)
    (items,) = epochs.segmentation_groups(data, paper_settings(t13=t13))
    shown = [data.vertebrae[item].label for item in items]
    # L1 has four scans, so every level is met four times.
    assert {label: shown.count(label) for label in set(shown)} == dict.fromkeys(labels, 4)
    (validated,) = epochs.segmentation_groups(held_out, None)
    assert [held_out.vertebrae[item].label for item in validated] == ([T13, L1] if t13 else [L1])


@pytest.mark.parametrize(("t13", "memory"), [(True, [T12, T13]), (False, [T12])])
def test_t13_is_in_the_memory_of_what_lies_below_or_in_none(stage, t13, memory):
    data, _ = splits_of(stage, t13=t13)
    settings = paper_settings(patch_voxels=32, t13=t13)
    dataset = datasets.segmentation_dataset(data, settings, spacing_mm=2.0, training=False)
    build = segmentation_batch_builder(settings, 2.0)
    _, mask, _ = examples.scan(COLUMNS["training"]["sub-a"])
    met = []
    for vertebra, batch in zip(data.vertebrae, dataset(0), strict=True):
        x, y, _ = build(batch, False)
        met.append((vertebra.case, vertebra.label))
        if met[-1] == ("sub-a", L1):  # the patch shows the whole scan
            assert y.numpy()[..., 0].sum() == (mask == L1).sum()
            assert x.numpy()[..., 1].sum() == np.isin(mask, memory).sum() > 0
        if met[-1] == ("sub-b", L1):
            assert bool(x.numpy()[..., 1].any()) == t13
            assert data.target(vertebra).is_top != t13
    assert {("sub-a", L1), ("sub-b", L1)} < set(met)
    assert any(label == T13 for _, label in met) == t13


def test_a_training_of_the_paper_keeps_what_it_did_and_its_students_follow(stage, monkeypatch):
    monkeypatch.setattr(training.runtime, "choose_device", lambda device, preset: "cpu")
    settings = paper_settings(work_dir=stage, epochs=1, tensorboard=False)
    assert training.train_segmentation(settings) == 0
    directory = stage / "models" / "segmentation"
    found = load_settings(directory)
    kept = {name: found[name] for name in ("t13", "outside", "computed_in", "fp_weight_schedule", "targets")}
    expected = {"t13": False, "outside": "air", "computed_in": "float32"}
    assert kept == {**expected, "fp_weight_schedule": "ramp", "targets": "bits"}
    own = preset_settings(DistillationSettings, "paper", work_dir=stage, filters=(2, 2), device="cpu")
    inputs = students.read_inputs(own, types.SimpleNamespace(is_chief=True))
    assert not inputs.settings.t13
    assert {vertebra.label for vertebra in inputs.data.vertebrae} == {T12, L1, L2}
    # Teachers of before the switch learned T13.
    del found["t13"]
    assert students.student_settings(found, own).t13
    # A run with it does not go on in the same folder.
    assert training.train_segmentation(dataclasses.replace(settings, t13=True)) == 1


# ---------------------------------------------------------------- float32


@pytest.mark.parametrize(
    "settings", [HeatmapTrainingSettings, SegmentationTrainingSettings, DistillationSettings]
)
@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0)])
def test_paper_computes_in_float32_on_gpus_that_are_faster_in_less(settings, capability):
    chosen = {preset: preset_settings(settings, preset).precision for preset in ("paper", "full")}
    paper, full = (runtime.choose_precision(chosen[preset], capability, 1) for preset in ("paper", "full"))
    assert paper == "float32" and full in ("bfloat16", "float16")


def test_every_layer_of_the_published_networks_computes_in_float32():
    heatmap = preset_settings(HeatmapTrainingSettings, "paper")
    networks = [
        models.build_segmentation_network(preset_settings(SegmentationTrainingSettings, "paper")),
        models.build_heatmap_network(heatmap, (64, 64, 128)),
    ]
    for network in networks:
        assert {layer.compute_dtype for layer in network.layers} == {"float32"}
        assert {weight.dtype for weight in network.weights} == {"float32"}
