#!/usr/bin/env python3
"""The training step of step.textproto in PyTorch, to compare with: same model, same math, tokens/s of each variant.

    python3 pytorch_step.py [--config=step.textproto] [--json=FILE] [--steps=20] [--print_model]

Model: embedding, per layer RMSNorm, grouped-query causal attention with rotary positions, RMSNorm, dropless top-k
routing (softmax over all experts, weights normalised over the k), SwiGLU experts, balance loss; final norm, head.
Weights and moments in f32, compute in bf16, router and losses in f32, gradient clipping at 1, fused AdamW: as
compile_and_train has it. Initial weights have the same distribution, not the same numbers.

Variants: eager and compiled, each with torch._grouped_mm where PyTorch has it and with a loop over experts; what a
PyTorch cannot do is shown as such. FLOPs per token: 6 x active matmul parameters + 12 x layers x heads x head_dim x
sequence / 2 (causal), as docs/benchmarks.md counts; no recomputation.
"""

import argparse
import json
import math
import os
import re
import sys
import time


def read_config(path):
    """name: value pairs of a text protobuf; nested names are unique there."""
    text = re.sub(r"#.*", "", open(path).read())
    values = {}
    for name, value in re.findall(r"(\w+)\s*:\s*(\"[^\"]*\"|[\w.+-]+)", text):
        values[name] = value.strip('"') if value[0] == '"' else {"true": True, "false": False}.get(value, value)
    number = lambda name, default=0: type(default)(float(values.get(name, default)))
    c = {
        "layers": number("num_layers"), "hidden": number("hidden_size"), "heads": number("num_attention_heads"),
        "vocab": number("vocab_size"), "sequence": number("seq_length"), "experts": number("num_experts"),
        "top_k": number("moe_router_topk"), "ffn": number("moe_ffn_hidden_size"), "batch": number("global_batch_size"),
        "micro_batch": number("micro_batch_size"), "aux": number("aux_loss_coeff", 0.0),
        "theta": number("rope_theta", 10000.0), "std": number("init_std", 0.02), "normalize": bool(values.get("norm_topk_prob")),
    }
    c["kv_heads"] = number("num_key_value_heads") or c["heads"]
    c["head_dim"] = number("head_dim") or c["hidden"] // c["heads"]
    missing = [name for name in ("layers", "hidden", "heads", "vocab", "sequence", "experts", "top_k", "ffn", "batch", "micro_batch") if c[name] < 1]
    if missing:
        sys.exit(f"{path}: no {', '.join(missing)}")
    if c["batch"] % c["micro_batch"]:
        sys.exit(f"{path}: {c['batch']} samples are not whole microbatches of {c['micro_batch']}")
    attention = c["hidden"] * c["head_dim"] * (2 * c["heads"] + 2 * c["kv_heads"])
    expert = 3 * c["hidden"] * c["ffn"]
    router = c["hidden"] * c["experts"]
    c["parameters"] = c["layers"] * (attention + expert * c["experts"] + router + 2 * c["hidden"]) + 2 * c["vocab"] * c["hidden"] + c["hidden"]
    active = c["layers"] * (attention + expert * c["top_k"] + router) + c["vocab"] * c["hidden"]
    c["flops_per_token"] = 6 * active + 6 * c["layers"] * c["heads"] * c["head_dim"] * c["sequence"]
    return c


def build(torch, c, grouped):
    nn, F = torch.nn, torch.nn.functional

    def norm(x, weight):
        y = x.float()
        return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-5) * weight).to(x.dtype)

    def rotate(x, cos, sin):
        half = x.shape[-1] // 2
        a, b = x[..., :half].float(), x[..., half:].float()
        return torch.cat((a * cos - b * sin, a * sin + b * cos), -1).to(x.dtype)

    def parameter(*dims):
        return nn.Parameter(torch.randn(*dims, device="cuda") * c["std"])

    def experts_product(rows, weight, ends):
        if grouped:
            return torch._grouped_mm(rows, weight, offs=ends)
        parts = torch.split(rows, torch.diff(ends, prepend=ends.new_zeros(1)).tolist())
        return torch.cat([part @ w for part, w in zip(parts, weight)])

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            h, d = c["hidden"], c["head_dim"]
            self.attention_norm = nn.Parameter(torch.ones(h, device="cuda"))
            self.mlp_norm = nn.Parameter(torch.ones(h, device="cuda"))
            self.qkv = parameter(h, d * (c["heads"] + 2 * c["kv_heads"]))
            self.out = parameter(d * c["heads"], h)
            self.router = parameter(h, c["experts"])
            self.gate = parameter(c["experts"], h, c["ffn"])
            self.up = parameter(c["experts"], h, c["ffn"])
            self.down = parameter(c["experts"], c["ffn"], h)

        def forward(self, x, cos, sin):
            b, s, h = x.shape
            d, n, kv = c["head_dim"], c["heads"], c["kv_heads"]
            q, k, v = (norm(x, self.attention_norm) @ self.qkv.bfloat16()).split((n * d, kv * d, kv * d), -1)
            q = rotate(q.view(b, s, n, d).transpose(1, 2), cos, sin)
            k = rotate(k.view(b, s, kv, d).transpose(1, 2), cos, sin)
            v = v.view(b, s, kv, d).transpose(1, 2)
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=n != kv)
            x = x + o.transpose(1, 2).reshape(b, s, n * d) @ self.out.bfloat16()

            t = norm(x, self.mlp_norm).view(b * s, h)
            probability = (t.float() @ self.router).softmax(-1)
            weight, expert = probability.topk(c["top_k"], -1)
            if c["normalize"]:
                weight = weight / weight.sum(-1, keepdim=True)
            order = expert.flatten().argsort(stable=True)
            token = order // c["top_k"]
            count = torch.zeros(c["experts"], dtype=torch.int64, device=t.device).scatter_add_(
                0, expert.flatten(), torch.ones_like(expert.flatten()))
            ends = count.cumsum(0).to(torch.int32)
            rows = t[token]
            a = F.silu(experts_product(rows, self.gate.bfloat16(), ends)) * experts_product(rows, self.up.bfloat16(), ends)
            y = experts_product(a, self.down.bfloat16(), ends) * weight.flatten()[order].unsqueeze(-1).to(a.dtype)
            x = x + torch.zeros_like(t).index_add_(0, token, y).view(b, s, h)
            share = count.float() * c["experts"] / (c["top_k"] * b * s)
            return x, (share * probability.mean(0)).sum()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = parameter(c["vocab"], c["hidden"])
            self.layers = nn.ModuleList(Layer() for _ in range(c["layers"]))
            self.norm = nn.Parameter(torch.ones(c["hidden"], device="cuda"))
            self.head = parameter(c["vocab"], c["hidden"])
            position = torch.arange(c["sequence"], device="cuda").float()
            frequency = c["theta"] ** (-torch.arange(0, c["head_dim"], 2, device="cuda").float() / c["head_dim"])
            angle = position[:, None] * frequency
            self.register_buffer("cos", angle.cos(), persistent=False)
            self.register_buffer("sin", angle.sin(), persistent=False)

        def forward(self, ids, labels):
            x = self.embedding[ids].bfloat16()
            balance = 0.0
            for layer in self.layers:
                x, aux = layer(x, self.cos, self.sin)
                balance = balance + aux
            logits = norm(x, self.norm) @ self.head.bfloat16().T
            loss = F.cross_entropy(logits.view(-1, c["vocab"]).float(), labels.view(-1))
            return loss + c["aux"] * balance, loss

    return Model()


def measure(torch, c, grouped, compiled, steps):
    torch.manual_seed(1)
    model = build(torch, c, grouped)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True)
    forward = torch.compile(model) if compiled else model
    parts = c["batch"] // c["micro_batch"]
    ids = torch.randint(c["vocab"], (parts, c["micro_batch"], c["sequence"] + 1), device="cuda")
    seconds, last = [], 0.0
    for step in range(5 + steps):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        for part in ids:
            objective, loss = forward(part[:, :-1], part[:, 1:])
            (objective / parts).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        torch.cuda.synchronize()
        if step >= 5:  # compiling and warming up
            seconds.append(time.perf_counter() - begin)
        last = loss.item()
    if not math.isfinite(last):
        raise RuntimeError(f"loss {last}")
    seconds.sort()
    return seconds[len(seconds) // 2], last, torch.cuda.max_memory_allocated()


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=os.path.join(here, "step.textproto"))
    parser.add_argument("--json", default="")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--print_model", action="store_true", help="say what would be measured, and stop")
    options = parser.parse_args()
    c = read_config(options.config)
    print(f"PyTorch: {c['parameters'] / 1e9:.2f} billion parameters, {c['batch']} x {c['sequence']} tokens a step, "
          f"{c['flops_per_token'] / 1e9:.2f} GFLOP per token")
    if options.print_model:
        return 0
    try:
        import torch
    except ImportError:
        print("PyTorch is not installed here: nothing to compare with")
        return 0
    if not torch.cuda.is_available():
        print("PyTorch sees no CUDA device: nothing to compare with")
        return 0
    torch.backends.cuda.matmul.allow_tf32 = True
    tokens = c["batch"] * c["sequence"]
    print(f"{torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}")
    print("| variant | step ms | tokens/s | TFLOP/s | GiB | loss |\n|---|---|---|---|---|---|")
    for grouped in (True, False):
        for compiled in (False, True):
            name = ("compiled" if compiled else "eager") + (", grouped_mm" if grouped else ", loop over experts")
            row = {"table": "PyTorch step", "variant": name}
            try:
                if grouped and not hasattr(torch, "_grouped_mm"):
                    raise RuntimeError("this PyTorch has no _grouped_mm")
                torch.cuda.reset_peak_memory_stats()
                seconds, loss, peak = measure(torch, c, grouped, compiled, options.steps)
                rate = tokens / seconds
                row.update(ms=seconds * 1e3, tokens_per_second=rate, tflops=rate * c["flops_per_token"] * 1e-12,
                           peak_bytes=peak, loss=loss)
                print(f"| {name} | {seconds * 1e3:.1f} | {rate:.0f} | {row['tflops']:.1f} | {peak / 2**30:.1f} | {loss:.4f} |")
            except Exception as e:  # a variant that this PyTorch or card cannot do
                row["error"] = str(e).splitlines()[0] if str(e) else type(e).__name__
                print(f"| {name} | {row['error']} | | | | |")
            torch.cuda.empty_cache()
            if options.json:
                with open(options.json, "a") as f:
                    f.write(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
