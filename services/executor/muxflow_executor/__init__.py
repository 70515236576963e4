"""The executor: runs assigned jobs on one node and reports what becomes of them."""
