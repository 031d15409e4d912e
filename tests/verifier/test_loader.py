"""Problem files: what is accepted, what is refused and with which line, what execution sees."""

from __future__ import annotations

import inspect
import linecache
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from verifier import loader
from verifier.errors import ProblemError
from verifier.loader import (
    constants,
    inspect_arguments,
    inspect_job,
    load_problem,
    materialize,
    parse_problem,
    read_inspection,
    render,
)
from verifier.problem import LibraryPolicy, Precision, Problem, Role, Workload

PLAIN = """\
import torch
import torch.nn as nn

class Model(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.features = features

    def forward(self, x, index, scale, flag, nothing, rest):
        return x * scale

batch = 4
height = width = 8
a, b = 2, 3.5
shape = (batch, height * width)
doubled = 2 * 16
sizes = [1, 2]

def get_inputs():
    index = torch.randint(0, 9, (batch,))
    return [torch.rand(shape), index, 3, True, None, [torch.rand(2), 1.5]]

def get_init_inputs():
    return [shape[1]]
"""


def problem(source: str = PLAIN, **overrides: object) -> Problem:
    return parse_problem(source, file="problem.py", name="test").model_copy(update=overrides)


def workload(**overrides: int | float | str | tuple[int | float, ...]) -> Workload:
    return Workload(name="w", roles=frozenset({Role.SMALL}), constants=overrides)


def test_plain_kernelbench_file_gets_one_default_workload(tmp_path: Path) -> None:
    file = tmp_path / "19_ReLU.py"
    file.write_text(PLAIN)
    loaded = load_problem(file)
    assert loaded.name == "19_ReLU"
    assert loaded.source == PLAIN
    assert loaded.file == str(file)
    assert [(w.name, w.roles) for w in loaded.workloads] == [
        ("default", frozenset({Role.CHECK, Role.TIMED})),
    ]
    assert (loaded.precision, loaded.baseline) == (Precision.TF32, "eager")
    assert loaded.library is LibraryPolicy.ASSIST


def test_reading_neither_runs_the_file_nor_imports_torch(tmp_path: Path) -> None:
    file = tmp_path / "p.py"
    file.write_text(PLAIN + "\nraise SystemExit('executed')\n")
    check = f"""
import sys
from pathlib import Path
from verifier.loader import load_problem
load_problem(Path({str(file)!r}))
assert "torch" not in sys.modules, "torch was imported"
"""
    root = Path(loader.__file__).parent.parent
    command = [sys.executable, "-c", check]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_declarations_are_read() -> None:
    loaded = problem(
        PLAIN
        + """
class Fast(Model):
    pass


TITLE = "A title"
PRECISION = "bf16"
BASELINES = {"fast": Fast, "faster": "nobody wrote it"}
BASELINE = "fast"
LIBRARY = "forbidden"
PROMPT = "Write " "a kernel."
FLOPS = 2 * batch
WORKLOADS = [
    {"name": "small", "roles": ["small", "check"], "constants": {"batch": 1, "sizes": [3]}},
    {"name": "big", "roles": ["timed"], "weight": 2},
]
"""
    )
    assert (loaded.title, loaded.precision, loaded.baseline) == ("A title", Precision.BF16, "fast")
    assert (loaded.baselines, loaded.excuses) == ({"fast": "Fast"}, {"faster": "nobody wrote it"})
    assert (loaded.library, loaded.prompt) == (LibraryPolicy.FORBIDDEN, "Write a kernel.")
    small, big = loaded.workloads
    assert small.roles == {Role.SMALL, Role.CHECK}
    assert small.constants == {"batch": 1, "sizes": (3,)}
    assert (big.constants, big.weight) == ({}, 2.0)
    assert materialize(loaded, small).FLOPS == 2


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        ("torch.float16", Precision.FP16),
        ("torch.half", Precision.FP16),
        ("torch.bfloat16", Precision.BF16),
        ("torch.float32", Precision.TF32),
    ],
)
def test_default_precision_follows_the_dtype_of_the_inputs(dtype: str, precision: Precision) -> None:
    source = PLAIN.replace("torch.rand(shape)", f"torch.rand(shape, dtype={dtype})")
    assert problem(source).precision is precision


BROKEN = {
    "syntax error": ("def f(:\n", 1, "syntax error"),
    "no Model": (PLAIN.replace("class Model", "class ModelNew"), None, "no class `Model` (there is"),
    "no forward": (PLAIN.replace("def forward", "def forwards"), 4, "no method `forward`"),
    "no get_inputs": (PLAIN.replace("def get_inputs", "def inputs"), None, "no function `get_inputs`"),
    "no get_init_inputs": (PLAIN.replace("def get_init", "def init"), None, "no function `get_init_inputs`"),
    "get_inputs asks": (PLAIN.replace("get_inputs()", "get_inputs(n)"), 19, "`get_inputs` is called without"),
    "null byte": (PLAIN + "\0", None, ""),
    "precision": (PLAIN + 'PRECISION = "fp61"\n', 25, "unknown PRECISION 'fp61'; did you mean fp16"),
    "precision type": (PLAIN + "PRECISION = 16\n", 25, "PRECISION must be text, not int"),
    "baseline": (PLAIN + 'BASELINE = "gpu"\n', 25, "unknown BASELINE 'gpu'; known: eager, compile"),
    "excused baseline": (PLAIN + 'BASELINES = {"a": "no"}\nBASELINE = "a"\n', 26, "unknown BASELINE 'a'"),
    "baselines": (PLAIN + "BASELINES = [Model]\n", 25, "BASELINES is a dictionary"),
    "no class": (PLAIN + 'BASELINES = {"a": Modl}\n', 25, "'a' is Modl, which is no class; did you mean Model?"),
    "built in": (PLAIN + 'BASELINES = {"eager": Model}\n', 25, "'eager' is built in"),
    "library": (PLAIN + 'LIBRARY = "forbid"\n', 25, "unknown LIBRARY 'forbid'; did you mean forbidden?"),
    "prompt": (PLAIN + 'PROMPT = open("x").read()\n', 25, "PROMPT must be a literal"),
    "flops": (PLAIN + 'FLOPS = "many"\n', 25, "FLOPS is a number"),
    "twice": (PLAIN + 'TITLE = "a"\nTITLE = "b"\n', 26, "TITLE is declared twice"),
    "workloads": (PLAIN + "WORKLOADS = 3\n", 25, "WORKLOADS is a list"),
    "no workload": (PLAIN + "WORKLOADS = []\n", 25, "at least one"),
    "not a dict": (PLAIN + "WORKLOADS = [\n  3]\n", 26, "a workload is a dictionary"),
    "no name": (PLAIN + 'WORKLOADS = [{"roles": ["small"]}]\n', 25, "`name`"),
    "computed": (PLAIN + 'WORKLOADS = [{"name": str(1)}]\n', 25, "must be a literal"),
}
ENTRIES = {
    '"roles": ["smal"]': "unknown role 'smal'; did you mean small?",
    '"roles": []': "`roles` is a list out of small, check, timed, held_out",
    '"rules": ["small"]': "unknown key 'rules'; did you mean roles?",
    '"roles": ["small"], "weight": 0': "`weight` is a finite number above 0",
    '"roles": ["small"], "weight": 1e999': "`weight` is a finite number above 0",
    '"roles": ["small"], "weight": True': "`weight` is a finite number above 0",
    '"roles": ["small"], "constants": [1]': "`constants` is a dictionary",
    '"roles": ["small"], "constants": {"bacth": 1}': "can be overridden; did you mean batch?",
    '"roles": ["small"], "constants": {"shape": (1, 2)}': "unknown constant 'shape'",
    '"roles": ["small"], "constants": {"batch": "1"}': "'batch' is 4 in the file and cannot be",
    '"roles": ["small"], "constants": {"batch": True}': "cannot be overridden by True",
    '"roles": ["small"], "constants": {"sizes": 3}': "cannot be overridden by 3",
    '"roles": ["small"]}, {"name": "w", "roles": ["timed"]': "workload name 'w' is used twice",
}
BROKEN |= {e: (PLAIN + f'WORKLOADS = [{{"name": "w", {e}}}]\n', 25, m) for e, m in ENTRIES.items()}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_by_name_and_line(case: str) -> None:
    source, line, message = BROKEN[case]
    with pytest.raises(ProblemError) as caught:
        problem(source)
    assert message in str(caught.value)
    assert caught.value.file == "problem.py"
    if line is not None:
        assert caught.value.line == line
        assert str(caught.value).startswith(f"problem.py:{line}: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"x = 1\n\xff\n", "not UTF-8"), (b"#" * (loader.MAX_SOURCE_BYTES + 1), "longer than 4 MiB")],
)
def test_unreadable_files(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "p.py"
    file.write_bytes(content)
    with pytest.raises(ProblemError, match=message):
        load_problem(file)
    for missing in (tmp_path, tmp_path / "none.py"):
        with pytest.raises(ProblemError, match="cannot be read"):
            load_problem(missing)


def test_forward_may_be_inherited() -> None:
    base = PLAIN.replace("class Model(nn.Module)", "class Base(nn.Module)")
    problem(base + "class Model(Base):\n    pass\n")
    problem(base + "class Model(nn.Linear):\n    pass\n")
    with pytest.raises(ProblemError, match="no method `forward`"):
        problem(base.replace("def forward", "def backward") + "class Model(Base):\n    pass\n")


def test_only_literals_can_be_overridden() -> None:
    assert constants(problem()) == {
        "batch": 4,
        "height": 8,
        "width": 8,
        "a": 2,
        "b": 3.5,
        "doubled": 32,
        "sizes": (1, 2),
    }


def test_derived_constants_follow_an_override() -> None:
    module = materialize(problem(), workload(batch=2, width=3, b=1.5, sizes=(5,)))
    assert (module.batch, module.height, module.width, module.shape) == (2, 8, 3, (2, 24))
    assert (module.a, module.b, module.sizes) == (2, 1.5, [5])
    assert module.Model(*module.get_init_inputs()).features == 24
    assert materialize(problem(), workload()).shape == (4, 64)


def test_rendering_keeps_every_line_number() -> None:
    source = PLAIN.replace("batch = 4", "ä = 'ä'; batch = 4; c = batch  # batch").replace("\n", "\r\n")
    text = render(problem(source), workload(batch=2, height=1))
    assert text.count("\n") == PLAIN.count("\n")
    assert "ä = 'ä'; batch = 4; batch = 2; c = batch  # batch" in text
    spread = PLAIN.replace("a, b = 2, 3.5", "a, b = (\n    2,\n    3.5,\n)")
    module = materialize(problem(spread), workload(a=7))
    assert (module.a, module.b) == (7, 3.5)


def test_source_lines_are_there_for_tracebacks_and_inspection() -> None:
    module = materialize(problem(), workload())
    assert "return x * scale" in inspect.getsource(module.Model)
    with pytest.raises(TypeError) as caught:
        module.Model(1).forward(None, 0, 2, 0, 0, 0)
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (last.lineno, last.line) == (10, "return x * scale")
    linecache.checkcache()
    assert linecache.getline(last.filename, 10).strip() == "return x * scale"


def test_two_materialisations_share_nothing() -> None:
    first, second = (materialize(problem(), workload()) for _ in range(2))
    assert first.__name__ != second.__name__
    assert first.Model is not second.Model


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (PLAIN + "boom = 1 // 0\n", 25),
        (PLAIN.replace("import torch\n", "import torch, no_such_module\n"), 1),
        (PLAIN + "import sys\nsys.exit(3)\n", 26),
    ],
)
def test_a_file_that_fails_to_run_names_its_line(source: str, line: int) -> None:
    before = set(sys.modules)
    with pytest.raises(ProblemError) as caught:
        materialize(problem(source), workload())
    assert (caught.value.file, caught.value.line) == ("problem.py", line)
    assert not {name for name in set(sys.modules) - before if name.startswith("warpsmith_problem_")}
    if "no_such_module" in source:
        assert "install the module `no_such_module`" in caught.value.next_step


def test_arguments_are_described() -> None:
    payload = {"problem": problem().model_dump(mode="json"), "workload": "default"}
    value, blobs = inspect_job(payload, {}, Path())
    assert (blobs, value["run"]) == ({}, "fake")
    assert (value["init"], value["init_kwargs"]) == ([{"kind": "value", "value": 64}], {})
    x, index, scale, flag, nothing, rest = read_inspection(value)["inputs"]
    assert x == {"kind": "tensor", "shape": [4, 64], "dtype": "float32", "stride": [64, 1]}
    assert (index["dtype"], index["shape"]) == ("int64", [4])
    assert [scale, flag, nothing] == [{"kind": "value", "value": v} for v in (3, True, None)]
    assert [item["kind"] for item in rest["items"]] == ["tensor", "value"]


def test_huge_inputs_cost_nothing() -> None:
    huge = workload(batch=1 << 30)
    assert inspect_arguments(problem(), huge)["inputs"][0]["shape"] == [1 << 30, 64]


VALUE_READER = PLAIN.replace("    index = ", "    assert torch.ones(3).sum().item() == 3\n    index = ")


def test_a_file_that_reads_values_is_really_run_within_a_limit() -> None:
    assert inspect_arguments(problem(VALUE_READER), workload())["run"] == "real"
    huge = VALUE_READER.replace("torch.rand(shape)", "torch.empty(1 << 40, device='meta')")
    with pytest.raises(ProblemError, match="takes over 2 GiB"):
        inspect_arguments(problem(huge), workload())


@pytest.mark.parametrize(
    ("body", "message", "line"),
    [
        ("    return [batch[0]]", "TypeError: 'int' object is not subscriptable", 20),
        ("    return torch.rand(3)", "`get_inputs` returns a FakeTensor, not a list", None),
        ("    return [object()]", "an argument cannot be described", None),
    ],
)
def test_broken_inputs_cross_the_process_boundary_as_problem_errors(body: str, message: str, line: int | None) -> None:
    start = PLAIN.index("    index =")
    source = PLAIN[:start] + body + "\n\n" + PLAIN[PLAIN.index("def get_init_inputs") :]
    payload = {"problem": problem(source).model_dump(mode="json"), "workload": "default"}
    value, _ = inspect_job(payload, {}, Path())
    with pytest.raises(ProblemError) as caught:
        read_inspection(value)
    assert caught.value.line == line
    assert message.replace("FakeTensor", "Tensor") in str(caught.value)
    assert str(caught.value).count("problem.py") == 1
