"""What NVML says about one GPU, ten times a second.

`reader` asks, `rhythm` says when; what part of it is the online side's is worked out in `muxflow_device.attribution`.
"""
