"""Imports run one way: a module imports those of its own layer and of lower ones."""

import ast
from pathlib import Path

import pytest
from paths import SOURCE, TOOLS

# From the bottom up. What stands in one row does not know of each other.
LAYERS = (
    ("sprc.core",),
    ("lavis",),
    ("sprc.data",),
    ("sprc.benchmarks", "sprc.boxes"),
    ("sprc.demo", "sprc.index"),
    ("sprc.retrieval",),
    ("sprc.report",),
    ("sprc.training",),
    ("data_utils", "validate_blip", "blip_fine_tune_2", "blip_validate", "cirr_test_submission", "retrieve"),
)
LEVEL_OF = {package: level for level, row in enumerate(LAYERS) for package in row}
MODULES = [path for path in SOURCE.rglob("*.py") if path.parent.name != "sprc"]


def package_of(module: str) -> str | None:
    """The package of `LAYERS` that a module belongs to; None for one of others."""
    return next((package for package in LEVEL_OF if module == package or module.startswith(f"{package}.")), None)


def imports_of(path: Path) -> list[str]:
    """The modules that a file imports, at its top and within functions, also under TYPE_CHECKING."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{name.name}" for name in node.names]
    return found


def upward(module: str, imported: list[str]) -> list[str]:
    """The imports that no module of this layer may have."""
    own = package_of(module)
    others = [(name, package_of(name)) for name in imported]
    return [
        name
        for name, package in others
        if package not in (None, own) and LEVEL_OF[package] >= LEVEL_OF[own]  # its own layer's neighbours as well
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_run_downwards(path):
    module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    assert package_of(module) is not None, f"{module} has no place in LAYERS"
    assert upward(module, imports_of(path)) == []


def test_an_import_upwards_is_seen():
    assert upward("sprc.core.files", ["sprc.data.images.open_rgb", "os.path"]) == ["sprc.data.images.open_rgb"]
    assert upward("lavis.models.tokenizer", ["sprc.core.errors.InputError"]) == []
    assert upward("sprc.boxes.yolo", ["sprc.benchmarks.cirr.CIRR"]) == ["sprc.benchmarks.cirr.CIRR"]


def test_nothing_bends_the_path_of_python():
    folders = [SOURCE, TOOLS]
    bent = [path for folder in folders for path in folder.rglob("*.py") if "sys.path" in path.read_text()]
    assert [path.name for path in bent] == ["interrupts.py"]  # it stands in for Python, which puts the script's folder
