"""The networks of an inference in a form that other programs run: ONNX, checked against Keras."""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.files import write_text_whole, written_whole
from utils.imaging.centroids import BEHIND_MM, MIDDLE_MM
from utils.learning.models import of_any_shape
from utils.localisation.candidates import CENTRES_APART_MM, LEAST_APART_MM, MOVES, SMOOTHING_VOXELS
from utils.localisation.chain import (
    LEAST_HEAT,
    ODD_SPREAD,
    ODD_STEPS,
    SACRUM_SPREAD,
    SACRUM_STEPS,
    SACRUM_TILT_DEGREES,
    USUAL,
    followers,
    lengths_mm,
)
from utils.localisation.evidence import Rates, rib_rates
from utils.localisation.steps import typical_steps
from utils.packages import check_packages
from utils.prediction.networks import Networks, load_networks, with_networks_of
from utils.settings import HU_RANGE, ExportSettings
from utils.verse.anomalies import level_rates
from utils.verse.labels import LEVEL_NAMES, code_of_name
from utils.walk.along import BALL_MM, NEAR_MM
from utils.walk.records import WalkSettings

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
        Exit status: 0, or 1 if a network is missing, or an exported network differs from Keras.

    Raises
    ------
    ModuleNotFoundError
        If a package of requirements-onnx.txt is not there.
    """
    try:
        check_packages("onnx", "onnxruntime", "tf2onnx")
        networks = load_networks(with_networks_of(settings.models))
        facts = {"format": "onnx", "networks": {}, **_facts(networks)}
        for name, network in _models(networks).items():
            path = settings.output / f"{name}.onnx"
            difference = write_onnx(network, path, side=2 * networks.patch_voxels)
            facts["networks"][name] = {"file": path.name, "input": list(network.input_shape[1:])}
            print(
                f"{path}: {path.stat().st_size / 1e6:.1f} MB, {difference:.1g} off Keras at most.", flush=True
            )
        write_text_whole(settings.output / FACTS_FILE, _json_of(facts))
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
    with written_whole(path, suffix=".onnx") as temporary:
        with (
            warnings.catch_warnings()
        ):  # of Keras and tf2onnx about each other; what matters is compared below
            warnings.simplefilter("ignore")
            expected = np.asarray(network(batch, training=False))
            network.export(temporary, format="onnx", verbose=False)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: batch})
        difference = float(np.abs(found - expected).max())
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{path}: expected what Keras gives to {TOLERANCE:g}, found {difference:.2g} off."
            )
    return difference


def _models(networks: Networks) -> dict[str, keras.Model]:
    """Give the networks as the inference runs them."""
    models = {name: model for name, (model, _) in networks.loaded.items()}
    if networks.finds_centres:
        models["heatmap"] = of_any_shape(*networks.loaded["heatmap"])
    return models


# What is around the networks -----------------------------------------------------------------------


def _facts(networks: Networks) -> dict[str, Any]:
    """Give what the arithmetic around the networks needs, all but what docs/onnx.md says in words."""
    facts = ("spacing_mm", "patch_voxels", "outside", "heatmap_mm", "heatmap_shape", "heatmap_outside")
    return {
        **{name: getattr(networks, name) for name in facts},
        **{"finds_centres": networks.finds_centres, "hu": list(HU_RANGE)},
        **(_facts_of_centres(networks) if networks.finds_centres else {}),
    }


def _facts_of_centres(networks: Networks) -> dict[str, Any]:
    _, trained = networks.loaded["labelling"]
    usual = WalkSettings()
    return {
        "labelling_outside": trained.get("outside", "edge"),
        "none_share": trained["none_share"],
        "temperature": networks.temperature,
        "peaks": {
            **{"least_heat": LEAST_HEAT, "smoothing_voxels": SMOOTHING_VOXELS},
            "apart_mm": [LEAST_APART_MM, *[CENTRES_APART_MM] * MOVES],
        },
        "chain": {**dataclasses.asdict(USUAL), "odd_steps": ODD_STEPS, "odd_spread": ODD_SPREAD},
        "sacrum": {"steps": SACRUM_STEPS, "tilt_degrees": SACRUM_TILT_DEGREES, "spread": SACRUM_SPREAD},
        "rates": dataclasses.asdict(Rates()),
        "walk": {
            **{"behind_mm": BEHIND_MM, "middle_mm": MIDDLE_MM, "near_mm": NEAR_MM, "ball_mm": BALL_MM},
            "least_mm3": usual.min_volume_mm3,
            "threshold": usual.probability_threshold,
        },
        "levels": {
            **{"name": LEVEL_NAMES, "code": [code_of_name(name) for name in LEVEL_NAMES]},
            **{"rate": _short(level_rates()), "rib_rate": _short(rib_rates())},
        },
        "steps": [
            {
                **{"passed_over": skipped, "weight": USUAL.skip if skipped else 0.0},
                **{"mm": _short(lengths_mm(skipped)), "spread": _short(typical_steps().spread)},
                "follows": _short(followers(skipped)),
            }
            for skipped in (0, 1)
        ],
    }


def _short(values: np.ndarray) -> list[Any]:
    return np.round(values, 6).tolist()


def _json_of(facts: dict[str, Any]) -> str:
    """Give a line of JSON for every fact: tables of numbers, a line each, would be hundreds of lines."""
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in facts.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"
