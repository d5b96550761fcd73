"""Safe reading, atomic writing and locking of files."""
