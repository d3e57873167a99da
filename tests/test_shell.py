"""The shell scripts: clean, executable, helpful, and sparing with environments."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / "roi_align_integration" / "tools"
AUTO_TRAIN = TOOLS / "auto_train_with_boxes.sh"
SCRIPTS = [*TOOLS.glob("*.sh"), ROOT / "tests" / "run.sh", ROOT / ".ci" / "run"]


def bash(*command, **options) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", *map(str, command)], capture_output=True, text=True, **options)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_is_clean():
    answer = subprocess.run(["shellcheck", "-x", *map(str, SCRIPTS)], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout


def test_scripts_that_are_run_directly_are_executable():
    assert all(os.access(path, os.X_OK) for path in (AUTO_TRAIN, ROOT / ".ci" / "run"))


def test_help_names_every_flag():
    answer = subprocess.run([AUTO_TRAIN, "--help"], capture_output=True, text=True)
    assert answer.returncode == 0
    assert all(flag in answer.stdout for flag in ("--test", "--full", "--help"))


def test_no_flag_and_wrong_flags_show_the_usage():
    for flags in ([], ["--tset"]):
        answer = bash(AUTO_TRAIN, *flags)
        assert answer.returncode == 2
        assert "usage:" in answer.stderr


@pytest.fixture
def fake_project(tmp_path) -> Path:
    """A copy of the set-up in a folder with a space, and a python3 that records its calls and fakes what they do."""
    project = tmp_path / "a project"
    (project / "roi_align_integration").mkdir(parents=True)
    shutil.copytree(TOOLS, project / "roi_align_integration" / "tools")
    for name in ("requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, project)
    fake = tmp_path / "bin" / "python3.11"
    fake.parent.mkdir()
    fake.write_text(
        "#!/bin/bash\n"
        'echo "$*" >>"$CALLS"\n'
        'case "$*" in\n'
        '  *check_env.py*) [[ "$0" == *.venv* ]] || { echo "$ACTIVE_SAYS" >&2; exit "$ACTIVE_STATUS"; } ;;\n'
        '  *"-m venv"*) mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" ;;\n'
        '  *"-m pip"*) exit "${PIP_STATUS:-0}" ;;\n'
        "esac\n"
    )
    fake.chmod(0o755)
    (fake.parent / "python3").symlink_to(fake)
    return project


def set_up(project: Path, active_status: int, **environ) -> subprocess.CompletedProcess:
    variables = os.environ | {
        "PATH": f"{project.parent / 'bin'}:/usr/bin:/bin",
        "CALLS": str(project.parent / "calls"),
        "ACTIVE_STATUS": str(active_status),
        "ACTIVE_SAYS": "what the probe says",
    }
    script = 'set -euo pipefail; source "$1/roi_align_integration/tools/setup_env.sh"; sprc_setup; echo "$PYTHON"'
    return bash("-c", script, "bash", project, env=variables | environ)


def calls(project: Path, part: str) -> int:
    return sum(part in line for line in (project.parent / "calls").read_text().splitlines())


def test_a_complete_active_environment_is_used(fake_project):
    answer = set_up(fake_project, 0)
    assert answer.stdout == f"{fake_project.parent / 'bin' / 'python3'}\n"
    assert not (fake_project / ".venv").exists()


def test_an_incomplete_one_leads_to_one_venv(fake_project):
    for _ in range(2):
        answer = set_up(fake_project, 1)
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.splitlines()[-1] == f"{fake_project}/.venv/bin/python"
    assert calls(fake_project, "-m venv") == 1
    assert calls(fake_project, "-m pip") == 1
    (fake_project / "requirements.txt").write_text("numpy>=2\n")
    set_up(fake_project, 1)
    assert calls(fake_project, "-m venv") == 1
    assert calls(fake_project, "-m pip") == 2


def test_a_fault_stops_with_what_the_probe_says(fake_project):
    answer = set_up(fake_project, 2)
    assert answer.returncode == 2
    assert "error: what the probe says" in answer.stderr
    assert not (fake_project / ".venv").exists()


def test_a_failed_install_is_done_again(fake_project):
    answer = set_up(fake_project, 1, PIP_STATUS="1")
    assert answer.returncode == 2
    assert "PIP_INDEX_URL" in answer.stderr
    assert set_up(fake_project, 1).returncode == 0
    assert calls(fake_project, "-m pip") == 2
