"""Weights & Biases: it mirrors what a run's folder contains."""
