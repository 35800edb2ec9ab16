"""A network in half precision: what is read again, how large it is, and what is refused."""

import numpy as np
import pytest

from experiments import compact
from tests.experiments.test_average import TINY, trained
from utils.learning.models import build_segmentation_network, load_model, save_weights


def test_a_compact_network_is_read_as_any_other(tmp_path):
    source, output = trained(tmp_path / "model", 3), tmp_path / "deep" / "shipped"
    (source / "history.csv").touch()
    for _ in range(2):
        assert compact.main([str(source), "--output", str(output)]) == 0
    assert sorted(path.name for path in output.iterdir()) == ["best.weights.h5", "settings.json"]
    (network, settings), (whole, same) = load_model(output), load_model(source)
    assert settings == same
    for ours, theirs in zip(network.get_weights(), whole.get_weights(), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs.astype(np.float16))
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 8, 2)).astype(np.float32)
    np.testing.assert_allclose(network(x), whole(x), atol=5e-3)
    size, before = ((folder / "best.weights.h5").stat().st_size for folder in (output, source))
    assert size < before


@pytest.mark.parametrize("value", [1e6, np.nan])
def test_what_half_precision_cannot_hold_is_refused(tmp_path, capsys, value):
    source = trained(tmp_path / "model", 0)
    network = build_segmentation_network(TINY)
    network.set_weights([np.full_like(weight, value) for weight in network.get_weights()])
    save_weights(network, source)
    assert compact.main([str(source), "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert f"{source / 'best.weights.h5'}: expected numbers under 65504" in said and said.count("\n") == 1
    assert not (tmp_path / "out" / "best.weights.h5").exists()


def test_a_folder_without_a_network_is_refused(tmp_path, capsys):
    assert compact.main([str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    assert "expected the weights of a trained network" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
