"""The shell scripts: clean, executable, helpful, and sparing with environments. Nothing here asks a package index."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from paths import REPOSITORY as ROOT
from paths import TOOLS
from patience import PATIENCE, wait_until
from training_flags import hear_interrupts

AUTO_TRAIN = TOOLS / "auto_train_with_boxes.sh"
SCRIPTS = [*TOOLS.glob("*.sh"), ROOT / "tests" / "run.sh", ROOT / ".ci" / "run"]
SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
# All that the scripts call, but Python: a test's PATH holds nothing else.
COMMANDS = "bash cat cp date dirname flock getconf mkdir rm rmdir sed sleep tee"

# Stands in for every Python: notes its calls, and does what the environment variables say.
FAKE_PYTHON = """#!/bin/bash
echo "${0##*/} $*" >>"$CALLS"
says() { echo "$2" >&2; exit "$1"; }
case "$*" in
  *--torch-index*) echo "${TORCH_INDEX:-}" ;;
  *check_env.py*)
    installed="$(cat "$CALLS.installed" 2>/dev/null)"
    if [[ "$0" != *.venv* ]]; then
      if [[ "$installed" == *"--no-deps"* ]]; then ACTIVE_STATUS="${LINKED_STATUS:-$ACTIVE_STATUS}"; fi
      says "$ACTIVE_STATUS" "the active one's answer"
    fi
    if [[ "$installed" != *"-e .${3:+[dev]}"* ]]; then says 1 "the venv lacks something"; fi
    says "${VENV_STATUS:-0}" "the venv's answer" ;;
  *json.load*) echo ref.png; echo "${CAPTION:-make it red}" ;;
  *"import ensurepip"*) exit "${ENSUREPIP_STATUS:-0}" ;;
  *"print("*) echo python3.11 ;;
  *version_info*) [[ "$0" == *.venv* ]] || exit "${VERSION_STATUS:-0}" ;;
  *"-m venv"*) mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" ;;
  *"-m pip install"*) eval "${PIP_DOES:-:}"; echo "$*" >>"$CALLS.installed" ;;
  *check_yolo.py*) says "${YOLO_STATUS:-2}" "error: no ultralytics" ;;
  *"find_spec('ultralytics')"*) exit "${ULTRALYTICS_STATUS:-1}" ;;
  *cuda.is_available*) exit "${GPU_STATUS:-0}" ;;
  *get_weights.py*) says "${WEIGHTS_STATUS:-0}" "error: the weights' answer" ;;
  *blip_fine_tune_2.py*)
    echo "${RUN_LINE:-metrics     /a run/validation_metrics.csv}"
    says "${TRAIN_STATUS:-0}" "progress" ;;
esac
"""


def bash(*command, **options) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", *map(str, command)], capture_output=True, text=True, timeout=PATIENCE, **options)


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed")
def test_shellcheck_is_clean():
    answer = subprocess.run([SHELLCHECK, "-x", *map(str, SCRIPTS)], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout


def test_scripts_that_are_run_directly_are_executable():
    assert all(os.access(path, os.X_OK) for path in (AUTO_TRAIN, ROOT / "tests" / "run.sh", ROOT / ".ci" / "run"))


def test_help_names_every_flag():
    answer = subprocess.run([AUTO_TRAIN, "--help"], capture_output=True, text=True)
    assert answer.returncode == 0
    assert all(flag in answer.stdout for flag in ("--test", "--full", "--compare", "--method", "--help"))


@pytest.mark.parametrize(
    "flags", [[], ["--tset"], ["--test", "--full"], ["--test", "10"], ["--method", "yolo"], ["--test", "--method"],
              ["--test", "--method", "magic"], ["--test", "--compare"]]
)  # fmt: skip
def test_no_flag_and_wrong_flags_show_the_usage(flags):
    answer = bash(AUTO_TRAIN, *flags)
    assert answer.returncode == 2
    assert "usage:" in answer.stderr
    known = {"--method", "--compare"} & set(flags)
    assert known or not flags or f"unknown: {' '.join(flags)};" in answer.stderr


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of the set-up in a folder with a space, beside a `bin` whose Pythons are fakes and nothing else is."""
    project = tmp_path / "a project"
    (project / "roi_align_integration").mkdir(parents=True)
    shutil.copytree(TOOLS, project / "roi_align_integration" / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", project)
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for command in COMMANDS.split():
        if found := shutil.which(command):
            (binaries / command).symlink_to(found)
    for name in ("python3", "python3.11"):
        (binaries / name).write_text(FAKE_PYTHON)
        (binaries / name).chmod(0o755)
    (tmp_path / "calls").touch()
    return project


def variables(project: Path, active_status: int, **environ) -> dict:
    return {
        "PATH": str(project.parent / "bin"),
        "CALLS": str(project.parent / "calls"),
        "ACTIVE_STATUS": str(active_status),
    } | environ


def set_up_command(project: Path, flag: str = "") -> list[str]:
    script = (
        f'set -euo pipefail; source "$1/roi_align_integration/tools/setup_env.sh"; sprc_setup {flag}; echo "$PYTHON"'
    )
    return ["-c", script, "bash", str(project)]


def set_up(project: Path, active_status: int, flag: str = "", **environ) -> subprocess.CompletedProcess:
    return bash(*set_up_command(project, flag), env=variables(project, active_status, **environ), cwd="/")


def calls(project: Path, part: str) -> int:
    return sum(part in line for line in (project.parent / "calls").read_text().splitlines())


def venvs_and_installs(project: Path) -> tuple[int, int]:
    return calls(project, "-m venv"), calls(project, "-m pip install")


def test_a_complete_active_environment_is_used(project):
    answer = set_up(project, 0)
    assert answer.stdout == f"{project.parent / 'bin' / 'python3'}\n"
    assert answer.stderr == ""
    assert not (project / ".venv").exists()


def test_an_incomplete_one_leads_to_one_venv(project):
    answer = set_up(project, 1)
    assert answer.returncode == 0, answer.stderr
    assert "set-up: the active one's answer" in answer.stdout  # why
    assert answer.stdout.splitlines()[-1] == f"{project}/.venv/bin/python"
    assert set_up(project, 1).stdout == f"{project}/.venv/bin/python\n"
    assert venvs_and_installs(project) == (1, 1)


@pytest.mark.parametrize(("pip_does", "pips"), [(":", 1), ('[[ "$*" != *no-build-isolation* ]] || exit 1', 2)])
def test_an_active_environment_that_lacks_the_project_alone_is_linked_to_it(project, pip_does, pips):
    answer = set_up(project, 3, LINKED_STATUS="0", PIP_DOES=pip_does)
    assert answer.returncode == 0, answer.stderr
    python = project.parent / "bin" / "python3"
    assert answer.stdout == f"set-up: the active one's answer: pip install --no-deps -e .\n{python}\n"
    assert venvs_and_installs(project) == (0, pips)


def test_an_active_environment_that_cannot_be_linked_leads_to_a_venv(project):
    answer = set_up(project, 3, PIP_DOES='[[ "$*" != *no-deps* ]] || exit 1')
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1] == f"{project}/.venv/bin/python"
    assert venvs_and_installs(project) == (1, 3)


def test_a_fault_that_linking_shows_stops(project):
    answer = set_up(project, 3, LINKED_STATUS="2")
    assert answer.returncode == 2
    assert answer.stderr == "error: the active one's answer\n"
    assert not (project / ".venv").exists()


def test_the_tests_need_more_of_the_same_venv(project):
    for flag in ("", "--dev", "", "--dev"):
        assert set_up(project, 1, flag).returncode == 0
    assert venvs_and_installs(project) == (1, 2)
    assert calls(project, "-e .[dev]") == 1
    assert (
        calls(project, "check_env.py --dev") == 5
    )  # twice that of the active one; that of the venv before and after, and again


def test_a_fault_stops_with_what_the_probe_says(project):
    answer = set_up(project, 2)
    assert answer.returncode == 2
    assert answer.stderr == "error: the active one's answer\n"
    assert not (project / ".venv").exists()


def test_a_fault_of_the_venv_stops_every_time_and_installs_once(project):
    for _ in range(2):
        answer = set_up(project, 1, VENV_STATUS="2")
        assert answer.returncode == 2
        assert "error: the venv's answer" in answer.stderr
    assert venvs_and_installs(project) == (1, 1)


def test_a_venv_that_lacks_something_is_installed_into_again(project):
    set_up(project, 1)
    answer = set_up(project, 1, VENV_STATUS="1")
    assert answer.returncode == 2
    assert f"remove {project}/.venv and run this again" in answer.stderr
    assert venvs_and_installs(project) == (1, 2)


def test_a_failed_install_is_done_again_in_the_same_venv(project):
    answer = set_up(project, 1, PIP_DOES="exit 1")
    assert answer.returncode == 2
    assert "PIP_INDEX_URL" in answer.stderr
    assert set_up(project, 1).returncode == 0
    assert venvs_and_installs(project) == (1, 2)


def test_an_old_driver_or_gpu_gets_its_own_build_of_torch_and_the_rest_after_it(project):
    index = "https://download.pytorch.org/whl/cu126"
    answer = set_up(project, 1, TORCH_INDEX=index, PIP_DOES="exit 1")
    assert answer.returncode == 2
    assert f"torch from {index} (see above)" in answer.stderr and "SPRC_TORCH_INDEX=" in answer.stderr
    assert set_up(project, 1, TORCH_INDEX=index).returncode == 0
    pip = [line for line in (project.parent / "calls").read_text().splitlines() if "-m pip install" in line]
    assert len(pip) == 3
    assert pip[0] == pip[1] and pip[1].endswith(f"torch torchvision --index-url {index}")
    assert pip[2].endswith(" -e .")


def test_an_interrupted_install_starts_again_from_nothing(project):
    answer = set_up(project, 1, PIP_DOES="kill -9 $PPID")
    assert answer.returncode != 0
    (project / ".venv" / "half").touch()
    assert set_up(project, 1).returncode == 0
    assert venvs_and_installs(project) == (2, 2)
    assert not (project / ".venv" / "half").exists()


def test_an_active_venv_does_not_make_itself_again(project):
    set_up(project, 1, PIP_DOES="kill -9 $PPID")
    inside = project / ".venv" / "bin"
    shutil.copy(inside / "python", inside / "python3.11")
    path = f"{inside}:{project.parent / 'bin'}"
    answer = set_up(project, 1, PATH=path)
    assert answer.returncode == 0, answer.stderr
    assert f"making {project}/.venv with {project.parent / 'bin' / 'python3.11'}" in answer.stdout


def test_a_python_that_is_too_old_or_none_is_said(project):
    answers = [set_up(project, 1, VERSION_STATUS="1")]
    for name in ("python3", "python3.11"):
        (project.parent / "bin" / name).unlink()
    answers.append(set_up(project, 1))
    for answer in answers:
        assert answer.returncode == 2
        assert "no Python 3.11 or newer on PATH" in answer.stderr
        assert "python3.11-venv" in answer.stderr


def test_a_python_without_ensurepip_is_said(project):
    answer = set_up(project, 1, ENSUREPIP_STATUS="1")
    assert answer.returncode == 2
    assert "python3.11 lacks venv and ensurepip" in answer.stderr
    assert "no Python 3.11" not in answer.stderr
    assert not (project / ".venv").exists()


@pytest.mark.integration
@pytest.mark.parametrize("lock", ["flock", "folder"])
def test_two_at_once_install_once(project, lock):
    if lock == "folder":
        (project.parent / "bin" / "flock").unlink(missing_ok=True)
    elif shutil.which("flock") is None:
        pytest.skip("this machine has no flock")
    environ = variables(project, 1, PIP_DOES="sleep 1")
    command = ["bash", *set_up_command(project)]
    both = [subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=PATIENCE)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert [output.splitlines()[-1] for output in outputs] == [f"{project}/.venv/bin/python"] * 2
    assert venvs_and_installs(project) == (1, 1)
    assert sum("waiting for another set-up" in output for output in outputs) == 1
    assert not (project / ".venv.lock.d").exists()


@pytest.mark.integration
def test_an_interrupt_gives_the_folder_lock_back(project):
    (project.parent / "bin" / "flock").unlink(missing_ok=True)
    environ = variables(project, 1, PIP_DOES="kill -TERM $PPID")
    assert bash(*set_up_command(project), env=environ).returncode != 0
    assert not (project / ".venv.lock.d").exists()


def auto_train(project: Path, *flags: str, active_status: int = 0, **environ) -> subprocess.CompletedProcess:
    script = project / "roi_align_integration" / "tools" / AUTO_TRAIN.name
    return bash(script, *flags, env=variables(project, active_status, **environ), cwd="/")


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def put_cirr(project: Path) -> None:
    put(project / "cirr_dataset" / "cirr" / "captions" / "cap.rc2.train.json")


def training_calls(project: Path) -> list[str]:
    lines = (project.parent / "calls").read_text().splitlines()
    return [line for line in lines if "blip_fine_tune_2.py" in line]


def test_a_test_run_without_data_says_so_and_takes_the_demo_dataset(project):
    answer = auto_train(project, "--test", SPRC_WEIGHTS=str(put(project / "w.pt")))
    assert answer.returncode == 0, answer.stderr
    assert "cap.rc2.train.json is not there" in answer.stdout
    assert "weights:" not in answer.stdout
    (call,) = training_calls(project)
    data = f"{project}/roi_align_integration/data"
    assert calls(project, f"make_demo_dataset.py --output {data}/demo_clear --difficulty clear") == 1
    model = f"{project}/roi_align_integration/tools/benchmarks/benchmark_model.yaml"
    assert f"--dataset CIRR --data-path {data}/demo_clear --output-folder" in call
    boxes = f"{data}/demo_clear_boxes_train_saliency.json"
    assert f"--save-best --use-region-loss --box-file {boxes} --backbone {model} --weights random" in call
    made = f"--cirr-root {data}/demo_clear --method saliency --output {data}/demo_clear_boxes_train_saliency.json"
    assert calls(project, f"generate_cirr_boxes.py {made}") == 1
    assert calls(project, "test_roi_align.py") == 1
    assert f"picture of boxes: {data}/demo_clear_boxes_train_saliency.png" in answer.stdout


def test_a_run_ends_with_pictures_and_the_command_to_search(project):
    """The folder of the run is the one that the training names, here with a space in it."""
    demo = project / "roi_align_integration" / "data" / "demo_clear"
    answer = auto_train(project, "--test", CAPTION="\"it\" is 'red'")
    assert answer.returncode == 0, answer.stderr
    model = "/a run/saved_models/tuned_clip_arithmetic.pt"
    shown = f"visualize_retrieval.py --dataset CIRR --data-path {demo} --model-path {model} --kind mixed --heat-maps"
    assert calls(project, f"{shown} --output /a run/retrieval.png") == 1
    assert calls(project, "plot_metrics.py /a run --output /a run/curves.png") == 1
    assert "what it finds: /a run/retrieval.png\ncurves: /a run/curves.png\n" in answer.stdout
    *_, index, search = answer.stdout.splitlines()
    place = "/a run/search_index"
    expected = ["index", str(demo / "dev"), "--model-path", model, "--output", place]
    assert shlex.split(index)[2:] == expected
    expected = ["search", place, "--image", "ref.png", "--text", "\"it\" is 'red'", "--html"]
    assert shlex.split(search)[2:] == [*expected, "/a run/found.html"]


def test_a_training_that_names_no_run_is_an_error(project):
    answer = auto_train(project, "--test", RUN_LINE="nothing")
    assert answer.returncode == 2
    assert "error: the training did not name the folder of its run" in answer.stderr


def test_yolo_is_taken_where_it_can_be_had(project):
    answer = auto_train(project, "--test", YOLO_STATUS="0")
    assert "boxes by hybrid\n\n" in answer.stdout
    assert calls(project, "--method hybrid") == 1
    answer = auto_train(project, "--test")
    assert "boxes by saliency\n(a detector's boxes hold objects more often, but no ultralytics)" in answer.stdout


@pytest.mark.parametrize("method", ["yolo", "hybrid"])
def test_ultralytics_is_installed_only_where_it_is_asked_for(project, method):
    answer = auto_train(project, "--test", "--method", method)
    assert answer.returncode == 2
    assert f"--method {method} needs ultralytics in the active environment: pip install ultralytics" in answer.stderr
    assert calls(project, "pip install") == 0
    answer = auto_train(project, "--test", "--method", method, active_status=1)
    assert answer.returncode == 0, answer.stderr
    assert calls(project, "--disable-pip-version-check ultralytics") == 1
    assert calls(project, f"generate_cirr_boxes.py --cirr-root {project}/roi") == 1
    answer = auto_train(project, "--test", "--method", "saliency", ULTRALYTICS_STATUS="0")
    assert answer.returncode == 0
    assert calls(project, "--disable-pip-version-check ultralytics") == 1


def test_a_test_run_on_cirr_is_bounded_and_downloads_nothing(project):
    put_cirr(project)
    answer = auto_train(project, "--test")
    assert answer.returncode == 0, answer.stderr
    (call,) = training_calls(project)
    boxes = f"{project}/roi_align_integration/data/cirr_trial_boxes_train_saliency.json"
    assert call.endswith(f"--box-file {boxes} --backbone pretrain --max-triplets 100 --num-epochs 2 --batch-size 20")
    assert f"--data-path {project}/cirr_dataset " in call
    assert calls(project, f"--method saliency --output {boxes} --max-triplets 100") == 1
    assert calls(project, "make_demo_dataset.py") == 0
    assert calls(project, "get_weights.py --no-download") == 1


@pytest.mark.parametrize(
    ("status", "missing"),
    [
        ({"WEIGHTS_STATUS": "2"}, "weights: the weights' answer"),
        ({"GPU_STATUS": "1"}, "a GPU: without one the full-size model takes hours"),
    ],
)
def test_a_test_run_without_weights_or_a_gpu_takes_the_demo_dataset(project, status, missing):
    put_cirr(project)
    answer = auto_train(project, "--test", **status)
    assert answer.returncode == 0, answer.stderr
    assert f"not here:\n  {missing}\nso this run" in answer.stdout
    assert calls(project, "make_demo_dataset.py") == 1


def test_a_full_run_needs_no_gpu(project):
    put_cirr(project)
    answer = auto_train(project, "--full", GPU_STATUS="1")
    assert answer.returncode == 0 and "--data-path" in training_calls(project)[-1]


def test_a_fault_of_the_search_is_no_missing_file(project):
    put_cirr(project)
    answer = auto_train(project, "--test", WEIGHTS_STATUS="1")
    assert answer.returncode == 2
    assert "get_weights.py failed: error: the weights' answer" in answer.stderr
    assert training_calls(project) == []


def test_a_full_run_takes_the_defaults(project):
    put_cirr(project)
    answer = auto_train(project, "--full", SPRC_WEIGHTS=str(put(project / "w.pt")))
    assert answer.returncode == 0, answer.stderr
    (call,) = training_calls(project)
    boxes = f"{project}/roi_align_integration/data/cirr_boxes_train_saliency.json"
    assert f"--data-path {project}/cirr_dataset " in call
    # What was interrupted continues.
    assert call.endswith(f"--use-region-loss --box-file {boxes} --save-training --resume auto")
    assert calls(project, "get_weights.py") == 1  # what is here is not fetched


def test_a_comparison_takes_the_place_of_the_training(project):
    put_cirr(project)
    answer = auto_train(project, "--full", "--compare")
    assert answer.returncode == 0, answer.stderr
    boxes = f"{project}/roi_align_integration/data/cirr_boxes_train_saliency.json"
    assert calls(project, f"benchmark_regions.py --data-path {project}/cirr_dataset --box-file {boxes}") == 1
    assert calls(project, "--arms none compose permuted --seeds 200 201 202") == 1
    assert training_calls(project) == []


def test_a_full_run_says_what_is_missing(project):
    answer = auto_train(project, "--full")
    assert answer.returncode == 2
    assert "cap.rc2.train.json is not there" in answer.stderr
    assert "step 2 (check data and weights) failed" in answer.stderr
    put_cirr(project)
    answer = auto_train(project, "--full", WEIGHTS_STATUS="2")
    assert answer.returncode == 2
    assert "step 3: download weights" in answer.stdout
    assert "error: the weights' answer" in answer.stderr  # of the download, as it comes
    assert "step 3 (download weights) failed" in answer.stderr
    assert training_calls(project) == []


def test_flags_after_two_dashes_are_passed_on(project):
    put_cirr(project)
    answer = auto_train(project, "--full", "--", "--micro-batch", "32", "--seed", "1")
    assert answer.returncode == 0, answer.stderr
    (call,) = training_calls(project)
    assert call.endswith("--save-training --resume auto --micro-batch 32 --seed 1")
    answer = auto_train(project, "--full", "--compare", "--", "--micro-batch", "32")
    assert answer.returncode == 0, answer.stderr
    assert calls(project, "--arms none compose permuted --seeds 200 201 202 --micro-batch 32") == 1


def test_weights_that_are_not_there_are_an_error(project):
    answer = auto_train(project, "--test", SPRC_WEIGHTS="/no/such.pt")
    assert answer.returncode == 2
    assert "SPRC_WEIGHTS: there is no file /no/such.pt" in answer.stderr


def test_a_failing_step_is_named_and_its_status_kept(project):
    answer = auto_train(project, "--test", TRAIN_STATUS="7")
    assert answer.returncode == 7
    assert "step 7 (train and validate on the demo dataset) failed, status 7" in answer.stderr
    assert "step 8" not in answer.stdout


def test_a_failing_set_up_stops_before_anything_else(project):
    answer = auto_train(project, "--test", active_status=2)
    assert answer.returncode == 2
    assert "error: the active one's answer" in answer.stderr
    assert "step 1 (set-up) failed, status 2" in answer.stderr
    assert "step 2" not in answer.stdout


def test_the_log_holds_both_streams_and_each_stays_where_it_was(project):
    answer = auto_train(project, "--test")
    assert "metrics" in answer.stdout
    assert "progress" not in answer.stdout
    assert "progress" in answer.stderr
    (log,) = (project / "roi_align_integration" / "data").glob("training_*.log")
    lines = set(log.read_text().splitlines())
    assert {"metrics     /a run/validation_metrics.csv", "progress", f"log: {log}"} <= lines


def test_the_test_command_sets_up_for_tests_and_passes_flags_on(project):
    (project / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "run.sh", project / "tests")
    answer = bash(project / "tests" / "run.sh", "-k", "two words", env=variables(project, 1), cwd="/")
    assert answer.returncode == 0, answer.stderr
    assert calls(project, "-e .[dev]") == 1
    last = (project.parent / "calls").read_text().splitlines()[-1]
    assert last.startswith("python -m pytest -q -n ")
    assert last.endswith(" -k two words")


def test_help_is_instant():
    start = time.perf_counter()
    bash(AUTO_TRAIN, "--help")
    assert time.perf_counter() - start < 5


def wait_for_library(name: str, job: subprocess.Popen) -> None:
    """Until a process of the job's group has loaded a library of this name, or the job has ended."""

    def has_loaded(process: Path) -> bool:
        with suppress(OSError):  # a process that has ended since
            return os.getpgid(int(process.name)) == job.pid and name in (process / "maps").read_text()
        return False

    wait_until(lambda: job.poll() is not None or any(map(has_loaded, Path("/proc").glob("[0-9]*"))), f"no {name}")


@pytest.mark.integration
@pytest.mark.parametrize("seconds", [0, 0.5, 1.5])
@pytest.mark.parametrize("script", ["tests/test_roi_align.py", "tools/benchmarks/benchmark_regions.py --table"])
def test_ctrl_c_while_packages_load_is_one_line(script, seconds):
    """As a terminal sends it: to every process of the group, so long after numpy is there. A shell's status is 130."""
    name, *flags = script.split()
    words = [sys.executable, str(ROOT / "roi_align_integration" / name), *flags]
    with subprocess.Popen(
        words, process_group=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts
    ) as process:
        wait_for_library("numpy", process)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in errors
    assert process.returncode in (0, 130, -signal.SIGINT), errors  # 0 on a machine that was through by then


@pytest.mark.integration
@pytest.mark.parametrize(
    ("step", "library", "seconds"),
    [("set-up", None, 0.05), ("set-up", None, 1), ("make the demo", "PIL", 0), ("make the demo", "PIL", 1)],
)
def test_ctrl_c_in_a_step_is_one_line(project, step, library, seconds):
    """With the Python of the tests, whose modules load as a user's do. Python's own start, until it reads its first
    line, is not ours: a step that starts it at once is interrupted after Python has loaded a library of the script's.
    """
    shutil.copytree(ROOT / "src", project / "src", ignore=shutil.ignore_patterns("__pycache__"))
    environ = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "SPRC_ALLOW_CPU": "1"}
    environ["PYTHONPATH"] = str(project / "src")  # set-up finds the project, and need not install it
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    words = ["bash", str(project / "roi_align_integration" / "tools" / AUTO_TRAIN.name), "--test"]
    with subprocess.Popen(words, process_group=0, env=environ, preexec_fn=hear_interrupts, **pipes) as process:
        for line in process.stdout:
            if step in line:
                break
        if library:
            wait_for_library(library, process)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert errors.count("interrupted") == 1
