#!/usr/bin/env bash
# Set-up, data, training, validation and report in one command.
set -euo pipefail

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
ROOT="$(cd "$HERE/../.." && pwd)"
CIRR="$ROOT/cirr_dataset"
DATA="$ROOT/roi_align_integration/data"
DEMO="$DATA/demo_dataset"
# The demo run: these sizes reach five times chance on two CPU cores within minutes.
DEMO_FLAGS=(--backbone tiny --num-epochs 8 --batch-size 64 --learning-rate 3e-4 --num-workers 2)
# A bounded run on the real data: does everything work here?
TRIAL_FLAGS=(--backbone pretrain --max-triplets 100 --num-epochs 2 --batch-size 20)

usage() {
  cat <<'TEXT'
usage: auto_train_with_boxes.sh --test | --full | --help

  --test   a short run. With CIRR in cirr_dataset/ and weights in models/weights/ (or $SPRC_WEIGHTS): 100 triplets,
           2 epochs. Without them: a generated demo dataset and the model `tiny`, on whatever device there is.
  --full   the whole training on CIRR with upstream's settings: 50 epochs, batch 128, learning rate 1e-5.
  --help   this page.

The first run makes .venv, unless the active environment has what is needed. The log of a run is
roi_align_integration/data/training_<time>.log; models and metrics are in models/.
TEXT
}

STEP="start"
step() {
  STEP="$1"
  printf '\n== %s\n' "$1"
}

weights() {
  local found=("$ROOT"/models/weights/*.pt)
  if [[ -n "${SPRC_WEIGHTS:-}" ]]; then
    echo "$SPRC_WEIGHTS"
  elif [[ ${#found[@]} -eq 1 && -f "${found[0]}" ]]; then
    echo "${found[0]}"
  fi
}

missing_for_cirr() {
  [[ -f "$CIRR/cirr/captions/cap.rc2.train.json" ]] || echo "CIRR's captions in $CIRR/cirr (see cirr_dataset/README.md)"
  [[ -n "$(weights)" ]] || echo "one SPRC checkpoint in $ROOT/models/weights or \$SPRC_WEIGHTS (see models/README.md)"
}

train() {
  "$PYTHON" "$ROOT/src/blip_fine_tune_2.py" --dataset CIRR --output-folder "$ROOT/models" --save-best "$@"
}

run_test() {
  local missing
  missing="$(missing_for_cirr)"
  if [[ -z "$missing" ]]; then
    step "train and validate on CIRR, bounded"
    train --weights "$(weights)" "${TRIAL_FLAGS[@]}"
    return
  fi
  printf 'not here:\n%s\nso this run uses the demo dataset and the model tiny.\n' "$missing"
  step "make the demo dataset"
  "$PYTHON" "$HERE/make_demo_dataset.py" --output "$DEMO"
  step "train and validate on the demo dataset"
  train --data-path "$DEMO" "${DEMO_FLAGS[@]}"
}

run_full() {
  local missing
  missing="$(missing_for_cirr)"
  if [[ -n "$missing" ]]; then
    printf 'error: --full needs:\n%s\n' "$missing" >&2
    return 2
  fi
  step "train and validate on CIRR"
  train --weights "$(weights)" --save-training
}

main() {
  trap 'status=$?; echo "failed in step: $STEP (status $status)" >&2' ERR
  step "set-up"
  # shellcheck source=roi_align_integration/tools/setup_env.sh
  source "$HERE/setup_env.sh"
  # shellcheck disable=SC2119 # no flag: the packages of a run, not those of the tests
  sprc_setup
  echo "python: $PYTHON"
  step "check the data"
  "run_$1"
  printf '\ndone\n'
}

case "${1:-}" in
  --test | --full) ;;
  --help | -h)
    usage
    exit 0
    ;;
  "")
    usage >&2
    exit 2
    ;;
  *)
    echo "error: unknown flag $1" >&2
    usage >&2
    exit 2
    ;;
esac
mkdir -p "$DATA"
LOG="$DATA/training_$(date +%Y-%m-%d_%H-%M-%S).log"
set -E
main "${1#--}" 2> >(tee -a "$LOG" >&2) | tee -a "$LOG"
echo "log: $LOG"
