"""Text to ids and back: parity with transformers, control tokens kept out of content, UTF-8 safe streams."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from transom.errors import CheckpointError, RefusedError, ReplaceableError
from transom.serving.tokenizer import (
    ChatTokenizer,
    Detokenizer,
    _may_cross,
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


def test_template_logic_never_sees_content() -> None:
    leak = "{% if 'attack' in m['content'] %}LEAK{% endif %}"
    spy = "{% for m in messages %}" + leak + "{{ m['content'] }}{% endfor %}"
    assert ChatTokenizer(byte_tokenizer(), spy).encode_chat([("user", "attack")]).text == "attack"


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
    assert quick._pieces(("user",)).head_ids
    assert quick._pieces(("user",)).tail_ids
    assert not whole._pieces(("user",)).head_ids


@cache
def _both() -> tuple[ChatTokenizer, ChatTokenizer]:
    quick, whole = load_tokenizer("smollm2"), load_tokenizer("smollm2")
    whole._splits = False
    return quick, whole


@pytest.mark.parametrize(
    ("head", "tail", "controls", "crosses"),
    [
        ("a<s>", "</s>b", ["<s>", "</s>"], False),
        ("a<s>", "</s>b", ["<s>", "</s>", "<s>x"], True),
        ("a<s>", "</s>b", ["<s>", "</s>", "x</s>"], True),
        ("a<s>", "</s>b", ["<s>", "</s>", "x</s>bcd"], True),
        ("a<s>", "</s>b", ["<s>", "</s>", ">x"], True),
        ("", "", ["<s>"], False),
    ],
)
def test_ends_are_kept_only_where_no_control_token_can_cross(
    head: str, tail: str, controls: list[str], crosses: bool
) -> None:
    assert _may_cross(head, tail, controls) is crosses


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
    spec = json.loads(byte_tokenizer().to_str())
    controls = [token for token in spec["added_tokens"] if token["special"]]
    assert _splits_at_controls(spec, controls)
    assert not _splits_at_controls(spec | change, controls)
    assert not _splits_at_controls(spec, [controls[0] | {"rstrip": True}])
    assert not _splits_at_controls(spec, [])
