"""cc_library, cc_binary and cc_test of this project: the native rules with a precompiled header and an optimisation level.

    load("//third_party/cc:cc.bzl", "cc_library", "cc_test")

    cc_library(name = "summary", srcs = ["summary.cc"], hdrs = ["summary.h"], optimize = "-O1", deps = [...])

About half of what a file takes to compile are the headers of Abseil and of the standard library. They are compiled once
for each level; a file that was built for another level, or with `--config=without_precompiled_header`, reads them itself.
optimize: "-O2" where a step or the compilation of a plan spends its time (the default of libraries), "-O1" for what runs
once, "-O0" for the code of tests (their default).
"""

load("@bazel_tools//tools/cpp:toolchain_utils.bzl", "find_cpp_toolchain")

# copts of files for which GCC 12 takes an InlinedVector that has moved to the heap for one that is still inline.
INLINED_VECTOR_COPTS = ["-Wno-array-bounds"]

_PACKAGE = "third_party/cc"

def _precompiled_header_impl(ctx):
    toolchain = find_cpp_toolchain(ctx)
    features = cc_common.configure_features(
        ctx = ctx,
        cc_toolchain = toolchain,
        requested_features = ctx.features,
        unsupported_features = ctx.disabled_features + ["module_maps"],
    )
    variables = cc_common.create_compile_variables(
        feature_configuration = features,
        cc_toolchain = toolchain,
        user_compile_flags = ctx.fragments.cpp.copts + ctx.fragments.cpp.cxxopts + [ctx.attr.optimize],
        use_pic = True,
    )
    flags = cc_common.get_memory_inefficient_command_line(
        feature_configuration = features,
        action_name = "c++-compile",
        variables = variables,
    )
    header = ctx.actions.declare_file(ctx.label.name + "/" + ctx.file.header.basename)
    ctx.actions.run_shell(
        outputs = [header],
        inputs = [ctx.file.header],
        command = "cp %s %s" % (ctx.file.header.path, header.path),
    )
    compiled = ctx.actions.declare_file(ctx.label.name + "/" + ctx.file.header.basename + ".gch")
    ctx.actions.run_shell(
        outputs = [compiled],
        inputs = depset([header] + ctx.files.includes, transitive = [toolchain.all_files]),
        command = "%s %s -iquote . -Wno-error -w -x c++-header %s -o %s" % (
            cc_common.get_tool_for_action(feature_configuration = features, action_name = "c++-compile"),
            " ".join(["'%s'" % f for f in flags]),
            header.path,
            compiled.path,
        ),
        mnemonic = "PrecompileHeader",
        progress_message = "Precompiling " + header.short_path,
        use_default_shell_env = True,
    )
    context = cc_common.create_compilation_context(headers = depset([header, compiled] + ctx.files.includes))
    return [DefaultInfo(files = depset([header, compiled])), CcInfo(compilation_context = context)]

precompiled_header = rule(
    doc = "A copy of a header, and it compiled beside it, in a folder of the target's name.",
    implementation = _precompiled_header_impl,
    attrs = {
        "header": attr.label(allow_single_file = [".h"]),
        "includes": attr.label_list(allow_files = [".h"], doc = "What it includes of this project."),
        "optimize": attr.string(),
        "_cc_toolchain": attr.label(default = Label("@bazel_tools//tools/cpp:current_cc_toolchain")),
    },
    fragments = ["cpp"],
    toolchains = ["@bazel_tools//tools/cpp:toolchain_type"],
)

# Level -> target and header.
_HEADERS = {
    "-O0": ("test_O0", "common_test.h"),
    "-O1": ("common_O1", "common.h"),
    "-O2": ("common_O2", "common.h"),
}

def _with_header(kwargs, optimize):
    name, header = _HEADERS[optimize]
    without = "//%s:without_precompiled_header" % _PACKAGE
    sanitized = "//%s:sanitized" % _PACKAGE  # one level for all: checked code is slow to compile
    include = "$(GENDIR)/%s/%s/%s"
    kwargs["copts"] = kwargs.pop("copts", []) + select({
        without: [optimize],
        sanitized: ["-O1", "-include", include % (_PACKAGE, "common_O1", "common.h")],
        "//conditions:default": [optimize, "-include", include % (_PACKAGE, name, header)],
    })
    kwargs["deps"] = kwargs.pop("deps", []) + select({
        without: [],
        sanitized: ["//%s:common_O1" % _PACKAGE],
        "//conditions:default": ["//%s:%s" % (_PACKAGE, name)],
    })
    return kwargs

def _with_sanitizers(kwargs):
    kwargs["deps"] = kwargs.pop("deps", []) + select({
        "//%s:sanitized" % _PACKAGE: ["//%s:sanitizers" % _PACKAGE],
        "//conditions:default": [],
    })
    return kwargs

def _has_sources(srcs):
    return any([s.endswith(".cc") or s.startswith(":") for s in srcs])

def cc_library(name, srcs = [], optimize = "-O2", **kwargs):
    """native.cc_library. optimize: see above."""
    if _has_sources(srcs):
        kwargs = _with_header(kwargs, optimize)
    native.cc_library(name = name, srcs = srcs, **kwargs)

def cc_binary(name, srcs = [], optimize = "-O1", **kwargs):
    """native.cc_binary. optimize: see above."""
    if _has_sources(srcs):
        kwargs = _with_header(kwargs, optimize)
    native.cc_binary(name = name, srcs = srcs, **_with_sanitizers(kwargs))

def cc_test(name, srcs = [], optimize = "-O0", **kwargs):
    """native.cc_test. optimize: see above."""
    if _has_sources(srcs):
        kwargs = _with_header(kwargs, optimize)
    native.cc_test(name = name, srcs = srcs, **_with_sanitizers(kwargs))
