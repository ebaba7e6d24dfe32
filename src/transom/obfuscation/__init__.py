"""AloePri's offline half: a secret change of basis and of ids, applied to an open-weights checkpoint.

Threat model: an honest-but-curious host that runs an unmodified engine on the obfuscated checkpoint.
Does not protect against a host that has the public base model unless the audit of the very checkpoint says
so: the keys cancel in products of weights, and only noise and permutations hide anything.
Source: Lin et al., "Towards Privacy-Preserving LLM Inference via Covariant Obfuscation", arXiv 2603.01499.
"""
