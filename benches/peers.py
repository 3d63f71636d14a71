"""Measures this program and PyTorch in the same run, on the same GPU; called by benches/gpu.sh.

peers.py attention PROGRAM LENGTHS RUNS   rows of a table: attention of 64 heads of 128 in bf16
peers.py step PROGRAM FOLDER PRESET...    rows of a table: training steps of 16k tokens in bf16
peers.py ranks PROGRAM FOLDER             time on the GPU of 4 ranks that share it, beside that of one

What is missing (PyTorch, a backend) stands in its cell.
"""

import json
import os
import statistics
import subprocess
import sys

HEADS, DIM = 64, 128
SIZES = {  # of presets: hidden, MLP, layers, heads, key/value heads, vocabulary; `src/model/config/fresh.rs` has the same
    "tiny": (128, 384, 4, 4, 4, 256),
    "125m": (768, 2048, 12, 12, 12, 32000),
    "1b": (2048, 5632, 22, 32, 4, 32000),
}
TOKENS = int(os.environ.get("STEP_TOKENS", 16384))
STEPS = 12


def run(*command):
    """The JSON lines that a command prints."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def said(error):
    return (str(error).splitlines() or [type(error).__name__])[0][:70].replace("|", "/")


def torch_or(error=[]):
    try:
        import torch

        if not torch.cuda.is_available():
            raise RuntimeError("PyTorch sees no GPU")
        return torch
    except Exception as found:
        error[:] = [said(found)]
        return None


def milliseconds(torch, runs, work):
    times = []
    for _ in range(runs + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[2:])


def flash(torch, lengths, kv, causal, window, runs):
    """FlashAttention-2 as PyTorch has it, on packed documents."""
    make = lambda heads: torch.randn(sum(lengths), heads, DIM, device="cuda", dtype=torch.bfloat16)
    q, k, v, dout = make(HEADS), make(kv), make(kv), make(HEADS)
    ends = torch.tensor([0, *lengths], device="cuda").cumsum(0).to(torch.int32)
    longest, aten = max(lengths), torch.ops.aten
    groups = dict(window_size_left=window, window_size_right=0) if window is not None else {}
    causal = causal or window is not None
    forward = lambda k, v: aten._flash_attention_forward(q, k, v, ends, ends, longest, longest, 0.0, causal, False, **groups)
    first = milliseconds(torch, runs, lambda: forward(k, v))
    out, lse, seed, offset, _ = forward(k, v)
    backward = lambda: aten._flash_attention_backward(
        dout, q, k, v, out, lse, ends, ends, longest, longest, 0.0, causal, seed, offset, **groups
    )
    return first, milliseconds(torch, runs, backward)


def cudnn(torch, lengths, kv, causal, window, runs):
    """PyTorch's cuDNN backend, which takes one document."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as attend

    if len(lengths) > 1 or window is not None:
        raise RuntimeError("one document without a window only")
    make = lambda heads: torch.randn(1, heads, lengths[0], DIM, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    q, k, v = make(HEADS), make(kv), make(kv)
    dout = torch.randn_like(q)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        work = lambda: attend(q, k, v, is_causal=causal, enable_gqa=kv != HEADS)
        first = milliseconds(torch, runs, work)
        out = work()
        return first, milliseconds(torch, runs, lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True))


def attention(program, lengths, runs):
    why = []
    torch = torch_or(why)
    shapes = [("causal", ["--causal"], True, None), ("full", [], False, None), ("window 4096", ["--window", "4096"], False, 4096)]
    shapes += [(f"documents of {n}", ["--causal", "--documents", str(n)], True, None) for n in (1000, 4000)]
    print("| tokens | kv heads | mask | here | with the host | FlashAttention-2 | cuDNN |", "|---|---|---|---|---|---|---|", sep="\n")
    for seq in lengths:
        for kv in (8, HEADS):
            for name, options, causal, window in shapes:
                shape = ["--heads", HEADS, "--kv-heads", kv, "--seq", seq, "--head-dim", DIM, "--runs", runs]
                base = [program, "bench", "attention", "--device", "cuda", "--dtype", "bf16", "--json", "--quiet"]
                try:
                    (row,) = run(*base, *map(str, shape), *options)
                except Exception as error:
                    print(f"| {seq} | {kv} | {name} | {said(error)} | | | |", flush=True)
                    continue
                flops = row["forward_gflops"] * row["forward_ms"] / 1e3  # GFLOP
                show = lambda forward, backward: f"{flops / forward:.1f}, {2.5 * flops / backward:.1f}"
                cells = [show(*(ms for ms, _ in row["on_gpu"])), show(row["forward_ms"], row["backward_ms"])]
                for peer in (flash, cudnn):
                    try:
                        cells.append(show(*peer(torch, row["lengths"], kv, causal, window, runs)) if torch else why[0])
                    except Exception as error:
                        cells.append(said(error))
                print(f"| {seq} | {kv} | {name} |", " | ".join(cells), "|", flush=True)


def torch_step(torch, preset):
    """Tokens per second and peak bytes of a step of transformers' llama under torch.compile."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, mlp, layers, heads, kv, vocab = SIZES[preset]
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv, vocab_size=vocab, tie_word_embeddings=False, max_position_embeddings=TOKENS, use_cache=False,
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa", dtype=torch.float32).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(vocab, (1, TOKENS), device="cuda")

    @torch.compile
    def loss():
        with torch.autocast("cuda", torch.bfloat16):
            return model(input_ids=tokens, labels=tokens).loss

    def step():
        loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return 1e3 * TOKENS / milliseconds(torch, STEPS - 2, step), torch.cuda.max_memory_allocated()


def train(program, folder, name, *options):
    out = os.path.join(folder, name)
    *steps, summary = run(
        program, "train", "--data", "recall", "--seq-len", str(TOKENS), "--batch", "1", "--steps", str(STEPS), "--dtype", "bf16",
        "--device", "cuda", "--json", "--out", out, *options,
    )  # fmt: skip
    return statistics.median(step["tokens_per_second"] for step in steps[2:]), summary, out


def step(program, folder, *presets):
    why = []
    torch = torch_or(why)
    print("| model | here, tokens/s | peak GiB | torch.compile, tokens/s | peak GiB |", "|---|---|---|---|---|", sep="\n")
    for preset in presets:
        try:
            speed, summary, _ = train(program, folder, f"step-{preset}", "--preset", preset)
            cells = [f"{speed:.0f}", f"{summary['peak_bytes_per_rank'] / 2**30:.1f}"]
        except Exception as error:
            cells = [said(error), ""]
        try:
            if torch is None:
                raise RuntimeError(why[0])
            torch.cuda.reset_peak_memory_stats()
            speed, peak = torch_step(torch, preset)
            cells += [f"{speed:.0f}", f"{peak / 2**30:.1f}"]
        except Exception as error:
            cells += [said(error), ""]
        print(f"| {preset} |", " | ".join(cells), "|", flush=True)


def ranks(program, folder):
    times = {}
    for count in (1, 4):
        name = f"ranks-{count}"
        speed, _, out = train(program, folder, name, "--cp", str(count), "--preset", os.environ.get("RANKS_PRESET", "125m"), "--trace")
        with open(os.path.join(out, "trace.json")) as file:
            events = [event for event in json.load(file)["traceEvents"] if event["ph"] == "X"]
        kernels = [event for event in events if event["name"] not in ("wait", "read", "write")]
        times[count] = sum(event["dur"] for event in kernels)
        with open(os.path.join(out, "log.jsonl")) as file:
            losses = [json.loads(line)["loss"] for line in file]
        print(f"{count} ranks: {times[count] / 2e3:.2f} ms of kernels a step, {speed:.0f} tokens/s, losses {losses[0]:.4f} .. {losses[-1]:.4f}")
    print(f"kernels of 4 ranks take {times[4] / times[1]:.3f} of one rank's time (events around each; 4 queues overlap)")


if __name__ == "__main__":
    what, program, *rest = sys.argv[1:]
    if what == "attention":
        attention(program, [int(n) for n in rest[0].split()], int(rest[1]))
    else:
        {"step": step, "ranks": ranks}[what](program, *rest)
