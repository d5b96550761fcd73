"""Own parts for fcnlab."""
