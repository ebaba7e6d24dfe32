"""Mechanisms on words, what they promise, and the ledger of what was spent. Never loads a model."""
