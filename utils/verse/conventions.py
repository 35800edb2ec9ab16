"""Where bone ends in a mask, by the source of the mask.

Masks differ in how much of the soft rim around a bone they hold. The distance from the half-height of the
cortex to the surface of the mask is measured by `experiments/real/convention.py`: median over lines along the
surface's normal. A thin cortex under the blur of a scan has its half-height a little outside of its true
surface, so that a mask of exactly the bone measures below 0.
"""

#: Distance in mm, positive where masks reach beyond the half-height. "bone" is a mask of exactly the bone
#: (phantoms of the usual and the wide ranges); "verse" is sub-verse014, "totalsegmentator" the chest with
#: slices of 2.5 mm.
BEYOND_MM = {"bone": -0.45, "verse": 0.14, "totalsegmentator": -0.18}


def growth_mm(source: str, target: str = "verse") -> float:
    """Give by how much masks of one source must grow to be as those of another, in mm.

    Raises
    ------
    ValueError
        If a source is not known.
    """
    for name in (source, target):
        if name not in BEYOND_MM:
            raise ValueError(f"Expected a source of {sorted(BEYOND_MM)}, received {name!r}.")
    return round(BEYOND_MM[target] - BEYOND_MM[source], 2)
