"""Loads and stores per argument, read from TTIR text."""

from __future__ import annotations

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
