"""Engines that run a model, and the gateway in front of them."""
