"""The OpenAI-compatible endpoint between private words and an engine."""
