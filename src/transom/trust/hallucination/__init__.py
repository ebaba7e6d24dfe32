"""Whether an answer is made up, read from the states of the model that gives it.

Threat model: none of an attacker: the model errs, and its states tell something of it. Does not protect:
states are correlates of truth, and fail on negations and on other topics than those that were learnt from
(Levinstein and Herrmann, arXiv 2307.00175); a low risk is no proof.
Source: Wang et al., arXiv 2502.13490 (stages, families, selections); Transom's variant is its own.
"""
