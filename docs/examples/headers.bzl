"""header_examples: a C++ file with the examples of headers, to be compiled.

    header_examples(name = "headers", contexts = "contexts.txt", libraries = ["//moe/ir", ...])

Every header of the project that a library or what it uses has is read; header_examples.awk says what becomes of it. The
file is compiled and not linked.
"""

load("//third_party/cc:cc.bzl", "cc_library")

def _source_impl(ctx):
    headers = {}
    for library in ctx.attr.libraries:
        for header in library[CcInfo].compilation_context.headers.to_list():
            path = header.short_path
            if header.is_source and header.extension == "h" and path.split("/")[0] in ["moe", "tools"]:
                headers[path] = header
    headers = [headers[path] for path in sorted(headers) if not [w for w in ctx.attr.without if w in path]]
    ctx.actions.run_shell(
        inputs = headers + [ctx.file.contexts, ctx.file._script],
        outputs = [ctx.outputs.source],
        command = "awk -f %s %s %s > %s" % (
            ctx.file._script.path,
            ctx.file.contexts.path,
            " ".join([h.path for h in headers]),
            ctx.outputs.source.path,
        ),
        mnemonic = "HeaderExamples",
        progress_message = "Collecting the examples of %d headers" % len(headers),
    )
    return [DefaultInfo(files = depset([ctx.outputs.source]))]

_source = rule(
    implementation = _source_impl,
    attrs = {
        "contexts": attr.label(allow_single_file = True),
        "libraries": attr.label_list(providers = [CcInfo]),
        "source": attr.output(),
        "without": attr.string_list(doc = "parts of the paths of headers that only special compilers read"),
        "_script": attr.label(default = "//docs/examples:header_examples.awk", allow_single_file = True),
    },
)

def header_examples(name, contexts, libraries, without = []):
    _source(
        name = name + "_source",
        contexts = contexts,
        libraries = libraries,
        source = name + ".cc",
        testonly = True,
        without = without,
    )
    cc_library(
        name = name,
        srcs = [name + ".cc"],
        copts = ["-w"],
        linkstatic = True,
        optimize = "-O0",
        testonly = True,
        deps = libraries,
    )
