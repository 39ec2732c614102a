"""Finds a CUDA toolkit. Without one the repository is empty but loads, so that everything else builds.

    load("//third_party/cuda:configure.bzl", "cuda_configure")

    cuda_configure(name = "local_cuda")

Looks in $CUDA_HOME, then /usr/local/cuda. `@local_cuda//:defs.bzl` gives HAVE_CUDA and CUDA_HOME; with a toolkit there
are also the targets headers, cudart, cublas, cublaslt, cudnn, nccl and nvrtc. To build as if there were none:
`--repo_env=CUDA_HOME=/nonexistent`.
"""

# Target -> library. The runtime is linked statically, so that a binary needs only the driver to say "no device".
_LIBRARIES = {
    "cudart": "cudart_static",
    "cublaslt": "cublasLt",
    "cublas": "cublas",
    "nvrtc": "nvrtc",
}

def _cuda_configure_impl(ctx):
    home = ctx.os.environ.get("CUDA_HOME", "/usr/local/cuda")
    have = ctx.path(home + "/bin/nvcc").exists
    ctx.file("defs.bzl", "HAVE_CUDA = %r\nCUDA_HOME = %r\n" % (have, home))

    lines = ['package(default_visibility = ["//visibility:public"])']
    if have:
        ctx.symlink(home + "/include", "include")
        lines.append('cc_library(name = "headers", hdrs = glob(["include/**"]), includes = ["include"])')
        # Binaries also look beside themselves, for themselves and for what they load (an rpath of the old kind):
        # tools/gpu packs them.
        search = ["-L%s/lib64" % home, "-Wl,--disable-new-dtags,-rpath,$$ORIGIN/../lib,-rpath,%s/lib64" % home]
        for name, library in _LIBRARIES.items():
            linkopts = search + ["-l" + library]
            if name == "cudart":
                linkopts += ["-ldl", "-lrt", "-lpthread"]
            lines.append("cc_library(name = %r, deps = [':headers'], linkopts = %r)" % (name, linkopts))

        # Loaded when the program runs (moe/comm/nccl/nccl_api.h, moe/kernels/cuda/cudnn_api.h), so that it starts
        # without, and looked for in the same folders.
        lines.append('cc_library(name = "nccl", deps = [":headers"], linkopts = ["-ldl"])')
        lines.append('cc_library(name = "cudnn", linkopts = %r)' % (search + ["-ldl"]))
    ctx.file("BUILD", "\n".join(lines) + "\n")

cuda_configure = repository_rule(
    implementation = _cuda_configure_impl,
    environ = ["CUDA_HOME"],
    local = True,
)
