"""One GPU's outside world: run directory, pages in shared memory, NVML readings, MPS control."""
