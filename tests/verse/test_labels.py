"""The level table against VerSe's published codes, and T13's place between T12 and L1."""

import numpy as np
import pytest

from utils.verse.labels import (
    CODES,
    LEVEL_NAMES,
    MAX_RANK,
    code_of_name,
    code_of_rank,
    name_of_code,
    rank_of_code,
    ranks_of_mask,
    region_of_code,
)

# Code, name and rank, as VerSe's label list gives them; T13 pushes the lumbar ranks up by one.
PUBLISHED = [
    (1, "C1", 1),
    (7, "C7", 7),
    (8, "T1", 8),
    (19, "T12", 19),
    (28, "T13", 20),
    (20, "L1", 21),
    (24, "L5", 25),
    (25, "L6", 26),
]


@pytest.mark.parametrize(("code", "name", "rank"), PUBLISHED)
def test_published_codes(code, name, rank):
    assert rank_of_code(code) == rank
    assert code_of_rank(rank) == code
    assert name_of_code(code) == name
    assert code_of_name(name) == code


def test_every_code_has_its_own_rank_without_a_gap():
    assert sorted(CODES) == [*range(1, 26), 28]
    assert [rank_of_code(code) for code in CODES] == list(range(1, MAX_RANK + 1))
    assert [name_of_code(code) for code in CODES] == list(LEVEL_NAMES)
    assert MAX_RANK == 26


def test_t13_lies_between_t12_and_l1():
    assert rank_of_code(19) + 1 == rank_of_code(28) == rank_of_code(20) - 1


@pytest.mark.parametrize("code", [0, -1, 26, 27, 29])
def test_codes_of_no_vertebra_are_refused(code):
    with pytest.raises(ValueError, match=f"received {code}"):
        rank_of_code(code)
    with pytest.raises(ValueError, match=f"received {code}"):
        name_of_code(code)


@pytest.mark.parametrize("rank", [0, 27])
def test_ranks_of_no_vertebra_are_refused(rank):
    with pytest.raises(ValueError, match=f"received {rank}"):
        code_of_rank(rank)


def test_names_are_read_in_either_case():
    assert code_of_name(" l1 ") == 20
    for name in ("S1", "L7", "T14", "C0", ""):
        with pytest.raises(ValueError, match="Expected a level"):
            code_of_name(name)


def test_regions():
    assert [region_of_code(code) for code in (1, 7, 8, 28, 20, 25)] == [
        "cervical",
        "cervical",
        "thoracic",
        "thoracic",
        "lumbar",
        "lumbar",
    ]


def test_masks_turn_into_ranks():
    mask = np.array([[[0, 1, 19], [28, 20, 25]]], np.uint8)
    ranks = ranks_of_mask(mask)
    assert ranks.tolist() == [[[0, 1, 19], [20, 21, 26]]]
    assert ranks.dtype == np.uint8


def test_unknown_numbers_in_a_volume_are_named():
    with pytest.raises(ValueError, match=r"found \[26, 27\]"):
        ranks_of_mask(np.array([26, 3, 27, 0], np.uint8))
