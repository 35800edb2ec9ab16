"""Export trained networks for other programs and languages: ONNX.

Reads   MODELS/segmentation, MODELS/heatmap, MODELS/labelling (the networks of an inference)
Writes  OUTPUT/segmentation.onnx, heatmap.onnx, labelling.onnx: float32, any number of examples at once, the
        heatmap network for inputs of any shape; each was run and compared with Keras before it is there
        OUTPUT/networks.json: what must be known around them (spacings, shapes, temperature)

    pip install -r requirements-onnx.txt
    python export.py --models models/starter --output onnx

docs/onnx.md has the arithmetic around the networks. Takes about a minute.
"""

import sys

from utils.command_line import run_script
from utils.settings import ExportSettings


def main(settings: ExportSettings) -> int:
    """Export, and give the exit status."""
    from utils.prediction.export import export  # after the command line: what it needs loads slowly

    return export(settings)


if __name__ == "__main__":
    sys.exit(run_script(main, ExportSettings))
