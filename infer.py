"""Segment and number the vertebrae of CT scans.

Finds the body of every vertebra in the whole scan, and which it is; goes down the column one vertebra at a
time; and writes what it found in VerSe layout, so that it can be evaluated, viewed or trained on.

Reads   CT scans: NIfTI, NRRD or MetaImage files, or folders of them or of DICOM series, of any spacing and
        orientation
        work/models/segmentation, work/models/heatmap and work/models/labelling, else the networks shipped
        in models/starter
Writes  predictions/derivatives/<subject>/, for a scan named <key>_ct.nii.gz:
            <key>_seg-vert_msk.nii.gz   labels on the grid of the scan
            <key>_seg-vb_ctd.json       a point a vertebra
            <key>_seg-vert_snp.png      a picture to check the result with
            <key>_vertebrae.csv         a row a vertebra: label and how sure it is, volume, mean HU,
                                        position, confidence
            <key>_column.json           what the labels were decided from
            <key>_quality.json          how sure the labels are and what anchors them, whether there is no
                                        spine, what it cost, and what is odd about it
            <key>_settings.json         what it was made with
        predictions/dataset_description.json for programs for BIDS, where there is none
        and with --formats seg.nrrd itksnap
            <key>_seg-vert_msk.seg.nrrd the mask for 3D Slicer, with names and colours
            <key>_labels.txt            names and colours of the labels for ITK-SNAP
        and, of a DICOM series, with --formats dicom-seg (requirements-seg.txt)
            <key>_seg-vert_msk.dcm      a DICOM segmentation, one segment a vertebra
        and with --measure (docs/measurements.md)
            <key>_seg-body_msk.nii.gz   the vertebral bodies alone
            <key>_measurements.csv      heights, density and volumes, a row a vertebra
            <key>_angles.json           Cobb angle, kyphosis, lordosis
        and with --report
            predictions/report.html     a page to look through all scans of the folder and correct their
                                        levels, to open in a browser

    python infer.py CT_OR_FOLDER [...] --work-dir work --output predictions [--first-label L1]

Vertebrae get their anatomical levels, T13 and L6 among them; --first-label and --fix 3=T12 overrule them.
With a heatmap network of the preset paper, which knows none, they are counted from 1, top down, or from the
level of --first-label (after T12 comes L1: a T13 is not told from the count). --relabel changes the labels of
what is predicted already, without any network; --from corrections.json, which the page of --report saves,
names each scan's own levels. Takes some seconds to minutes a scan, by preset and device.
"""

import sys

from utils.command_line import run_script
from utils.settings import InferenceSettings


def main(settings: InferenceSettings) -> int:
    """Run the inference; gives the exit status."""
    from utils.prediction.predict import infer  # after the command line: what it needs loads slowly

    return infer(settings)


if __name__ == "__main__":
    sys.exit(run_script(main, InferenceSettings))
