"""Whether a model itself can be trusted: is it poisoned, and is its answer made up."""
