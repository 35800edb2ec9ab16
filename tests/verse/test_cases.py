"""The index of VerSe trees: pairing by whole key, splits by folder, and what is refused."""

from pathlib import Path

import pytest

from utils.verse.cases import Case, index_cases, parse_case_file, subject_of, subjects_in_several_splits

REAL_DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
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
        ("VerSe20/dataset-03test/derivatives/dataset-03test", "test"),
        ("training", ""),
        ("dataset-01training-old", ""),
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


def test_nothing_found_names_the_folder_and_the_split(tmp_path):
    with pytest.raises(ValueError, match="nowhere: expected a folder"):
        index_cases(tmp_path / "nowhere")
    with pytest.raises(ValueError) as caught:
        index_cases(tmp_path)
    assert str(tmp_path) in str(caught.value)
    put_case(tmp_path / TRAINING, "sub-x")
    with pytest.raises(ValueError, match="'test', found none"):
        index_cases(tmp_path, split="test")


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="shared/data is not here")
def test_real_tree():
    cases = index_cases(REAL_DATA)
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
