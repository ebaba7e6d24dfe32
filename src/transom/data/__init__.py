"""A user's own files: rows, columns and texts."""
