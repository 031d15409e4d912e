"""Finding problems by name, and the attention suite against FlexAttention."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from experiments.suites import list_problems, resolve
from verifier.errors import ProblemError, UsageError
from verifier.loader import inspect_arguments, materialize
from verifier.problem import LibraryPolicy, Precision, Problem, Role, Workload

ATTENTION = [
    "attention/alibi",
    "attention/causal",
    "attention/full",
    "attention/neighbourhood_2d",
    "attention/relative_position",
    "attention/softcap",
]
ODD = [(name, resolve(name).having(Role.SMALL)[1].name) for name in ATTENTION]
"""Of each problem the small workload whose sequence is no multiple of 64."""


def small(name: str, workload: str) -> tuple[ModuleType, list[torch.Tensor]]:
    problem = resolve(name)
    module = materialize(problem, next(w for w in problem.workloads if w.name == workload))
    torch.manual_seed(0)
    inputs: list[torch.Tensor] = module.get_inputs()
    return module, inputs


def run(module: ModuleType, inputs: list[torch.Tensor]) -> torch.Tensor:
    result: torch.Tensor = module.Model(*module.get_init_inputs())(*inputs)
    return result


def error(output: torch.Tensor, exact: torch.Tensor) -> float:
    return float((output.double() - exact).norm() / (exact - exact.mean()).norm())


def flex(module: ModuleType, inputs: list[torch.Tensor]) -> torch.Tensor:
    """The baseline, not compiled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it is not compiled
        model = module.Flex(*module.get_init_inputs())
        model.attend = flex_attention
        output = model(*inputs)
    assert isinstance(output, torch.Tensor)
    return output


def test_all_problems_are_listed_with_their_titles() -> None:
    listed = dict(list_problems())
    assert [name for name in listed if name.startswith("attention/")] == ATTENTION
    assert all(listed.values())


@pytest.mark.parametrize("name", ATTENTION)
def test_the_contract_of_the_attention_suite(name: str) -> None:
    problem = resolve(name)
    assert (problem.precision, problem.baseline) == (Precision.FP16, "flex")
    assert set(problem.baselines | problem.excuses) == {"flex", "cudnn"}
    assert problem.library is LibraryPolicy.FORBIDDEN
    assert problem.prompt
    assert problem.prompt.startswith("Please write a GPU attention kernel to support")
    roles = {role for w in problem.workloads for role in w.roles}
    assert roles == set(Role)
    shapes = {w.name: shape_and_dtype(problem, w) for w in problem.workloads}
    assert shapes["d64_fp16"] == ([4, 16, 4096, 64], "float16")
    assert shapes["d128_bf16"] == ([4, 16, 4096, 128], "bfloat16")
    sequences = [shapes[w.name][0][2] for w in problem.having(Role.SMALL)]
    assert sequences[1] % 64
    assert all(96 <= s <= 160 for s in sequences)


def shape_and_dtype(problem: Problem, workload: Workload) -> tuple[list[int], str]:
    q, k, v = inspect_arguments(problem, workload)["inputs"]
    assert q == k == v
    return q["shape"], q["dtype"]


@pytest.mark.parametrize(("name", "workload"), ODD)
def test_the_flexattention_form_equals_the_model(name: str, workload: str) -> None:
    module, inputs = small(name, workload)
    exact = run(module, [tensor.double() for tensor in inputs])
    output = run(module, inputs)
    assert output.dtype == inputs[0].dtype
    limit = 4 * torch.finfo(output.dtype).eps
    assert error(output, exact) < limit
    assert error(flex(module, inputs), exact) < limit


def test_the_bias_of_the_cudnn_baseline_is_the_encoding() -> None:
    """Up to what a softmax does not see; at the timed sizes, where 16 bits round the bias."""
    problem = resolve("attention/relative_position")
    for workload in problem.timed:
        module = materialize(problem, workload)
        query, key = torch.tensor([[0], [1], [2047], [module.sequence - 1]]), torch.arange(module.sequence)
        encoding = (query - key).double()
        weights = torch.softmax(module.Cudnn().bias[0, 0].double().expand(4, -1), dim=-1)
        assert error(weights, torch.softmax(encoding, dim=-1)) < 1e-12


@pytest.mark.parametrize("name", [n for n in ATTENTION if n != "attention/full"])
def test_leaving_the_variant_out_is_far_outside_the_limit(name: str) -> None:
    module, inputs = small(name, "small")
    exact = run(module, [tensor.double() for tensor in inputs])
    plain = torch.nn.functional.scaled_dot_product_attention(*[tensor.double() for tensor in inputs])
    assert error(plain, exact) > 0.02


def test_the_published_prompt_is_complete() -> None:
    prompt = " ".join((resolve("attention/relative_position").prompt or "").split())
    for part in (
        "Please write a GPU attention kernel to support relative position encodings. Implement the relative "
        "positional encoding on the fly within the kernel. The complete code should be returned, including "
        "the necessary modifications.",
        "def relative_positional(score, b, h, q_idx, kv_idx): return score + (q_idx - kv_idx)",
        "a constant scaling factor 1.44269504 should be applied to the relative positional encoding due to "
        "qk_scale = sm_scale * 1.44269504.",
        "qk = qk * qk_scale + rel_pos * 1.44269504",
        "ensuring that the relative positional encoding is applied efficiently within the kernel operations.",
    ):
        assert part in prompt


def test_neighbourhood_by_hand() -> None:
    """Every query sees window x window keys of its own phase, the nearest ones that the border allows."""
    module, _ = small("attention/neighbourhood_2d", "small_dilated")
    model = module.Model(*module.get_init_inputs())
    for length in (module.height, module.width):
        seen = model.visible(length, torch.device("cpu"))
        for query in range(length):
            same = [key for key in range(length) if key % module.dilation == query % module.dilation]
            near = sorted(same, key=lambda key: (abs(key - query), key))[: module.window]
            assert seen[query].nonzero().flatten().tolist() == sorted(near)


@pytest.mark.parametrize("form", ["{}", "./{}"])
def test_a_file_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(resolve("attention/full").source)
    assert resolve(form.format("mine.py")).name == "mine"


def test_unknown_names_list_close_matches(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown problem 'attention/casual'; did you mean attention/causal"):
        resolve("attention/casual")
    with pytest.raises(UsageError, match="needs your checkout"):
        resolve("kernelbench:level1/19")
    with pytest.raises(ProblemError, match="cannot be read"):
        resolve(str(tmp_path / "none.py"))


def test_a_suite_of_another_package_is_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "their_problems"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('a suite is not imported')\n")
    (folder / "_helper.py").write_text("")
    (folder / "one.py").write_text(resolve("attention/full").source)
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[warpsmith.suites]\ntheirs = their_problems\nattention = their_problems\nbroken = no_such_package\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    assert resolve("theirs/one").name == "theirs/one"
    assert resolve("attention/causal").title == "Causal attention"
    with pytest.raises(UsageError, match="suite 'broken' is declared as 'no_such_package'"):
        list_problems()
