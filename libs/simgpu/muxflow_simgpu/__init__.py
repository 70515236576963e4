"""A simulated GPU at the driver boundary, for tests and for trying things out."""
