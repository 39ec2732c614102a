"""Finds a CUDA toolkit where the build is to use one. Else the repository is empty but loads, so that all else builds.

    load("//third_party/cuda:configure.bzl", "cuda_configure")

    cuda_configure(name = "local_cuda")

A build uses CUDA with `--config=cuda`, which sets SWITCHYARD_CUDA=1 (.bazelrc); the toolkit is that of $CUDA_HOME, or
/usr/local/cuda. `@local_cuda//:defs.bzl` gives HAVE_CUDA and CUDA_HOME; with HAVE_CUDA there are also the targets headers,
cudart, cublas, cublaslt, cudnn, nccl and nvrtc.
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
    have = ctx.os.environ.get("SWITCHYARD_CUDA", "0") == "1"
    if have and not ctx.path(home + "/bin/nvcc").exists:
        fail("--config=cuda: there is no %s/bin/nvcc; CUDA_HOME names the folder of a toolkit" % home)
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
    environ = ["CUDA_HOME", "SWITCHYARD_CUDA"],
    local = True,
)
