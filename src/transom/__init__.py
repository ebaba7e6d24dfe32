"""Transom: use models you do not control on data you may not share, and measure what leaked."""
