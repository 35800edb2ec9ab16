"""The walk along known centres: one vertebra for every centre, from the top down.

The segmentation network sees a patch of the CT and the *memory*, all vertebrae found so far, and gives the
first vertebra that the memory does not hold. The centres say how many there are and where; a prediction
belongs to the centres that it holds.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from utils.imaging.crops import crop
from utils.imaging.volume import Volume
from utils.walk import records
from utils.walk.look import box_around, pieces, read_patch, within_bounds, without_specks
from utils.walk.records import FoundVertebra, PredictPatch, WalkResult, WalkSettings

#: A mask's centre of mass lies so far behind the centre of the body (DESIGN, 6).
BEHIND_MM = 11.0
#: A prediction holds a centre that lies in it or so near.
NEAR_MM = 4.0
#: A patch is moved if the prediction's own centre lies further from the patch's.
MOVE_MM = 10.0


def walk_along(
    ct: Volume, centres: np.ndarray, predict: PredictPatch, *, settings: WalkSettings
) -> WalkResult:
    run = _Walk(ct, np.asarray(centres, float).reshape(-1, 3), predict, settings)
    for index in range(len(run.centres)):
        run.find(index)
    return run.result()


class _Walk:
    def __init__(self, ct, centres, predict, settings):
        self.ct, self.centres, self.predict, self.settings = ct, centres, predict, settings
        self.labels = np.zeros(ct.shape, np.uint8)
        self.found = {}
        self.calls = 0
        self.trace = []
        self.offset = np.array([BEHIND_MM / settings.spacing_mm, 0, 0])
        self.begin, self.probability = None, None

    def ask(self, point, extra=None):
        n = self.settings.patch_voxels
        origin = np.floor(np.asarray(point) + 0.5).astype(int) - n // 2
        memory = self.labels if extra is None else np.where(extra, 255, self.labels)
        in_patch = crop(Volume(memory, self.ct.affine), origin, (n,) * 3, fill=0).data > 0
        self.calls += 1
        self.begin, self.probability = read_patch(self.ct, in_patch, origin, self.predict, self.settings)
        return self.scan_mask(self.probability >= self.settings.probability_threshold)

    def scan_mask(self, mask):
        whole = np.zeros(self.ct.shape, bool)
        whole[tuple(slice(b, b + s) for b, s in zip(self.begin, mask.shape))] = mask
        return whole

    def piece(self, mask, index):
        given = (self.labels > 0) & (self.labels != records.HELD)
        numbers, sizes = pieces(without_specks(mask & ~given))
        if not sizes.any():
            return np.zeros_like(mask)
        numbers_near = numbers[self.ball(index)]
        numbers_near = numbers_near[numbers_near > 0]
        if numbers_near.size:
            return numbers == np.argmax(np.bincount(numbers_near))
        return numbers == np.argmax(sizes)

    def ball(self, index, radius=NEAR_MM):
        c = self.centres[index]
        r = radius / self.settings.spacing_mm
        lo = np.clip(np.floor(c - r), 0, np.array(self.ct.shape) - 1).astype(int)
        hi = np.clip(np.ceil(c + r) + 1, lo + 1, self.ct.shape).astype(int)
        g = np.stack(np.meshgrid(*[np.arange(a, b) for a, b in zip(lo, hi)], indexing="ij"), -1).reshape(
            -1, 3
        )
        g = g[np.linalg.norm(g - c, axis=1) <= max(r, 1)]
        return tuple(g.T)

    def held(self, mask):
        return [j for j in range(len(self.centres)) if mask[self.ball(j)].any() and j not in self.found]

    def between(self, index, margin=0.5):
        """voxels between the half-way planes."""
        out = np.ones(self.ct.shape, bool)
        grid = np.ogrid[tuple(slice(0, n) for n in self.ct.shape)]
        for other in (index - 1, index + 1):
            if 0 <= other < len(self.centres):
                line = self.centres[other] - self.centres[index]
                along = sum((g - c) * l for g, c, l in zip(grid, self.centres[index], line)) / (line @ line)
                out &= along < margin
        return out

    def find(self, index):
        s = self.settings
        point = self.centres[index] + self.offset
        moved, fragments, again = False, 0, 0
        for _ in range(6):
            mask = self.ask(point)
            piece = self.piece(mask, index)
            held = self.held(piece)
            n = np.count_nonzero(piece)
            com = np.array(ndimage.center_of_mass(piece)) if n else None
            self.note(index, point, com, n, held)
            if index in held:
                if s.moves and not moved and (np.linalg.norm(com - point) * s.spacing_mm > MOVE_MM):
                    point, moved = com, True
                    continue
                self.take(index, piece, held, point)
                return
            if n and not held and s.passes_fragments and fragments < 2:
                body = com - self.offset
                above = (self.centres[index] - body)[2]
                if index == 0 or index - 1 not in self.found or above > 0:
                    fragments += 1
                    self.labels[piece] = 255
                    self.note2("fragment")
                    continue
            if self.settings.lowers_threshold and self.dull(index):
                return
            if s.looks_again and again < 1:
                again += 1
                # the lower face of the patch half way to the next
                gap = self.gap(index)
                point = point + np.array(
                    [0, 0, gap / 2 - s.patch_voxels / 2 if held else s.patch_voxels / 2 - gap]
                )
                continue
            break
        if s.holds_places:
            hold = np.zeros(self.ct.shape, bool)
            hold[self.ball(index, 0.4 * self.gap(index) * s.spacing_mm)] = True
            self.labels[hold & (self.labels == 0)] = 254
            self.note2("held")

    def gap(self, index):
        j = min(index, len(self.centres) - 2)
        return float(np.linalg.norm(self.centres[j + 1] - self.centres[j])) if j >= 0 else 12.0

    def dull(self, index):
        near = self.scan_probability()
        near[(self.labels > 0) & (self.labels != 254)] = 0
        near[~self.between(index)] = 0
        top = near[self.ball(index, 8.0)].max()
        t = 0.5 * top
        if t < 0.1:
            return False
        t = min(t, 0.5)
        numbers, sizes = pieces(near >= t)
        b = numbers[self.ball(index, 8.0)]
        b = b[b > 0]
        piece = numbers == np.argmax(np.bincount(b))
        if np.count_nonzero(piece) * self.settings.spacing_mm**3 < self.settings.min_volume_mm3:
            return False
        self.note2(f"dull {top:.2f} {np.count_nonzero(piece)}")
        self.write(index, piece, 0.5 / t)
        return True

    def scan_probability(self):
        whole = np.zeros(self.ct.shape, np.float32)
        whole[tuple(slice(b, b + s) for b, s in zip(self.begin, self.probability.shape))] = self.probability
        return whole

    def take(self, index, piece, held, point):
        begin, probability = self.begin, self.probability
        s = self.settings
        if len(held) > 1 and s.cuts_merged and index + 1 in held:
            upper = piece & self.between(index)
            own = upper
            if s.asks_for_cut:
                answer = self.ask(point, upper)
                answer = answer & piece
                self.note2(
                    f"cut asked: upper {upper.sum()} of {piece.sum()}, answer {answer.sum()} holds {self.held(answer)}"
                )
                if index + 1 in self.held(answer) and index not in self.held(answer):
                    own = piece & ~answer
                self.begin, self.probability = begin, probability
            own = self.piece(own, index)
            piece = own
        self.write(index, piece)

    def write(self, index, piece, factor=1.0):
        probability = np.clip(self.scan_probability() * factor, 0, 1)
        box = box_around(piece)
        com = np.array(ndimage.center_of_mass(piece))
        self.found[index] = FoundVertebra(
            begin=np.array([b.start for b in box]),
            probability=within_bounds(probability[box], piece[box], 0.5),
            mask=piece[box].copy(),
            centre=com,
            index=index,
        )
        self.labels[piece] = index + 1
        if self.settings.learns_offset:
            self.offset = com - self.centres[index]

    def note(self, index, point, com, n, held):
        self.trace.append(
            f"{index} at {np.round(point)} com {None if com is None else np.round(com)} n {n} holds {held}"
        )

    def note2(self, words):
        self.trace.append("   " + words)

    def result(self):
        missed = tuple(i for i in range(len(self.centres)) if i not in self.found)
        labels = np.zeros_like(self.labels)
        vs = [self.found[i] for i in sorted(self.found)]
        for k, v in enumerate(vs, 1):
            labels[v.box][v.mask] = k
        return WalkResult(
            tuple(vs), Volume(labels, self.ct.affine), self.calls, (), tuple(self.trace), missed
        )
