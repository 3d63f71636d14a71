#!/usr/bin/env bash
# benches/gpu.sh PROGRAM TESTS FOLDER: everything that is to be known of a GPU, in one call of a few minutes. It builds
# nothing: PROGRAM and TESTS are built beforehand, where Rust is, by
#   cargo build --release --features cuda       (target/release/context-parallel)
#   cargo test --release --features cuda --test cuda --no-run   (it prints the file)
# and FOLDER gets gpu-NAME-DATE.md. First whether the kernels give the processor's numbers, then how fast they are, beside
# PyTorch's FlashAttention-2 and cuDNN backends and torch.compile in the same run where PyTorch is there. LENGTHS, RUNS,
# PRESETS, RANKS_PRESET and STEP_TOKENS choose what is measured.
set -uo pipefail
program=$1 tests=$2 folder=$3
here=$(cd "$(dirname "$0")" && pwd)
lengths=${LENGTHS:-1024 4096 16384} runs=${RUNS:-20}
mkdir -p "$folder"
name=$("$program" doctor --json | python3 -c '
import json, sys
gpus = [f["found"] for f in json.load(sys.stdin)["findings"] if f["what"].startswith("GPU ") and f["found"]]
print(gpus[0].split(",")[0].replace(" ", "-") if gpus else "none")')
if [ "$name" = none ]; then
  "$program" doctor
  exit 2
fi
report=$folder/gpu-$name-$(date +%F).md
say() { printf '%s\n' "$@" | tee -a "$report"; }
# block TITLE COMMAND...: what a command prints, its last 60 lines, and whether it failed.
block() {
  local title=$1 started=$SECONDS code
  shift
  timeout 240 "$@" > "$folder/output" 2>&1
  code=$?
  say "" "## $title" "" '```' "$(tail -60 "$folder/output" | cut -c1-160)" '```' "" \
    "exit $code after $((SECONDS - started)) s: \`${*##*/}\`"
}
rm -f "$report"
say "# $name, $(date +%F), \`benches/gpu.sh\`"
block "What was found" "$program" doctor
block "Ops, memory, ranks, training, against the processor" "$tests"
block "verify, f32" "$program" verify --cp 1,2,4 --device cuda
block "verify, bf16" "$program" verify --cp 1,2 --dtype bf16 --device cuda

block "Golden models" "$tests" golden
if command -v compute-sanitizer > /dev/null; then
  block "compute-sanitizer: memory" compute-sanitizer --tool memcheck --error-exitcode 9 "$tests" "attention in bf16"
  block "compute-sanitizer: races" compute-sanitizer --tool racecheck --error-exitcode 9 "$tests" "attention in f16"
fi

say "" "## Attention, 64 heads of 128, bf16: TFLOP/s forward, backward" "" \
  "Here: from the begin of the first kernel to the end of the last one. With the host: the handler's calls and a wait." ""
timeout 240 python3 "$here/peers.py" attention "$program" "$lengths" "$runs" 2>&1 | tee -a "$report"
say "" "## A training step of ${STEP_TOKENS:-16384} tokens, bf16" ""
timeout 240 python3 "$here/peers.py" step "$program" "$folder" ${PRESETS:-125m 1b} 2>&1 | tee -a "$report"
say "" "## Ranks that share the GPU" ""
timeout 120 python3 "$here/peers.py" ranks "$program" "$folder" 2>&1 | tee -a "$report"
if command -v ncu > /dev/null; then
  block "Counters of attention" ncu --clock-control none --kernel-name regex:attention_ --launch-count 6 \
    --section SpeedOfLight --section Occupancy --section WarpStateStats \
    "$program" bench attention --device cuda --dtype bf16 --heads 64 --seq 16384 --head-dim 128 --causal --runs 1
fi
rm -f "$folder/output"
echo "$report"
