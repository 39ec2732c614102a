# Prints a C++ file with the examples of headers: each code block of a header's opening comment (lines indented behind
# "//", up to #pragma once) becomes the body of a function in the namespace of that header.
#
#   awk -f header_examples.awk contexts.txt moe/base/file.h moe/ir/builder.h ... > examples.cc
#
# contexts.txt says what examples may use that they do not declare: lines "header.h: parameters of its function". A
# parameter list "@namespace" means that the block stands outside of functions, "@none REASON" that it does not compile
# by itself. Blocks without a line that ends in ; or { are tables or IR and are left out. "..." stands for what a
# reader fills in.

function Code(line) {  # without the comment at its end
  sub(/[ \t]*\/\/.*$/, "", line)
  return line
}

function Filled(line,    code, rest) {
  if (line ~ /^[ \t]*\.\.\./) return "// " line
  code = Code(line)
  rest = substr(line, length(code) + 1)
  gsub(/= \.\.\./, "= {}", code)
  if (code ~ /\) \.\.\.$/) sub(/\.\.\.$/, "{}", code)
  if (code !~ /"[^"]*\.\.\.[^"]*"/) gsub(/\.\.\./, "", code)
  return code rest
}

# Every folder but base and ir has a namespace of its own under moe.
function Namespace(path,    parts) {
  split(path, parts, "/")
  if (parts[1] == "tools") return "moe::tools"
  return parts[2] == "base" || parts[2] == "ir" ? "moe" : "moe::" parts[2]
}

function EndBlock(    i, code) {
  code = 0
  for (i = 1; i <= lines; ++i) {
    if (Code(block[i]) ~ /[;{]$/) code = 1
  }
  if (block[1] ~ /^(%|- |func |module |state |mesh<|[^ ("]+  +[^ ])/) code = 0
  if (block[1] ~ /override [{]/) code = 0  # of a class that is not shown
  if (code) {
    text = text "#line " first " \"" header "\"\n"
    for (i = 1; i <= lines; ++i) text = text Filled(block[i]) "\n"
  }
  lines = 0
}

function EndHeader(    name, context, type) {
  if (lines > 0) EndBlock()
  if (text == "") return
  context = header in contexts ? contexts[header] : ""
  if (context ~ /^@none/) return
  includes = includes "#include \"" header "\"\n"
  examples = examples "\nnamespace " space " {\n"
  if (context == "@namespace") {
    examples = examples text
  } else {
    name = header
    gsub(/[^a-z0-9]/, "_", name)
    type = text ~ /(ASSERT|EXPECT)_/ ? "void" : "Anything"
    if (header in contexts) examples = examples "#line " place[header] " \"docs/examples/contexts.txt\"\n"
    examples = examples "[[maybe_unused]] static " type " Example_" name "(" context ") {\n" text
    if (type != "void") examples = examples "  return Anything();\n"
    examples = examples "}\n"
  }
  examples = examples "}  // namespace " space "\n"
  used[header] = 1
}

FILENAME ~ /contexts\.txt$/ {
  if (match($0, /^[a-z0-9_\/]+\.h: /)) {
    contexts[substr($0, 1, RLENGTH - 2)] = substr($0, RLENGTH + 1)
    place[substr($0, 1, RLENGTH - 2)] = FNR
  } else {
    front = front $0 "\n"  # C++ that stands in front
  }
  next
}

FNR == 1 {
  if (header != "") EndHeader()
  header = FILENAME
  text = ""
  space = Namespace(header)
  opening = 1
}
/^#pragma once/ { opening = 0 }
opening && /^\/\/   +[^ ]/ {
  if (lines++ == 0) first = FNR
  block[lines] = substr($0, 3)
  sub(/^ +/, "", block[lines])
  next
}
opening && lines > 0 { EndBlock() }
END {
  if (header != "") EndHeader()
  printf "%s%s%s", includes, front, examples
  for (header in contexts) {
    if (!(header in used) && contexts[header] !~ /^@none/) {
      printf "#error \"contexts.txt names %s, which has no example that compiles\"\n", header
    }
  }
}
