#!/usr/bin/env bash
# Prepares a Debian 12 machine: the packages that the build needs, and the English text that the default run trains on.
# Safe to repeat; quick when everything is there. Runs as root, or with sudo. With --fuzz, also clang, for --config=fuzz.
set -euo pipefail

packages=(
  # Bazel and the rule sets it asks for even offline
  bazel-bootstrap bazel-rules-java bazel-rules-proto bazel-platforms bazel-skylib
  # compiler and libraries
  g++ pkg-config libabsl-dev libprotobuf-dev protobuf-compiler libgoogle-glog-dev
  libboost-dev libboost-context-dev libssl-dev
  libdnnl-dev libopenblas-dev libhwy-dev libgloo-dev nlohmann-json3-dev libxxhash-dev libzstd-dev libre2-dev
  # tests, benchmarks, drawings, formatting
  libgtest-dev libgmock-dev libbenchmark-dev graphviz clang-format
  # the text: the King James Bible, 4 MB of plain English in the public domain
  bible-kjv bible-kjv-text
)

# 230 MB that nothing else needs.
if [[ "${1:-}" == --fuzz ]]; then packages+=(clang libclang-rt-14-dev); fi

missing=()
installed=" $({ dpkg-query -W -f '${Package} ${Status}\n' "${packages[@]}" 2>/dev/null || true; } |
  sed -n 's/ install ok installed$//p' | tr '\n' ' ')"
for package in "${packages[@]}"; do
  [[ "$installed" == *" $package "* ]] || missing+=("$package")
done

if ((${#missing[@]})); then
  as_root=()
  if ((EUID != 0)); then
    if ! command -v sudo >/dev/null; then
      echo "setup.sh: run it as root, or install sudo; missing packages: ${missing[*]}" >&2
      exit 1
    fi
    as_root=(sudo)
  fi
  echo "setup.sh: installing ${missing[*]}"
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -q </dev/null
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
    "${missing[@]}" </dev/null
fi

# One verse a line, without its reference, and an empty line between chapters: "Ge1:3 And God said" -> "And God said".
folder="${XDG_CACHE_HOME:-$HOME/.cache}/switchyard"
corpus="$folder/english.txt"
if [[ ! -s "$corpus" ]]; then
  mkdir -p "$folder"
  partial="$(mktemp "$folder/english.txt.XXXXXX")"
  trap 'rm -f "$partial"' EXIT
  # -f turns formatting off: one verse a line, each with its reference.
  (cd / && /usr/bin/bible -f 'Gen1:1-Rev22:21' </dev/null) | LC_ALL=C awk '
    {
      chapter = $1
      sub(/:[0-9]+$/, "", chapter)
      if (NR > 1 && chapter != last) print ""
      last = chapter
      sub(/^[^ ]+ +/, "")
      print
    }' >"$partial"
  bytes="$(stat -c %s "$partial")"
  if ((bytes < 3000000)); then
    echo "setup.sh: the text of bible-kjv has only $bytes bytes; expected about 4,100,000" >&2
    exit 1
  fi
  chmod 644 "$partial"
  mv "$partial" "$corpus"
  trap - EXIT
fi
echo "setup.sh: ready; text $corpus, $(stat -c %s "$corpus") bytes"
