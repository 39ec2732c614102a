#!/usr/bin/env bash
# Packs the GPU bundle: pack.sh ARCHIVE.tar.xz KIND=FILE...
#
# KIND is bin (an ELF program), test (one that is a test), lib (a library that programs load by name), or file (anything, to
# the top folder; "file/SUB=..." to a folder of that name). All are stripped; the shared libraries that they are linked to go
# to lib/, too, except those of glibc and CUDA, which the target machine has. Same inputs, same archive.
set -euo pipefail

archive=$1
shift
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
top=$stage/switchyard-gpu
mkdir -p "$top/bin" "$top/lib"

# Sonames that are the machine's: of the C library, and of CUDA and its driver.
of_libc='^(linux-vdso|ld-linux-x86-64|libc|libm|libpthread|libdl|librt|libresolv|libutil|libanl|libnss_[a-z]+)\.so'
of_cuda='^(libcuda|libcudart|libcublas|libcublasLt|libcudnn[a-z_]*|libnvrtc|libnvrtc-builtins|libnvJitLink|libnccl|libnvidia-ml)\.so'

add_program() {
  local name
  name=$(basename "$1")
  cp -L "$1" "$top/bin/$name"
  chmod 755 "$top/bin/$name"
  strip --strip-all "$top/bin/$name"
  echo "$top/bin/$name" >>"$stage/linked"
}
add_library() {
  local name
  name=$(basename "$1")
  cp -L "$1" "$top/lib/$name"
  echo "$top/lib/$name" >>"$stage/linked"
}

for entry in "$@"; do
  kind=${entry%%=*}
  file=${entry#*=}
  case $kind in
    bin) add_program "$file" ;;
    lib) add_library "$file" ;;
    test)
      add_program "$file"
      basename "$file" >>"$top/tests.txt"
      ;;
    file | file/*)
      folder=$top/${kind#file}
      mkdir -p "$folder"
      cp -L "$file" "$folder/"
      ;;
    *)
      echo "pack.sh: '$entry' is neither bin, test, lib nor file" >&2
      exit 1
      ;;
  esac
done
chmod 755 "$top"/*.sh

: >"$stage/cuda"
# "name => path (address)", or "name => not found" for what only the target machine has.
while read -r name path; do
  base=${name##*/}
  if [[ $base =~ $of_cuda ]]; then
    echo "$base" >>"$stage/cuda"
  elif [[ ! $base =~ $of_libc ]]; then
    if [[ ! -e $path ]]; then
      echo "pack.sh: nothing has the library $base" >&2
      exit 1
    fi
    [[ -e $top/lib/$base ]] || cp -L "$path" "$top/lib/$base"
  fi
done < <(while read -r file; do ldd "$file"; done <"$stage/linked" |
  sed -nE 's/^\s*(\S+) => (not found|\S+).*/\1 \2/p' | sort -u)
chmod 644 "$top"/lib/*
strip --strip-unneeded "$top"/lib/*

# NCCL is loaded when it is wanted.
sort -u "$stage/cuda" >"$top/cuda_libraries.txt"
# The newest version of glibc's symbols that anything here asks for.
for f in "$top"/bin/* "$top"/lib/*; do objdump -T "$f" 2>/dev/null || true; done |
  grep -oE 'GLIBC_[0-9]+\.[0-9]+' | sed 's/GLIBC_//' | sort -uV | tail -n 1 >"$top/glibc.txt"

tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$stage" -cf - switchyard-gpu |
  xz --lzma2=preset=1,dict=64MiB >"$archive"
