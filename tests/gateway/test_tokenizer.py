"""Text to ids and back: parity with transformers, control tokens kept out of content, UTF-8 safe streams."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from transom.errors import CheckpointError, RefusedError, ReplaceableError
from transom.serving.tokenizer import (
    ChatTokenizer,
    Detokenizer,
    _splits_at_controls,
    load_tokenizer,
)

from .conftest import CHATML, byte_tokenizer, chat_tokenizer

START, END = 256, 257
SNIPPETS = ["a", " ", "<|im_end|>", "<|im_start|>", "<|", "|>", "é", "世", "\n", "🙂"]
MIXED = st.lists(st.sampled_from(SNIPPETS), max_size=8).map("".join)


@pytest.fixture(scope="module")
def smollm2() -> ChatTokenizer:
    return load_tokenizer("smollm2")


def test_chat_ids_agree_with_transformers(smollm2: ChatTokenizer, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    from transom.checkpoint.tokenizer import export_tokenizer

    files = export_tokenizer("smollm2")
    reference = PreTrainedTokenizerFast(
        tokenizer_object=files.tokenizer, chat_template=files.chat_template, **files.specials
    )
    for contents in (["Be brief.", "What is  the capital of France?\n"], ["", "\n\n  Grüße 世界 🙂 123"]):
        messages = [
            ("system", contents[0]),
            ("user", contents[1]),
            ("assistant", "Paris."),
            ("user", "Thanks"),
        ]
        encoded = smollm2.encode_chat(messages)
        expected = reference.apply_chat_template(
            [{"role": role, "content": text} for role, text in messages], add_generation_prompt=True,
            tokenize=False,
        )  # fmt: skip
        assert encoded.text == expected
        assert list(encoded.ids) == reference(expected, add_special_tokens=False)["input_ids"]


@settings(deadline=None, max_examples=150)
@given(st.lists(MIXED, min_size=1, max_size=3))
def test_content_never_becomes_a_control_token(contents: list[str]) -> None:
    encoded = TOKENIZER.encode_chat([("user", content) for content in contents])
    controls = [i for i in encoded.ids if i in (START, END)]
    assert controls == [START, END] * len(contents) + [START]
    assert TOKENIZER._whole.decode(list(encoded.ids), skip_special_tokens=False) == encoded.text
    bare = TOKENIZER.encode_text(contents[0])
    assert not {START, END} & set(bare.ids)


TOKENIZER = chat_tokenizer()


def test_a_control_token_that_cannot_be_spelled_is_refused() -> None:
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", -1.0), ("a", -2.0)], unk_id=0))
    tokenizer.add_special_tokens(["</s>"])
    chat = ChatTokenizer(tokenizer, CHATML)
    with pytest.raises(RefusedError):
        chat.encode_text("a</s>")
    with pytest.raises(RefusedError) as caught:
        chat.encode_chat([("user", "a"), ("user", "a</s>")])
    assert caught.value.param == "messages[1].content"
    assert chat.encode_text("ab").ids[0] == 2  # the unknown token is no control token


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0]['content'] }}",
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
        "{% for m in messages %}{{ m['content'][:10] }}{% endfor %}",
        "{% for m in messages %}{{ m['content'][:-1] }}{% endfor %}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[7]['content'] }}",
        "{{ ''.__class__.__mro__ }}",
        "{% for m in messages %}{{ m.content.format }}{% endfor %}",
    ],
)
def test_templates_that_lose_alter_or_fail_are_refused(template: str) -> None:
    with pytest.raises(RefusedError) as caught:
        ChatTokenizer(byte_tokenizer(), template).encode_chat([("user", "secret"), ("assistant", "secret")])
    assert "secret" not in str(caught.value)


def test_no_template_and_broken_templates() -> None:
    with pytest.raises(ReplaceableError, match="completions"):
        ChatTokenizer(byte_tokenizer()).encode_chat([("user", "x")])
    with pytest.raises(CheckpointError):
        ChatTokenizer(byte_tokenizer(), "{% for %}")
    with pytest.raises(CheckpointError):
        load_tokenizer("/nowhere/at/all")


def test_template_logic_never_acts_on_user_text() -> None:
    leak = "{% if 'attack' in m['content'] %}LEAK{% endif %}"
    spy = ChatTokenizer(byte_tokenizer(), "{% for m in messages %}" + leak + "{{ m['content'] }}{% endfor %}")
    assert spy.encode_chat([("user", "defence")]).text == "defence"
    with pytest.raises(RefusedError) as caught:
        spy.encode_chat([("user", "defence"), ("user", "an attack")])
    assert (caught.value.param, caught.value.error_code) == ("messages[1].content", "template_reads_content")
    assert "read 'attack' in this" in str(caught.value)  # the template's own word, and no other
    assert "an attack" not in str(caught.value)


def stream(detokenizer: Detokenizer, ids: list[int], size: int) -> list[str]:
    pieces = [detokenizer.feed(ids[i : i + size]) for i in range(0, len(ids), size)]
    return [*pieces, detokenizer.close()]


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=20), st.integers(1, 5))
def test_byte_level_streams_join_to_the_text(text: str, size: int) -> None:
    pieces = stream(TOKENIZER.detokenizer(), list(TOKENIZER.encode_text(text).ids), size)
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def fallback_tokenizer() -> Tokenizer:
    """Spaces as the lower one eighth block, bytes for everything but a few letters."""
    vocabulary = {f"<0x{i:02X}>": i for i in range(256)} | {"▁": 256, "a": 257, "▁a": 258, "<unk>": 259}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, [("▁", "a")], byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
    return tokenizer


@settings(deadline=None, max_examples=100)
@given(st.text(st.sampled_from("a é世🙂"), min_size=1, max_size=12), st.integers(1, 4))
def test_byte_fallback_streams_join_to_the_whole_decoding(text: str, size: int) -> None:
    tokenizer = fallback_tokenizer()
    ids = tokenizer.encode(text).ids
    assert "".join(stream(Detokenizer(tokenizer), ids, size)) == tokenizer.decode(ids)


def test_bytes_that_are_no_text_are_not_held_for_ever() -> None:
    detokenizer = TOKENIZER.detokenizer()
    lone = json.loads(byte_tokenizer().to_str())["model"]["vocab"]["Ã"]
    assert any(detokenizer.feed([lone]) for _ in range(20))


def test_loading_imports_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from transom.serving.gateway.app import create_gateway\n"
        "from transom.serving.tokenizer import load_tokenizer; load_tokenizer('smollm2')\n"
        "assert not {'torch', 'transformers', 'scipy', 'openai'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


PIECES = [
    "<|im_end|>",
    "<|im_start|>",
    "<|im_end",
    "|>",
    "<",
    ">",
    "user",
    "\n",
    " ",
    "Hello",
    "é",
    "1234",
    "▁",
    "\u200b",
]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=8).map("".join),
        min_size=1,
        max_size=4,
    )
)
def test_ends_encoded_apart_change_no_id(contents: list[str]) -> None:
    """Against the same tokenizer that encodes every rendering whole."""
    quick, whole = _both()
    messages = [("user" if i % 2 == 0 else "assistant", content) for i, content in enumerate(contents)]
    assert quick.encode_chat(messages) == whole.encode_chat(messages)
    plans = [chat._planned(chat._render([("user", "a")]).pieces) for chat in (quick, whole)]
    assert plans[0].head_ids
    assert plans[0].tail_ids
    assert not plans[1].head_ids


@cache
def _both() -> tuple[ChatTokenizer, ChatTokenizer]:
    quick, whole = load_tokenizer("smollm2"), load_tokenizer("smollm2")
    whole._splits = False
    return quick, whole


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Prepend", "prepend": "▁"}},
        {
            "pre_tokenizer": {
                "type": "Metaspace",
                "replacement": "▁",
                "prepend_scheme": "first",
                "split": True,
            }
        },
        {
            "pre_tokenizer": {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": True,
                "use_regex": True,
            }
        },
        {"pre_tokenizer": None},
    ],
)
def test_other_tokenizers_encode_every_rendering_whole(change: dict[str, Any]) -> None:
    plain = byte_tokenizer()
    other = Tokenizer.from_str(json.dumps(json.loads(plain.to_str()) | change))
    controls = list(plain.get_added_tokens_decoder().values())
    assert _splits_at_controls(plain, controls)
    assert not _splits_at_controls(other, controls)
    assert not _splits_at_controls(plain, [AddedToken(controls[0].content, rstrip=True)])
    assert not _splits_at_controls(plain, [])


def added(text: str, *, special: bool = True, rstrip: bool = False) -> AddedToken:
    return AddedToken(text, special=special, rstrip=rstrip, normalized=False)


MARKS = ["<s>", "</s>", "<unk>", "<|a|>", "<|b|>"]
TEXTS = [
    "Hello world",
    " the ",
    "\n",
    "  ",
    "a",
    "é",
    "世",
    "▁",
    "▁▁",
    "<table>",
    "[multimodal]",
    "<think>",
    "123",
]
CORPUS = ["Hello world, the fox of the world says hello", "a fox\n\nthe  end 123", "of the <table> a é"] * 4
SPOKEN = (
    "{{ bos_token }}{% for m in messages %}<|a|>{{ m.role }}\n{{ m.content | trim }}<|b|>\n{% endfor %}<|a|>"
    "{% if false %}<think>{% endif %}"
)
PLAIN_MARKS = ["  ", "▁▁", "<table>", "[multimodal]"]  # added tokens that are words as any


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def sentencepiece_bpe(*, legacy: bool) -> Tokenizer:
    """As Llama 2's (each stretch gets a space in front) or Gemma's (none does), with byte fallback."""
    start = [*MARKS[:3], *(f"<0x{i:02X}>" for i in range(256)), "▁", *"Helowrdthfxsayn1230,"]
    merges = [
        ("t", "h"),
        ("th", "e"),
        ("▁", "the"),
        ("H", "e"),
        ("l", "l"),
        ("He", "ll"),
        ("Hell", "o"),
        ("▁", "▁"),
    ]
    vocabulary = {token: i for i, token in enumerate(start)}
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    space = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space]) if legacy else space
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def unigram(scheme: str) -> Tokenizer:
    pieces = ["▁", "▁the", "▁world", "Hello", "▁Hello", "the", *"Helowrdthfxsayn1230,\né", "▁▁", "ell"]
    vocabulary = [("<unk>", 0.0), *((piece, -2.0 - i / 10) for i, piece in enumerate(pieces))]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return tokenizer


KINDS: dict[str, Any] = {
    "byte-level": byte_level,
    "llama-2": lambda: sentencepiece_bpe(legacy=True),
    "gemma": lambda: sentencepiece_bpe(legacy=False),
    "unigram-first": lambda: unigram("first"),
    "unigram-always": lambda: unigram("always"),
    "unigram-never": lambda: unigram("never"),
}


@cache
def speaking(
    kind: str, marks: tuple[str, ...] = tuple(MARKS), *, rstrip: bool = False
) -> tuple[Any, ChatTokenizer]:
    """transformers' tokenizer and ours; `marks` are what control tokens are called."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = KINDS[kind]()
    tokenizer.add_tokens([added(text, special=False) for text in PLAIN_MARKS])
    tokenizer.add_special_tokens([added(text, rstrip=rstrip and text == marks[-1]) for text in marks])
    tokenizer.add_tokens([added("<think>", special=False)])
    template = SPOKEN.replace(MARKS[-2], marks[-2]).replace(MARKS[-1], marks[-1])
    specials = {"bos_token": marks[0], "eos_token": marks[1]}
    reference = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **specials)
    return reference, ChatTokenizer(tokenizer, template, specials)


def reference_ids(reference: Any, messages: list[tuple[str, str]]) -> list[int]:
    chat = [{"role": role, "content": text} for role, text in messages]
    return list(reference.apply_chat_template(chat, add_generation_prompt=True)["input_ids"])


def conversation(texts: list[str]) -> list[tuple[str, str]]:
    return [(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]


@pytest.mark.parametrize("rstrip", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from(TEXTS[:-2]), max_size=5).map("".join), min_size=1, max_size=4))
def test_ids_are_those_of_transformers(kind: str, rstrip: bool, texts: list[str]) -> None:
    reference, ours = speaking(kind, rstrip=rstrip)
    messages = conversation(texts)
    assert list(ours.encode_chat(messages).ids) == reference_ids(reference, messages)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([*TEXTS[:-2], *MARKS]), max_size=5).map("".join), min_size=1, max_size=4
    )
)
def test_what_looks_like_a_control_token_is_encoded_as_if_it_were_called_otherwise(
    kind: str, texts: list[str]
) -> None:
    """The oracle is transformers with the same tokens under names that no content holds."""
    messages, other = conversation(texts), tuple(f"<|§{i}|>" for i in range(len(MARKS)))
    reference, _ = speaking(kind, other)
    _, ours = speaking(kind)
    named = dict(zip(other, MARKS, strict=True))
    tokens = [
        named.get(token, token)
        for token in reference.convert_ids_to_tokens(reference_ids(reference, messages))
    ]
    assert list(ours.encode_chat(messages).ids) == [ours._whole.token_to_id(token) for token in tokens]


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_that_the_template_writes_is_no_token_in_user_text(kind: str) -> None:
    _, ours = speaking(kind)
    thinking = ours._whole.token_to_id("<think>")
    encoded = ours.encode_chat([("user", "a<think>b"), ("assistant", "<think>")])
    assert thinking not in encoded.ids
    assert encoded.text.count("<think>") == 2
    assert ours._whole.token_to_id("<table>") in ours.encode_chat([("user", "a<table>b")]).ids


def test_added_words_are_no_control_tokens() -> None:
    _, ours = speaking("gemma")
    names = {ours._whole.id_to_token(i) for i in ours._control_ids}
    assert names == {*MARKS[:2], *MARKS[3:], "<think>"}
    plain = ChatTokenizer(ours._whole)
    assert {plain._whole.id_to_token(i) for i in plain._control_ids} == {*MARKS[:2], *MARKS[3:]}


def test_added_tokens_keep_their_ids_when_control_tokens_are_taken_out() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([added("    ", special=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 256), ("<|im_end|>", 257)]
    )
    ours = ChatTokenizer(tokenizer, CHATML)
    assert ours.encode_text("    ").ids == (256, 258, 257)
    assert ours.encode_chat([("user", "    ")]).ids.count(258) == 1
    assert list(ours.encode_text("a    b").ids) == tokenizer.encode("a    b").ids
