#!/usr/bin/env bash
# benches/gpu.sh PROGRAM TESTS FOLDER: everything that is to be known of a GPU, in one call of a few minutes. It builds
# nothing: PROGRAM and TESTS are built beforehand, where Rust is, by
#   cargo build --release --features cuda       (target/release/context-parallel)
#   cargo test --release --features cuda --test cuda --no-run   (it prints the file)
# and FOLDER gets gpu-NAME-DATE.md. First whether the kernels give the processor's numbers, then how fast they are, beside
# PyTorch's FlashAttention-2 and cuDNN backends in the same run where PyTorch is there. LENGTHS and RUNS choose what is
# measured.
set -uo pipefail
program=$1 tests=$2 folder=$3
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

say "" "## Attention, 64 query heads, head 128, bf16, causal: TFLOP/s forward and backward" "" \
  "| tokens | kv heads | here | FlashAttention-2 | cuDNN |" "|---|---|---|---|---|"
for seq in $lengths; do
  for kv in 8 64; do
    here=$("$program" bench attention --device cuda --dtype bf16 --heads 64 --kv-heads $kv --seq "$seq" --head-dim 128 \
      --causal --runs "$runs" --json 2> "$folder/output" | python3 -c '
import json, sys
row = json.load(sys.stdin)
forward, backward = row["forward_gflops"] / 1e3, row["backward_gflops"] / 1e3
print(f"{forward:.1f}, {backward:.1f}")' 2> /dev/null || tail -1 "$folder/output")
    peers=$(python3 - "$seq" $kv "$runs" 2> "$folder/output" <<'PY' || echo "no PyTorch | no PyTorch"
import sys, torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as attend

seq, kv, runs = map(int, sys.argv[1:])
make = lambda heads: torch.randn(1, heads, seq, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
q, k, v = make(64), make(kv), make(kv)
dout = torch.randn_like(q)
flops = 2.0 * 64 * seq * seq * 128

def milliseconds(work):
    times = []
    for _ in range(runs + 1):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record(); work(); end.record(); end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times[1:])[runs // 2]

cells = []
for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
    try:
        with sdpa_kernel(backend):
            run = lambda: attend(q, k, v, is_causal=True, enable_gqa=kv != 64)
            forward = milliseconds(run)
            out = run()
            backward = milliseconds(lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True))
        cells.append(f"{flops / forward / 1e9:.1f}, {2.5 * flops / backward / 1e9:.1f}")
    except Exception as error:
        cells.append(str(error).splitlines()[0][:60])
print(" | ".join(cells))
PY
    )
    say "| $seq | $kv | $here | $peers |"
  done
done
say "" "Times here are the handler's, with gathering of rows, conversion and the wait for one number, so short sequences are" \
  "measured with what surrounds the kernel."
rm -f "$folder/output"
echo "$report"
