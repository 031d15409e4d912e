"""Which profile fits a GPU, and what is said where a target does not."""

from __future__ import annotations

import pytest
import torch

from verifier.errors import UsageError
from verifier.gpu.found import choose_target, nearest, visible_gpus
from verifier.gpu.nvml import Gpu, describe

GIB = 1 << 30
H100 = Gpu("NVIDIA H100 80GB HBM3", 90, 80 * GIB)
H200 = Gpu("NVIDIA H200", 90, 140 * GIB)
ADA = Gpu("NVIDIA GeForce RTX 4090", 89, 24 * GIB)


@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        (H100, "h100-sxm"),
        (H200, "h200"),
        (Gpu("NVIDIA H100 PCIe", 90, 80 * GIB), "h100-pcie"),
        (Gpu("NVIDIA H100 NVL", 90, 94 * GIB), "h100-sxm"),
        (Gpu("NVIDIA H200 NVL", 90, 140 * GIB), "h200"),
        (Gpu("NVIDIA GH200 480GB", 90, 95 * GIB), "h200"),
        (Gpu("NVIDIA A100-SXM4-40GB", 80, 40 * GIB), "a100"),
        (Gpu("NVIDIA B200", 100, 180 * GIB), "b200"),
    ],
)
def test_a_gpu_has_the_profile_of_its_name_or_the_closest(gpu: Gpu, name: str) -> None:
    found = nearest(gpu)
    assert found is not None
    assert found.name == name
    assert choose_target("auto", gpu, measured=True).target.name == name


def test_auto_without_a_gpu_is_the_default() -> None:
    assert choose_target("auto", None, measured=False).target.name == "h200"
    assert choose_target("auto", ADA, measured=False).target.name == "h200"


def test_another_device_of_the_same_architecture_is_a_warning_and_lends_its_figures() -> None:
    fit = choose_target("h200", H100, measured=True)
    assert (fit.target.name, fit.figures.name) == ("h200", "h100-sxm")
    assert fit.warning == (
        "the target is h200 and the GPU is an NVIDIA H100 80GB HBM3: its figures (h100-sxm) are used for advice"
    )
    assert choose_target("sm_90a", H200, measured=True).warning == ""
    assert choose_target("h200", H100, measured=False).warning == ""


@pytest.mark.parametrize(
    ("wanted", "gpu", "words", "step"),
    [
        ("b200", H200, "b200 is made for sm_100, and its plans do not run on the GPU here, NVIDIA H200", "h200"),
        ("auto", ADA, r"no target fits the GPU here, .* \(compute capability 8.9\); there are targets", "--gpus none"),
        ("h200", ADA, "h200 is made for sm_90a", "--gpus none"),
    ],
)
def test_another_architecture_is_refused_in_one_sentence(wanted: str, gpu: Gpu, words: str, step: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        choose_target(wanted, gpu, measured=True)
    assert step in caught.value.next_step


def test_no_driver_tells_nothing() -> None:
    if not visible_gpus():
        assert describe("0") is None
    assert describe("GPU-none") is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_driver_names_the_gpu_as_torch_does() -> None:
    gpu = describe(visible_gpus()[0])
    assert gpu is not None
    properties = torch.cuda.get_device_properties(0)
    assert (gpu.name, gpu.capability) == (properties.name, 10 * properties.major + properties.minor)
    assert gpu.memory == pytest.approx(properties.total_memory, rel=0.05)
