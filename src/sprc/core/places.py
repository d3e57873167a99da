"""The folder of the project, below which its folders for data, weights and runs are."""

from pathlib import Path


def find_repository() -> Path:
    """The checkout that this package runs from; for an installed package the working directory."""
    source = Path(__file__).resolve().parents[2]
    return source.parent if source.name == "src" and (source.parent / "pyproject.toml").is_file() else Path.cwd()


REPOSITORY = find_repository()
