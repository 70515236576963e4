"""The profiler: measures offline jobs alone, online services by time of day, and pairs of them."""
