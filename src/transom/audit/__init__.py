"""The audit: attacks on every boundary, what runs them, and the reports that people and builds read."""
