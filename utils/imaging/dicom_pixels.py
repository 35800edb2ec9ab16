"""DICOM: the voxels of an image in Hounsfield units. SimpleITK reads them, imported where it is needed."""

from __future__ import annotations

import numpy as np

from utils.imaging.dicom_headers import ImageHeader
from utils.imaging.itk_images import hu_numbers


def read_plane(header: ImageHeader) -> np.ndarray:
    """Read the voxels (rows, columns) of an image, rescaled as its header says."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        image = SimpleITK.ReadImage(str(header.path), imageIO="GDCMImageIO")
        return hu_numbers(header.path, SimpleITK.GetArrayFromImage(image)[0])
    except RuntimeError:
        raise ValueError(f"{header.path}: expected a whole DICOM image, found a broken one.") from None
