"""No operation of a training step or of an inference leaves the GPU: TensorFlow's registry of kernels tells.

The wheel for Linux lists the kernels for GPUs on machines without one too. What XLA compiles is one kernel.
"""

from __future__ import annotations

import gc

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.framework import kernels, op_def_registry

from ML_3D_Unet.utils.folding import without_large_arrays, without_norms
from ML_3D_Unet.utils.train import Trainer
from tests.learning import examples
from utils.learning import models, training
from utils.prediction import networks
from utils.presets import preset_settings
from utils.settings import HeatmapTrainingSettings, SegmentationTrainingSettings

pytestmark = pytest.mark.skipif(
    not any(kernel.device_type == "GPU" for kernel in kernels.get_registered_kernels_for_op("MatMul").kernel),
    reason="this build of TensorFlow has no kernels for GPUs",
)

#: Names of the functions that make examples, train or validate, and infer; what they call belongs to them.
ROOTS = ("make_examples", "advance", "forward")
#: Kept in the host's memory by design: shapes, lengths and indices, and the handles of variables.
ON_HOST_BY_DESIGN = (tf.int32, tf.resource)
#: Operations on a few numbers: the key of random numbers, made from its seed.
SINGLE_NUMBERS = ("StatelessRandomGetKeyCounter",)


@pytest.fixture(autouse=True)
def no_graphs_of_before():
    """Graphs of other tests are gone once nothing holds them."""
    gc.collect()


def functions_of_process() -> dict[str, object]:
    """The graphs that TensorFlow has traced so far and that are still alive."""
    names = context.context().list_function_names()
    return {name: context.context().get_function_def(name) for name in names}


def calls_of(function) -> set[str]:
    """Names of the functions that the nodes of one call."""
    found = set()
    for node in function.node_def:
        for value in node.attr.values():
            found |= {value.func.name} if value.HasField("func") else set()
            found |= {each.name for each in value.list.func}
    return found


def on_device(functions: dict[str, object]) -> dict[str, object]:
    """What the roots call, but for what XLA compiles as a whole."""
    queue = [name for name in functions if any(f"__inference_{root}_" in name for root in ROOTS)]
    found = {}
    while queue:
        name = queue.pop()
        function = functions.get(name)
        if name in found or function is None or function.attr["_XlaMustCompile"].b:
            continue
        found[name] = function
        queue += calls_of(function)
    return found


def kernel_of(node):
    """The kernel for a GPU that takes the types of a node; None if there is none."""
    for kernel in kernels.get_registered_kernels_for_op(node.op).kernel:
        if kernel.device_type in ("GPU", "DEFAULT") and all(
            node.attr[each.name].type in each.allowed_values.list.type for each in kernel.constraint
        ):
            return kernel
    return None


def types_of(node) -> dict[str, tf.DType]:
    """Types of the arguments of a node, by their names."""
    definition = op_def_registry.get(node.op)
    arguments = [*definition.input_arg, *definition.output_arg]
    return {
        each.name: tf.dtypes.as_dtype(node.attr[each.type_attr].type if each.type_attr else each.type)
        for each in arguments
        if each.type_attr or each.type
    }


def trips_of(node) -> list[str]:
    """Say why the data of a node leave the GPU: no kernel, or one that keeps them in the host's memory."""
    types = types_of(node)
    kernel = kernel_of(node)
    if kernel is None:
        return [f"{node.op} of {', '.join(sorted({each.name for each in types.values()}))}: no kernel"]
    inputs = [types.get(each.name) for each in op_def_registry.get(node.op).input_arg]
    if node.op in SINGLE_NUMBERS or all(each in ON_HOST_BY_DESIGN for each in inputs):
        return []
    kept = [name for name in kernel.host_memory_arg if types.get(name) not in (None, *ON_HOST_BY_DESIGN)]
    return [f"{node.op}: {types[name].name} {name} on the host" for name in kept]


def trips(functions: dict[str, object]) -> set[str]:
    """Give `trips_of` all nodes."""
    nodes = (node for function in on_device(functions).values() for node in function.node_def)
    return {text for node in nodes for text in trips_of(node)}


def trips_of_training(monkeypatch, train, settings) -> set[str]:
    """Train, and look at the graphs while they are alive, at the end of an epoch."""
    seen: set[str] = set()
    save = Trainer._save_epoch

    def look(self, history):
        functions = functions_of_process()
        assert on_device(functions), "nothing was traced"
        seen.update(trips(functions))
        return save(self, history)

    monkeypatch.setattr(Trainer, "_save_epoch", look)
    assert train(settings) == 0
    return seen


def spine_settings(work_dir):
    small = {"target": "spine", "filters": (2, 3), "epochs": 1, "batch_size": 2, "device": "cpu"}
    return preset_settings(HeatmapTrainingSettings, "small", work_dir=work_dir, spacing_mm=2.0, **small)


TRAININGS = {
    "bits": (
        examples.write_segmentation_stage,
        training.train_segmentation,
        lambda folder: examples.training_settings(folder, epochs=1, targets="bits"),
    ),
    "occupancies": (
        examples.write_segmentation_stage,
        training.train_segmentation,
        lambda folder: examples.training_settings(folder, epochs=1, targets="occupancies", accumulate=2),
    ),
    "paper": (
        examples.write_segmentation_stage,
        training.train_segmentation,
        lambda folder: examples.training_settings(folder, epochs=1, network="unet", patch_kinds="paper"),
    ),
    "spine": (examples.write_heatmap_stage, training.train_heatmap, spine_settings),
    "centres": (
        examples.write_spine_stage,
        training.train_heatmap,
        lambda folder: examples.localiser_settings(folder, epochs=1),
    ),
    "levels": (
        examples.write_spine_stage,
        training.train_labelling,
        lambda folder: examples.labelling_settings(folder, epochs=1),
    ),
}


@pytest.mark.parametrize("kind", TRAININGS)
def test_no_operation_of_a_training_leaves_the_gpu(tmp_path, monkeypatch, kind):
    write, train, settings = TRAININGS[kind]
    write(tmp_path)
    assert trips_of_training(monkeypatch, train, settings(tmp_path)) == set()


@pytest.mark.parametrize("preset", ["paper", "small"])
def test_no_operation_of_an_inference_leaves_the_gpu(preset):
    settings = preset_settings(SegmentationTrainingSettings, preset, filters=(2, 3), patch_voxels=8)
    run = networks._compiled(without_norms(models.build_segmentation_network(settings)))
    localiser = models.build_localiser(HeatmapTrainingSettings(filters=(2, 3, 4), crop_voxels=(8, 8, 8)))
    tile = networks._compiled(without_large_arrays(localiser))
    run(np.zeros((1, 8, 8, 8, 2), np.float32)), tile(np.zeros((1, 8, 8, 8, 1), np.float32))
    functions = functions_of_process()
    assert len(on_device(functions)) >= 2 and trips(functions) == set()


def test_what_leaves_the_gpu_is_found():
    @tf.function
    def make_examples(block, text):
        values = tf.unstack(block)
        return values[0] + values[1], tf.strings.length(text)

    make_examples(tf.constant([[1, 2], [3, 4]], tf.int16), tf.constant("a"))
    found = trips(functions_of_process())
    assert "Unpack of int16: no kernel" in found
    assert [text for text in found if text.startswith("StringLength")]


def test_what_xla_compiles_is_one_kernel():
    @tf.function(jit_compile=True)
    def compiled(block):
        values = tf.unstack(block)
        return values[0] + values[1]

    @tf.function
    def make_examples(block):
        return compiled(block)

    make_examples(tf.constant([[1, 2], [3, 4]], tf.int16))
    assert on_device(functions_of_process()) and trips(functions_of_process()) == set()
