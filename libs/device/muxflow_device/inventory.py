"""GPUs that are found rather than declared: what NVML lists on this node."""

from __future__ import annotations

import re
from typing import Final

import structlog

from muxflow.contracts import Gpu
from muxflow_device.nvml import Nvml

log = structlog.get_logger()

_MODEL: Final = re.compile(r"[A-Z]{1,2}\d{1,4}[A-Z]?")
"""``T4``, ``A100``, ``H200``, ``L40S``, ``GH200``, ``A10G``: how NVIDIA numbers what goes into servers."""
_BRANDS: Final = frozenset({"NVIDIA", "Tesla", "Quadro", "GeForce", "GRID"})
_VARIANT: Final = re.compile(r"\d+GB|SXM\d*|PCIe|HBM\d\w*|NVL")
"""Parts of a product's name that leave its family what it is: memory, form factor."""


def kind_of(name: str) -> str:
    """Give the family of a product, as jobs name it in ``gpu.kinds``.

    >>> kind_of("NVIDIA A100-SXM4-40GB"), kind_of("Tesla T4"), kind_of("NVIDIA GeForce RTX 4090")
    ('A100', 'T4', 'RTX-4090')
    """
    words = [word for word in re.split(r"[\s-]+", name) if word and word not in _BRANDS]
    for word in words:
        if _MODEL.fullmatch(word):
            return word
    return "-".join(word for word in words if not _VARIANT.fullmatch(word)) or "unknown"


def discover() -> tuple[Gpu, ...]:
    """List the GPUs of this node, in NVML's order. One that does not answer is left out, and logged.

    Raises `muxflow_device.nvml.NvmlUnavailable`.
    """
    nvml = Nvml()
    nvml.open()
    try:
        return _listed()
    finally:
        nvml.close()


def _listed() -> tuple[Gpu, ...]:
    import pynvml  # noqa: PLC0415 - see muxflow_device.nvml

    found = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            gpu = Gpu(
                uuid=pynvml.nvmlDeviceGetUUID(handle),
                kind=kind_of(pynvml.nvmlDeviceGetName(handle)),
                memory_bytes=pynvml.nvmlDeviceGetMemoryInfo(handle).total,
                index=index,
            )
        except pynvml.NVMLError as error:
            log.error("a GPU does not answer and is left out", index=index, error=str(error))  # noqa: TRY400
            continue
        found.append(gpu)
    return tuple(found)
