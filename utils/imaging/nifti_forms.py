"""How a NIfTI header says where its voxels lie: by two forms, qform and sform, each with a code.

A code of 0 says that its form means nothing. Programs differ in which form they follow where both have a
code, so a mask lies on its scan in all of them only if it has both forms of the scan, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

_CODES = ("qform_code", "sform_code")
_NUMBERS = (
    *(f"quatern_{axis}" for axis in "bcd"),
    *(f"qoffset_{axis}" for axis in "xyz"),
    *(f"srow_{axis}" for axis in "xyz"),
)
#: Of `pixdim` what concerns space: the sign of the qform's third axis, and three spacings.
_OF_SPACE = slice(0, 4)
#: Of `xyzt_units` the bits for the unit of length; ITK obeys it, nibabel does not.
_LENGTH_BITS = 7


@dataclass(frozen=True, eq=False)
class HeaderForms:
    """The fields of a NIfTI header that place its voxels, as they are stored.

    Attributes
    ----------
    fields : dict of str to np.ndarray
        Codes, the qform's quaternion and offset, the sform's rows, spacings and unit of length.
    """

    fields: dict[str, np.ndarray]

    @property
    def states_orientation(self) -> bool:
        """Whether a form has a code, so that the header says how the axes lie in the patient."""
        return any(self.fields[name] > 0 for name in _CODES)

    def put_into(self, header: Any) -> None:
        """Write the fields into a nibabel header, in place."""
        for name, value in self.fields.items():
            if name == "pixdim":
                header[name][_OF_SPACE] = value
            else:
                header[name] = value


#: Forms that say nothing; spacings and unit of a header stay.
UNSTATED = HeaderForms({name: np.array(0) for name in _CODES})


def forms_of(header: Any) -> HeaderForms:
    """Give the forms of a nibabel header, which was read without repairs."""
    fields = {name: np.array(header[name]) for name in (*_CODES, *_NUMBERS)}
    fields["pixdim"] = np.array(header["pixdim"][_OF_SPACE])
    fields["xyzt_units"] = np.array(header["xyzt_units"]) & _LENGTH_BITS
    return HeaderForms(fields)
