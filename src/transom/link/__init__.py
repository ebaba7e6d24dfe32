"""Tensors between two parties that must not be lost, doubled or believed.

A broker (memory, TCP, NATS) may lose, double, reorder and delay; `Session` above it applies every message
once, with a durable `Record`; `Tunnel` privatises what crosses.
Threat model: the network and the broker are hostile, the partner is known by its key and may send
anything.
Does not protect: what the partner learns from the values themselves; see `tunnel`, and audit it.
"""
