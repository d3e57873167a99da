#!/usr/bin/env bash
# Train on CIRR with regions: one command, with every setting that matters written out. Flags given to this script are
# passed on and win: `bash train_with_roi_align.sh --region-objective query --seed 1`.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
if [[ "${1:-}" == "--help" ]]; then
  echo "usage: train_with_roi_align.sh [flags of src/blip_fine_tune_2.py]"
  echo "Needs CIRR, weights, and roi_align_integration/data/cirr_boxes_train.json (generate_cirr_boxes.py makes it)."
  exit 0
fi
# shellcheck source=roi_align_integration/tools/setup_env.sh
source "$ROOT/roi_align_integration/tools/setup_env.sh"
trap sprc_interrupted INT # until exec
# shellcheck disable=SC2119 # no flag: the packages of a run, not those of the tests
sprc_setup

command=(
  "$PYTHON" "$ROOT/src/blip_fine_tune_2.py"
  --dataset CIRR
  --backbone pretrain # EVA-CLIP-g; pretrain_vitL is the smaller one
  --transform targetpad --target-ratio 1.25
  --num-epochs 50 --batch-size 128 --learning-rate 1e-5
  --loss-rtc 0.4 --loss-align 0.4
  --use-region-loss
  --box-file "$ROOT/roi_align_integration/data/cirr_boxes_train.json"
  --region-objective compose # reference and sentence are composed to the target's regions; weight 0.5, 0 from half time
  --max-regions 5            # the largest of an image
  --save-best --save-training
)
exec "${command[@]}" "$@"
