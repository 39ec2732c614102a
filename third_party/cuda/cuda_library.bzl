"""cuda_library: .cu sources compiled by nvcc and linked as a cc_library. Not defined where there is no toolkit.

    cuda_library(name = "scale_cuda", srcs = ["scale.cu"], hdrs = ["scale.h"])

The objects are linked statically: in a shared library the static CUDA runtime would be lost, and with it symbols that
nvcc's own stubs need.
"""

load("@local_cuda//:defs.bzl", "CUDA_HOME", "HAVE_CUDA")

_ARCHITECTURES = ["-gencode=arch=compute_90a,code=sm_90a"]

_COMMAND = "{home}/bin/nvcc -std=c++20 -O3 --expt-relaxed-constexpr -Xcompiler -fPIC -I. {architectures} " + \
           "-c $(location {src}) -o $@"

def cuda_library(name, srcs, hdrs = [], deps = [], **kwargs):
    """srcs: .cu files; hdrs: headers that they and users include; deps: of the resulting cc_library."""
    if not HAVE_CUDA:
        return
    objects = []
    for src in srcs:
        out = src.replace(".cu", ".cu.o")
        objects.append(out)
        native.genrule(
            name = name + "_" + src.replace(".", "_"),
            srcs = [src] + hdrs,
            outs = [out],
            cmd = _COMMAND.format(home = CUDA_HOME, architectures = " ".join(_ARCHITECTURES), src = src),
            message = "nvcc " + src,
        )
    native.cc_library(
        name = name,
        srcs = objects,
        hdrs = hdrs,
        linkstatic = True,
        deps = deps + ["@local_cuda//:cudart"],
        **kwargs
    )
