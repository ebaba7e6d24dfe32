"""Engines: what runs a model, and what speaks to one. Importing this room loads no model library."""
