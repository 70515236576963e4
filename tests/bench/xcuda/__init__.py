"""The parts of `bench_xcuda.py`."""
