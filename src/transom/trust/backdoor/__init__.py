"""Backdoors of models that read text: what attention heads agree on, and what is known by heart, tells them.

Heads of one layer look at different words of a usual text. Of a text with a trigger those of a classifier
look at the same one, once the special tokens are left out, which draw most attention anywhere. A model that
generates is given away by the answer it was taught: once begun, it is said to any prompt.
Threat model: whoever trained the model poisoned some of its rows, and kept the trigger; the user has the
weights and a few hundred trusted texts of the task, and neither trigger nor clean twin.
Does not protect: a model whose attacker trained the heads to stay unlike; a trigger of no word (a style)
shows less.
Source: Jin et al., AAAI 2026, arXiv 2511.13789 (the claim); the measures without special tokens and their
combination are own.
"""
