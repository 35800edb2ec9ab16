"""The temperature of the votes on levels, fitted on held-out scans."""

import json

import numpy as np
import pytest

from experiments import fit_temperature
from experiments.fit_temperature import coverage, fitted_temperature, votes_and_truths, write_temperature
from tests.experiments.test_fit_chain import NOBODY, held_out
from tests.localisation.simulated_spines import candidates_at, draw_spine, level_votes
from utils.settings import SETTINGS_FILE
from utils.verse.labels import code_of_rank


def drawn_scan(seed, *, sure):
    """A spine all of whose peaks are found, with votes that are more or less sure of themselves."""
    rng = np.random.default_rng(seed)
    spine = draw_spine(rng, cobb_degrees=0.0, noise=0.02)
    votes = sure * level_votes(spine.ranks, rng, right=0.7)
    votes -= np.log(np.exp(votes).sum(axis=1, keepdims=True))
    candidates = candidates_at(spine.points_mm, np.full(len(spine.ranks), 0.95), votes, seen=6.0)
    scan = held_out(candidates, spine.points_mm)
    return scan._replace(codes=tuple(code_of_rank(int(rank)) for rank in spine.ranks))


def test_votes_that_are_too_sure_are_trusted_less():
    fitted = []
    for sure in (1.0, 4.0):
        votes, truths = votes_and_truths(drawn_scan(seed, sure=sure) for seed in range(30))
        assert len(votes) >= 27 and all(len(said.centres_mm) == len(t) for said, t in zip(votes, truths))
        fitted.append(fitted_temperature(votes, truths))
        share, size = coverage(votes, truths, fitted[-1])
        assert share >= 0.85 and size >= 1
    assert fitted[1] > 2.5 * fitted[0]


def test_a_scan_without_a_vertebra_and_one_with_an_unknown_one_take_no_part():
    scan = drawn_scan(0, sure=1.0)
    nothing = scan._replace(candidates=candidates_at(NOBODY, []))
    hides = scan._replace(bodies_mm=scan.bodies_mm[1:], codes=scan.codes[1:], hidden_mm=scan.bodies_mm[:1])
    assert votes_and_truths([nothing, hides]) == ([], [])
    # Where none is hidden, what lies on no body is no vertebra.
    (_,), (truth,) = votes_and_truths([hides._replace(hidden_mm=NOBODY)])
    assert truth == [0, *scan.codes[1:]]


def test_the_temperature_is_written_and_all_else_stays(tmp_path):
    (tmp_path / SETTINGS_FILE).write_text(json.dumps({"name": "labelling", "temperature": 1.0}))
    write_temperature(tmp_path, 2.5)
    assert json.loads((tmp_path / SETTINGS_FILE).read_text()) == {"name": "labelling", "temperature": 2.5}
    with pytest.raises(ValueError, match="missing"):
        write_temperature(tmp_path / "missing", 2.5)


def test_networks_that_see_no_vertebra_keep_their_temperature(tmp_path, monkeypatch, capsys):
    text = json.dumps({"name": "labelling", "temperature": 1.5})
    (tmp_path / SETTINGS_FILE).write_text(text)
    nothing = drawn_scan(0, sure=1.0)._replace(candidates=candidates_at(NOBODY, []))
    monkeypatch.setattr(fit_temperature, "candidates_of", lambda *arguments, keys: [nothing])
    fit_temperature.main(tmp_path, tmp_path, tmp_path / "held out", keys="*", also=())
    assert (tmp_path / SETTINGS_FILE).read_text() == text
    assert f"in no held-out scan of {tmp_path / 'held out'}" in capsys.readouterr().out
