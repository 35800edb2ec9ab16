"""The Python call: one scan in, its labels, table and quality out. Nothing is printed, nothing is written.

    from utils.prediction import segment

    found = segment("scan.nii.gz")  # or a nibabel image
    found.table[["name", "volume_mm3", "label_probability"]]
    found.save("predictions")

The first call of a process loads the networks; later ones have them.
"""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import nibabel
import numpy as np

from utils.prediction import derivatives
from utils.prediction.case import TABLE_COLUMNS, CasePrediction, vertebra_points
from utils.prediction.exports import check_formats, wanted_exports
from utils.prediction.networks import STARTER_DIR, Networks, load_networks, with_networks_of
from utils.prediction.one_scan import predict_case
from utils.prediction.quality import quality_json
from utils.prediction.scans import Scan, find_scans
from utils.settings import Device, ExportFormat, InferenceSettings

if TYPE_CHECKING:
    import pandas as pd

#: Key of a scan that comes as an image and has no name.
IMAGE_KEY = "sub-image"


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The vertebrae of one scan.

    Attributes
    ----------
    labels : nibabel.Nifti1Image of uint8
        VerSe codes on the grid of the scan, 0 outside.
    table : pandas.DataFrame
        A row a vertebra from the top down, the columns of `<key>_vertebrae.csv`.
    centres_mm : dict of str to np.ndarray, (3,)
        Centre of the body of each vertebra by its name, world mm (RAS+).
    quality : dict
        What `<key>_quality.json` holds: how sure the labels are, what is odd.
    warning : str
        What the user should know about it, or "".
    """

    labels: nibabel.Nifti1Image
    table: pd.DataFrame
    centres_mm: dict[str, np.ndarray]
    quality: dict[str, Any]
    warning: str
    _prediction: CasePrediction
    _scan: Scan

    def save(self, folder: str | Path, *, formats: Sequence[str] = (), measure: bool = False) -> Path:
        """Write the files that `infer.py` writes; give the folder of this scan.

        Parameters
        ----------
        folder : str or Path
            Folder of predictions. A prediction of the same name in it is replaced.
        formats : sequence of str
            As `--formats` of `infer.py`: "seg.nrrd", "itksnap", and of a DICOM series "dicom-seg".
        measure : bool
            As `--measure` of `infer.py`.

        Returns
        -------
        Path
            `folder/derivatives/<subject>`.

        Raises
        ------
        ValueError
            If there is no such format, or the scan cannot be written in it.
        """
        unknown = {*formats} - {*get_args(ExportFormat)}
        if unknown:
            known = list(get_args(ExportFormat))
            raise ValueError(f"Expected formats among {known}, received {sorted(unknown)}.")
        check_formats(formats)
        exports = wanted_exports(formats, self._scan.path, self._scan.series)
        derivatives.write_case(self._prediction, Path(folder), exports=exports, measures=measure)
        return derivatives.case_path(Path(folder), self._prediction.key, "").parent


def segment(
    image_or_path: nibabel.Nifti1Pair | str | Path,
    *,
    models: str | Path | None = None,
    device: Device = "auto",
    progress: bool = False,
) -> Segmentation:
    """Segment and number the vertebrae of one scan.

    Parameters
    ----------
    image_or_path : nibabel image, str or Path
        A CT in Hounsfield units: a NIfTI image, a file that `infer.py` takes, or a folder with one scan.
    models : str or Path, optional
        Folder with the networks `segmentation`, `heatmap` and `labelling`; by default those shipped.
    device : str
        "auto" takes a GPU if there is one. The first call of a process decides for all.
    progress : bool
        Whether to show a line while networks are loaded and the scan is segmented.

    Returns
    -------
    Segmentation
        Without a vertebra the table is empty and `quality["no_spine"]` true.

    Raises
    ------
    ValueError
        If the scan, the networks or the device cannot be used; the text says what was expected and what was
        found.
    """
    from tqdm import tqdm

    with tqdm(total=2, disable=not progress, desc="segment", unit="step") as bar:
        networks, settings = _networks(None if models is None else str(Path(models).absolute()), device)
        bar.update()
        with _scan_of(image_or_path) as scan:
            prediction, warning = predict_case(scan, networks, settings)
        bar.update()
    return _segmentation(scan, prediction, warning)


@functools.lru_cache(maxsize=2)
def _networks(models: str | None, device: str) -> tuple[Networks, InferenceSettings]:
    if device not in get_args(Device):
        raise ValueError(f"Expected device to be {' or '.join(get_args(Device))}, received {device!r}.")
    settings = with_networks_of(STARTER_DIR if models is None else Path(models))
    from utils.learning.runtime import set_device  # loads TensorFlow

    set_device(device)
    return load_networks(settings), settings


@contextlib.contextmanager
def _scan_of(image_or_path: nibabel.Nifti1Pair | str | Path) -> Iterator[Scan]:
    if isinstance(image_or_path, (str, Path)):
        found = find_scans([Path(image_or_path)])
        if found.bad or len(found.scans) != 1:
            lines = found.bad or [f"{image_or_path}: expected one scan, found {len(found.scans)}."]
            raise ValueError(" ".join(lines))
        yield found.scans[0]
        return
    if not isinstance(image_or_path, nibabel.Nifti1Pair):
        kind = type(image_or_path).__name__
        raise ValueError(f"Expected a NIfTI image of nibabel or a path, received {kind}.")
    # Through a file, so that an image meets every check that a file meets.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{IMAGE_KEY}_ct.nii"
        nibabel.save(image_or_path, path)
        try:
            yield Scan(path, IMAGE_KEY)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), "the image")) from None


def _segmentation(scan: Scan, prediction: CasePrediction, warning: str) -> Segmentation:
    import pandas as pd

    points = vertebra_points(prediction.labels, prediction.numbering)
    names = [prediction.numbering.name(code) for code in points.codes]
    labels = nibabel.Nifti1Image(prediction.labels.data, prediction.labels.affine)
    return Segmentation(
        labels,
        pd.DataFrame(prediction.table, columns=TABLE_COLUMNS),
        dict(zip(names, points.points_mm)),
        json.loads(quality_json(prediction.quality)),
        warning,
        prediction,
        scan,
    )
