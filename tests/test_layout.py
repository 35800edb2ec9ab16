"""The rooms of the project, and the one direction of imports between them."""

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
#: From the bottom up. What stands on one tier does not import each other, the files at the bottom apart.
TIERS = (
    (
        *("utils.bounds", "utils.augmentation_settings", "utils.settings", "utils.presets"),
        *("utils.command_line", "utils.files", "utils.tables", "utils.execution"),
        *("utils.interruption", "utils.quiet_start", "utils.packages"),
    ),
    ("utils.verse",),
    ("utils.imaging", "utils.download"),
    ("utils.synthetic",),
    ("utils.preparation",),
    ("utils.learning",),
    ("utils.walk", "utils.localisation"),
    ("utils.prediction", "utils.evaluation"),
    ("utils.distillation",),
)
ROOMS = tuple(room for tier in TIERS for room in tier)
WITHOUT_TENSORFLOW = (*(room for tier in TIERS[:5] for room in tier), "utils.evaluation")
#: The rooms that may use the generic network.
WITH_UNET = ("utils.learning", "utils.walk", "utils.prediction", "utils.distillation")


def modules_of(part: str) -> list[Path]:
    place = PROJECT / part.replace(".", "/")
    return [place.with_suffix(".py")] if place.with_suffix(".py").is_file() else sorted(place.rglob("*.py"))


def imported_names(path: Path) -> set[str]:
    """Names of all absolute imports in a file, those inside functions included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def lies_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def allowed_to(room: str) -> tuple[str, ...]:
    """Rooms that a room may import: itself, those below it, and for the files at the bottom each other."""
    (height,) = [number for number, tier in enumerate(TIERS) if room in tier]
    below = tuple(other for tier in TIERS[: max(height, 1)] for other in tier)
    return (room, *below, *(("ML_3D_Unet",) if room in WITH_UNET else ()))


def test_every_module_lies_in_a_room():
    packages = {path.name for path in (PROJECT / "utils").iterdir() if any(path.glob("*.py"))}
    modules = {path.stem for path in (PROJECT / "utils").glob("*.py")} - {"__init__"}
    assert {f"utils.{name}" for name in packages | modules} == set(ROOMS)


def test_every_room_has_its_folder_of_tests():
    folders = {path.name for path in (PROJECT / "tests").iterdir() if any(path.glob("test_*.py"))}
    rooms = {room.removeprefix("utils.") for tier in TIERS[1:] for room in tier}
    assert folders == rooms | {"ml_3d_unet", "experiments"}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(room):
    modules = modules_of(room)
    assert modules
    for path in modules:
        parts = ("utils", "ML_3D_Unet", "experiments")
        project = {n for n in imported_names(path) if any(lies_in(n, part) for part in parts)}
        wrong = {name for name in project if not any(lies_in(name, other) for other in allowed_to(room))}
        assert not wrong, f"{path.relative_to(PROJECT)} imports {sorted(wrong)}"


@pytest.mark.parametrize("room", WITHOUT_TENSORFLOW)
def test_workers_never_load_tensorflow(room):
    for path in modules_of(room):
        assert not {n for n in imported_names(path) if lies_in(n, "tensorflow") or lies_in(n, "keras")}, path


def test_ml_3d_unet_imports_itself_relatively_only():
    for path in modules_of("ML_3D_Unet"):
        names = imported_names(path)
        assert not {name for name in names if lies_in(name, "ML_3D_Unet") or lies_in(name, "utils")}, path


@pytest.mark.parametrize("name", ["layers", "layers_func", "layer_blocks", "blocks", "residual"])
def test_the_layers_leave_the_backend_of_keras_open(name):
    path = PROJECT / "ML_3D_Unet" / "utils" / f"{name}.py"
    assert not {found for found in imported_names(path) if lies_in(found, "tensorflow")}
    assert "KERAS_BACKEND" not in path.read_text()


def test_the_project_chooses_the_backend_of_keras_in_one_place():
    paths = [path for part in ("utils", "ML_3D_Unet", "experiments") for path in modules_of(part)]
    paths += PROJECT.glob("*.py")
    named = [path.relative_to(PROJECT) for path in paths if "KERAS_BACKEND" in path.read_text()]
    assert named == [Path("utils/__init__.py")]
