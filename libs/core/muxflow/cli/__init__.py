"""The command line ``muxflow``. Nothing heavy is imported until a command needs it."""

from __future__ import annotations


def main() -> None:
    """Run the command line; the process ends with its exit code."""
    from muxflow.cli.app import build

    build()()
