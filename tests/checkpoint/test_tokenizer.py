"""The exported tokenizer cuts text as the model's own does."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from transom.checkpoint import export_tokenizer, packaged_minilm, packaged_smollm2
from transom.checkpoint import tokenizer as tokenizer_module
from transom.checkpoint.source import Source
from transom.checkpoint.tokenizer import tokenizer_of, write_tokenizer
from transom.errors import CheckpointError
from transom.serving.tokenizer import load_tokenizer

TEXTS = [
    "The capital of France is Paris, isn't it? I'll say 1234567 times: 3.14!",
    "  leading and trailing  \n\n\ttabs\r\nand returns ",
    "Größe, naïve, 漢字かな, Привет, مرحبا, 😀👩‍👩‍👧 ﬁ",
    "<|im_start|>user\nHello<|im_end|>\n<|endoftext|><repo_name>",
    "def f(x):\n    return x**2  # squared\n",
    "",
]


@pytest.fixture(scope="module")
def smollm2_of_transformers() -> Any:
    from transformers import AutoTokenizer

    path = packaged_smollm2()
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def test_a_gguf_tokenizer_equals_that_of_transformers(smollm2_of_transformers: Any) -> None:
    ours, theirs = export_tokenizer("smollm2"), smollm2_of_transformers
    for text in TEXTS:
        ids = ours.tokenizer.encode(text).ids
        assert ids == theirs(text)["input_ids"]
        assert ours.tokenizer.decode(ids, skip_special_tokens=False) == theirs.decode(ids) == text
    assert ours.chat_template == theirs.chat_template
    assert ours.specials == {role: theirs.special_tokens_map[role] for role in ours.specials}
    assert set(ours.specials) == {"bos_token", "eos_token", "unk_token", "pad_token"}


def test_digits_are_split_before_words_as_the_model_was_trained(smollm2_of_transformers: Any) -> None:
    """SmolLM2 splits digits first. The general reader forgets that, which shows after runs of white space."""
    theirs: Tokenizer = Tokenizer.from_str(smollm2_of_transformers.backend_tokenizer.to_str())
    theirs.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    ours, draw = export_tokenizer("smollm2").tokenizer, random.Random(3)
    alphabet = [*"0123456789 \n\t.,abcXYZ'é漢", "<|im_end|>"]
    for _ in range(300):
        text = "".join(draw.choices(alphabet, k=40))
        assert ours.encode(text).ids == theirs.encode(text).ids


def test_a_written_gguf_keeps_the_directorys_tokenizer(llama: Path, gguf_file: Path) -> None:
    ours, theirs = export_tokenizer(gguf_file), export_tokenizer(llama)
    assert (ours.chat_template, ours.specials) == (theirs.chat_template, theirs.specials)
    for text in TEXTS:
        assert ours.tokenizer.encode(text).ids == theirs.tokenizer.encode(text).ids


@pytest.mark.parametrize("which", ["llama", "bert", "minilm"])
def test_a_directory_tokenizer_equals_that_of_transformers(
    which: str, request: pytest.FixtureRequest
) -> None:
    from transformers import AutoTokenizer

    folder = packaged_minilm() if which == "minilm" else request.getfixturevalue(which)
    ours, theirs = export_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert ours.tokenizer.encode(text).ids == theirs(text)["input_ids"]
    assert ours.specials == {role: theirs.special_tokens_map[role] for role in ours.specials}


def test_saved_padding_and_truncation_are_off(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    tokenizer = Tokenizer.from_file(str(llama / "tokenizer.json"))
    tokenizer.enable_padding(length=50)
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = TEXTS[0]
    assert (
        export_tokenizer(tmp_path).tokenizer.encode(text).ids
        == export_tokenizer(llama).tokenizer.encode(text).ids
    )


def test_a_template_is_found_wherever_it_lies(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    named = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": named}))
    assert export_tokenizer(tmp_path).chat_template == "D"
    (tmp_path / "chat_template.jinja").write_text("J")
    assert export_tokenizer(tmp_path).chat_template == "J"
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        export_tokenizer(tmp_path)


# config.json's, generation_config.json's ("" is no file), and ours
ENDS: list[tuple[Any, Any, tuple[int, ...]]] = [
    ([1, 5], "", (1, 5)), (5, "", (1, 5)), ([1, 5], {"do_sample": False}, (1, 5)), ([1, 5], 7, (1, 7)),
    ([1, 5], [7, 8], (1, 7, 8)), ([1, 5], [], (1,)), (None, "", (1,)), (None, 7, (1, 7)),
]  # fmt: skip


def with_ends(llama: Path, folder: Path, config: Any, generation: Any) -> Path:
    shutil.copytree(llama, folder, dirs_exist_ok=True)
    record = json.loads((folder / "config.json").read_text()) | {"eos_token_id": config}
    (folder / "config.json").write_text(json.dumps(record))
    (folder / "generation_config.json").unlink()
    if generation != "":
        settings = generation if isinstance(generation, dict) else {"eos_token_id": generation}
        (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(("config", "generation", "expected"), ENDS)
def test_the_ids_that_end_an_answer(
    llama: Path, tmp_path: Path, config: Any, generation: Any, expected: tuple[int, ...]
) -> None:
    """As transformers generates, and at the tokenizer's own end of text (id 1).

    Where generation settings name no end at all, transformers never ends; the configuration's is taken then.
    """
    from transformers import AutoModelForCausalLM

    folder = with_ends(llama, tmp_path, config, generation)
    assert export_tokenizer(folder).eos_ids == load_tokenizer(folder).eos_ids == expected
    theirs = AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id
    if theirs is not None:
        assert set(expected) == {1} | set(theirs if isinstance(theirs, list) else [theirs])


@pytest.mark.parametrize("value", [True, [1, True], -1, [1, -1], 10**6, [1, 10**6], "1", 1.0, {}, [[1]]])
@pytest.mark.parametrize("where", ["config", "generation"])
def test_an_end_that_is_no_id_is_an_error(llama: Path, tmp_path: Path, value: Any, where: str) -> None:
    config, generation = (value, "") if where == "config" else (1, value)
    with pytest.raises(CheckpointError, match=rf"{where}.*\.json: eos_token_id is"):
        export_tokenizer(
            with_ends(llama, tmp_path, config, {"eos_token_id": generation} if generation != "" else "")
        )


def test_an_end_beyond_the_tokenizer_but_within_the_model_is_one(llama: Path, tmp_path: Path) -> None:
    folder = with_ends(llama, tmp_path, [1, 450], "")
    record = json.loads((folder / "config.json").read_text()) | {"vocab_size": 512}
    (folder / "config.json").write_text(json.dumps(record))
    assert export_tokenizer(folder).eos_ids == (1, 450)


NAMED = st.sampled_from(["<|im_start|>", "<|im_end|>", "plain", "a\rb"])
TEMPLATE = st.sampled_from(["{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", "A\r\nB\rC", ""])
ROLES = st.dictionaries(st.sampled_from(["bos_token", "eos_token", "pad_token", "own_token"]), NAMED)
IDS = st.one_of(st.none(), st.integers(0, 5), st.lists(st.integers(0, 5), max_size=3))
PLACES = st.fixed_dictionaries(
    {"tokenizer_config.json": st.builds(
        lambda roles, own, template: roles | {"extra_special_tokens": own} | template,
        ROLES,
        st.dictionaries(st.sampled_from(["image", "image_token"]), NAMED),
        st.one_of(
            st.just({}),
            st.just({"added_tokens_decoder": {}}),
            st.builds(lambda text: {"chat_template": text}, TEMPLATE),
            st.builds(lambda text: {"chat_template": [{"name": "default", "template": text}]}, TEMPLATE),
        ),
    )},
    optional={
        "special_tokens_map.json": ROLES,
        "generation_config.json": st.builds(lambda ids: {"eos_token_id": ids, "top_k": 7}, IDS),
        "config.json": st.builds(lambda ids: {"eos_token_id": ids}, IDS),
        "chat_template.jinja": TEMPLATE,
        "additional_chat_templates/rag.jinja": TEMPLATE,
        "additional_chat_templates/default.jinja": TEMPLATE,
    },
)  # fmt: skip


def placed(places: dict[str, Any], tokenizer: Path, folder: Path) -> Path:
    for name, content in ({"tokenizer.json": tokenizer.read_text()} | places).items():
        (folder / name).parent.mkdir(exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_bytes(text.encode())
    return folder


@settings(max_examples=150, deadline=None)
@given(PLACES, PLACES)
def test_what_is_written_is_what_was_read(llama: Path, places: dict[str, Any], stale: dict[str, Any]) -> None:
    """Wherever a part stood, and whatever of the reader's files lay in the folder before."""
    with TemporaryDirectory() as source, TemporaryDirectory() as written:
        files = export_tokenizer(placed(places, llama / "tokenizer.json", Path(source)))
        before = {name: stale[name] for name in stale if "/" not in name and name != "config.json"}
        names = write_tokenizer(files, placed(before, llama / "tokenizer.json", Path(written)), Path(source))
        again = export_tokenizer(written)
        assert sorted(path.name for path in Path(written).iterdir()) == names
        for text in TEXTS:
            assert again.tokenizer.encode(text).ids == files.tokenizer.encode(text).ids
        assert (again.chat_template, again.specials) == (files.chat_template, files.specials)
        assert again.eos_ids == files.eos_ids
        if "generation_config.json" in places:
            assert json.loads((Path(written) / "generation_config.json").read_text())["top_k"] == 7


def test_every_file_that_is_read_is_known_to_the_writer(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader asks for nothing beside what the writer replaces or deletes, and the model's settings."""
    opened: set[str] = set()
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: opened.add(path.name) or exists(path))
    is_file = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: opened.add(path.name) or is_file(path))
    tokenizer_of(Source(str(llama), "directory", llama))
    assert opened == tokenizer_module._READ | {"config.json"}
