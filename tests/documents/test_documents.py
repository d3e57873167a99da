"""What the documents show is true: links and paths exist, flags are known, and commands and code run."""

import io
import json
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest
from paths import REPOSITORY as ROOT

DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in ("data", "reference") for part in path.relative_to(ROOT).parts)
    and path.relative_to(ROOT).parts[:2] != ("models", "weights")
)
# Made by a run, given by the user, or upstream's.
ELSEWHERE = ("data/", "models/", "cirr_dataset/", "fashionIQ_dataset/", "hub_folder", "saved_models/", "http", "~/",
             "photos_index/")  # fmt: skip
# These take long, need weights or a network, or run this very suite: their flags are checked, and --help is run.
LONG = ("auto_train_with_boxes.sh", "train_with_roi_align.sh", "blip_fine_tune_2.py", "blip_validate.py", "run.sh",
        "cirr_test_submission.py", "get_weights.py", "convert_weights.py", "compare_with_lavis.py",
        "make_demo_dataset.py", "benchmark_metrics.py", "benchmark_region_cost.py", "benchmark_speed.py",
        "benchmark_regions.py", "benchmark_search.py",
        "plot_metrics.py")  # fmt: skip
SUBCOMMANDS = {"src/retrieve.py": ("index", "search", "page")}
TOOL_FOLDERS = ("benchmarks", "boxes", "weights")
SECTIONS = {path: path.read_text(encoding="utf-8") for path in DOCUMENTS}


def blocks(language: str) -> list[str]:
    """The distinct code blocks of a language in all documents."""
    found = (block for text in SECTIONS.values() for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL))
    return list(dict.fromkeys(found))


def shown_commands() -> list[str]:
    """The distinct command lines, without comments."""
    lines = (re.sub(r"\s+#.*", "", line).strip() for block in blocks("bash") for line in block.splitlines())
    return list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))


def flags_of(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]+", text))


@cache
def help_text(script: str) -> str:
    """What `--help` prints, also for each of the script's commands."""
    return "".join(help_page(script, *command) for command in ((), *((word,) for word in SUBCOMMANDS.get(script, ()))))


def help_page(script: str, *command: str) -> str:
    """What `--help` prints; of Python's scripts in this process, which has their packages already."""
    if not script.endswith(".py"):
        answer = subprocess.run(["bash", script, "--help"], cwd=ROOT, capture_output=True, text=True)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout
    before = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(io.StringIO()) as printed:
        patched.setattr(sys, "argv", [script, *command, "--help"])
        patched.setattr(sys, "path", [str((ROOT / script).parent), *sys.path])
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            assert not end.code, script
    signal.signal(signal.SIGINT, before)
    return printed.getvalue()


def scripts() -> list[str]:
    region = ROOT / "roi_align_integration"
    found = [*(ROOT / "src").glob("*.py"), *(region / "tools").rglob("*.*"), *(region / "tests").glob("*.py")]
    named = [path for path in found if path.suffix in (".py", ".sh") and has_help(path.read_text())]
    return [str(path.relative_to(ROOT)) for path in named if path.name != "check_env.py"]


def has_help(code: str) -> bool:
    return "argparse" in code or "usage:" in code


@cache
def known_flags() -> frozenset:
    return frozenset(flag for script in scripts() for flag in flags_of(help_text(script))) | {"--help"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_exist(document):
    text = SECTIONS[document]
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (document.parent / link).exists()] == []
    without_code = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    paths = re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|sh|md|yaml|txt|json))`", without_code)
    bases = (ROOT, document.parent, ROOT / "roi_align_integration", ROOT / "src")
    unknown = [p for p in paths if not p.startswith(ELSEWHERE) and not any((base / p).exists() for base in bases)]
    assert unknown == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_flags_are_known(document):
    inline = " ".join(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", SECTIONS[document], flags=re.DOTALL)))
    assert flags_of(inline) - known_flags() == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_console_scripts_are_installed(document):
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("scripts", {})
    assert set(re.findall(r"`(sprc-(?!regions)[a-z]+)", SECTIONS[document])) - set(scripts) == set()


def test_the_two_commands_are_shown():
    readme = SECTIONS[ROOT / "README.md"]
    assert "bash roi_align_integration/tools/auto_train_with_boxes.sh --test\n" in readme
    assert "bash tests/run.sh\n" in readme


@pytest.mark.parametrize("regime", ["scratch", "pretrained"])
def test_the_benchmark_tables_are_those_of_their_rows(regime):
    from benchmark_regions import CONTROLS
    from region_arms import IDEAS
    from region_regimes import REGIMES
    from region_table import against, longer_table, markdown, read_rows, trials_table

    place = {"scratch": "SUMMARY.md", "pretrained": "docs/benchmark_regions_pretrained.md"}[regime]
    rows, summary = read_rows(REGIMES[regime].csv), SECTIONS[ROOT / "roi_align_integration" / place]
    assert trials_table([row for row in rows if row.stage == "tune"]) in summary
    for stage, pairs in {"report": CONTROLS, "chosen": CONTROLS, "ideas": IDEAS}.items():
        reported = [row for row in rows if row.stage == stage]
        if reported:
            assert markdown(reported) in summary
            assert all(against(reported, arm, controls) in summary for arm, controls in pairs.items())
    longer = [row for row in rows if row.stage == "longer"]
    if longer:
        assert longer_table(rows) in summary
        assert markdown(longer) in summary


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the repository, with a small demo dataset where the documents have theirs."""
    from generate_cirr_boxes import main as generate_boxes

    from sprc.demo.dataset import DemoSettings, make_demo_dataset

    copy = tmp_path_factory.mktemp("documents") / "project"
    data = copy / "roi_align_integration" / "data"
    data.mkdir(parents=True)
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tests", "pyproject.toml", "requirements.txt", "requirements-dev.txt"):
        (copy / name).symlink_to(ROOT / name)
    for name in ("tools", "tests"):
        shutil.copytree(ROOT / "roi_align_integration" / name, data.parent / name)
    make_demo_dataset(data / "demo_dataset", DemoSettings(24, 40, val_images=12, val_triplets=12, test_images=12,
                                                          test_triplets=6))  # fmt: skip
    shutil.copytree(data / "demo_dataset", copy / "cirr_dataset")
    generate_boxes(["--cirr-root", str(copy / "cirr_dataset"), "--output", str(data / "cirr_boxes_train.json")])
    make_photographs(copy)
    return copy


def make_photographs(checkout: Path) -> None:
    """What the documents search: photographs, a checkpoint of random weights, and the index of both."""
    from lavis.models.checkpoint import save_model
    from sprc.demo.model import random_model
    from sprc.retrieval.retriever import Retriever

    shutil.copytree(checkout / "cirr_dataset" / "dev", checkout / "PHOTOS")
    next((checkout / "PHOTOS").iterdir()).rename(checkout / "PHOTOS" / "dog.jpg")
    weights = checkout / "models" / "<run>" / "saved_models" / "tuned_clip_arithmetic.pt"
    weights.parent.mkdir(parents=True)
    (weights.parents[1] / "training_hyperparameters.json").write_text('{"backbone": "tiny"}')
    save_model(random_model(), 0, weights)
    Retriever.from_checkpoint(weights, num_workers=0).index(checkout / "PHOTOS", checkout / "photos_index")


@pytest.fixture
def python_in_checkout(warm, checkout) -> Callable[..., subprocess.CompletedProcess]:
    """Runs a script in a copy of the repository, with the modules of the copy."""
    return lambda *words: warm(*words, cwd=checkout, PYTHONPATH=str(checkout / "src")).finished()


@pytest.mark.integration
@pytest.mark.parametrize("command", shown_commands())
def test_commands_run(command, python_in_checkout):
    words = shlex.split(command)
    if words[0] in ("export", "pip", "python3", "source"):
        return
    if words[:3] == ["python", "-m", "pytest"]:
        assert (ROOT / words[3]).is_file()
        return
    runner, script, *rest = [word for word in words if not word.startswith("--nproc")]  # torchrun's own flag
    assert (ROOT / script).is_file()
    assert flags_of(" ".join(rest)) - flags_of(help_text(script) if rest else "") == set()
    if script.endswith(LONG) or "page" in rest:  # a server does not end
        assert help_text(script) or not rest
        return
    assert runner == "python"
    answer = python_in_checkout(script, *rest)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.integration
@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.split("\n")[0][:40])
def test_code_runs(code, python_in_checkout):
    answer = python_in_checkout("-c", code)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("text", blocks("json"))
def test_example_files_are_box_files(text, tmp_path):
    from lavis.datasets.region_boxes import load_boxes

    (tmp_path / "boxes.json").write_text(text)
    assert list(load_boxes(tmp_path / "boxes.json")) == [name for name in json.loads(text) if name != "__frame__"]
