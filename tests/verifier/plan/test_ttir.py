"""Loads and stores per argument, read from TTIR text."""

# ruff: noqa: E501 - PTX and TTIR are quoted line by line

from __future__ import annotations

from verifier.plan.ssa import unique
from verifier.plan.ttir import accesses

PTR = "!tt.ptr<f32>"


def kernel(body: str, arguments: str = f"%a: {PTR}, %b: {PTR}, %n: i32") -> list[str]:
    indented = "\n".join("    " + line for line in body.strip("\n").splitlines())
    head = f"module {{\n  tt.func public @k({arguments}) attributes {{noinline = false}} {{\n"
    text = f"{head}{indented}\n    tt.return\n  }}\n}}\n"
    return [access for _, access in accesses(text)]


def test_addresses_are_followed_back() -> None:
    assert kernel(f"%0 = tt.splat %a : {PTR}\n%1 = tt.addptr %0, %n : x\n%2 = tt.load %1 : x\ntt.store %b, %2 : x") == [
        "load",
        "store",
        "none",
    ]


def test_a_loaded_index_is_no_address() -> None:
    assert kernel("%0 = tt.load %a : x\n%1 = tt.addptr %b, %0 : x\ntt.store %1, %0 : x") == [
        "load",
        "store",
        "none",
    ]


def test_atomics_are_both() -> None:
    assert kernel("%0 = tt.atomic_rmw fadd, acq_rel, gpu, %b, %n : x")[1] == "both"


def test_sibling_regions_reuse_names() -> None:
    """`%1` is an address of %a in one region and a number in the other, `%p` once this pointer and once that one."""
    body = """
scf.for %i = %n to %n step %n  : i32 {
  %1 = tt.addptr %a, %i : x
  %2 = tt.load %1 : x
  scf.for %j = %n to %n step %n iter_args(%p = %a) -> (x)  : i32 {
    %3 = tt.load %p : x
    scf.yield %p : x
  }
}
scf.for %i = %n to %n step %n  : i32 {
  %1 = math.sqrt %n : f32
  %2 = tt.addptr %b, %i : x
  tt.store %2, %1 : x
  scf.for %j = %n to %n step %n iter_args(%p = %b) -> (x)  : i32 {
    tt.store %p, %1 : x
    scf.yield %p : x
  }
}
"""
    assert kernel(body) == ["load", "store", "none"]


def test_names_are_made_unique() -> None:
    lines = """    %r:2 = scf.for %i = %n to %m step %s iter_args(%p = %a, %q = %p) -> (x)  : i32 {
      %v = tt.load %p : x
      scf.yield %v, %q : x
    } loc(#1)
    %w = scf.while (%p = %r#1) : (x) -> x {
      scf.condition(%c) %p : x
    } do {
    ^bb0(%p: x):
      %v = tt.load %p : x
      scf.yield %v : x
    } loc(#2)
    tt.store %w, %r#0 : x""".splitlines()
    assert (
        list(unique(lines))
        == """    %r:2 = scf.for %i = %n to %m step %s iter_args(%p = %a, %q = %p) -> (x)  : i32 {
      %v = tt.load %p : x
      scf.yield %v, %q : x
    } loc(#1)
    %w = scf.while (%p$$1 = %r#1) : (x) -> x {
      scf.condition(%c) %p$$1 : x
    } do {
    ^bb0(%p$$2: x):
      %v$$1 = tt.load %p$$2 : x
      scf.yield %v$$1 : x
    } loc(#2)
    tt.store %w, %r#0 : x""".splitlines()
    )


def test_loop_carried_pointers() -> None:
    body = """
%r:2 = scf.for %i = %n to %n step %n iter_args(%p = %a, %q = %b) -> (x, x)  : i32 {
  %v = tt.load %p : x
  %p2 = tt.addptr %p, %i : x
  %q2 = tt.addptr %q, %i : x
  scf.yield %p2, %q2 : x, x
}
tt.store %r#1, %n : x
"""
    assert kernel(body) == ["load", "store", "none"]


def test_pointers_swapped_in_a_loop_count_for_both() -> None:
    body = """
%r:2 = scf.for %i = %n to %n step %n iter_args(%p = %a, %q = %b) -> (x, x)  : i32 {
  tt.store %p, %n : x
  scf.yield %q, %p : x, x
}
"""
    assert kernel(body) == ["store", "store", "none"]


def test_select_and_if_merge() -> None:
    assert kernel("%s = arith.select %n, %a, %b : x\ntt.store %s, %n : x") == ["store", "store", "none"]
    assert kernel(
        "%s = scf.if %n -> (x) {\n  scf.yield %a : x\n} else {\n  scf.yield %b : x\n}\ntt.store %s, %n : x"
    ) == ["store", "store", "none"]


def test_unknown_operations_count_as_both() -> None:
    assert kernel("%0 = tt.call @helper(%a) : x") == ["both", "none", "none"]
    assert kernel("%0 = tt.new_thing %b : x") == ["none", "both", "none"]


def test_integers_used_as_addresses() -> None:
    assert kernel("%p = tt.int_to_ptr %n : x\ntt.store %p, %a : x", f"%a: {PTR}, %n: i64") == [
        "none",
        "store",
    ]


def test_no_function_no_answer() -> None:
    assert accesses("module {}") == []
    assert accesses("\0" * 100) == []


FUNCTION = """module {{
  tt.func public @k(%a: {p}, %b: {p}, %n: i32) attributes {{noinline = false}} {{
    %0 = tt.call @"f.x"(%a, %b, %n) : ({p}, {p}, i32) -> {p}
    tt.store %0, %n : x
    tt.return
  }}
  tt.func private @"f.x"(%p: {p}, %q: {p}, %i: i32) -> {p} attributes {{noinline = true}} {{
    %0 = tt.load %p : x
    {body}
    %1 = tt.addptr %q, %i : x
    tt.return %1 : {p}
  }}
}}
"""


def of_function(body: str = "") -> list[str]:
    return [access for _, access in accesses(FUNCTION.format(p=PTR, body=body))]


def test_calls_are_followed() -> None:
    assert of_function() == ["load", "store", "none"]
    assert of_function("tt.store %p, %i : x") == ["both", "store", "none"]
    assert of_function(f'%9 = tt.call @"f.x"(%p, %q, %i) : x -> {PTR}') == ["both", "both", "none"], "recursion"


def test_long_chains_of_calls_end() -> None:
    links = "".join(
        f"  tt.func private @f{i}(%p: {PTR}) {{\n    tt.call @f{i + 1}(%p) : x\n    tt.return\n  }}\n"
        for i in range(3000)
    )
    text = f"module {{\n  tt.func public @k(%a: {PTR}) {{\n    tt.call @f0(%a) : x\n    tt.return\n  }}\n{links}}}\n"
    assert accesses(text) == [(PTR, "both")]


def test_while_loops_keep_their_pointers_apart() -> None:
    body = """
%r:2 = scf.while (%p = %a, %q = %b) : (x, x) -> (x, x) {
  scf.condition(%n) %q, %p : x, x
} do {
^bb0(%q1: !tt.ptr<f32> loc(#l), %p1: !tt.ptr<f32> loc(#l)):
  %v = tt.load %p1 : x
  scf.yield %p1, %q1 : x, x
}
tt.store %r#0, %n : x
"""
    assert kernel(body) == ["load", "store", "none"]


def test_branches_carry_pointers() -> None:
    body = f"cf.cond_br %n, ^bb1(%a : {PTR}), ^bb1(%b : {PTR}) loc(#l)\n  ^bb1(%p: {PTR} loc(#l)):  // pred: ^bb0\ntt.store %p, %n : x"
    assert kernel(body) == ["store", "store", "none"]
    unseen = f"^bb7(%p: {PTR} loc(#l)):\ntt.store %p, %n : x"
    assert kernel(unseen) == ["store", "store", "none"], "a block nobody branches to may get any pointer"


def inline(asm: str) -> str:
    return kernel(f'%v = tt.elementwise_inline_asm "{asm}" {{constraints = "=f,l"}} %a : {PTR} -> f32')[0]


def test_inline_ptx_that_only_reads() -> None:
    assert inline("ld.global.nc.f32 $0, [$1];") == "load"
    assert inline("@%p ld.global.L1::evict_last.f32 $0, [$1];") == "load"
    assert inline("{ .reg .b64 t;\\0A mov.b64 t, $1; ld.global.f32 $0, [t]; }") == "load"
    for hidden in ("st.global.f32 [$1], $0;", "ld.f32 $0, [$1]; atom.add.f32 $0, [$1], 1;", "L: st.f32 [$1], $0;", "$L: st.f32 [$1], $0;",
                   "ld.f32 $0, [$1]; %// \\0A st.f32 [$1], $0;", "red.add.f32 [$1], 1;", "cp.async.bulk.global.shared [$1], [s], 4;"):  # fmt: skip
        assert inline(hidden) == "both", hidden
