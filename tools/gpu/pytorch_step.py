#!/usr/bin/env python3
"""Repeats steps of a run of compile_and_train in PyTorch: same model, weights, moments, batches and math.

    python3 pytorch_step.py --run=DIR [--device=cpu|cuda] [--variants=REGEX] [--tolerance=X] [--json=FILE]

Reads the run's config.textproto, its first checkpoint that steps follow, and the text that it was trained on, and
does those steps; beside each variant of PyTorch stands the run itself, over the same steps: milliseconds of a step,
tokens/s, TFLOP/s, the share of the peak rate where the run knows one (MFU), and how far losses and gradient norms are
from the run's. FLOPs of a step are the run's own count (docs/benchmarks.md), so all rows share it.

Model: embedding, per layer RMSNorm, grouped-query causal attention with rotary positions, RMSNorm, dropless top-k
routing, SwiGLU experts, balance loss per microbatch and router z-loss; final norm, head. In f32 or f64 as the run, or
computed in bf16 with f32 weights, moments, router and losses. Another kind of model is refused.

Variants: eager and compiled with torch._grouped_mm, and eager with a loop over experts, whose sizes a compiler would
not know; what a PyTorch cannot do is shown as such. Exit code 1 where the losses of a variant that ran are further
from the run's than --tolerance. OMP_NUM_THREADS says with how many threads PyTorch
computes on the CPU.
"""

import argparse
import json
import math
import os
import re
import statistics
import sys
import time


def fail(message):
    sys.exit(f"error: {message}")


# What the run says of itself. ------------------------------------------------------------------------------------


def read_config(path):
    """{"model": {name: value}, ...} of a config.textproto, which has a field a line; of the strategy, its words."""
    sections = {}
    section = sections
    for line in open(path):
        line = line.strip()
        if line.endswith("{"):
            section = sections.setdefault(line[:-1].strip(), {})
        elif line == "}":
            section = sections
        elif ":" in line:
            name, value = line.split(":", 1)
            section[name] = json.loads(value)
    words = [word.partition("=") for word in sections["strategy"].split()]
    sections["strategy"] = {name: value for name, _, value in words}
    return sections


def degree(strategy, word):
    return int(strategy.get(word, 1))


def check_supported(config):
    model, strategy, train = config["model"], config["strategy"], config["train"]
    wanted = [
        ("num_experts", model["num_experts"] > 0, "at least 1"),
        ("capacity_factor", model["capacity_factor"] == 0, "0 (dropless)"),
        ("first_dense_layers", model["first_dense_layers"] == 0, "0"),
        ("moe_layer_freq", model["moe_layer_freq"] == 1, "1"),
        ("shared_expert_ffn_hidden_size", model["shared_expert_ffn_hidden_size"] == 0, "0"),
        ("tie_embeddings", not model["tie_embeddings"], "false"),
        ("aux_loss_scope", model["aux_loss_scope"] == "microbatch", "microbatch"),
        ("fp16", "f16" not in strategy, "false"),
        ("length_buckets", train["length_buckets"] == "", "empty"),
        ("adaptive_micro_batch_size", not train["adaptive_micro_batch_size"], "false"),
    ]
    for name, fits, legal in wanted:
        if not fits:
            fail(f"{name} of the run is not {legal}: this model is not the one that is written here in PyTorch")


class Run:
    def __init__(self, folder):
        self.folder = folder
        try:
            config = read_config(os.path.join(folder, "config.textproto"))
            lines = [json.loads(line) for line in open(os.path.join(folder, "metrics.jsonl"))]
            checkpoints = sorted(os.listdir(os.path.join(folder, "checkpoint")))
        except OSError as e:
            fail(f"{e.filename}: {e.strerror}; --run takes the run directory of a compile_and_train that has ended")
        check_supported(config)
        self.model, self.strategy, self.train = config["model"], config["strategy"], config["train"]
        self.steps = {line["iteration"]: line for line in lines if line["kind"] == "train"}
        for name in checkpoints:
            self.checkpoint = os.path.join(folder, "checkpoint", name)
            self.meta = json.load(open(os.path.join(self.checkpoint, "manifest.json")))
            self.first = self.meta["step"] + 1
            if self.first in self.steps:
                break
        else:
            fail(f"{folder}: no steps after any checkpoint; train with a --save_interval below --train_iters")
        self.last = max(self.steps)
        self.microbatch = self.train["micro_batch_size"] * degree(self.strategy, "dp")
        self.microbatches = self.train["global_batch_size"] // self.microbatch
        self.tokens = self.train["global_batch_size"] * self.model["seq_length"]
        any_step = self.steps[self.last]
        self.flops = any_step["tflops_per_device"] * 1e9 * any_step["milliseconds"] * self.devices()
        # FLOP/s of a device at most; None where the run does not know.
        self.peak = any_step["tflops_per_device"] * 1e12 / any_step["mfu"] if any_step.get("mfu") else None

    def devices(self):
        return math.prod(degree(self.strategy, word) for word in ("pp", "dp", "cp", "tp"))

    def learning_rate(self, step):  # moe/train/run/learning_rate.h
        t = self.train
        peak, floor, warmup, total = t["lr"], t["min_lr"], t["lr_warmup_iters"], t["train_iters"]
        if step < warmup:
            return peak * step / warmup
        if step >= total:
            return floor if total > warmup else peak
        return floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))

    def batches(self):
        """Of each step: [sample][seq_length + 1] bytes. The order is that of moe/train/data/data.h."""
        text = open(self.train["data_path"], "rb").read()
        length, held_out = self.model["seq_length"], self.train["held_out_fraction"]
        n = (len(text) - int(len(text) * held_out) - 1) // length
        sample = self.meta["consumed_samples"]
        for _ in range(self.first, self.last + 1):
            rows = []
            for sample in range(sample, sample + self.train["global_batch_size"]):
                at = permuted_index(sample % n, n, epoch_key(self.train["seed"], sample // n)) * length
                rows.append(list(text[at:at + length + 1]))
            sample += 1
            yield rows


U64 = (1 << 64) - 1


def mix(x):
    x &= U64
    x = ((x ^ x >> 33) * 0xFF51AFD7ED558CCD) & U64
    x = ((x ^ x >> 33) * 0xC4CEB9FE1A85EC53) & U64
    return x ^ x >> 33


def epoch_key(seed, epoch):
    return mix(mix(seed + 0x9E3779B97F4A7C15) ^ mix(~epoch))


def permuted_index(i, n, key):
    if n <= 1:
        return 0
    half = 1
    while 2 * half < 63 and 1 << 2 * half < n:
        half += 1
    mask = (1 << half) - 1
    while True:
        left, right = i >> half, i & mask
        for r in range(4):
            left, right = right, left ^ (mix(key ^ mix(right + (r << 56))) & mask)
        i = left << half | right
        if i < n:
            return i


def read_tensors(torch, folder, names):
    """{name: tensor} from the safetensors files of a checkpoint."""
    kinds = {"F32": torch.float32, "F64": torch.float64}
    found = {}
    for file in sorted(os.listdir(folder)):
        if not file.endswith(".safetensors"):
            continue
        with open(os.path.join(folder, file), "rb") as f:
            size = int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(size))
            for name, entry in header.items():
                if name not in names:
                    continue
                begin, end = entry["data_offsets"]
                f.seek(8 + size + begin)
                found[name] = torch.frombuffer(bytearray(f.read(end - begin)), dtype=kinds[entry["dtype"]]).view(entry["shape"])
    missing = sorted(set(names) - set(found))
    if missing:
        fail(f"{folder} has no tensor {missing[0]}" + (f" and {len(missing) - 1} others" if missing[1:] else ""))
    return found


# The same in PyTorch. --------------------------------------------------------------------------------------------


def build(torch, run, device, grouped):
    """The module, and for each of its parameters the names in the checkpoint: side by side, they are its columns."""
    nn, F, c = torch.nn, torch.nn.functional, run.model
    wide = torch.float64 if c["dtype"] == "f64" else torch.float32
    narrow = torch.bfloat16 if "bf16" in run.strategy else wide
    hidden, heads, kv, dim = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    experts, top_k, vocab = c["num_experts"], c["moe_router_topk"], c["vocab_size"]
    columns = {}

    def parameter(names, *dims):
        p = nn.Parameter(torch.empty(*dims, device=device, dtype=wide))
        columns[p] = names
        return p

    def norm(x, weight):
        y = x.to(wide)
        return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + c["norm_eps"]) * weight).to(narrow)

    def rotate(x, cos, sin):
        a, b = x.to(wide).chunk(2, -1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), -1).to(narrow)

    def experts_product(rows, weight, ends):
        if grouped:
            return torch._grouped_mm(rows, weight, offs=ends)
        parts = torch.split(rows, torch.diff(ends, prepend=ends.new_zeros(1)).tolist())
        return torch.cat([part @ w for part, w in zip(parts, weight)])

    class Layer(nn.Module):
        def __init__(self, l):
            super().__init__()
            at, ffn = f"layers.{l}.", c["moe_ffn_hidden_size"]
            self.attention_norm = parameter([at + "attn_norm"], hidden)
            self.mlp_norm = parameter([at + "mlp_norm"], hidden)
            self.qkv = parameter([at + "attn.wq", at + "attn.wk", at + "attn.wv"], hidden, dim * (heads + 2 * kv))
            self.out = parameter([at + "attn.wo"], dim * heads, hidden)
            self.router = parameter([at + "moe.router"], hidden, experts)
            self.gate = parameter([at + "moe.w_gate"], experts, hidden, ffn)
            self.up = parameter([at + "moe.w_up"], experts, hidden, ffn)
            self.down = parameter([at + "moe.w_down"], experts, ffn, hidden)

        def forward(self, x, cos, sin):
            b, s, _ = x.shape
            qkv = norm(x, self.attention_norm) @ self.qkv.to(narrow)
            q, k, v = qkv.split((heads * dim, kv * dim, kv * dim), -1)
            q = rotate(q.view(b, s, heads, dim).transpose(1, 2), cos, sin)
            k = rotate(k.view(b, s, kv, dim).transpose(1, 2), cos, sin)
            v = v.view(b, s, kv, dim).transpose(1, 2)
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv)
            x = x + o.transpose(1, 2).reshape(b, s, heads * dim) @ self.out.to(narrow)

            t = norm(x, self.mlp_norm).view(b * s, hidden)
            logits = t.to(wide) @ self.router
            probability = logits.softmax(-1)
            weight, expert = probability.topk(top_k, -1)
            if c["norm_topk_prob"]:
                weight = weight / weight.sum(-1, keepdim=True)
            order = expert.flatten().argsort(stable=True)
            token = order // top_k
            count = torch.zeros(experts, dtype=torch.int64, device=t.device).scatter_add_(
                0, expert.flatten(), torch.ones_like(expert.flatten()))
            ends = count.cumsum(0).to(torch.int32)
            rows = t[token]
            a = (F.silu(experts_product(rows, self.gate.to(narrow), ends)) *
                 experts_product(rows, self.up.to(narrow), ends))
            y = experts_product(a, self.down.to(narrow), ends) * weight.flatten()[order].unsqueeze(-1).to(narrow)
            x = x + torch.zeros_like(t).index_add_(0, token, y).view(b, s, hidden)
            share = count.to(wide) * experts / (top_k * b * s)
            aux = (share * probability.mean(0)).sum()
            return x, c["aux_loss_coeff"] * aux + c["z_loss_coeff"] * logits.logsumexp(-1).square().mean()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = parameter(["embedding"], vocab, hidden)
            self.layers = nn.ModuleList(Layer(l) for l in range(c["num_layers"]))
            self.norm = parameter(["final_norm"], hidden)
            self.head = parameter(["head"], vocab, hidden)
            position = torch.arange(c["seq_length"], device=device, dtype=torch.float64)
            power = torch.arange(0, dim, 2, device=device, dtype=torch.float64) / dim
            angle = position[:, None] * c["rope_theta"] ** -power
            self.register_buffer("cos", angle.cos().to(wide), persistent=False)
            self.register_buffer("sin", angle.sin().to(wide), persistent=False)

        def forward(self, ids, labels):
            x = self.embedding[ids].to(narrow)
            router_losses = 0.0
            for layer in self.layers:
                x, loss = layer(x, self.cos, self.sin)
                router_losses = router_losses + loss
            logits = norm(x, self.norm) @ self.head.to(narrow).T
            loss = F.cross_entropy(logits.view(-1, vocab).to(wide), labels.flatten())
            return loss + router_losses, loss

    return Model(), columns


def load(torch, run, device, columns, optimizer):
    names = [name for side in columns.values() for name in side]
    moments = {"exp_avg": "adam.m.", "exp_avg_sq": "adam.v."}
    stored = read_tensors(torch, run.checkpoint, {prefix + name for prefix in ["", *moments.values()] for name in names})
    applied = float(run.meta["step"] - run.meta["skipped_steps"])
    with torch.no_grad():
        for p, side in columns.items():
            def value(prefix):
                whole = [stored[prefix + name] for name in side]
                if len(whole) > 1:
                    whole = [w.reshape(p.shape[0], -1) for w in whole]
                return torch.cat(whole, -1).reshape(p.shape).to(device)
            p.copy_(value(""))
            optimizer.state[p] = {"step": torch.tensor(applied, device=device),
                                  **{key: value(prefix) for key, prefix in moments.items()}}


def repeat(torch, run, device, grouped, compiled):
    """Seconds, losses and gradient norms of the steps."""
    model, columns = build(torch, run, device, grouped)
    t = run.train
    # Norms' weights do not decay (ModelParameters in moe/model/transformer.cc).
    groups = [{"params": [p for p in columns if p.dim() > 1], "weight_decay": t["weight_decay"]},
              {"params": [p for p in columns if p.dim() == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(t["adam_beta1"], t["adam_beta2"]), eps=t["adam_eps"], fused=True)
    load(torch, run, device, columns, optimizer)
    forward = torch.compile(model) if compiled else model
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    seconds, losses, norms = [], [], []
    for step, rows in zip(range(run.first, run.last + 1), run.batches()):
        ids = torch.tensor(rows, device=device)
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate(step)
        wait()
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in ids.split(run.microbatch):
            objective, loss = forward(part[:, :-1], part[:, 1:])
            (objective / run.microbatches).backward()
            total = total + loss.detach() / run.microbatches
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), t["clip_grad"] or math.inf)
        optimizer.step()
        wait()
        seconds.append(time.perf_counter() - begin)
        losses.append(total.item())
        norms.append(norm.item())
    return seconds, losses, norms


def difference(values, wanted):
    """The largest, relative; NaN counts as the largest of all."""
    relative = [abs(v - w) / abs(w) for v, w in zip(values, wanted)]
    return max(d if math.isfinite(d) else math.inf for d in relative)


class Table:
    def __init__(self, run, json_path):
        self.run, self.json_path = run, json_path
        print("| who | step ms | tokens/s | TFLOP/s | MFU | GiB | last loss | losses differ by | norms differ by |")
        print("|---|---|---|---|---|---|---|---|---|")

    def add(self, who, devices, seconds=None, error=None, **values):
        row = {"table": "PyTorch step", "variant": who}
        if error:
            row["error"] = error
            print(f"| {who} | {error} | | | | | | | |")
        else:
            # The first third is compiling and warming up.
            middle = statistics.median(seconds[len(seconds) // 3:])
            rate = self.run.flops / middle / devices
            row.update(ms=middle * 1e3, tokens_per_second=self.run.tokens / middle, tflops=rate * 1e-12, **values)
            if self.run.peak:
                row["mfu"] = rate / self.run.peak
            show = lambda name, form: format(row[name], form) if name in row else ""
            print(f"| {who} | {show('ms', '.1f')} | {show('tokens_per_second', '.0f')} | {show('tflops', '.4g')} | "
                  f"{show('mfu', '.1%')} | {show('gib', '.1f')} | {show('loss', '.6f')} | "
                  f"{show('loss_difference', '.1e')} | {show('norm_difference', '.1e')} |", flush=True)
        if self.json_path:
            with open(self.json_path, "a") as f:
                f.write(json.dumps(row) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="run directory of compile_and_train")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="of PyTorch; if not given, that of the run")
    parser.add_argument("--variants", default="", help="only those whose names contain a match")
    parser.add_argument("--tolerance", type=float, default=math.inf, help="relative, of losses")
    parser.add_argument("--json", default="", help="append rows to this file as JSON lines")
    options = parser.parse_args()
    run = Run(options.run)
    device = options.device or run.train["device"] or "cpu"
    wanted = [run.steps[step] for step in range(run.first, run.last + 1)]
    compute = "bf16" if "bf16" in run.strategy else run.model["dtype"]
    print(f"steps {run.first} to {run.last} of {run.folder}: {run.tokens} tokens a step, {compute}, "
          f"{run.flops / run.tokens / 1e6:.4g} MFLOP a token, "
          + (f"MFU of {run.peak * 1e-12:.4g} TFLOP/s" if run.peak else "no MFU: the run knows no peak rate"))
    table = Table(run, options.json)
    table.add("compile_and_train", run.devices(), [line["milliseconds"] * 1e-3 for line in wanted], loss=wanted[-1]["lm_loss"])
    try:
        import torch
    except ImportError:
        print("PyTorch is not installed here: nothing to compare with")
        return 0
    if device == "cuda" and not torch.cuda.is_available():
        print("PyTorch sees no CUDA device: nothing to compare with")
        return 0
    torch.backends.cuda.matmul.allow_tf32 = run.train.get("tf32", False)
    print(f"PyTorch {torch.__version__}, "
          + (torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"))
    good = True
    variants = {"eager, grouped_mm": (True, False), "compiled, grouped_mm": (True, True),
                "eager, loop over experts": (False, False)}
    for who, (grouped, compiled) in variants.items():
        if re.search(options.variants, who):
            try:
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                seconds, losses, norms = repeat(torch, run, device, grouped, compiled)
                values = {"loss": losses[-1],
                          "loss_difference": difference(losses, [line["lm_loss"] for line in wanted]),
                          "norm_difference": difference(norms, [line["grad_norm"] for line in wanted])}
                if device == "cuda":
                    values["gib"] = torch.cuda.max_memory_allocated() / 2**30
                good = good and values["loss_difference"] <= options.tolerance
                table.add(who, 1, seconds, **values)
            except Exception as e:  # a variant that this PyTorch or device cannot do
                table.add(who, 1, error=(str(e).splitlines() or [type(e).__name__])[0])
            if device == "cuda":
                torch.cuda.empty_cache()
    if not good:
        print(f"error: losses differ by more than {options.tolerance:g}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
