"""A plan from an untrusted process: whatever it says, `read_plan` answers with a plan or a PlanError."""

# ruff: noqa: E501 - candidates are quoted line by line
from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from verifier.plan import triton_image
from verifier.plan.audit import audit
from verifier.plan.reader import PlanError, read_plan
from verifier.problem import Problem, Role, Workload

BODY = """
class ModelNew(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(1024, 8)
        self.t = torch.tensor([1., 2.], device='cuda')
    def forward(self, x):
        y = relu(x)
        return [self.l(y[2:4]) * self.t[1], {"a": y, "b": None}]
"""


@pytest.fixture(scope="module")
def valid(trace: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
    traced = trace(BODY)
    return traced.value, traced.blobs


def read(plan: Any, blobs: dict[str, bytes]) -> None:
    """Reads and audits; only PlanError may come out."""
    try:
        read_it = read_plan(plan, blobs)
    except PlanError:
        return
    problem = Problem(name="t", source="", file="t", workloads=(Workload(name="w", roles=frozenset({Role.SMALL})),))
    audit(read_it, problem, "")


def paths(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    for key, child in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from paths(child, (*at, key))


def put(tree: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree[key]
    if value is DELETE:
        del tree[path[-1]]
    else:
        tree[path[-1]] = value


DELETE = object()
JUNK = st.one_of(
    st.just(DELETE), st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from([0, 1, -1, 2, 3, 1 << 20, 1 << 40, 1 << 63, 1 << 200, "cuda", "inf", "float16", "i64", "*fp32", [], {}]),
    st.lists(st.integers(-2, 1 << 41), max_size=4), st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_mutation_raises_anything_else(valid: tuple[dict[str, Any], dict[str, bytes]], data: st.DataObject) -> None:
    plan, blobs = copy.deepcopy(valid[0]), dict(valid[1])
    everywhere = list(paths(valid[0]))
    for _ in range(data.draw(st.integers(1, 3))):
        try:
            put(plan, data.draw(st.sampled_from(everywhere)), data.draw(JUNK))
        except (KeyError, IndexError, TypeError):
            continue
    if data.draw(st.booleans()) and blobs:
        name = data.draw(st.sampled_from(sorted(blobs)))
        blobs[name] = data.draw(st.binary(max_size=64))
    read(plan, blobs)


def test_the_valid_plan_is_accepted(valid: tuple[dict[str, Any], dict[str, bytes]]) -> None:
    plan = read_plan(*valid)
    assert json.loads(plan.model_dump_json()) == valid[0]
    assert len(plan.programs[0].output_values()) == 2


def launch(p: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(s for s in p["programs"][0]["forward"] if s["kind"] == "launch")["alternatives"][0]
    return found


MUTATIONS: dict[str, Callable[[dict[str, Any]], object]] = {
    "target": lambda p: p.update(target="sm_999"),
    "offset past the storage": lambda p: launch(p)["args"][0].update(offset=1 << 30),
    "pointer to no storage": lambda p: launch(p)["args"][0].update(storage=999),
    "pointer and value differ": lambda p: launch(p)["args"][0].update(offset=4),
    "grid of zero": lambda p: launch(p).update(grid=[0, 1, 1]),
    "grid too large": lambda p: launch(p).update(grid=[1, 65536, 1]),
    "unknown kernel": lambda p: launch(p).update(kernel="0" * 64),
    "argument left out": lambda p: launch(p)["args"].pop(0),
    "argument renamed": lambda p: launch(p)["args"][0].update(name="zz"),
    "scalar too wide": lambda p: launch(p)["args"][2].update(v=1 << 40),
    "view leaves its storage": lambda p: p["programs"][0]["values"][0].update(offset=1 << 30),
    "value without storage": lambda p: p["programs"][0]["values"][0].update(storage=999),
    "step reads what nothing made": lambda p: p["programs"][0]["forward"].pop(0),
    "output of no value": lambda p: p["programs"][0].update(output={"t": "tensor", "value": 999}),
    "constant without base64": lambda p: p["programs"][0]["constants"][0].update(data="A"),
    "constant too long": lambda p: p["programs"][0]["constants"][0].update(data="A" * 400),
    "flags missing": lambda p: p.update(flags=[]),
    "an operator outside aten": lambda p: p["programs"][0]["forward"][0].update(op="os::system"),
    "unknown field": lambda p: p.update(extra=1),
    "NaN": lambda p: p["programs"][0].update(workload=float("nan")),
    "access claimed": lambda p: next(iter(p["kernels"].values()))["params"][0].update(access="none"),
    "globals claimed": lambda p: next(iter(p["kernels"].values())).update(global_bytes=8),
    "too much shared memory": lambda p: next(iter(p["kernels"].values())).update(shared=232_449),
    "ready past the set-up": lambda p: p["programs"][0]["parameters"]["l.weight"].update(ready=99),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_contradictions_are_named(valid: tuple[dict[str, Any], dict[str, bytes]], name: str) -> None:
    plan = copy.deepcopy(valid[0])
    MUTATIONS[name](plan)
    with pytest.raises(PlanError) as caught:
        read_plan(plan, valid[1])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [".cubin", ".ttir", ".ptx"])
def test_blobs_must_match_their_names(valid: tuple[dict[str, Any], dict[str, bytes]], kind: str) -> None:
    plan, blobs = valid
    name = next(n for n in blobs if n.endswith(kind))
    with pytest.raises(PlanError, match="missing"):
        read_plan(plan, {n: b for n, b in blobs.items() if n != name})
    with pytest.raises(PlanError, match="does not match"):
        read_plan(plan, {**blobs, name: blobs[name] + b"x"})


def test_the_assembly_must_define_its_kernel(valid: tuple[dict[str, Any], dict[str, bytes]]) -> None:
    """The audit looks for what device code may not do there: another kernel's text would show it nothing."""
    plan, blobs = copy.deepcopy(valid[0]), dict(valid[1])
    other = b".visible .entry innocent() { ret; }"
    (image,) = plan["kernels"].values()
    image["ptx"] = hashlib.sha256(other).hexdigest()
    plan = json.loads(json.dumps(plan).replace(next(iter(plan["kernels"])), triton_image.key(image)))
    with pytest.raises(PlanError, match="PTX does not define it"):
        read_plan(plan, {**blobs, f"{image['ptx']}.ptx": other})


@pytest.mark.parametrize("value", [None, [], "plan", 1, {}, {"format": 2}, {"a": {"b": [[[]]]}}, object()])
def test_other_values(value: object) -> None:
    with pytest.raises(PlanError):
        read_plan(value, {})


def test_deep_nesting_is_refused(valid: tuple[dict[str, Any], dict[str, bytes]]) -> None:
    plan = copy.deepcopy(valid[0])
    deep: dict[str, Any] = {"t": "none"}
    for _ in range(5000):
        deep = {"t": "list", "items": [deep]}
    plan["programs"][0]["output"] = deep
    with pytest.raises(PlanError):
        read_plan(plan, valid[1])
