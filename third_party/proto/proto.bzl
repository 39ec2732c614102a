"""moe_proto_library: one .proto file compiled by Debian's protoc into a cc_library."""

def moe_proto_library(name, src, deps = [], proto_deps = [], **kwargs):
    """name: the cc_library; src: the .proto; deps: other moe_proto_library targets; proto_deps: their .proto files."""
    base = src.replace(".proto", "")
    native.genrule(
        name = name + "_gen",
        srcs = [src] + proto_deps,
        outs = [base + ".pb.h", base + ".pb.cc"],
        cmd = "protoc -I. --cpp_out=$(GENDIR) $(location " + src + ")",
    )
    native.cc_library(
        name = name,
        srcs = [base + ".pb.cc"],
        hdrs = [base + ".pb.h"],
        copts = ["-Wno-error", "-w", "-O1"],
        deps = deps + ["//third_party/system:protobuf"],
        **kwargs
    )
