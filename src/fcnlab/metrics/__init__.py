"""Confusion matrices, the scores computed from them, and conventions of mean IoU."""
