"""The monitor: watches a node's GPUs, sets their gates and tells what it sees."""
