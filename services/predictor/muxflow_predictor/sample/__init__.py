"""Measuring pairs on simulated GPUs: where the measurements that MuxFlow ships come from."""
