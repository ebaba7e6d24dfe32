"""Tiny random checkpoints with a real tokenizer, for tests and demonstrations: public fakes.

Threat model: none. Does not protect anything, and answers nothing sensible: the weights are random.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transom.checkpoint.resolve import MAKING, libraries
from transom.checkpoint.seeded import seeded

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "Please tell me what the weather will be like tomorrow, and why.",
    "A model answers questions; a person asks them. Numbers: 0 1 2 3 4 5 6 7 8 9.",
    "Ein Fuchs läuft über den Hof. Où est la gare? ¿Dónde está?",
]
_CHAT_SPECIALS = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
_BERT_SPECIALS = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


def tiny_llama(folder: Path, *, architecture: str = "Llama", seed: int = 0, **config: Any) -> Path:
    """Write a random Llama, Mistral, Qwen2 or Qwen3 of three layers and 32 dimensions; returns `folder`.

    Further keywords override the model's configuration. Same seed, same weights.
    """
    transformers, _torch = libraries()
    tokenizer = _byte_level(_CHAT_SPECIALS)
    ids = {f"{role}_id": tokenizer.token_to_id(text) for role, text in _CHAT_SPECIALS.items()}
    options = _SMALL | {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256}
    options |= ids | config
    options["vocab_size"] = tokenizer.get_vocab_size()
    settings = getattr(transformers, f"{architecture}Config")(**options)
    _save(getattr(transformers, f"{architecture}ForCausalLM"), settings, seed, folder)
    _save_tokenizer(tokenizer, _CHAT_SPECIALS | {"chat_template": _CHAT_TEMPLATE}, folder)
    return folder


def tiny_bert(folder: Path, *, seed: int = 0, **config: Any) -> Path:
    """Write a random BERT classifier of three layers and 32 dimensions; returns `folder`."""
    transformers, _torch = libraries()
    tokenizer = _word_piece()
    options = _SMALL | {"max_position_embeddings": 128, "vocab_size": tokenizer.get_vocab_size()} | config
    _save(transformers.BertForSequenceClassification, transformers.BertConfig(**options), seed, folder)
    _save_tokenizer(tokenizer, _BERT_SPECIALS, folder)
    return folder


def _save(model_class: Any, config: Any, seed: int, folder: Path) -> None:
    import torch

    with seeded(seed):
        with MAKING:
            model = model_class(config)
        for parameter in model.parameters():  # wider than usual: answers must depend on their prompts
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)


def _save_tokenizer(tokenizer: Tokenizer, config: dict[str, str], folder: Path) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    record = config | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(record, indent=2), "utf-8")


def _byte_level(specials: dict[str, str]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(specials.values()), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


def _word_piece() -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    normalizer = normalizers.BertNormalizer(lowercase=True)
    pieces = _pieces(normalizer.normalize_str(" ".join(_CORPUS)))
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    ends = [(text, tokenizer.token_to_id(text)) for text in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return tokenizer


def _pieces(text: str) -> list[str]:
    """Special tokens, letters and words. The library's trainer would number them anew in each process."""
    words = sorted(set(re.findall(r"\w+|[^\w\s]", text)))
    letters = sorted(set("".join(words)))
    longer = [word for word in words if len(word) > 1]
    return [*_BERT_SPECIALS.values(), *letters, *(f"##{letter}" for letter in letters), *longer]
