"""The networks of an inference in a form that other programs run: ONNX, checked against Keras."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.files import write_text_whole, written_whole
from utils.learning.models import load_model, of_any_shape
from utils.prediction.networks import (
    Networks,
    labelling_directory,
    load_networks,
    model_directories,
    with_networks_of,
)
from utils.settings import ExportSettings

if TYPE_CHECKING:
    import keras

#: Largest difference between an exported network and Keras, on inputs from -1 to 1.
TOLERANCE = 1e-3
FACTS_FILE = "networks.json"
#: Examples of the check: more than one, so that the free first axis is tried.
_EXAMPLES = 2


def export(settings: ExportSettings) -> int:
    """Write the networks of an inference as ONNX, each file whole or not at all, and what is around them.

    Parameters
    ----------
    settings : ExportSettings
        Which networks, and where to.

    Returns
    -------
    int
        Exit status: 0, or 1 if a network or a package is missing, or an exported network differs from Keras.
    """
    try:
        _check_packages()
        networks = load_networks(with_networks_of(settings.models))
        facts = {"format": "onnx", "networks": {}, **_facts(networks)}
        for name, network in _models(settings.models, networks).items():
            path = settings.output / f"{name}.onnx"
            difference = write_onnx(network, path, side=2 * networks.patch_voxels)
            facts["networks"][name] = {"file": path.name, "input": list(network.input_shape[1:])}
            print(
                f"{path}: {path.stat().st_size / 1e6:.1f} MB, {difference:.1g} off Keras at most.", flush=True
            )
        write_text_whole(settings.output / FACTS_FILE, json.dumps(facts, indent=2) + "\n")
        print(f"{settings.output / FACTS_FILE}: what must be known around them.", flush=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def write_onnx(network: keras.Model, path: Path, *, side: int = 64) -> float:
    """Write a network, and compare what the file gives with Keras.

    Parameters
    ----------
    network : keras.Model
        Any network of one input.
    path : Path
        File to write; it appears only if it gives the same.
    side : int
        Voxels for an axis that the network leaves open, a multiple of its pooling.

    Returns
    -------
    float
        The largest difference on random numbers from -1 to 1.

    Raises
    ------
    ValueError
        If that is over `TOLERANCE`.
    """
    import onnxruntime

    shape = (_EXAMPLES, *(side if length is None else length for length in network.input_shape[1:]))
    batch = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    expected = np.asarray(network(batch, training=False))
    with written_whole(path, suffix=".onnx") as temporary:
        with warnings.catch_warnings():  # Keras asks NumPy for a name that this may give a meaning one day
            warnings.simplefilter("ignore", FutureWarning)
            network.export(temporary, format="onnx", verbose=False)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: batch})
        difference = float(np.abs(found - expected).max())
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{path}: expected what Keras gives to {TOLERANCE:g}, found {difference:.2g} off."
            )
    return difference


def _check_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import tf2onnx  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"expected the packages of requirements-onnx.txt, found no {error.name}: "
            "pip install -r requirements-onnx.txt"
        ) from None


def _models(models: Path, networks: Networks) -> dict[str, keras.Model]:
    """Give the networks as the inference runs them."""
    settings = with_networks_of(models)
    segmentation, heatmap = (load_model(directory) for directory in model_directories(settings))
    found = {"segmentation": segmentation[0], "heatmap": heatmap[0]}
    if networks.finds_centres:
        found["heatmap"] = of_any_shape(*heatmap)
        found["labelling"] = load_model(labelling_directory(settings))[0]
    return found


def _facts(networks: Networks) -> dict[str, Any]:
    """Give what the arithmetic around the networks needs."""
    facts = ("spacing_mm", "patch_voxels", "outside", "heatmap_mm", "heatmap_shape", "heatmap_outside")
    return {
        **{name: getattr(networks, name) for name in facts},
        **{"finds_centres": networks.finds_centres, "temperature": networks.temperature},
        "hu": [-1024, 3071],
    }
