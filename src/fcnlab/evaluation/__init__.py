"""Evaluate a model on a split, and record its scores and cost."""
