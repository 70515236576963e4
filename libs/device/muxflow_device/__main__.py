"""``python -m muxflow_device``: print the GPUs that NVML finds on this node, as JSON."""

from __future__ import annotations

import sys

import msgspec

from muxflow_device.inventory import discover
from muxflow_device.nvml import NvmlUnavailable


def main() -> None:
    """Print them; exit code 1 and one line on standard error where there is no NVML."""
    try:
        gpus = discover()
    except NvmlUnavailable as error:
        sys.exit(str(error))
    sys.stdout.write(msgspec.json.encode(gpus).decode() + "\n")


if __name__ == "__main__":
    main()
