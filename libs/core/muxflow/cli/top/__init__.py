"""``top``: all GPUs at a glance, live."""

from __future__ import annotations
