"""The direction of imports: scripts -> prediction -> learning -> imaging, verse -> settings."""

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
COMMON = ("utils.settings", "utils.files", "utils.tables", "utils.execution")
# What each part may import of the project, beside itself.
ALLOWED = {
    "utils/settings.py": (),
    "utils/files.py": (),
    "utils/tables.py": (),
    "utils/execution.py": ("utils.settings",),
    "utils/verse": COMMON,
    "utils/imaging": (*COMMON, "utils.verse"),
    "utils/learning": (*COMMON, "utils.verse", "utils.imaging", "ML_3D_Unet"),
    "utils/prediction": (*COMMON, "utils.verse", "utils.imaging", "utils.learning", "ML_3D_Unet"),
    "ML_3D_Unet": (),
}
WITHOUT_TENSORFLOW = (
    *("utils/settings.py", "utils/files.py", "utils/tables.py", "utils/execution.py"),
    *("utils/verse", "utils/imaging"),
)


def modules_of(part: str) -> list[Path]:
    place = PROJECT / part
    return [place] if place.is_file() else sorted(place.rglob("*.py"))


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


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_go_one_way(part):
    own = part.removesuffix(".py").replace("/", ".")
    modules = modules_of(part)
    assert modules
    for path in modules:
        project = {n for n in imported_names(path) if lies_in(n, "utils") or lies_in(n, "ML_3D_Unet")}
        wrong = {name for name in project if not any(lies_in(name, ok) for ok in (own, *ALLOWED[part]))}
        assert not wrong, f"{path.relative_to(PROJECT)} imports {sorted(wrong)}"


@pytest.mark.parametrize("part", WITHOUT_TENSORFLOW)
def test_workers_never_load_tensorflow(part):
    for path in modules_of(part):
        assert not {n for n in imported_names(path) if lies_in(n, "tensorflow") or lies_in(n, "keras")}, path


def test_ml_3d_unet_imports_itself_relatively_only():
    for path in modules_of("ML_3D_Unet"):
        assert not {name for name in imported_names(path) if lies_in(name, "ML_3D_Unet")}, path
