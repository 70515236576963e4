"""The whole system at work on one machine: see `muxflow_run`."""

from muxflow_run.cli import main

if __name__ == "__main__":
    main()
