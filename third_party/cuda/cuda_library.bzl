"""cuda_library: sources for CUDA, compiled twice.

    cuda_library(
        name = "scale",
        srcs = ["scale.cu", "launch.cc"],
        hdrs = ["scale.h"],
        deps = ["//moe/base:status"],           # of both
        cuda_deps = ["//moe/device/cuda"],  # cuda libraries: "x" of "scale", "x_emulated" of "scale_emulated"
        cuda_libs = ["cublaslt"],                # of the toolkit: targets of @local_cuda and of moe/testing/emulated
    )

makes `scale`, by nvcc (.cu) and the host's compiler (.cc) against the toolkit, only with --config=cuda; and
`scale_emulated`, by the host's compiler against moe/testing/emulated, always. A binary links one of the two worlds.
cuda_test makes `name`, tagged gpu, and `name_emulated` likewise; `if_cuda` chooses in other rules.

cuda_shared_library makes a library of both worlds that a program loads when it runs (moe/device/device.h, LoadBackend):
lib`name`.so, only with --config=cuda, and emulated/lib`name`.so, for tests. It has the code of the packages that it names,
and of the toolkit; all other code is the program's, so that there is one registry of kernels, of devices, of ops. The
program exports its symbols and looks beside itself: linkopts = CUDA_PROGRAM_LINKOPTS, data = if_cuda([the library]).

Objects are linked statically: in a shared library the static CUDA runtime would be lost, and with it symbols that
nvcc's own stubs need.
"""

load("@bazel_tools//tools/cpp:toolchain_utils.bzl", "find_cpp_toolchain")
load("//third_party/cc:cc.bzl", "INLINED_VECTOR_COPTS", "cc_library")
load("@local_cuda//:defs.bzl", "CUDA_HOME", "HAVE_CUDA")

_ARCHITECTURES = ["-gencode=arch=compute_90a,code=sm_90a"]

_OPTIONS = [
    "-std=c++20",
    "-O3",
    "--expt-relaxed-constexpr",
    "--extra-device-vectorization",
    "-Xcompiler=-fPIC,-Wall,-Wno-unused-parameter,-Wno-sign-compare",
]

# nvcc knows pragmas that the host's compiler does not (unroll).
_COPTS = ["-Wno-unknown-pragmas"] + INLINED_VECTOR_COPTS

_EMULATED = "//moe/testing/emulated:"

def if_cuda(then, otherwise = []):
    """`then` with --config=cuda."""
    return then if HAVE_CUDA else otherwise

# Of programs that load a cuda_shared_library of //tools/gpu.
CUDA_PROGRAM_LINKOPTS = ["-rdynamic"] + if_cuda([
    "-Wl,--enable-new-dtags",  # LD_LIBRARY_PATH goes before
    "-Wl,-rpath,$$ORIGIN/gpu:%s/lib64" % CUDA_HOME,
])

def emulated(label):
    """The emulated library of a cuda library."""
    if ":" not in label:
        label = label + ":" + label.split("/")[-1]
    return label + "_emulated"

def _cuda_objects_impl(ctx):
    objects = []
    contexts = [dep[CcInfo].compilation_context for dep in ctx.attr.deps]
    flags = []
    for c in contexts:
        flags += ["-D" + d for d in c.defines.to_list()]
        flags += ["-isystem " + i for i in c.system_includes.to_list()]
        flags += ["-I" + i for i in c.includes.to_list()]
        flags += ["-I" + i for i in c.quote_includes.to_list()]
    unique = {f: None for f in flags}.keys()
    for src in ctx.files.srcs:
        out = ctx.actions.declare_file(ctx.label.name + "/" + src.basename + ".o")
        ctx.actions.run_shell(
            outputs = [out],
            inputs = depset(ctx.files.srcs + ctx.files.hdrs, transitive = [c.headers for c in contexts]),
            command = " ".join(
                [CUDA_HOME + "/bin/nvcc"] + _OPTIONS + _ARCHITECTURES + ctx.attr.options +
                ["-I."] + list(unique) + ["-c", src.path, "-o", out.path],
            ),
            mnemonic = "Nvcc",
            progress_message = "nvcc " + src.short_path,
            use_default_shell_env = True,
        )
        objects.append(out)
    return [DefaultInfo(files = depset(objects))]

_cuda_objects = rule(
    implementation = _cuda_objects_impl,
    attrs = {
        "srcs": attr.label_list(allow_files = [".cu"]),
        "hdrs": attr.label_list(allow_files = True),
        "deps": attr.label_list(providers = [CcInfo]),
        "options": attr.string_list(),
    },
)

def _is_header(src):
    return src.endswith(".h") or src.endswith(".cuh")

def cuda_library(
        name,
        srcs = [],
        hdrs = [],
        deps = [],
        cuda_deps = [],
        cuda_libs = [],
        options = [],
        testonly = False,
        alwayslink = False,
        linkopts = [],
        **kwargs):
    """Args beyond cc_library's: see above. options: of nvcc, beside the usual ones. Headers may be among srcs."""
    headers = [s for s in srcs if _is_header(s)]
    kernels = [s for s in srcs if s.endswith(".cu")]
    others = [s for s in srcs if s not in headers and s not in kernels]

    if HAVE_CUDA:
        real_deps = deps + cuda_deps + ["@local_cuda//:" + lib for lib in cuda_libs + ["cudart"]]
        objects = []
        if kernels:
            _cuda_objects(
                name = name + "_objects",
                srcs = kernels,
                hdrs = headers + hdrs,
                deps = real_deps,
                options = options,
                testonly = testonly,
            )
            objects = [name + "_objects"]
        cc_library(
            name = name,
            srcs = objects + others + headers,
            hdrs = hdrs,
            copts = _COPTS,
            linkstatic = True,
            deps = real_deps,
            testonly = testonly,
            alwayslink = alwayslink,
            linkopts = linkopts,
            **kwargs
        )

    copies = []
    for src in kernels:
        copy = name + "_emulated/" + src + ".cc"
        native.genrule(
            name = name + "_emulated_" + src.replace(".", "_"),
            srcs = [src],
            outs = [copy],
            cmd = "(echo '#line 1 \"$<\"'; cat $<) > $@",
            testonly = testonly,
        )
        copies.append(copy)
    cc_library(
        name = name + "_emulated",
        srcs = copies + others + headers,
        hdrs = hdrs,
        copts = _COPTS,
        linkstatic = True,
        deps = deps + [emulated(d) for d in cuda_deps] + [_EMULATED + lib for lib in cuda_libs + ["cudart"]],
        testonly = testonly,
        alwayslink = alwayslink,
        **kwargs
    )

def cuda_test(name, srcs, deps = [], cuda_deps = [], cuda_libs = [], tags = [], **kwargs):
    """A test of both worlds, from .cc and .cu files. `name`, where there is a toolkit, must skip itself without a device."""
    cuda_library(
        name = name + "_lib",
        srcs = srcs,
        deps = deps,
        cuda_deps = cuda_deps,
        cuda_libs = cuda_libs,
        optimize = "-O0",
        testonly = True,
        alwayslink = True,
    )
    main = ["//third_party/system:gtest_main"]
    if HAVE_CUDA:
        native.cc_test(name = name, deps = [name + "_lib"] + main, tags = tags + ["gpu"], linkstatic = True, **kwargs)
    native.cc_test(name = name + "_emulated", deps = [name + "_lib_emulated"] + main, tags = tags, linkstatic = True, **kwargs)

def _shared_library_impl(ctx):
    toolchain = find_cpp_toolchain(ctx)
    features = cc_common.configure_features(ctx = ctx, cc_toolchain = toolchain)
    inputs = []
    for dep in ctx.attr.deps:
        for i in dep[CcInfo].linking_context.linker_inputs.to_list():
            own = i.owner.package in ctx.attr.packages or i.owner.package + ":" + i.owner.name in ctx.attr.packages
            if own or i.owner.workspace_name == "local_cuda" or not i.libraries:
                inputs.append(i)
    linked = cc_common.link(
        name = ctx.label.name,
        actions = ctx.actions,
        feature_configuration = features,
        cc_toolchain = toolchain,
        output_type = "dynamic_library",
        linking_contexts = [cc_common.create_linking_context(linker_inputs = depset(inputs, order = "topological"))],
        user_link_flags = ["-Wl,--as-needed"],
    )
    library = linked.library_to_link.resolved_symlink_dynamic_library
    if ctx.attr.alias:
        alias = ctx.actions.declare_file(ctx.attr.alias)
        ctx.actions.symlink(output = alias, target_file = library)
        library = alias
    return [DefaultInfo(files = depset([library]), runfiles = ctx.runfiles([library]))]

_shared_library = rule(
    implementation = _shared_library_impl,
    attrs = {
        "deps": attr.label_list(providers = [CcInfo]),
        "packages": attr.string_list(),
        "alias": attr.string(doc = "Its path in the package; empty: lib`name`.so."),
        "_cc_toolchain": attr.label(default = "@bazel_tools//tools/cpp:current_cc_toolchain"),
    },
    toolchains = ["@bazel_tools//tools/cpp:toolchain_type"],
    fragments = ["cpp"],
)

def cuda_shared_library(name, cuda_deps, packages):
    """See above. packages: whose code is the library's; "package:target" is one target, which no program has."""
    if HAVE_CUDA:
        _shared_library(name = name, deps = cuda_deps, packages = packages)
    _shared_library(
        name = name + "_emulated",
        alias = "emulated/lib%s.so" % name,
        testonly = True,
        deps = [emulated(d) for d in cuda_deps],
        packages = packages,
    )
