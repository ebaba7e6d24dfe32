"""The audit: attacks on every boundary; for now the epsilon distinguisher."""
