"""Between which bounds a phantom is drawn: the usual ranges, and wide ones that hold what is not tame.

The wide ranges reach from what a textbook shows to what a clinic sees: bone as thin as in old age, kyphoses
of 20 to 70 degrees (Fon et al., AJR 134 (1980) 979-983, give 20 to 45 for the middle of life and more with
age), twelfth ribs from none to 140 mm, wear, collapse, cement, screws, every phase of contrast, every
posture.
"""

from __future__ import annotations

from dataclasses import dataclass

from utils.verse.anomalies import RATE_L6, RATE_NO_T12, RATE_T13

#: Lowest and highest value of an even draw.
Range = tuple[float, float]


@dataclass(frozen=True)
class Ranges:
    """Bounds of all that is drawn of a subject and its scan. None: left as the usual generator draws it.

    Attributes
    ----------
    name : str
        "usual", "old" or "wide".
    rate_t13, rate_l6, rate_no_t12 : float
        Shares of the subjects with a variant of the levels.
    cancellous_hu, cortex_hu, shell_mm : range
        Bone within the bodies, their cortex and its thickness.
    kyphosis_deg : range or None
        Angle between the axes of T4 and T12.
    neck_share : range
        Share of the excess of the upper thoracic tilt that the neck keeps: 1 is a steep neck.
    upper_disc_mm, upper_pitch_mm : range or None
        Discs of T1 to T5, and the distance of their bodies' centres, in subjects with a crowded upper chest.
    rate_crowded : float
        Share of such subjects.
    spinous_scale, spinous_drop_deg : range
        Factor of the length of thoracic spinous processes, and how much steeper they are.
    rate_narrow_disc, rate_gas_disc, rate_sclerosis, rate_collapsed : float
        Shares of discs, end plates and bodies, in a spine that is worn or brittle.
    rate_worn, rate_brittle, rate_bridged, rate_cement, rate_screws : float
        Shares of subjects.
    spurs : range
        Mean number of spurs a vertebra in a worn spine.
    organ_shift : range
        How many levels each organ lies below its median level (see `ORGAN_LEVELS`).
    rib_scale, rib_11_mm, rib_12_mm, rib_13_mm, stump_mm : range or None
        Factor of the mean lengths of ribs 1 to 10; lengths of the last ribs; of cervical and lumbar ribs.
    rate_cervical_rib, rate_lumbar_rib : float
        Shares of subjects.
    slice_mm : range
        Thickness of the slices.
    noise_hu : range
        Standard deviation of the noise at 1 mm.
    """

    name: str
    rate_t13: float = RATE_T13
    rate_l6: float = RATE_L6
    rate_no_t12: float = RATE_NO_T12
    cancellous_hu: Range = (90, 260)
    cortex_hu: Range = (750, 1500)
    shell_mm: Range = (0.8, 1.2)
    kyphosis_deg: Range | None = None
    neck_share: Range = (0, 0)
    upper_disc_mm: Range | None = None
    upper_pitch_mm: Range | None = None
    rate_crowded: float = 0.0
    spinous_scale: Range = (1, 1)
    spinous_drop_deg: Range = (0, 0)
    rate_narrow_disc: float = 0.0
    rate_gas_disc: float = 0.06
    rate_sclerosis: float = 0.0
    rate_collapsed: float = 0.2
    rate_worn: float = 2 / 3
    rate_brittle: float = 0.22
    rate_bridged: float = 0.0
    rate_cement: float = 0.0
    rate_screws: float = 0.0
    spurs: Range = (0.3, 1.2)
    organ_shift: Range = (0, 0)
    rib_scale: Range | None = None
    rib_11_mm: Range | None = None
    rib_12_mm: Range | None = None
    rib_13_mm: Range | None = None
    stump_mm: Range | None = None
    rate_cervical_rib: float = 0.0
    rate_lumbar_rib: float = 0.0
    slice_mm: Range = (0.3, 3.0)
    noise_hu: Range = (12, 55)


USUAL = Ranges("usual")
#: The usual anatomy with the bone of old age: cancellous bone hardly brighter than muscle, a dull cortex.
OLD = Ranges("old", cancellous_hu=(20, 90), cortex_hu=(250, 600), shell_mm=(0.4, 0.8))
WIDE = Ranges(
    "wide",
    # Over-represented a little, so that a network sees enough of them.
    rate_t13=0.08,
    rate_l6=0.12,
    rate_no_t12=0.08,
    cancellous_hu=(10, 260),
    cortex_hu=(250, 1500),
    shell_mm=(0.3, 1.2),
    kyphosis_deg=(20, 70),
    neck_share=(0.3, 1),
    upper_disc_mm=(2, 4),
    upper_pitch_mm=(15, 18),
    rate_crowded=0.4,
    spinous_scale=(0.9, 1.35),
    spinous_drop_deg=(0, 18),
    rate_narrow_disc=0.25,
    rate_gas_disc=0.2,
    rate_sclerosis=0.25,
    rate_collapsed=0.3,
    rate_worn=0.6,
    rate_brittle=0.3,
    rate_bridged=0.15,
    rate_cement=0.06,
    rate_screws=0.06,
    spurs=(0.5, 5),
    organ_shift=(-1.5, 1.5),
    rib_scale=(0.9, 1.12),
    rib_11_mm=(100, 200),
    rib_12_mm=(0, 140),
    rib_13_mm=(0, 100),
    # VerSe counts a rib of 40 mm as a thoracic vertebra's.
    stump_mm=(0, 39),
    rate_cervical_rib=0.04,
    rate_lumbar_rib=0.05,
    slice_mm=(1, 5),
    noise_hu=(5, 120),
)
#: Median levels of organs, as numbers along the spine: C7 is 0, T1 1, T12 12, L1 13. "base" is where the lung
#: behind the dome ends.
#: Lungs: medians of five chests and a belly with known levels (`experiments/real`). Heart, kidneys, spleen,
#: stomach, sternum, scapulae: the masks of one of them (LIDC-IDRI-0001), rounded. The fork of the airways
#: ("hilum", and the aortic arch with it) and the shoulders: as textbooks place them, not measured.
ORGAN_LEVELS = {
    "apex right": 1.2,
    "apex left": 1.0,
    "base right": 13.2,
    "base left": 12.6,
    "hilum": 5.3,
    "heart": 8.0,
    "kidney right": 14.0,
    "kidney left": 13.9,
    "spleen": 11.4,
    "stomach": 12.6,
    "sternum": 2.1,
    "xiphoid": 9.4,
    "scapula": 7.8,
    "shoulder": 1.2,
}
RANGES = {ranges.name: ranges for ranges in (USUAL, OLD, WIDE)}
#: Shortest rib that makes a vertebra thoracic by VerSe's rule, mm.
THORACIC_RIB_MM = 40.0
