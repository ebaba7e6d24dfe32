r"""How text is cut into words before byte pairs are merged, by the name in a GGUF's `tokenizer.ggml.pre`.

Each rule is a list of expressions, applied one after the other: what one matches is a word, what lies between
two matches goes on to the next, and is a word in the end. In this table is what was compared with llama.cpp
word by word; other names are refused, as ids would differ in silence.
Threat model: none; a table. Does not protect: where llama.cpp departs from a model's own tokenizer.json, the
file's ids are llama.cpp's (for tekken and gpt-4o, letters beyond ASCII count as both cases; for the older
DeepSeek rules, white space beyond ASCII is no part of a CJK word).
Source: each model's own tokenizer.json; behaviour of llama.cpp as measured.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SplitRule:
    """Expressions that cut words, whether a whole word is looked up before merging, and BOS where unsaid."""

    splits: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    bos_id: int | None = 11


_SHORT = r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"
_SPACES = r"|\s+(?!\S)|\s+"
_CJK = r"[一-龥぀-ゟ゠-ヿ]+"
_OLD_CJK = r"[ࠀ-龥가-퟿&&\S]+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_FALCON = r"\p{P}$+<=>^~|"


def _words(
    digits: str,
    *,
    start: str = _SHORT + "|",
    letters: str = r"\p{L}+",
    others: str = r" ?[^\s\p{L}\p{N}]+[\r\n]*",
) -> str:
    """The shape that most models since GPT-4 share."""
    return rf"{start}[^\r\n\p{{L}}\p{{N}}]?{letters}|{digits}|{others}|\s*[\r\n]+{_SPACES}"


def _cased(digits: str, end: str = "") -> str:
    """Words end where a small letter is followed by a capital."""
    upper, lower, lead = r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]", r"[^\r\n\p{L}\p{N}]?"
    words = rf"{lead}{upper}*{lower}+{end}|{lead}{upper}+{lower}*{end}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+{_SPACES}"


def _deepseek(others: str) -> tuple[str, ...]:
    ascii_word = r"[!-/:-@\[-`{-~][A-Za-z]+"
    words = r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    return r"\p{N}{1,3}", _CJK, f"{ascii_word}|{words}|{others}{_SPACES}"


_LLAMA3, _QWEN2 = _words(r"\p{N}{1,3}"), _words(r"\p{N}")
_QWEN35 = _words(r"\p{N}", letters=r"[\p{L}\p{M}]+", others=r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*")
_EXAONE_MOE = _words(
    r"\p{N}",
    letters=r"(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
    others=r" ?[^\s\p{L}\p{N}]+[\r\n/]?",
)
_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _OLD_CJK, r"\p{N}")
_DEEPSEEK_LLM = (
    r"[\r\n]",
    # The model's list of letters with case, which leaves out Armenian small letters and some rarer ones.
    r"\s?[\p{Ll}\p{Lu}\p{Lt}&&[^ՠ-ֈꞐ-ꟿꬰ-ꭨ𐕰-𐖼𖹀-𖹿𝐀-𝟋𝼀-𝼞]]+",
    r"\s?[!-/:-~！-／：-～‘-‟、-。]+",
    r"\s+$",
    _OLD_CJK,
    r"\p{N}+",
)

_NAMES: dict[str, SplitRule] = {
    "default": SplitRule((f"[{_FALCON}]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "falcon": SplitRule((f"[{_FALCON}`]+", _GPT2, "[0-9][0-9][0-9]")),
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2": SplitRule((_LLAMA3,), True, True),
    "dbrx smaug-bpe": SplitRule((_LLAMA3,)),
    "chatglm-bpe": SplitRule((_LLAMA3,), bos_id=None),
    "glm4": SplitRule((_LLAMA3,), ignore_merges=True, bos_id=None),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 megrez hunyuan solar-open grok-2 bailingmoe bailingmoe2"
    " llada-moe": SplitRule((_QWEN2,)),
    "qwen35": SplitRule((_QWEN35,)),
    "gpt-2 phi-2 gigachat a.x-4.0 mellum exaone4 mpt olmo jais trillion granite-docling": SplitRule((_GPT2,)),
    "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2": SplitRule((r"\p{N}", _GPT2)),
    "deepseek-coder": SplitRule(_CODER),
    "deepseek-llm": SplitRule(_DEEPSEEK_LLM),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": SplitRule(_deepseek(r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+")),
    "spark2_5": SplitRule((*_deepseek(r" ?[\p{P}\p{S}]+|[\r\n]"), r"\p{N}")),
    "tekken": SplitRule((_cased(r"\p{N}"),), True, True),
    "gpt-4o llama4 kanana2 talkie minimax-m2": SplitRule((_cased(r"\p{N}{1,3}", f"(?:{_SHORT})?"),)),
    "seed-coder": SplitRule((_words(r"\p{N}", others=r" ?[^\s\p{L}\p{N}\r\n]+"),)),
    "ufakzeka": SplitRule((_words(r"\p{N}", start=""),)),
    "laguna": SplitRule((r"[^\n]+|\n+", _QWEN2)),
    "exaone-moe": SplitRule((_EXAONE_MOE,)),
    "minicpm5": SplitRule((r"\p{N}{1,3}", _words(r"\p{N}+")), True),
    "poro-chat bloom gpt3-finnish": SplitRule((_BLOOM,)),
    "viking": SplitRule((_BLOOM, r"\p{N}")),
}
SPLIT_RULES = {name: rule for names, rule in _NAMES.items() for name in names.split()}
