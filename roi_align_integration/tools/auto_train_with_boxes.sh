#!/usr/bin/env bash
# Set-up, data, boxes, checks, training with regions, validation and report in one command.
set -euo pipefail

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
ROOT="$(cd "$HERE/../.." && pwd)"
CIRR="$ROOT/cirr_dataset"
DATA="$ROOT/roi_align_integration/data"
# The demo run learns its dataset on two CPU cores within minutes. Another difficulty or size needs another folder.
DIFFICULTY=clear
DEMO="$DATA/demo_$DIFFICULTY"
DEMO_FEATURES="$DATA/demo_features"
BEST=saved_models/tuned_clip_arithmetic.pt
DEMO_FLAGS=(--backbone "$HERE/benchmarks/benchmark_model.yaml" --weights random --num-epochs 15 --schedule-epochs 15
  --warmup 0.1 --batch-size 64 --learning-rate 3e-3 --validation-frequency 7
  --feature-cache "$DEMO_FEATURES" --num-workers 0)
# A bounded run on the real data: does everything work here?
TRIAL_TRIPLETS=100
TRIAL_FLAGS=(--backbone pretrain --max-triplets "$TRIAL_TRIPLETS" --num-epochs 2 --batch-size 20)

usage() {
  cat <<'TEXT'
usage: auto_train_with_boxes.sh --test | --full [--compare] [--method yolo | saliency | hybrid] [-- FLAGS]

  --test     a short run. With a GPU, CIRR in cirr_dataset/ and weights on this machine (models/README.md): 100
             triplets, 2 epochs. Without one of them: a generated demo dataset and a small model.
  --full     the whole training on CIRR with upstream's settings: 50 epochs, batch 128, learning rate 1e-5. Weights
             that are not on this machine are downloaded. After an interruption run it again: it continues.
  --compare  with --full: instead of one training, several without regions, with them, and with boxes that belong to
             other images, over three seeds; and a table of what the regions gain. After an interruption run
             it again: it continues. The frozen features are kept in roi_align_integration/data/compare_cirr (14 GB).
  --method   what makes the boxes. yolo: objects, by ultralytics, which is installed into .venv for it; saliency: what
             stands out, without any weights; hybrid: saliency if YOLO finds nothing. Without this flag: hybrid
             if ultralytics and models/yolo/yolov8n.pt are there, else saliency.
  -- FLAGS   flags of src/blip_fine_tune_2.py, or with --compare of tools/benchmarks/benchmark_regions.py, that
             win over the script's own: `--full -- --micro-batch 32` fits a smaller GPU.
  --help     this page.

The first run makes .venv, unless the active environment has what is needed. What an earlier run has made is used again.
The log is roi_align_integration/data/training_<time>.log. The run's folder in models/ holds the model, its metrics,
retrieval.png (what it finds) and curves.png (how it learned). The last lines are commands that search with the model.
TEXT
}

fail() {
  echo "error: $1" >&2
  exit 2
}

STEP=0
step() {
  STEP=$((STEP + 1))
  STEP_NAME="$1"
  printf '\n== step %d: %s\n' "$STEP" "$STEP_NAME"
}

report_failure() {
  case $1 in
    0) ;;
    130) echo "interrupted in step $STEP ($STEP_NAME); log: $LOG" >&2 ;;
    *) echo "step $STEP ($STEP_NAME) failed, status $1; log: $LOG" >&2 ;;
  esac
}

# Sets MISSING to what a run on CIRR with `pretrain` still needs of what is on this machine.
check_data() {
  local answer status=0
  MISSING=""
  [[ -z "${SPRC_WEIGHTS:-}" || -e "$SPRC_WEIGHTS" ]] || fail "SPRC_WEIGHTS: there is no file $SPRC_WEIGHTS"
  if [[ ! -f "$CIRR/cirr/captions/cap.rc2.train.json" ]]; then
    MISSING="CIRR: $CIRR/cirr/captions/cap.rc2.train.json is not there (see cirr_dataset/README.md)"
    return
  fi
  answer="$(sprc_python "$HERE/weights/get_weights.py" --no-download 2>&1)" || status=$?
  case $status in
    0) echo "$answer" ;;
    2) MISSING="weights: ${answer#error: }" ;;
    *) fail "get_weights.py failed: $answer" ;;
  esac
}

# Sets METHOD to the best that this machine can do, unless a flag has set it; installs ultralytics if a flag asks for it.
choose_method() {
  local answer
  if [[ -z "$METHOD" ]]; then
    METHOD=saliency
    if answer="$(sprc_python "$HERE/boxes/check_yolo.py" 2>&1)"; then METHOD=hybrid; fi
    echo "boxes by $METHOD"
    [[ "$METHOD" == hybrid ]] || echo "(a detector's boxes hold objects more often, but ${answer#error: })"
  elif [[ "$METHOD" != saliency ]]; then
    need_package ultralytics "--method $METHOD" " (AGPL-3.0)"
  fi
}

# need_package NAME WHAT [LICENCE]: installs a package that WHAT needs into our own .venv; elsewhere that is the user's.
need_package() {
  # What is there but does not load is no matter of installing: who uses it says what is wrong.
  if "$PYTHON" -c "import importlib.util; exit(importlib.util.find_spec('$1') is None)"; then return; fi
  [[ "$PYTHON" == "$ROOT/.venv/"* ]] || fail "$2 needs $1 in the active environment: pip install $1${3:-}"
  echo "installing $1${3:-} into $ROOT/.venv"
  "$PYTHON" -m pip install --quiet --disable-pip-version-check "$1" || fail "pip could not install $1"
}

# make_boxes DATASET FILE [FLAGS]: makes the box file, and a picture of its first images.
make_boxes() {
  local dataset="$1" file="$2"
  shift 2
  step "make boxes"
  choose_method
  BOXES="${file}_$METHOD.json"
  sprc_python "$HERE/generate_cirr_boxes.py" --cirr-root "$dataset" --method "$METHOD" --output "$BOXES" "$@"
  step "check boxes"
  sprc_python "$HERE/visualize_boxes.py" --cirr-root "$dataset" --box-file "$BOXES" --output "${BOXES%.json}.png"
  step "check RoIAlign"
  sprc_python "$ROOT/roi_align_integration/tests/test_roi_align.py"
}

# train DATASET FLAGS: sets RUN to the folder of the run, which the last lines of the training name.
train() {
  local dataset="$1" said="$DATA/last_training.txt"
  shift
  sprc_python "$ROOT/src/blip_fine_tune_2.py" --dataset CIRR --data-path "$dataset" --output-folder "$ROOT/models" \
    --save-best --use-region-loss --box-file "$BOXES" "$@" | tee "$said"
  RUN="$(sed -n 's|^metrics  *\(.*\)/validation_metrics.csv$|\1|p' "$said")"
  [[ -n "$RUN" ]] || fail "the training did not name the folder of its run"
}

# show_results DATASET [FLAGS]: pictures of what the best model of the run finds, and of how it learned.
show_results() {
  local dataset="$1"
  shift
  step "draw what was found"
  sprc_python "$HERE/visualize_retrieval.py" --dataset CIRR --data-path "$dataset" --model-path "$RUN/$BEST" \
    --kind mixed --heat-maps --output "$RUN/retrieval.png" "$@"
  sprc_python "$HERE/plot_metrics.py" "$RUN" --output "$RUN/curves.png"
  SEARCHED="$dataset"
}

# Prints the commands that search the validation images with the run's best model, for the first query of the split.
say_search() {
  local index="$RUN/search_index" query # of this model: an index is of one alone
  query="$("$PYTHON" -c 'import json, sys
first = json.load(open(sys.argv[1], encoding="utf-8"))[0]
print(first["reference"] + ".png", first["caption"], sep="\n")' "$SEARCHED/cirr/captions/cap.rc2.val.json")"
  printf 'search with this model:\n '
  printf ' %q' "$PYTHON" "$ROOT/src/retrieve.py" index "$SEARCHED/dev" --model-path "$RUN/$BEST" --output "$index"
  printf '\n '
  printf ' %q' "$PYTHON" "$ROOT/src/retrieve.py" search "$index" --image "${query%%$'\n'*}" --text "${query#*$'\n'}" \
    --html "$RUN/found.html"
  printf '\n'
}

has_gpu() {
  "$PYTHON" -c "from sprc.core import interrupts; interrupts.end_at_once()
import torch; exit(not torch.cuda.is_available())"
}

run_test() {
  check_data
  [[ -n "$MISSING" ]] || has_gpu || MISSING="a GPU: without one the full-size model takes hours"
  if [[ -z "$MISSING" ]]; then
    make_boxes "$CIRR" "$DATA/cirr_trial_boxes_train" --max-triplets "$TRIAL_TRIPLETS"
    step "train and validate on CIRR, bounded"
    train "$CIRR" "${TRIAL_FLAGS[@]}" "${PASSED_ON[@]}"
    show_results "$CIRR"
    return
  fi
  printf 'not here:\n  %s\nso this run uses the demo dataset and a small model\n' "$MISSING"
  step "make the demo dataset"
  sprc_python "$HERE/make_demo_dataset.py" --output "$DEMO" --difficulty "$DIFFICULTY"
  make_boxes "$DEMO" "${DEMO}_boxes_train"
  step "train and validate on the demo dataset"
  train "$DEMO" "${DEMO_FLAGS[@]}" "${PASSED_ON[@]}"
  show_results "$DEMO" --num-workers 0 --feature-cache "$DEMO_FEATURES"
}

run_full() {
  check_data
  [[ "$MISSING" != CIRR* ]] || fail $'--full needs what is not here:\n  '"$MISSING"
  if [[ -n "$MISSING" ]]; then
    step "download weights"
    sprc_python "$HERE/weights/get_weights.py"
  fi
  make_boxes "$CIRR" "$DATA/cirr_boxes_train"
  if [[ -n "$COMPARE" ]]; then
    step "train without and with regions on CIRR"
    sprc_python "$HERE/benchmarks/benchmark_regions.py" --data-path "$CIRR" --box-file "$BOXES" --folder "$DATA/compare_cirr" \
      --arms none compose permuted --seeds 200 201 202 "${PASSED_ON[@]}"
    return
  fi
  step "train and validate on CIRR"
  train "$CIRR" --save-training --resume auto "${PASSED_ON[@]}"
  show_results "$CIRR"
}

main() {
  trap 'report_failure $?' EXIT
  trap 'exit 130' INT
  export SPRC_SHELL_SPEAKS=1 # Python need not say that it was interrupted
  step "set-up"
  # shellcheck source=roi_align_integration/tools/setup_env.sh
  source "$HERE/setup_env.sh"
  # shellcheck disable=SC2119 # no flag: the packages of a run, not those of the tests
  sprc_setup
  echo "python: $PYTHON"
  step "check data and weights"
  "run_$MODE"
  step "report"
  printf 'done in %d s\nlog: %s\nboxes: %s\npicture of boxes: %s\nmodels and metrics: %s\n' \
    "$SECONDS" "$LOG" "$BOXES" "${BOXES%.json}.png" "${RUN:-$ROOT/models}"
  [[ -n "$RUN" ]] || return 0 # --compare has no run of its own
  printf 'what it finds: %s\ncurves: %s\n' "$RUN/retrieval.png" "$RUN/curves.png"
  say_search
}

wrong_flags() {
  echo "error: $1" >&2
  usage >&2
  exit 2
}

MODE=""
RUN=""
METHOD=""
COMPARE=""
PASSED_ON=()
FLAGS="$*"
while [[ $# -gt 0 ]]; do
  case "$1" in
    --test | --full)
      [[ -z "$MODE" ]] || wrong_flags "unknown: $FLAGS; give one of --test and --full"
      MODE="${1#--}"
      ;;
    --compare) COMPARE=yes ;;
    --method)
      METHOD="${2:-}"
      [[ "$METHOD" =~ ^(yolo|saliency|hybrid)$ ]] || wrong_flags "--method is yolo, saliency or hybrid, not '$METHOD'"
      shift
      ;;
    --help | -h)
      usage
      exit 0
      ;;
    --)
      PASSED_ON=("${@:2}")
      break
      ;;
    *) wrong_flags "unknown: $FLAGS; give one of --test, --full and --help" ;;
  esac
  shift
done
[[ -n "$MODE" ]] || wrong_flags "give one of --test, --full and --help"
[[ -z "$COMPARE" || "$MODE" == full ]] || wrong_flags "--compare goes with --full"
mkdir -p "$DATA"
LOG="$DATA/training_$(date +%Y-%m-%d_%H-%M-%S).log"
export PYTHONUNBUFFERED=1 # both streams go through pipes: keep their lines in order
trap 'exit 130' INT # once main and both tees have ended
# Standard output and errors each pass through a tee to where they belong; the status is main's (pipefail).
{ { main | tee -ai "$LOG" >&3; } 2>&1 | tee -ai "$LOG" >&2; } 3>&1
