"""What a run leaves in its folder: records, scores, provenance and drawings, written and read here."""
