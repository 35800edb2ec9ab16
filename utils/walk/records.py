"""What goes into a walk and what comes out of it: settings, vertebrae, remarks, and the steps in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from utils.imaging.crops import box_between
from utils.imaging.volume import Volume

#: From the CT in [-1, 1] and the memory (0 or 1), both (n, n, n) float32, to the probability (n, n, n).
PredictPatch = Callable[[np.ndarray, np.ndarray], np.ndarray]
#: Voxels kept around a vertebra, so that its surface lies between known probabilities.
BOX_MARGIN = 2
#: Number among the labels of the published walk of passed-over fragments: they are in the memory.
FRAGMENT = 255

#: What can be said of a whole walk (`WalkResult.remarks`): it ended because it had asked the network as often
#: as it may.
CALLS_USED_UP = "calls used up"


@dataclass(frozen=True)
class WalkSettings:
    """How the walk goes; lengths in mm, the spacing turns them into voxels."""

    patch_voxels: int = 128
    """Edge of the patch in voxels of the working grid."""
    spacing_mm: float = 1.0
    """Isotropic spacing of the working grid."""
    outside: Literal["air", "edge"] = "edge"
    """What a patch shows of the CT beyond the scan, as in the training of the network."""
    heat_threshold: float = 0.3
    """Heat at which the published walk begins, and after which it ends."""
    max_steps: int = 10
    """Most predictions for one vertebra before its last centres are averaged."""
    max_vertebrae: int = 26
    """Most vertebrae in one scan: C1 to L6 with T13."""
    min_volume_mm3: float = 1000.0
    """Smallest volume of a vertebra; less is a fragment."""
    probability_threshold: float = 0.5
    """Probability from which a voxel belongs to the vertebra."""
    rest_mm: float = 2.0
    """The last three centres must lie closer together than this."""
    max_steps_down: int = 4
    """Most times that the patch moves down after empty predictions: one whole patch."""
    max_fragments: int = 2
    """Most fragments that are passed over on the way to one vertebra."""

    def __post_init__(self) -> None:
        """Refuse what no walk can follow."""
        if not 0 < self.heat_threshold <= 1:
            raise ValueError(f"Expected a heat threshold over 0 and up to 1, received {self.heat_threshold}.")
        if self.max_steps < 1:
            raise ValueError(f"Expected at least 1 step for a vertebra, received {self.max_steps}.")
        if not 1 <= self.max_vertebrae < FRAGMENT:
            most = FRAGMENT - 1
            raise ValueError(f"Expected 1 to {most} vertebrae at most, received {self.max_vertebrae}.")

    @property
    def step_down_mm(self) -> float:
        """Distance that the patch moves down after an empty prediction: a quarter of its edge."""
        return self.patch_voxels * self.spacing_mm / 4

    @property
    def max_calls(self) -> int:
        """Most calls of the network in one scan, whatever it answers."""
        return 2 * (self.max_steps + 1) * (self.max_vertebrae + self.max_steps_down + 1)


@dataclass(frozen=True, eq=False)
class FoundVertebra:
    """One vertebra, in a box of the working grid that holds it with a margin."""

    begin: np.ndarray
    """(3,) int: first voxel of the box in the working grid."""
    probability: np.ndarray
    """float16, the box. At least the threshold in the mask, under it elsewhere."""
    mask: np.ndarray
    """bool, the box: the voxels that the walk gave to this vertebra."""
    centre: np.ndarray
    """(3,) float: centre of mass of the prediction, voxel index in the working grid."""
    heat: float = 0.0
    """Heat at the centre; 0 along known centres, which need none."""
    steps: int = 1
    """Patches looked at."""
    converged: bool = False
    """Whether the centre came to rest."""
    calls: int = 0
    """Calls of the network on the way to it: looks at a patch seen before need none."""
    partial: bool = False
    """Whether it reaches the border of what the scan shows, which then cuts it."""
    index: int | None = None
    """Which of the known centres it belongs to, from 0; None where none were known."""

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """Where the box lies in the working grid."""
        return box_between(self.begin, self.begin + self.mask.shape)


@dataclass(frozen=True)
class WalkStep:
    """One step of a walk: a look at a patch, or what was decided after looks."""

    part: str
    """Of the walk: "down", the only one."""
    words: str
    """What was seen, or what was decided and why."""
    origin: tuple[int, int, int] | None = None
    """First voxel (P, R, I) of the patch in the working grid; None for a decision."""
    centre: tuple[float, float, float] | None = None
    """Voxel index (P, R, I) of the centre of what is new; None if nothing is."""
    voxels: int = 0
    """Voxels that are new."""
    call: int | None = None
    """Number of the call of the network; None if the patch had been seen with this memory."""

    def as_json(self) -> dict[str, Any]:
        """Give the step as JSON can hold it."""
        return {
            "part": self.part,
            "words": self.words,
            "origin": None if self.origin is None else list(self.origin),
            "centre": None if self.centre is None else [round(value, 2) for value in self.centre],
            "voxels": self.voxels,
            "call": self.call,
        }


@dataclass(frozen=True, eq=False)
class WalkResult:
    """What the walk found, from the top down (under the published walk: in the order of finding)."""

    vertebrae: tuple[FoundVertebra, ...]
    labels: Volume
    """uint8 on the working grid: 1 for the first of `vertebrae`, and so on; 0 outside."""
    calls: int = 0
    """Calls of the network."""
    remarks: tuple[str, ...] = ()
    """What belongs to no vertebra: `CALLS_USED_UP`."""
    trace: tuple[WalkStep, ...] = ()
    """Every step in order."""
    missed: tuple[int, ...] = ()
    """Known centres, from 0, at which no vertebra was found."""
