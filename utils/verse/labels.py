"""The vertebral levels: VerSe's codes on disk, their names, and their cranio-caudal rank.

VerSe numbers C1 to L6 from 1 to 25, but gives the supernumerary T13 the code 28, although it lies
above L1. Inside the program levels are therefore compared by *rank*, which grows from C1 (1) to
L6 (26) without a gap; 0 is the background in both numberings.

Source of the codes: Sekuboyina et al., Medical Image Analysis 73 (2021) 102166.
"""

from __future__ import annotations

import numpy as np

# Names in cranio-caudal order: a level's rank is its position in this tuple plus one.
LEVEL_NAMES = (
    *(f"C{i}" for i in range(1, 8)),
    *(f"T{i}" for i in range(1, 14)),
    *(f"L{i}" for i in range(1, 7)),
)
T13_CODE = 28
MAX_CODE = 28
MAX_RANK = len(LEVEL_NAMES)

_T13_RANK = LEVEL_NAMES.index("T13") + 1
_CODE_OF_RANK = {
    rank: T13_CODE if rank == _T13_RANK else rank - (rank > _T13_RANK) for rank in range(1, MAX_RANK + 1)
}
_RANK_OF_CODE = {code: rank for rank, code in _CODE_OF_RANK.items()}

#: Every code that may stand in a VerSe mask, background apart, from C1 downwards.
CODES = tuple(_CODE_OF_RANK.values())


def rank_of_code(code: int) -> int:
    """Give the cranio-caudal rank of a VerSe code.

    Parameters
    ----------
    code : int
        VerSe label: 1-25 or 28.

    Returns
    -------
    int
        1 for C1 to 26 for L6.

    Raises
    ------
    ValueError
        If the code names no vertebra.
    """
    if int(code) not in _RANK_OF_CODE:
        raise ValueError(f"Expected a VerSe label (1-25 or 28), received {code}.")
    return _RANK_OF_CODE[int(code)]


def code_of_rank(rank: int) -> int:
    """Give the VerSe code of a cranio-caudal rank (1-26); `ValueError` for any other number."""
    if int(rank) not in _CODE_OF_RANK:
        raise ValueError(f"Expected a rank from 1 to {MAX_RANK}, received {rank}.")
    return _CODE_OF_RANK[int(rank)]


def name_of_code(code: int) -> str:
    """Give the anatomical name ("C1" ... "L6") of a VerSe code; `ValueError` if there is none."""
    return LEVEL_NAMES[rank_of_code(code) - 1]


def code_of_name(name: str) -> int:
    """Give the VerSe code of an anatomical name such as "L1", in either case.

    Raises
    ------
    ValueError
        If the name is not one of C1-C7, T1-T13, L1-L6.
    """
    upper = name.strip().upper()
    if upper not in LEVEL_NAMES:
        raise ValueError(f"Expected a level C1-C7, T1-T13 or L1-L6, received {name!r}.")
    return _CODE_OF_RANK[LEVEL_NAMES.index(upper) + 1]


def region_of_code(code: int) -> str:
    """Give the region, "cervical", "thoracic" or "lumbar", of a VerSe code."""
    return {"C": "cervical", "T": "thoracic", "L": "lumbar"}[name_of_code(code)[0]]


def ranks_of_mask(mask: np.ndarray) -> np.ndarray:
    """Replace VerSe codes by ranks in a whole label volume.

    Parameters
    ----------
    mask : np.ndarray of unsigned int, any shape
        VerSe codes, 0 outside.

    Returns
    -------
    np.ndarray of uint8, same shape
        Ranks, 0 outside.

    Raises
    ------
    ValueError
        If the mask holds a number that is no VerSe code.
    """
    unknown = [int(n) for n in np.unique(mask) if n != 0 and int(n) not in _RANK_OF_CODE]
    if unknown:
        raise ValueError(f"Expected VerSe labels (0-25 or 28), found {unknown}.")
    look_up = np.zeros(MAX_CODE + 1, np.uint8)
    look_up[list(_RANK_OF_CODE)] = list(_RANK_OF_CODE.values())
    return look_up[mask]
