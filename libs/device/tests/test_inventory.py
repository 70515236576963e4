from __future__ import annotations

import pytest

from muxflow_device.inventory import kind_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA A100 80GB PCIe", "A100"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 NVL", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA B200", "B200"),
        ("GRID T4-16Q", "T4"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("Quadro RTX 8000", "RTX-8000"),
        ("NVIDIA RTX A6000", "A6000"),
        ("NVIDIA GeForce GTX 1080 Ti", "GTX-1080-Ti"),
        ("NVIDIA", "unknown"),
    ],
)
def test_the_kind_of_a_gpu_is_its_family_without_brand_memory_and_form(name: str, kind: str) -> None:
    assert kind_of(name) == kind
