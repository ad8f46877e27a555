#!/usr/bin/env bash
# Every model that ships, and the systems that nucfast replaces, in three lanes side by side on one GPU: about ten minutes.
#
#   benchmarks/gpu/train_all.sh DATA RUNS OUT [UNIT]
#
# The models go on from those that are installed. Each time below is in units of UNIT seconds (1). Run it again with the same RUNS and a longer UNIT to go on.
set -u
data=$1 runs=$2 out=$3 unit=${4:-1}
device=${NUCFAST_DEVICE:-cuda}
mkdir -p "$runs" "$out"

train() { # SECONDS RECIPE [OPTION ...]
  local seconds=$1
  shift
  python3 "$(dirname "$0")/train.py" --data "$data" --runs "$runs" --out "$out" --device "$device" \
    --max-seconds "$(awk "BEGIN { print $seconds * $unit }")" "$@"
}

models() {
  # The last third of each: less jitter, more of the hardest set, while the learning rate falls to nothing.
  local accurate=(he-accurate --set start.grow=he-accurate)
  train 200 "${accurate[@]}" --set sets.0.weight=0.75
  train 300 "${accurate[@]}" --set sets.0.weight=1.2 --set patches.stain=0.45 --set patches.zoom=0.15
  local fast=(he-fast --set start.grow=he-fast --set "teacher.bundle=$runs/he-accurate")
  train 110 "${fast[@]}" --set sets.0.weight=0.65
  train 165 "${fast[@]}" --set sets.0.weight=1.0 --set patches.stain=0.5 --set patches.zoom=0.2
}

replaced() {
  train 125 consep-unet --no-weights
  train 125 consep-unet-8 --no-weights
  train 90 consep-unet-sharp --no-weights
  train 90 isbi2012-unet --no-weights
  train 70 isbi2012-segnet --no-weights
}

small() {
  train 150 micro-fast
  train 60 he-open --set start.grow=he-open
  train 120 dsb2018-linknet4 dsb2018-linknet2 dsb2018-unet dsb2018-fcn --no-weights
  train 10 dsb2018-ensemble --no-weights
  train 120 consep-unet-quarter consep-unet-quarter-8 consep-unet-dropout --no-weights
}

models > "$out/models.log" 2>&1 &
replaced > "$out/replaced.log" 2>&1 &
small > "$out/small.log" 2>&1 &
wait
