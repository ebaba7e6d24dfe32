"""Which ids end an answer of a GGUF model: those that its keys name, and those known by their text.

Threat model: none; tables and a set. Does not protect: an engine ends an answer where it likes; the gateway
cuts at these ids.
Source: llama.cpp's behaviour as measured; the tokens' texts are those of the models' own vocabularies.
"""

from __future__ import annotations

from collections.abc import Mapping

_ENDS = (
    *("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>"),
    *("<|calls|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<EOT>", "_<EOT>"),
    *("[EOT]", "[EOS]", "[e~["),
    *("<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>"),
)
# Fill-in-the-middle roles by the names of their keys. The first three end nothing.
FILL_ROLES = {
    "fim_pre": "fim_pre", "fim_suf": "fim_suf", "fim_mid": "fim_mid", "fim_pad": "fim_pad",
    "fim_rep": "fim_rep", "fim_sep": "fim_sep", "prefix": "fim_pre", "suffix": "fim_suf", "middle": "fim_mid",
}  # fmt: skip
_FILL_TEXTS = {
    "fim_pre": ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>",
                "<|code_prefix|>", "<|prefix|>"),
    "fim_suf": ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>",
                "<|code_suffix|>", "<|suffix|>"),
    "fim_mid": ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>",
                "<|code_middle|>", "<|middle|>"),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}  # fmt: skip
CONTROL_TEXTS = {"": _ENDS} | _FILL_TEXTS  # control tokens by text, unless the role has an id already


def end_ids(ids: Mapping[str, int], roles: Mapping[str, int]) -> tuple[int, ...]:
    """The ids that end an answer, sorted, from ids by piece and ids by role."""
    ends = {roles[role] for role in ("eos", "eot", "eom") if role in roles}
    ends |= {ids[text] for text in _ENDS if text in ids}
    for role in ("fim_pad", "fim_rep", "fim_sep"):
        found = [ids[text] for text in _FILL_TEXTS[role] if text in ids]
        ends |= {roles[role]} if role in roles else set(found)
    has = {text: ids.get(text) in ends for text in ("<|return|>", "<|call|>", "<|calls|>", "<|flush|>")}
    # Where a call or a return ends an answer, <|end|> only ends one of its messages.
    if (has["<|call|>"] or has["<|calls|>"]) and (has["<|return|>"] or has["<|flush|>"]):
        ends.discard(ids.get("<|end|>", -1))
    if "<|tool_response>" in ids:
        ends.discard(ids.get("</s>", -1))
    return tuple(sorted(ends))
