"""GPU data sheets and what fraction of them kernels reach."""

from dataclasses import dataclass

from serving.cost.number import Number
from serving.units import GB, TFLOPS, Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """A GPU model's peak numbers."""

    slug: str
    memory: Bytes
    """Usable memory, as the testbeds count it."""
    memory_bandwidth: float
    """Bytes per second."""
    fp16_flops: float
    """Dense tensor-core FLOP/s."""
    source: str


GPUS: dict[str, GpuSpec] = {
    gpu.slug: gpu
    for gpu in (
        GpuSpec(
            slug="a10",
            memory=22 * GB,
            memory_bandwidth=600 * GB,
            fp16_flops=125 * TFLOPS,
            source="NVIDIA A10 data sheet (24 GB; 22 usable per HydraServe artifact's instance table)",
        ),
        GpuSpec(
            slug="v100",
            memory=32 * GB,
            memory_bandwidth=900 * GB,
            fp16_flops=125 * TFLOPS,
            source="NVIDIA V100 SXM2 32GB data sheet",
        ),
        GpuSpec(
            slug="h200",
            memory=141 * GB,
            memory_bandwidth=4800 * GB,
            fp16_flops=989 * TFLOPS,
            source="NVIDIA H200 SXM data sheet (141 GB HBM3e, 4.8 TB/s, dense bf16 without sparsity)",
        ),
    )
}

MEASURED_ONLY = ("cpu",)
"""Kinds of devices without a data sheet: what they reach is measured, not derived."""

KINDS = (*GPUS, *MEASURED_ONLY)
"""Every kind of device that a server may have."""

MEMORY_EFFICIENCY = 0.75
"""Share of peak memory bandwidth that a decode step reaches."""

COMPUTE_EFFICIENCY = 0.5
"""Share of peak fp16 FLOP/s that a large prefill reaches."""

CONSTANTS = (
    Number(
        name="memory_efficiency",
        value=MEMORY_EFFICIENCY,
        unit="",
        source="HydraServe introduction, about 30 ms per token for a warm Llama2-7B on an A10: "
        "13.48 GB / (600 GB/s x 30 ms)",
    ),
    Number(
        name="compute_efficiency",
        value=COMPUTE_EFFICIENCY,
        unit="",
        source="assumption: the middle of the 40 to 60 % that public GEMM benchmarks show for these boards; in the "
        "cold-start figures it decides the length of the profile run (0.3 to 1.4 s) and nothing else",
    ),
)
