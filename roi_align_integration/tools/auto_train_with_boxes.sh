#!/usr/bin/env bash
# Set-up, data, training, validation and report in one command.
set -euo pipefail

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
ROOT="$(cd "$HERE/../.." && pwd)"
CIRR="$ROOT/cirr_dataset"
DATA="$ROOT/roi_align_integration/data"
DEMO="$DATA/demo_dataset"
# The demo run: these sizes reach five times chance on two CPU cores within minutes.
DEMO_FLAGS=(--backbone tiny --weights random --num-epochs 4 --batch-size 64 --learning-rate 3e-4 --num-workers 2)
# A bounded run on the real data: does everything work here?
TRIAL_FLAGS=(--backbone pretrain --max-triplets 100 --num-epochs 2 --batch-size 20)

usage() {
  cat <<'TEXT'
usage: auto_train_with_boxes.sh --test | --full | --help

  --test   a short run. With CIRR in cirr_dataset/ and weights on this machine (models/README.md): 100 triplets,
           2 epochs. Without them: a generated demo dataset and the model `tiny`, on whatever device there is.
  --full   the whole training on CIRR with upstream's settings: 50 epochs, batch 128, learning rate 1e-5. Weights that
           are not on this machine are downloaded.
  --help   this page.

The first run makes .venv, unless the active environment has what is needed. The log of a run is
roi_align_integration/data/training_<time>.log; models and metrics are in models/.
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
  [[ $1 -eq 0 ]] || echo "step $STEP ($STEP_NAME) failed, status $1; log: $LOG" >&2
}

# Sets MISSING to what a run on CIRR with `pretrain` still needs.
check_data() {
  local answer status=0
  MISSING=""
  [[ -z "${SPRC_WEIGHTS:-}" || -e "$SPRC_WEIGHTS" ]] || fail "SPRC_WEIGHTS: there is no file $SPRC_WEIGHTS"
  if [[ ! -f "$CIRR/cirr/captions/cap.rc2.train.json" ]]; then
    MISSING="CIRR: $CIRR/cirr/captions/cap.rc2.train.json is not there (see cirr_dataset/README.md)"
    return
  fi
  answer="$("$PYTHON" "$HERE/get_weights.py" "$@" 2>&1)" || status=$?
  case $status in
    0) echo "$answer" ;;
    2) MISSING="weights: ${answer#error: }" ;;
    *) fail "get_weights.py failed: $answer" ;;
  esac
}

train() {
  "$PYTHON" "$ROOT/src/blip_fine_tune_2.py" --dataset CIRR --output-folder "$ROOT/models" --save-best "$@"
}

run_test() {
  check_data --no-download
  if [[ -z "$MISSING" ]]; then
    step "train and validate on CIRR, bounded"
    train --data-path "$CIRR" "${TRIAL_FLAGS[@]}"
    return
  fi
  printf 'not here:\n  %s\nso this run uses the demo dataset and the model tiny\n' "$MISSING"
  step "make the demo dataset"
  "$PYTHON" "$HERE/make_demo_dataset.py" --output "$DEMO"
  step "train and validate on the demo dataset"
  train --data-path "$DEMO" "${DEMO_FLAGS[@]}"
}

run_full() {
  check_data
  [[ -z "$MISSING" ]] || fail $'--full needs what is not here:\n  '"$MISSING"
  step "train and validate on CIRR"
  train --data-path "$CIRR" --save-training
}

main() {
  trap 'report_failure $?' EXIT
  step "set-up"
  # shellcheck source=roi_align_integration/tools/setup_env.sh
  source "$HERE/setup_env.sh"
  # shellcheck disable=SC2119 # no flag: the packages of a run, not those of the tests
  sprc_setup
  echo "python: $PYTHON"
  step "check data and weights"
  "run_$1"
  step "report"
  printf 'done in %d s\nlog: %s\nmodels and metrics: %s\n' "$SECONDS" "$LOG" "$ROOT/models"
}

case "$*" in
  --test | --full) ;;
  --help | -h)
    usage
    exit 0
    ;;
  *)
    [[ $# -eq 0 ]] || echo "error: unknown: $*; give one of --test, --full and --help" >&2
    usage >&2
    exit 2
    ;;
esac
mkdir -p "$DATA"
LOG="$DATA/training_$(date +%Y-%m-%d_%H-%M-%S).log"
export PYTHONUNBUFFERED=1 # both streams go through pipes: keep their lines in order
# Standard output and errors each pass through a tee to where they belong; the status is main's (pipefail).
{ { main "${1#--}" | tee -ai "$LOG" >&3; } 2>&1 | tee -ai "$LOG" >&2; } 3>&1
