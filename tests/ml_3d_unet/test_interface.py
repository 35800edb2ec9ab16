"""Code written for the interface of the published module of this name runs unchanged, from either place."""

from pathlib import Path

import pytest

from ML_3D_Unet.utils.train import read_history
from tests import forked

CODE = Path(__file__).with_name("interface_code.py")


@pytest.mark.parametrize(
    ("folder", "more"), [(forked.PROJECT / "ML_3D_Unet", ()), (forked.PROJECT, ("--project",))]
)
def test_code_for_the_published_interface_runs_unchanged(tmp_path, folder, more):
    done = forked.run(CODE, tmp_path, *more, folder=folder)
    assert done.returncode == 0, done.stderr[-4000:]
    said = done.stdout
    assert "layers: True True" in said and "as layer: True" in said
    assert "outputs: (None, 16, 16, 16, 1) (None, 16, 16, 16, 1)" in said
    assert f"{tmp_path}/alone: going on after epoch 2, of 4 epochs" in said
    assert f"{tmp_path}/alone: training is already complete, 4 of 4 epochs" in said
    assert "saved: (None, 16, 16, 16, 1) True" in said
    runs = {"alone": 4, "distilled": 3, "distilled_teacher_scratch": 3, "distilled_student_scratch": 3}
    for name, epochs in runs.items():
        assert len(read_history(tmp_path / name / "history.csv", last_epoch=99)) == epochs, name
        assert (tmp_path / name / "best.keras").is_file()
