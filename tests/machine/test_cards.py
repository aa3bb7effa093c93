"""The table of cards: names as NVML, Slurm and Ray give them, and what must not be taken for a card of the table."""

from __future__ import annotations

import pytest

from grpo_lab.machine.cards import card_of, presets
from grpo_lab.machine.gpus import Gpu

# As NVML names them, with the memory it reports; TFLOPS of dense bf16 from the data sheets (fp16 of V100 and T4).
REPORTED = [
    ("NVIDIA H100 80GB HBM3", 79.6, "h100", 989),
    ("NVIDIA H100 PCIe", 79.6, "h100-pcie", 756),
    ("NVIDIA H100 NVL", 93.6, "h100-nvl", 835),
    ("NVIDIA H200", 140.4, "h200", 989),
    ("NVIDIA H200 NVL", 140.4, "h200-nvl", 835),
    ("NVIDIA GH200 480GB", 95.6, "gh200", 989),
    ("NVIDIA B200", 179.1, "b200", 2250),
    ("NVIDIA GB200", 185.0, "gb200", 2500),
    ("NVIDIA A100-SXM4-40GB", 40.0, "a100-40", 312),
    ("A100-SXM4-40GB", 39.6, "a100-40", 312),
    ("NVIDIA A100-SXM4-80GB", 80.0, "a100-80", 312),
    ("NVIDIA A100-PCIE-40GB", 40.0, "a100-40-pcie", 312),
    ("NVIDIA A100 80GB PCIe", 80.0, "a100-80-pcie", 312),
    ("NVIDIA A40", 45.0, "a40", 149.7),
    ("NVIDIA A30", 24.0, "a30", 165),
    ("NVIDIA A10", 22.5, "a10", 125),
    ("NVIDIA A10G", 22.5, "a10g", 70),
    ("NVIDIA L40S", 45.0, "l40s", 362),
    ("NVIDIA L40", 45.0, "l40", 181),
    ("NVIDIA L4", 22.5, "l4", 121),
    ("NVIDIA GeForce RTX 5090", 31.8, "rtx5090", 209.5),
    ("NVIDIA GeForce RTX 4090", 24.0, "rtx4090", 165),
    ("NVIDIA GeForce RTX 3090", 24.0, "rtx3090", 71),
    ("NVIDIA RTX 6000 Ada Generation", 48.0, "rtx6000-ada", 364),
    ("NVIDIA RTX A6000", 48.0, "rtx-a6000", 154.8),
    ("Tesla V100-SXM2-16GB", 16.0, "v100-16", 125),
    ("Tesla V100-SXM2-32GB", 32.0, "v100-32", 125),
    ("Tesla V100-PCIE-32GB", 32.0, "v100-32-pcie", 112),
    ("Tesla T4", 15.0, "t4", 65),
]


@pytest.mark.parametrize(("name", "gib", "card", "tflops"), REPORTED, ids=[row[0] for row in REPORTED])
def test_a_card_by_the_name_that_nvml_reports(name: str, gib: float, card: str, tflops: float) -> None:
    recognised = card_of(name, gib)
    assert recognised is not None
    assert recognised.name == card
    assert Gpu("0", name, gib).peak_flops == recognised.flops == tflops * 1e12


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("NVIDIA GeForce RTX 4090 D", 24.0),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16.0),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", 39.5),
        ("NVIDIA A100-SXM4-80GB", 40.0),
        ("GRID A100-40C", 40.0),
        ("Quadro RTX 6000", 24.0),
        ("NVIDIA Graphics Device", 80.0),
        ("NVIDIA", 80.0),
        ("AMD Instinct MI300X", 192.0),
    ],
)
def test_an_unknown_card_has_no_peak(name: str, gib: float) -> None:
    assert card_of(name, gib) is None
    assert Gpu("0", name, gib).peak_flops is None


@pytest.mark.parametrize(
    ("name", "tflops"),
    [("NVIDIA A100 SXM4", 312), ("A100", 312), ("A10G", 70), ("H200", 989), ("L40S", 362), ("tesla_t4", 65)],
)
def test_a_name_that_a_scheduler_shortened(name: str, tflops: float) -> None:
    assert Gpu("0", name, 0.0).peak_flops == tflops * 1e12


@pytest.mark.parametrize("name", ["H100", "V100", "GPU"])
def test_a_shortened_name_of_cards_that_differ_has_no_peak(name: str) -> None:
    assert Gpu("0", name, 0.0).peak_flops is None


@pytest.mark.parametrize("name", presets())
def test_presets_are_whole_and_have_a_source(name: str) -> None:
    card = presets()[name]
    assert min(card.memory, card.bandwidth, card.flops, card.link, card.network) > 0
    assert card.source.startswith("NVIDIA ")
    assert all(card_of(reported, card.memory / 2**30) == card for reported in card.names)
