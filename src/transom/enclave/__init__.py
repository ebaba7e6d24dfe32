"""CMIF's trusted half: encrypted bundles of embedding rows, attestation evidence, its verifier, key release.

Threat model: owner, user and network do not trust each other; the vendor of the trusted hardware is trusted.
Does not protect: answers (the host writes them), and prompts beyond what the word sanitiser gives.
Source: Yu et al., DASFAA 2025, arXiv 2509.09091; RFC 9334 (roles), RFC 9180 (HPKE).
"""
