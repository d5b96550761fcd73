"""Data sets: one module per format, each with a function that opens a split."""
