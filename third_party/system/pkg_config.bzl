"""A repository of linkopts-only libraries whose link order comes from pkg-config.

    pkg_config_repository(name = "absl", packages = {"strings": "absl_strings"})

makes `@absl//:strings`. Headers need no target: they are in /usr/include, which the compiler knows. Abseil's static
libraries depend on each other in an order that only its .pc files state, hence this rule.
"""

def _pkg_config_repository_impl(ctx):
    lines = ['package(default_visibility = ["//visibility:public"])']
    for name, package in sorted(ctx.attr.packages.items()):
        result = ctx.execute(["pkg-config", "--libs", package])
        if result.return_code:
            fail("pkg-config does not know %s; has ./setup.sh been run? %s" % (package, result.stderr))
        flags = [flag.strip() for flag in result.stdout.split(" ") if flag.strip().startswith("-l")]
        lines.append("cc_library(name = %r, linkopts = %r)" % (name, flags))
    ctx.file("BUILD", "\n".join(lines) + "\n")

pkg_config_repository = repository_rule(
    implementation = _pkg_config_repository_impl,
    attrs = {"packages": attr.string_dict(doc = "target name -> pkg-config name")},
    local = True,
)
