"""A package, since its files are named like those beside the code that they test."""
