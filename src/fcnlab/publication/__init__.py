"""What is published with a model or a paper: a model card, and a figure of example segmentations."""
