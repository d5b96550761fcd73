"""Compare runs: read them, group them, test differences, and write tables, charts and a page."""
