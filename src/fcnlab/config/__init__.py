"""What may be set: schemas, checks of every value, and overrides."""
