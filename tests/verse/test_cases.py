"""The index of VerSe trees: pairing by whole key, splits by folder, and what is refused."""

import random
import tempfile
from pathlib import Path

import pytest

from tests.imaging.examples import DATA, NO_DATA, real_tree
from tests.imaging.test_damaged_inputs import as_anybody
from utils.download.data_set import get_data
from utils.settings import DataSettings
from utils.verse.cases import (
    RELEASED_PATIENTS,
    RELEASED_SERIES,
    Case,
    index_cases,
    is_of_older_release,
    missing_of_release,
    parse_case_file,
    series_of_release,
    subject_of,
    subjects_in_several_splits,
)

TRAINING = "dataset-verse19training"


def put(path, content="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def put_case(top, key, *, roles=("ct", "mask", "centroids")):
    subject = key.partition("_")[0]
    places = {
        "ct": top / "rawdata" / subject / f"{key}_ct.nii.gz",
        "mask": top / "derivatives" / subject / f"{key}_seg-vert_msk.nii.gz",
        "centroids": top / "derivatives" / subject / f"{key}_seg-subreg_ctd.json",
    }
    return {role: put(places[role], f"{role} of {key}") for role in roles}


# Every form of DESIGN.md, section 5, and of BIDS: folder of the data set, key, folder below rawdata or
# derivatives, centroid suffix, end of the images.
FORMS = [
    ("VerSe19/dataset-verse19training", "sub-verse004", "sub-verse004", "vb", ".nii.gz"),
    ("VerSe19/dataset-verse19training", "sub-verse401_split-verse253", "sub-verse401", "subreg", ".nii.gz"),
    ("VerSe19/dataset-verse19training", "sub-verse401_split-verse260", "sub-verse401", "vb", ".nii"),
    ("VerSe19/dataset-verse19validation", "sub-verse400_split-verse090", "sub-verse400", "vb", ".nii.gz"),
    ("VerSe20/dataset-verse20test", "sub-gl003_dir-ax", "sub-gl003", "subreg", ".nii.gz"),
    ("VerSe20/dataset-01training", "sub-verse500_dir-ax", "sub-verse500", "subreg", ".nii.gz"),
    ("VerSe20/dataset-01training", "sub-verse525_dir-sag", "sub-verse525", "vb", ".nii"),
    ("VerSe20/02_validation", "sub-verse646_dir-iso", "sub-verse646", "subreg", ".nii.gz"),
    ("mirror/dataset-03test/dataset-03test", "sub-gl017", "sub-gl017", "subreg", ".nii.gz"),
    ("bids", "sub-a1_ses-y", "sub-a1/ses-y", "subreg", ".nii.gz"),
    ("bids", "sub-a1_ses-z_dir-ax", "sub-a1/ses-z", "vb", ".nii.gz"),
    ("dataset-owntest", "sub-my-scan_ct", "sub-my-scan_ct", "vb", ".nii.gz"),
]


def form_paths(top, form):
    folder, key, below, points, end = form
    derived = top / folder / "derivatives" / ("pipeline/" + below if folder == "bids" else below)
    return {
        "ct": top / folder / "rawdata" / below / f"{key}_ct{end}",
        "mask": derived / f"{key}_seg-vert_msk{end}",
        "centroids": derived / f"{key}_seg-{points}_ctd.json",
    }


@pytest.mark.parametrize("missing", [None, "ct", "mask", "centroids"])
@pytest.mark.parametrize("seed", range(5))
def test_names_of_every_form_in_any_order_with_one_part_missing_each(tmp_path, seed, missing):
    present = {
        form: {role: path for role, path in form_paths(tmp_path, form).items() if role != missing}
        for form in FORMS
    }
    created = [path for paths in present.values() for path in paths.values()]
    random.Random(seed).shuffle(created)
    for path in created:
        put(path, path.name)
    put(tmp_path / "VerSe20" / "dataset-01training" / "derivatives" / "sub-verse500" / "verse500_snp.png")
    splits = [
        *(["training"] * 3 + ["validation", "test"]),
        *("training", "training", "validation", "test", "", "", "test"),
    ]
    years = [2019, 2019, 2019, 2019, 2020, 2020, 2020, 2020, 2020, None, None, None]
    expected = [
        (Case(form[1], form[2].split("/")[0], split, **present[form]), year)
        for form, split, year in zip(FORMS, splits, years, strict=True)
    ]
    found = index_cases(tmp_path)
    assert [(case, case.year) for case in found] == sorted(expected, key=lambda pair: pair[0].key)
    names = {"ct": ["CT"], "mask": ["mask"], "centroids": ["centroids"], None: []}
    assert {tuple(case.missing()) for case in found} == {tuple(names[missing])}


@pytest.mark.parametrize("seed", range(5))
def test_each_case_misses_another_part(tmp_path, seed):
    rng = random.Random(seed)
    parts = {form: rng.choice(["ct", "mask", "centroids"]) for form in FORMS}
    created = [
        path for form in FORMS for role, path in form_paths(tmp_path, form).items() if role != parts[form]
    ]
    rng.shuffle(created)
    for path in created:
        put(path, path.name)
    names = {"ct": "CT", "mask": "mask", "centroids": "centroids"}
    assert {case.key: case.missing() for case in index_cases(tmp_path)} == {
        form[1]: [names[part]] for form, part in parts.items()
    }


def test_files_are_paired_by_whole_key_never_by_position_or_number(tmp_path):
    top = tmp_path / TRAINING
    # Sorted by name, the masks of these would shift by one against the CTs: 253 has no mask, 260 no CT.
    first = put_case(top, "sub-verse401_split-verse253", roles=("ct",))
    second = put_case(top, "sub-verse401_split-verse260", roles=("mask", "centroids"))
    third = put_case(top, "sub-verse401_split-verse261")
    assert index_cases(tmp_path) == [
        Case("sub-verse401_split-verse253", "sub-verse401", "training", **first),
        Case("sub-verse401_split-verse260", "sub-verse401", "training", **second),
        Case("sub-verse401_split-verse261", "sub-verse401", "training", **third),
    ]


@pytest.mark.parametrize(
    ("name", "key", "subject", "role"),
    [
        ("sub-verse004_ct.nii.gz", "sub-verse004", "sub-verse004", "ct"),
        ("sub-verse500_dir-ax_ct.nii.gz", "sub-verse500_dir-ax", "sub-verse500", "ct"),
        ("sub-verse401_split-verse253_ct.nii", "sub-verse401_split-verse253", "sub-verse401", "ct"),
        ("sub-gl003_dir-ax_seg-vert_msk.nii.gz", "sub-gl003_dir-ax", "sub-gl003", "mask"),
        ("sub-gl003_dir-ax_seg-subreg_ctd.json", "sub-gl003_dir-ax", "sub-gl003", "centroids"),
        ("sub-verse014_seg-vb_ctd.json", "sub-verse014", "sub-verse014", "centroids"),
    ],
)
def test_names_of_verse(name, key, subject, role):
    file = parse_case_file(Path(name), ())
    assert (file.key, file.subject, file.role, file.split) == (key, subject, role, "")


@pytest.mark.parametrize(
    "name",
    [
        "chest_ct.nii.gz",
        "sub-verse004_ct.nii.gz.part",
        "sub-verse004_seg-vert_snp.png",
        "sub-verse004_seg-vb_ctd.json.gz",
        "sub-verse004.nii.gz",
        "sub-_ct.nii.gz",
        "xsub-verse004_ct.nii.gz",
    ],
)
def test_other_names_are_not_those_of_cases(name):
    assert parse_case_file(Path(name), ()) is None


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("dataset-verse19training", "training"),
        ("dataset-verse19validation", "validation"),
        ("dataset-verse20test", "test"),
        ("dataset-01training", "training"),
        ("dataset-02validation", "validation"),
        ("dataset-03test", "test"),
        ("dataset-owntraining", "training"),
        ("Dataset-VerSe19Training", "training"),
        ("01_training", "training"),
        ("VerSe20/dataset-03test/derivatives/dataset-03test", "test"),
        ("training", ""),
        ("dataset-01training-old", ""),
        ("1_training", ""),
    ],
)
def test_split_is_that_of_the_folder_at_any_depth(tmp_path, folder, split):
    put_case(tmp_path / "a" / folder, "sub-x")
    (case,) = index_cases(tmp_path)
    assert case.split == split
    assert index_cases(tmp_path, split=split) == [case]


def test_the_data_folder_itself_may_be_a_split_but_no_folder_above_it(tmp_path):
    top = tmp_path / "dataset-03test" / "mine" / TRAINING
    put_case(top, "sub-x")
    put_case(top.parent, "sub-y")
    assert [case.split for case in index_cases(top)] == ["training"]
    assert [(case.key, case.split) for case in index_cases(top.parent)] == [
        ("sub-x", "training"),
        ("sub-y", ""),
    ]


def test_predictions_without_rawdata_are_a_valid_tree(tmp_path):
    files = put_case(tmp_path, "sub-x", roles=("mask", "centroids"))
    (case,) = index_cases(tmp_path)
    assert case == Case("sub-x", "sub-x", "", **files)
    assert not case.complete


def test_missing_parts_are_named(tmp_path):
    put_case(tmp_path / TRAINING, "sub-a", roles=("ct", "mask"))
    put_case(tmp_path / TRAINING, "sub-b", roles=("mask", "centroids"))
    put_case(tmp_path / TRAINING, "sub-c", roles=("ct",))
    assert [(case.complete, case.missing()) for case in index_cases(tmp_path)] == [
        (True, ["centroids"]),
        (False, ["CT"]),
        (False, ["mask", "centroids"]),
    ]


def test_two_files_that_differ_for_one_place_are_refused_by_name(tmp_path):
    first = put_case(tmp_path / "VerSe19" / TRAINING, "sub-x", roles=("ct",))["ct"]
    second = put(tmp_path / "VerSe20" / "dataset-01training" / "sub-x_ct.nii.gz", "another series")
    with pytest.raises(ValueError, match="sub-x") as caught:
        index_cases(tmp_path)
    assert str(first) in str(caught.value) and str(second) in str(caught.value)
    assert len(index_cases(tmp_path / "VerSe19")) == 1


def test_a_copy_of_a_file_is_the_same_file(tmp_path):
    first = put_case(tmp_path / "a" / TRAINING, "sub-x", roles=("mask",))["mask"]
    put_case(tmp_path / "b" / TRAINING, "sub-x", roles=("mask",))
    assert index_cases(tmp_path)[0].mask == first


def test_one_key_in_two_splits_is_two_cases_of_a_shared_subject(tmp_path):
    put_case(tmp_path / "dataset-02validation", "sub-x_dir-ax", roles=("ct",))
    put_case(tmp_path / TRAINING, "sub-x_dir-sag", roles=("ct",))
    put_case(tmp_path / TRAINING, "sub-y", roles=("ct",))
    cases = index_cases(tmp_path)
    assert [(case.key, case.split) for case in cases] == [
        ("sub-x_dir-ax", "validation"),
        ("sub-x_dir-sag", "training"),
        ("sub-y", "training"),
    ]
    assert subjects_in_several_splits(cases) == {"sub-x": ["training", "validation"]}


def test_of_two_centroid_files_the_vertebral_bodies_are_taken(tmp_path):
    put_case(tmp_path, "sub-x", roles=("centroids",))
    bodies = put(tmp_path / "derivatives" / "sub-x" / "sub-x_seg-vb_ctd.json", "other")
    assert index_cases(tmp_path)[0].centroids == bodies


def test_hidden_and_temporary_files_are_left_out(tmp_path):
    put(tmp_path / "rawdata" / "._sub-x_ct.nii.gz")
    put(tmp_path / "rawdata" / ".sub-x_ct.nii.gz.17.part")
    put(tmp_path / "rawdata" / "sub-x_ct.nii.gz.part")
    put(tmp_path / ".cache" / "sub-x_ct.nii.gz")
    with pytest.raises(ValueError, match="found none"):
        index_cases(tmp_path)


def test_folders_that_are_links_are_followed_once(tmp_path):
    put_case(tmp_path / "elsewhere" / TRAINING, "sub-x")
    data = tmp_path / "data"
    data.mkdir()
    (data / "VerSe19").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "elsewhere")
    (case,) = index_cases(data)
    assert case.complete and case.split == "training"


def test_a_folder_that_may_not_be_read_is_named():
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        data = Path(name)
        put_case(data / TRAINING, "sub-x")
        closed = data / TRAINING / "closed"
        closed.mkdir()
        data.chmod(0o755)
        closed.chmod(0)
        said = f"{closed}: expected a folder that may be read, found Permission denied"
        with as_anybody(), pytest.raises(ValueError, match=said):
            index_cases(data)


def test_nothing_found_names_the_folder_and_the_split(tmp_path):
    with pytest.raises(ValueError, match="nowhere: expected a folder"):
        index_cases(tmp_path / "nowhere")
    with pytest.raises(ValueError) as caught:
        index_cases(tmp_path)
    assert str(tmp_path) in str(caught.value)
    put_case(tmp_path / TRAINING, "sub-x")
    with pytest.raises(ValueError, match="'test', found none"):
        index_cases(tmp_path, split="test")


@pytest.mark.skipif(not DATA.is_dir(), reason=NO_DATA)
def test_real_tree(tmp_path):
    cases = index_cases(real_tree(tmp_path))
    assert [(case.key, case.split, case.complete, case.missing()) for case in cases] == [
        ("sub-gl003_dir-ax", "training", False, ["CT"]),
        ("sub-verse004", "training", False, ["CT"]),
        ("sub-verse014", "training", True, []),
    ]


@pytest.mark.parametrize(
    ("key", "folder"),
    [
        ("sub-verse004", "sub-verse004"),
        ("sub-verse500_dir-ax", "sub-verse500"),
        ("sub-verse401_split-verse253", "sub-verse401"),
        ("sub-chest_ct", "sub-chest_ct"),
    ],
)
def test_folder_of_a_case_is_its_subject_or_an_own_name(key, folder):
    assert subject_of(key) == folder


def test_names_that_differ_in_case_only_are_those_of_one_case(tmp_path):
    top = tmp_path / "dataset-01training"
    ct = put(top / "rawdata" / "sub-GL003" / "sub-GL003_dir-ax_CT.NII.GZ")
    mask = put(top / "derivatives" / "sub-gl003" / "sub-gl003_dir-ax_seg-vert_msk.nii.gz")
    (case,) = index_cases(tmp_path)
    assert case == Case("sub-GL003_dir-ax", "sub-GL003", "training", ct=ct, mask=mask)
    put(tmp_path / "dataset-03test" / "sub-gl003_dir-sag_ct.nii.gz")
    assert subjects_in_several_splits(index_cases(tmp_path)) == {"sub-GL003": ["test", "training"]}


OLDER_NAMES = [
    *("verse004.nii.gz", "verse004_seg.nii.gz", "verse004_ctd.json", "verse014.nii"),
    *("verse512_CT-iso.nii.gz", "verse512_CT-iso_seg.nii.gz", "verse512_CT-iso_iso-ctd.json"),
    *("GL003.nii.gz", "GL017_CT_ax.nii.gz", "GL017_CT_ax_seg.nii.gz", "GL017_CT_ax_iso-ctd.json"),
    *("verse400_verse090_CT-iso.nii.gz", "verse400_verse155_CT-iso_seg.nii.gz", "GL018-GL016.nii.gz"),
]


@pytest.mark.parametrize("name", OLDER_NAMES)
def test_names_of_the_older_release(tmp_path, name):
    assert is_of_older_release(Path("01_training", "GL003", name))
    older = put(tmp_path / "02_validation" / name)
    with pytest.raises(ValueError, match="older challenge release") as caught:
        index_cases(tmp_path)
    assert str(older) in str(caught.value) and "get_verse_data.py" in str(caught.value)
    put_case(tmp_path / TRAINING, "sub-verse014")
    with pytest.raises(ValueError, match="105 series of 2019 in 2020") as caught:
        index_cases(tmp_path, split="training")
    assert str(older) in str(caught.value) and "several splits: keep it in another folder" in str(
        caught.value
    )


def test_a_source_of_the_older_release_is_not_copied(tmp_path, capsys):
    put(tmp_path / "source" / "01_training" / "GL003" / "GL003_CT_ax.nii.gz")
    assert get_data(DataSettings(source=str(tmp_path / "source"), data_dir=tmp_path / "data")) == 1
    told = capsys.readouterr().err
    assert "older challenge release" in told and told.count("\n") == 1
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "name",
    [
        *("sub-verse004_ct.nii.gz", "chest.nii.gz", "verse.nii.gz", "verse004.png", "verse004_snapshot.png"),
        *("myverse004.nii.gz", "verse004_liver.nii.gz", "GL003_CT_ax.json", "verse004_ctd.json.bak"),
    ],
)
def test_other_names_are_not_those_of_the_older_release(name):
    assert not is_of_older_release(Path("folder", name))


def test_a_file_unpacked_under_its_older_name_is_left_out_but_no_older_release(tmp_path):
    # gunzip -N and 7-Zip take the name that a gzip header holds.
    put_case(tmp_path / TRAINING, "sub-verse012", roles=("ct", "centroids"))
    unpacked = put(tmp_path / TRAINING / "derivatives" / "sub-verse012" / "verse012_CT-sag_seg.nii")
    assert not is_of_older_release(unpacked)
    assert [case.missing() for case in index_cases(tmp_path)] == [["mask"]]


def test_predictions_may_lie_beside_older_scans(tmp_path):
    put(tmp_path / "verse004.nii.gz")
    files = put_case(tmp_path, "sub-verse004", roles=("mask", "centroids"))
    assert index_cases(tmp_path) == [Case("sub-verse004", "sub-verse004", "", **files)]


def released(year, split, number):
    return Case(f"sub-verse{number}", f"sub-verse{number}", split, year=year)


def test_series_of_the_release_by_year_and_split():
    by_split = {split: 0 for _, split in RELEASED_SERIES}
    for (_, split), series in RELEASED_SERIES.items():
        by_split[split] += series
    assert by_split == {"training": 141, "validation": 120, "test": 113}
    assert sum(RELEASED_SERIES.values()) == 374


def test_what_is_missing_of_the_release_is_said_in_numbers(tmp_path):
    put_case(tmp_path / "VerSe19" / TRAINING, "sub-verse401_split-verse253", roles=("mask",))
    put_case(tmp_path / "VerSe19" / TRAINING, "sub-verse401_split-verse260")
    put_case(tmp_path / "VerSe20" / "dataset-03test", "sub-gl003_dir-ax")
    put_case(tmp_path / "dataset-owntraining", "sub-verse999")
    put_case(tmp_path / "dataset-03test", "sub-chest")
    cases = index_cases(tmp_path)
    assert series_of_release(cases) == {
        **{(2019, "training"): 2, (2019, "validation"): 0, (2019, "test"): 0},
        **{(2020, "training"): 0, (2020, "validation"): 0, (2020, "test"): 1},
    }
    assert missing_of_release(cases) == [
        "training 2019: 2 of 80 series",
        "validation 2019: 0 of 40 series",
        "test 2019: 0 of 40 series",
        "training 2020: 0 of 61 series",
        "validation 2020: 0 of 80 series",
        "test 2020: 1 of 73 series",
        "all: 2 of 355 patients",
    ]


def test_nothing_is_missing_of_a_whole_release_nor_where_it_is_not(tmp_path):
    parts = [part for part, series in RELEASED_SERIES.items() for _ in range(series)]
    # 19 series are further ones of a patient.
    numbers = [min(number, RELEASED_PATIENTS - 1) for number in range(len(parts))]
    whole = [released(*part, number) for part, number in zip(parts, numbers)]
    assert missing_of_release(whole) == []
    assert missing_of_release(whole[1:]) == ["training 2019: 79 of 80 series", "all: 354 of 355 patients"]
    own = [Case("sub-verse004", "sub-verse004", "training"), released(2019, "", 5)]
    assert series_of_release(own) == {} and missing_of_release(own) == []


@pytest.mark.skipif(not DATA.is_dir(), reason=NO_DATA)
def test_real_tree_is_a_part_of_the_release(tmp_path):
    cases = index_cases(real_tree(tmp_path))
    assert [case.year for case in cases] == [2020, 2019, 2019]
    assert [line for line in missing_of_release(cases) if "training" in line] == [
        "training 2019: 2 of 80 series",
        "training 2020: 1 of 61 series",
    ]
