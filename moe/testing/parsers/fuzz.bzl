"""fuzz_test: a fuzz target (LLVMFuzzerTestOneInput) as a test.

    fuzz_test(name = "ir_text_fuzz", deps = ["//moe/ir:text"])

reads NAME.cc and the corpus in testdata/fuzz, in a folder of the target's name without "_fuzz". By default driver.cc runs the corpus
and what comes of changing it for a second. With --config=fuzz, clang's libFuzzer runs it for 20 seconds, guided by what new inputs
reach, with AddressSanitizer and UndefinedBehaviorSanitizer.
"""

load("//third_party/cc:cc.bzl", "cc_test")

def fuzz_test(name, deps):
    corpus = "testdata/fuzz/" + name[:-len("_fuzz")]
    cc_test(
        name = name,
        size = "small",
        srcs = [name + ".cc"],
        args = select({
            ":fuzz": ["-max_total_time=20", "-timeout=20", "-rss_limit_mb=2048", corpus],
            "//conditions:default": ["--seconds=1", corpus],
        }),
        data = ["//testdata/fuzz"],
        linkopts = select({
            ":fuzz": ["-fsanitize=fuzzer"],
            "//conditions:default": [],
        }),
        deps = deps + ["//third_party/system:glog"] + select({
            ":fuzz": [],
            "//conditions:default": [":driver"],
        }),
    )
