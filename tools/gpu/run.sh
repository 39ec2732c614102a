#!/usr/bin/env bash
# Runs what this bundle holds on a machine with an NVIDIA driver and CUDA's libraries; nothing is installed.
#
#   ./run.sh check                what is here: driver, GPUs, libraries, tools
#   ./run.sh test [PATTERN]       the tests whose name contains PATTERN; those of real devices are skipped without one
#   ./run.sh sanitize [PATTERN]   the same under compute-sanitizer: memcheck, racecheck, synccheck, initcheck
#   ./run.sh bench [ARGUMENTS]    the benchmarks (bin/bench --help)
#   ./run.sh step [ARGUMENTS]     steps of step.textproto by compile_and_train, and the same in PyTorch where it is installed
#   ./run.sh train [ARGUMENTS]    compile_and_train on the text of the bundle
#   ./run.sh hostid [RANKS]       several NCCL ranks on one GPU, each taken for a host of its own (NCCL_HOSTID)
#   ./run.sh all                  check, test, bench, step
#
# Environment: OUT (folder for logs and results; default ./out), PYTHON (an interpreter whose environment may
# have CUDA's libraries and PyTorch; default python3), CUDA_HOME, LD_LIBRARY_PATH.
# Exit code 0 if all that could run has passed.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${OUT:-$here/out}
python=${PYTHON:-python3}
mkdir -p "$out"

say() { printf '%s\n' "$*"; }

# Folders that may have CUDA's libraries, best first.
library_folders() {
  tr ':' '\n' <<<"${LD_LIBRARY_PATH:-}"
  [[ -n ${CUDA_HOME:-} ]] && printf '%s\n' "$CUDA_HOME/lib64" "$CUDA_HOME/lib"
  printf '%s\n' /usr/local/cuda/lib64 /usr/local/cuda-*/lib64 /usr/lib/x86_64-linux-gnu /usr/lib64
  # A Python environment has them in nvidia/*/lib, the newer ones in nvidia/cu13/lib.
  if command -v "$python" >/dev/null; then
    "$python" - 2>/dev/null <<'PY'
import glob, os, site, sys
roots = list(getattr(site, "getsitepackages", list)()) + [site.getusersitepackages()] + sys.path
seen = set()
for root in roots:
    for folder in sorted(glob.glob(os.path.join(root, "nvidia", "*", "lib"))):
        if folder not in seen:
            seen.add(folder)
            print(folder)
PY
  fi
}

# Sets LD_LIBRARY_PATH to what the programs need, and `missing` to what nobody has.
find_libraries() {
  local -a folders found=() needed
  local name folder place
  mapfile -t folders < <(library_folders)
  mapfile -t needed < <(cat "$here/cuda_libraries.txt"; echo libnccl.so.2; echo libcudnn.so.9)
  missing=()
  for name in "${needed[@]}"; do
    place=
    for folder in "${folders[@]}"; do
      if [[ -n $folder && -e $folder/$name ]]; then
        place=$folder
        break
      fi
    done
    if [[ -n $place ]]; then
      [[ " ${found[*]-} " == *" $place "* ]] || found+=("$place")
    elif ! ldconfig -p 2>/dev/null | grep -q "^\s*$name "; then
      missing+=("$name")
    fi
  done
  local joined
  joined=$(IFS=:; echo "${found[*]-}")
  # The bundle's own come first, except that CUDA's are never among them.
  export LD_LIBRARY_PATH=$here/lib${joined:+:$joined}
}

driver_version() { sed -nE 's/.*Module +([0-9.]+).*/\1/p' /proc/driver/nvidia/version 2>/dev/null | head -n 1; }

check() {
  say "bundle     $here"
  local have needs
  have=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed 's/glibc //')
  needs=$(cat "$here/glibc.txt")
  if [[ -n $have && $(printf '%s\n%s\n' "$needs" "$have" | sort -V | head -n 1) != "$needs" ]]; then
    say "glibc      $have; the programs need $needs: use a newer system or a container"
    return 1
  fi
  say "glibc      ${have:-unknown}, needed $needs"
  local driver
  driver=$(driver_version)
  say "driver     ${driver:-none: tests of real devices are skipped}"
  if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=index,name,memory.total,driver_version --format=csv,noheader 2>/dev/null |
      sed 's/^/GPU        /'
  fi
  say "libraries  $LD_LIBRARY_PATH"
  local name
  for name in ${missing[@]+"${missing[@]}"}; do
    if [[ $name == libnccl.so.2 ]]; then
      say "missing    $name: ranks of several processes cannot exchange data between GPUs (package nvidia-nccl-cu13)"
    elif [[ $name == libcudnn.so.9 ]]; then
      say "missing    $name: no --cudnn_attention (package nvidia-cudnn-cu13)"
    else
      say "missing    $name: what links it does not start (CUDA toolkit, or packages nvidia-cublas, nvidia-cuda-nvrtc)"
    fi
  done
  say "sanitizer  $(sanitizer || echo 'none: ./run.sh sanitize does nothing')"
  say "PyTorch    $(torch_version || echo "none in $python: ./run.sh step shows this project alone")"
}

sanitizer() {
  local folder
  for folder in ${CUDA_HOME:+"$CUDA_HOME/bin"} /usr/local/cuda/bin /usr/local/cuda-*/bin; do
    [[ -x $folder/compute-sanitizer ]] && { echo "$folder/compute-sanitizer"; return; }
  done
  command -v compute-sanitizer
}
torch_version() { "$python" -c 'import torch; print(torch.__version__, "for CUDA", torch.version.cuda)' 2>/dev/null; }

# run_tests PATTERN PREFIX...: each test with the words PREFIX before it; a line for each, and a JSON line.
run_tests() {
  local pattern=$1
  shift
  local test log code passed skipped failed bad=0 tag=${TAG:-test}
  while read -r test; do
    [[ $test == *"$pattern"* ]] || continue
    log=$out/$tag.$test.log
    (cd "$here" && exec ${1+"$@"} "bin/$test" --gtest_color=no) >"$log" 2>&1
    code=$?
    passed=$(grep -c '^\[       OK \]' "$log")
    skipped=$(grep -cE '^\[  SKIPPED \] [^ ]+ \(' "$log")
    failed=$(grep -cE '^\[  FAILED  \] [^ ]+.* \([0-9]+ ms\)$' "$log")
    ((code == 0)) || bad=1
    printf '%-34s %4d passed %4d skipped %4d failed%s\n' "$test" "$passed" "$skipped" "$failed" \
      "$( ((code == 0)) || echo ", exit code $code: see $log")"
    ((skipped == 0)) || grep -A 1 ': Skipped$' "$log" | grep -v -e ': Skipped$' -e '^--$' | sort | uniq -c |
      sed -E 's/^ *([0-9]+) /    skipped \1: /'
    printf '{"%s": "%s", "passed": %d, "skipped": %d, "failed": %d, "exit": %d}\n' \
      "$tag" "$test" "$passed" "$skipped" "$failed" "$code" >>"$out/results.jsonl"
  done <"$here/tests.txt"
  return $bad
}

sanitize() {
  local program tool bad=0
  program=$(sanitizer) || { say "there is no compute-sanitizer here; it comes with the CUDA toolkit"; return 0; }
  for tool in memcheck racecheck synccheck initcheck; do
    say "compute-sanitizer --tool $tool"
    TAG=$tool run_tests "${1:-}" "$program" --tool "$tool" --error-exitcode 66 --target-processes all \
      --print-limit 20 || bad=1
  done
  return $bad
}

bench() {
  (cd "$here" && bin/bench --json="$out/bench.jsonl" "$@") 2>&1 | tee "$out/bench.log"
  return "${PIPESTATUS[0]}"
}

step() {
  local bad=0
  rm -rf "$out/step"
  (cd "$here" && bin/compile_and_train --device=cuda --config="$here/step.textproto" --strategy="dp=1 bf16" --eval_interval=0 \
    --data_path="$here/text.txt" --run_dir="$out/step" "$@") 2>&1 | tee "$out/step.log"
  ((PIPESTATUS[0] == 0)) || return 1
  grep '"kind":"train"' "$out/step/metrics.jsonl" 2>/dev/null | tail -n 1 >>"$out/bench.jsonl"
  # Libraries of the bundle and of the machine stay away from PyTorch's own.
  if command -v "$python" >/dev/null; then
    env -u LD_LIBRARY_PATH "$python" "$here/pytorch_step.py" --run="$out/step" --json="$out/bench.jsonl" 2>&1 |
      tee "$out/pytorch.log"
    ((PIPESTATUS[0] == 0)) || bad=1
  fi
  return "$bad"
}

train() {
  (cd "$here" && bin/compile_and_train --data_path="$here/text.txt" --run_dir="$out/run" "$@")
}

# NCCL refuses two ranks on one GPU of a host. A rank with a NCCL_HOSTID of its own counts as another host, and
# goes by the socket transport. Wants a compile_and_train whose processes meet by NCCL, see docs/gpu.md.
hostid() {
  local ranks=${1:-2} r bad=0 port=$((20000 + RANDOM % 20000))
  local -a children=()
  for ((r = 0; r < ranks; ++r)); do
    (cd "$here" && exec env RANK=$r LOCAL_RANK=$r WORLD_SIZE="$ranks" LOCAL_WORLD_SIZE="$ranks" \
      MASTER_ADDR=127.0.0.1 MASTER_PORT=$port CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}" \
      NCCL_HOSTID="switchyard-$r" NCCL_P2P_DISABLE=1 NCCL_SHM_DISABLE=1 NCCL_SOCKET_IFNAME=lo NCCL_DEBUG=WARN \
      bin/compile_and_train --device=cuda --strategy="dp=$ranks ep=$ranks" --train_iters=4 \
      --data_path="$here/text.txt" --run_dir="$out/hostid") >"$out/hostid.$r.log" 2>&1 &
    children+=($!)
  done
  for ((r = 0; r < ranks; ++r)); do
    wait "${children[r]}" || bad=1
  done
  cat "$out/hostid.0.log"
  if ((bad)); then say "$ranks NCCL ranks on one GPU: failed, see $out/hostid.*.log"; else say "$ranks NCCL ranks on one GPU: passed"; fi
  return $bad
}

command=${1:-check}
shift || true
declare -a missing
find_libraries
case $command in
  check) check ;;
  test) run_tests "${1:-}" ;;
  sanitize) sanitize "$@" ;;
  bench) bench "$@" ;;
  step) step "$@" ;;
  train) train "$@" ;;
  hostid) hostid "$@" ;;
  all)
    bad=0
    check || exit 1
    run_tests "" || bad=1
    if [[ -n $(driver_version) ]]; then
      bench "$@" || bad=1
      step || bad=1
    fi
    exit $bad
    ;;
  *)
    sed -n '2,/^set /p' "${BASH_SOURCE[0]}" | sed -n 's/^# \{0,1\}//p' >&2
    exit 2
    ;;
esac
