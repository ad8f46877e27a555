#!/usr/bin/env bash
# Every model that ships, and those of the systems that nucfast replaces whose rows in docs/results.md are not
# complete, in lanes side by side on one GPU: eight minutes.
#
#   benchmarks/gpu/train_all.sh DATA RUNS OUT [UNIT [LANE ...]]
#
# The models go on from those that are installed. Each time below is in units of UNIT seconds (1). Run it again
# with the same RUNS and a longer UNIT to go on.
set -u
data=$1 runs=$2 out=$3 unit=${4:-1}
lanes=("${@:5}")
[ ${#lanes[@]} -gt 0 ] || lanes=(models small replaced micrographs sweeps sharp)
device=${NUCFAST_DEVICE:-cuda}
mkdir -p "$runs" "$out"

train() { # SECONDS RECIPE [OPTION ...]
  local seconds=$1
  shift
  python3 "$(dirname "$0")/train.py" --data "$data" --runs "$runs" --out "$out" --device "$device" \
    --max-seconds "$(awk "BEGIN { print $seconds * $unit }")" "$@"
}

models() {
  # The last third: less jitter, more of the hardest set, while the learning rate falls to nothing.
  local accurate=(he-accurate --set start.grow=he-accurate)
  train 320 "${accurate[@]}" --set sets.0.weight=0.75
  train 490 "${accurate[@]}" --set sets.0.weight=1.2 --set patches.stain=0.45 --set patches.zoom=0.15
}

small() {
  train 150 micro-fast --set start.grow=micro-fast
  train 60 he-open --set start.grow=he-open
  # The teacher is the installed he-accurate: the other lane's is still learning.
  train 165 he-fast --set start.grow=he-fast --set sets.0.weight=1.0 --set patches.stain=0.5 --set patches.zoom=0.2
}

replaced() {
  train 120 consep-unet-dropout --no-weights
  train 190 dsb2018-256 --no-weights
}

micrographs() {
  train 120 isbi2012-unet --no-weights
  train 170 isbi2012-segnet --no-weights
}

sweeps() {
  train 240 consep-unet-rates --no-weights
  train 150 consep-unet-epochs --no-weights
}

sharp() {
  train 480 consep-unet-sharp --no-weights
}

for lane in "${lanes[@]}"; do
  "$lane" > "$out/$lane.log" 2>&1 &
done
wait
