#!/usr/bin/env bash
# The bundle as a stranger meets it: in an empty folder, with an empty environment.
set -uo pipefail

archive=$PWD/$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0
fail() {
  echo "FAILED: $*"
  failures=$((failures + 1))
}

bytes=$(stat -Lc %s "$archive")
echo "archive: $bytes bytes"
((bytes < 40 * 1024 * 1024)) || fail "the archive has more than 40 MiB"

tar -C "$work" -xJf "$archive" || fail "it does not unpack"
bundle=$work/switchyard-gpu
clean=(env -i HOME=/nonexistent PATH=/usr/bin:/bin OUT="$work/out")

# Whatever a program loads is of the bundle, of the C library, or of CUDA.
for f in "$bundle"/bin/* "$bundle"/lib/*; do
  while read -r name path; do
    base=${name##*/}
    case $base in
      linux-vdso.so* | ld-linux-x86-64.so* | libc.so* | libm.so* | libpthread.so* | libdl.so* | librt.so* | libresolv.so*) ;;
      libcu* | libnv* | libnccl*) ;;
      *) [[ $path == "$bundle"/* ]] || fail "${f##*/} loads $base from $path" ;;
    esac
  done < <("${clean[@]}" LD_LIBRARY_PATH="$bundle/lib" ldd "$f" 2>&1 | sed -nE 's/^\s*(\S+) => (not found|\S+).*/\1 \2/p')
done
# Also without LD_LIBRARY_PATH: what links CUDA finds the others beside itself.
"${clean[@]}" ldd "$bundle/bin/nccl_test" | sed -nE 's/^\s*(lib(stdc|absl|gtest)\S*) => (\S+).*/\1 \3/p' | while read -r name path; do
  [[ $path == "$bundle/bin/../lib/$name" || $path == "$bundle/lib/$name" ]] || echo "$name from $path"
done >"$work/strangers.txt"
[[ -s $work/strangers.txt ]] && fail "nccl_test loads $(tr '\n' ' ' <"$work/strangers.txt")by itself"

"${clean[@]}" "$bundle/run.sh" check >"$work/check.txt" 2>&1 || fail "run.sh check"
cat "$work/check.txt"
grep -q '^glibc' "$work/check.txt" || fail "run.sh check says nothing of glibc"
grep -q '^driver' "$work/check.txt" || fail "run.sh check says nothing of the driver"

"${clean[@]}" "$bundle/run.sh" test cuda >"$work/test.txt" 2>&1 || fail "run.sh test"
cat "$work/test.txt"
if [[ ! -e /proc/driver/nvidia/version ]]; then
  grep -q 'skipped.*no CUDA device' "$work/test.txt" || fail "the tests do not say why they are skipped"
fi
grep -q '"test": "cuda_device_test"' "$work/out/results.jsonl" || fail "no JSON line of a test"

"${clean[@]}" "$bundle/run.sh" train --strategy=dp=2 --num_layers=2 --hidden_size=64 --num_attention_heads=4 \
  --ffn_hidden_size=128 --num_experts=4 --seq_length=64 --train_iters=2 \
  >"$work/train.txt" 2>&1 || fail "compile_and_train on the CPU"
tail -n 15 "$work/train.txt"
grep -q 'lm loss:' "$work/train.txt" || fail "compile_and_train shows no loss"

"${clean[@]}" "$bundle/run.sh" bench --device=cpu --dtype=f32 --tiny >"$work/bench.txt" 2>&1 || fail "the benchmarks on the CPU"
grep -q '"layer":"mixtral-like"' "$work/out/bench.jsonl" || fail "no JSON line of a layer"
if [[ ! -e /proc/driver/nvidia/version ]]; then
  "${clean[@]}" "$bundle/run.sh" bench >"$work/bench.txt" 2>&1 && fail "the benchmarks pass without a GPU"
  grep -q 'error: no CUDA device' "$work/bench.txt" || fail "the benchmarks do not say that there is no GPU"
fi

# A step on the CPU, with a peak rate of which 100% would be 10 MFLOP in a millisecond.
"${clean[@]}" "$bundle/run.sh" step --device=cpu --strategy=dp=1 --num_layers=2 --hidden_size=64 --num_attention_heads=4 \
  --vocab_size=256 --seq_length=64 --num_experts=4 --moe_router_topk=2 --moe_ffn_hidden_size=32 \
  --global_batch_size=4 --micro_batch_size=2 --train_iters=4 --save_interval=1 --peak_tflops=0.01 \
  >"$work/step.txt" 2>&1 || fail "a step on the CPU"
grep -q 'MFU: ' "$work/step.txt" || fail "compile_and_train shows no MFU"
if "${clean[@]}" python3 -c '' 2>/dev/null; then
  grep -q '^| compile_and_train | .*% |' "$work/step.txt" || fail "pytorch_step.py does not show the run that it is about"
  grep -qE '^(PyTorch is not installed|\| eager)' "$work/step.txt" || fail "pytorch_step.py does not say what PyTorch does"
fi

"${clean[@]}" "$bundle/run.sh" nonsense >"$work/usage.txt" 2>&1
(($? == 2)) || fail "an unknown command is not refused"
grep -q 'run.sh sanitize' "$work/usage.txt" || fail "no usage"

((failures == 0)) && echo "all good"
exit "$failures"
