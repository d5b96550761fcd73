"""A package, because its files have names that other test folders use, too."""
