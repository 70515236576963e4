"""MuxFlow runs best-effort offline GPU jobs beside latency-critical online services."""

from importlib.metadata import version

__version__ = version("muxflow")
