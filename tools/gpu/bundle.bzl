"""gpu_bundle: programs, tests and files in one archive that runs without Bazel (pack.sh)."""

def gpu_bundle(name, archive, programs, libraries, tests, files):
    """programs, tests: labels of binaries; libraries: what they load; files: label -> folder in the archive, "" for its top."""
    entries = ["bin=$(location %s)" % p for p in programs]
    entries += ["lib=$(location %s)" % l for l in libraries]
    entries += ["test=$(location %s)" % t for t in tests]
    for label, folder in files.items():
        entries.append("file%s=$(location %s)" % ("/" + folder if folder else "", label))
    native.genrule(
        name = name,
        srcs = programs + libraries + tests + files.keys(),
        outs = [archive],
        cmd = "$(location :pack.sh) $@ " + " ".join(entries),
        message = "Packing",
        # The tests among the inputs are only packed.
        testonly = True,
        tools = ["pack.sh"],
    )
