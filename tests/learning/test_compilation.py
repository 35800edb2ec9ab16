"""Examples with and without XLA are the same; what of a run says which."""

import numpy as np
import pytest
import tensorflow as tf

from tests.learning import examples
from tests.learning.test_vertebrae import EDGE, random_batch, stacked
from utils.learning import training, vertebrae
from utils.learning.compilation import compile_examples, compiled
from utils.settings import SegmentationTrainingSettings


@pytest.fixture
def switch():
    """Sets whether XLA compiles; afterwards it does again."""
    yield compile_examples
    compile_examples(True)


def test_examples_with_and_without_xla_are_the_same(switch):
    batch = stacked(random_batch(), [1.0, 1.0, 1.0, 0.0])
    settings = SegmentationTrainingSettings(patch_voxels=EDGE, targets="bits")
    found = {}
    for compiles in (True, False):
        switch(compiles)
        # Made anew, as in a run: which form is taken is fixed by the trace.
        build = tf.function(vertebrae.segmentation_batch_builder(settings, 2.0))
        found[compiles] = build(batch, True)
    for with_xla, without in zip(*(found[each] for each in (True, False)), strict=True):
        np.testing.assert_allclose(with_xla, without, atol=1e-4)


def test_the_switch_decides_whether_xla_compiles(switch):
    # XLA has no regular expressions.
    read = compiled(lambda text: tf.strings.regex_replace(text, "a", "b"))
    switch(False)
    assert read(tf.constant("a")).numpy() == b"b"
    switch(True)
    with pytest.raises((tf.errors.OpError, ValueError)):
        read(tf.constant("a"))


def test_a_training_with_and_without_xla_is_the_same(tmp_path, switch, monkeypatch):
    monkeypatch.setattr(training.runtime, "choose_device", lambda device, preset: "cpu")
    rows = {}
    for xla in ("auto", "off"):
        examples.write_segmentation_stage(tmp_path / xla)
        settings = examples.training_settings(tmp_path / xla, xla=xla, targets="occupancies", epochs=2)
        assert training.train_segmentation(settings) == 0
        rows[xla] = examples.history_of(tmp_path / xla / "models" / "segmentation")
    for one, other in zip(*rows.values(), strict=True):
        for name in ("loss", "val_loss"):
            assert float(one[name] or 0) == pytest.approx(float(other[name] or 0), abs=1e-4)
