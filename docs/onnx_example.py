"""Segment and number the vertebrae of a CT with exported networks: NumPy, nibabel and onnxruntime alone.

    python docs/onnx_example.py scan.nii.gz onnx vertebrae.nii.gz

Numbers in brackets are the steps of docs/onnx.md; onnx_arithmetic.py has the arithmetic on volumes.
"""

import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import onnxruntime
from onnx_arithmetic import behind, halfway, indices_of, peaks_of, piece_of, sampled, working_ct

SCAN, MODELS, OUTPUT = map(Path, sys.argv[1:])
FACTS = json.loads((MODELS / "networks.json").read_text())
SESSIONS = {kind: onnxruntime.InferenceSession(MODELS / f"{kind}.onnx") for kind in FACTS["networks"]}
TO_PRI = np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]])
OUTSIDE = {"air": {"constant_values": -1}, "edge": {"mode": "edge"}}  # [4]


def run(kind, image):
    """Give what a network says of one image, (P, R, I, channels)."""
    session = SESSIONS[kind]
    return session.run(None, {session.get_inputs()[0].name: image[None].astype(np.float32)})[0][0]


def find_points(ct, mm):
    """[5] Give points (n, 3) in voxels from the top down, heat, what is read of each, (n, 31), and peaks."""
    whole = np.pad(ct, [(0, -n % 16) for n in ct.shape], **OUTSIDE[FACTS["heatmap_outside"]])
    heat = run("heatmap", whole[..., None])[tuple(map(slice, ct.shape))][..., 0]
    points, heat = peaks_of(heat, FACTS["peaks"]["least_heat"])
    size, edge, ways, seen = np.array(ct.shape), FACTS["networks"]["labelling"]["input"][0], 0, []
    wide = np.pad(ct, edge, **OUTSIDE[FACTS["labelling_outside"]])
    cube = indices_of((edge,) * 3) - (edge - 1) / 2 + edge
    for apart_mm in FACTS["peaks"]["apart_mm"]:  # read at the peaks, then where the centre is said to lie
        points, kept = points + ways, []
        for place, point in enumerate(points):
            is_apart = np.linalg.norm(points[kept] - point, axis=1) * mm >= apart_mm
            if is_apart.all() and (np.abs(point - (size - 1) / 2) <= size / 2).all():
                kept.append(place)
        points, heat, seen = points[kept], heat[kept], [*seen, points[kept]]
        read = np.reshape([run("labelling", sampled(wide, cube + p, 1)[..., None]) for p in points], (-1, 31))
        ways = read[:, 28:]
    order = np.argsort(points[:, 2])
    return points[order], heat[order], read[order], seen[0]


def find_chain(points_mm, heat, read):
    """[6] Give the places of the points that follow one another as vertebrae do; none without a spine."""
    rules, count = FACTS["chain"], len(FACTS["levels"]["code"])
    seen = np.logaddexp.reduce(read[:, 1:27], axis=1)[:, None]
    odds = seen[:, 0] - read[:, 0] - np.log(1 / FACTS["none_share"] - 1)  # of a vertebra against none
    odds = odds.clip(-rules["vertebra_limit"], rules["vertebra_limit"])
    score = odds + rules["heat_slope"] * (heat - rules["heat_middle"])
    levels = (1 - rules["level_error"]) * np.exp(read[:, 1:27] - seen) + rules["level_error"] / count
    between = points_mm[None] - points_mm[:, None]  # from upper (row) to lower (column)
    distance = np.linalg.norm(between, axis=2)[..., None] + 1e-6
    tilt = np.degrees(np.arccos(between[..., 2] / distance[..., 0])) / rules["tilt_degrees"]
    ways = []
    for step in FACTS["steps"]:  # to the next vertebra, or past one that has no peak
        misfit = np.log(distance / step["mm"]) / step["spread"]
        odd = np.log(rules["odd_steps"]) - (misfit / rules["odd_spread"]) ** 2 / 2
        length = np.logaddexp.reduce(np.logaddexp(-(misfit**2) / 2, odd) + np.log(levels)[:, None], axis=2)
        follows = np.log(count * levels @ np.array(step["follows"]) @ levels.T)
        ways.append(length + follows + step["weight"] - tilt**2 / 2)
    steps = np.where(between[..., 2] > 0, np.max(ways, axis=0), -np.inf)
    above = np.full(len(score), -1)
    for lower in range(1, len(score)):
        onward = score[:lower] + steps[:lower, lower]
        if onward.max() > 0:
            above[lower], score[lower] = onward.argmax(), score[lower] + onward.max()
    chain = [score.argmax()] if score.max(initial=0) + rules["no_spine"] > 0 else []
    while chain and above[chain[0]] >= 0:
        chain.insert(0, above[chain[0]])
    return chain


def find_codes(centres_mm, read):
    """[6] Give VerSe's codes of a chain: the most likely sequence of levels by the votes and the ribs."""
    rib = FACTS["rates"]["rib"] + (1 - 2 * FACTS["rates"]["rib"]) / (1 + np.exp(-read[:, 27:28]))
    has_rib = np.array(FACTS["levels"]["rib_rate"])
    own = read[:, 1:27] / FACTS["temperature"] + np.log(rib * has_rib + (1 - rib) * (1 - has_rib))
    gaps = np.linalg.norm(np.diff(centres_mm, axis=0), axis=1)
    score, above = np.log(FACTS["levels"]["rate"]) + own[:1].sum(axis=0), []
    for upper, gap in enumerate(gaps):
        is_wide = gap > 1.5 * np.median(gaps[max(upper - 4, 0) : upper + 5])  # one was passed over
        onward = score[:, None] + np.log(FACTS["steps"][int(is_wide)]["follows"])
        above.append(onward.argmax(axis=0))
        score = onward.max(axis=0) + own[upper + 1]
    sequence = [score.argmax()]
    for row in reversed(above):
        sequence.insert(0, row[sequence[0]])
    return [FACTS["levels"]["code"][place] for place in sequence]


def find_masks(ct, beyond, mm, centres):
    """[7] Give the first voxel and the probability of each vertebra's patch, by the place of its centre."""
    rules, edge, found = FACTS["walk"], FACTS["patch_voxels"], {}
    wide, memory = np.pad(ct, edge, **OUTSIDE[FACTS["outside"]]), np.pad(ct * 0, edge, constant_values=-1)
    for number, point in enumerate(behind(centres, rules["behind_mm"] / mm)):
        begin = np.floor(point + np.array(rules["middle_mm"]) / mm + 0.5).astype(int) - edge // 2
        box = tuple(slice(n + edge, n + 2 * edge) for n in begin)
        probability = run("segmentation", np.stack([wide[box], memory[box].clip(0)], axis=-1))[..., 0]
        away_mm = np.linalg.norm(indices_of((edge,) * 3) + begin - point, axis=-1) * mm
        is_new = (probability >= rules["threshold"]) & (memory[box] == 0)
        mask = piece_of(is_new, away_mm <= rules["near_mm"])
        voxels = np.argwhere(mask) + begin
        balls = [np.sum(np.linalg.norm(voxels - c, axis=1) <= rules["ball_mm"] / mm) for c in centres]
        if 0 < balls[number] == max(balls):  # it holds more around its own centre than around any other
            found[number] = begin, box, probability, mask
            memory[box][mask] = 1
    hidden, parts = np.pad(beyond, edge, constant_values=True), found.items()
    return {n: (at, np.where(mask & ~hidden[box], p, p.clip(0, 0.499))) for n, (at, box, p, mask) in parts}


image = nibabel.load(SCAN)
low, high = FACTS["hu"]
whole = (image.get_fdata(dtype=np.float32).clip(low, high) - low) * 2 / (high - low) - 1  # [2]
shown = np.argwhere(whole > -0.995)
field = tuple(map(slice, shown.min(axis=0), shown.max(axis=0) + 1))  # without planes of padding
ct, labels = whole[field], np.zeros(whole.shape, np.uint8)
to_mm = TO_PRI @ image.slicer[field].affine  # [1]
coarse, origin, _ = working_ct(ct, to_mm, FACTS["heatmap_mm"], "air")
points, heat, read, peaks = find_points(coarse, FACTS["heatmap_mm"])
points_mm, peaks_mm = (each * FACTS["heatmap_mm"] + origin for each in (points, peaks))
chain = find_chain(points_mm, heat, read)
centres_mm = halfway(points_mm[chain], peaks_mm, FACTS["peaks"]["apart_mm"][-1])
codes = find_codes(centres_mm, read[chain])
mm, edge, largest = FACTS["spacing_mm"], FACTS["patch_voxels"], np.zeros(ct.shape, np.float32)
fine, origin, beyond = working_ct(ct, to_mm, mm, FACTS["outside"])
for number, (begin, sure) in find_masks(fine, beyond, mm, (centres_mm - origin) / mm).items():
    corners = (indices_of((2, 2, 2)).reshape(8, 3) * edge - 0.5 + begin) * mm + origin - to_mm[:3, 3]
    reach = (corners @ np.linalg.inv(to_mm[:3, :3]).T).clip(0, ct.shape)
    first, last = reach.min(axis=0).astype(int), np.ceil(reach.max(axis=0)).astype(int)
    box = tuple(map(slice, first, last))
    places = ((indices_of(last - first) + first) @ to_mm[:3, :3].T + to_mm[:3, 3] - origin) / mm - begin
    native = sampled(sure, places.clip(0, edge - 1.001), 1)
    native[(np.abs(places - (edge - 1) / 2) > edge / 2).any(axis=-1)] = 0
    wins = native > largest[box]  # [8]
    largest[box][wins] = native[wins]
    labels[field][box][wins & (native >= FACTS["walk"]["threshold"])] = codes[number]
nibabel.save(nibabel.Nifti1Image(labels, image.affine), OUTPUT)
