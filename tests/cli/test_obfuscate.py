"""`transom obfuscate`: what is printed, the exit codes, what is written where and what is refused."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from transom.checkpoint.load import load
from transom.checkpoint.tiny import tiny_llama
from transom.cli import main
from transom.cli import obfuscate as obfuscate_command
from transom.cli.app import App
from transom.errors import (
    CheckpointError,
    MisconfiguredError,
    NeverError,
    NotYetError,
    ReplaceableError,
    TransomError,
)
from transom.obfuscation.card import CARD_FILE, Card, read_card, verify_card
from transom.obfuscation.client import load_client
from transom.obfuscation.keyfile import KeyFile, load_key
from transom.obfuscation.keys import preset
from transom.obfuscation.plain import Plain, open_source

LINE = "obfuscate tiny --out out --key key --h 8 --workers 1"


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = App()
    root.callback()(lambda: None)
    root.command()(obfuscate_command.obfuscate)
    monkeypatch.setattr(main, "app", root)
    monkeypatch.chdir(tmp_path)
    tiny_llama(Path("tiny"))


def run(line: str) -> int:
    return main.run(line.split())


def made(capsys: pytest.CaptureFixture[str], line: str) -> dict[str, Any]:
    assert run(f"{line} --json") == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    value: dict[str, Any] = json.loads(captured.out)
    return value


def present() -> set[str]:
    return {path.name for path in Path.cwd().iterdir()}


def test_the_host_gets_a_folder_and_the_client_a_key_and_a_tokenizer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    record = made(capsys, f"{LINE} --preset exact")
    key = load_key("key")
    card = verify_card("out", key)
    load_client("key.client").require_key(key)
    assert key.settings == preset("exact", h=8)
    assert record.items() >= {"out": "out", "key": "key", "client": "key.client", "h_reason": ""}.items()
    assert record["outputs"] == card.outputs
    assert present() == {"tiny", "out", "key", "key.client"}


def test_options_reach_the_key_and_the_client_folder_can_be_chosen(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = f"{LINE} --preset balanced --alpha-e 0.5 --alpha-h 0.4 --lam 0.2 --client mine"
    record = made(capsys, line)
    assert load_key("key").settings == preset("balanced", h=8, alpha_e=0.5, alpha_h=0.4, lam=0.2)
    assert record["client"] == "mine"
    assert load_client("mine").source == record["source"]


@pytest.mark.parametrize(
    ("options", "h", "said"),
    [
        ("--h 8", 8, None),
        ("--h 10", 10, None),
        ("--h 8 --for llamacpp", 16, "llamacpp loads hidden sizes"),
        ("--h 40 --for group-128", 48, "h = 48 instead of 40"),
    ],
)
def test_an_h_that_does_not_load_is_moved_and_explained(
    capsys: pytest.CaptureFixture[str], options: str, h: int, said: str | None
) -> None:
    assert run(f"obfuscate tiny --out out --key key --workers 1 {options}") == 0
    captured = capsys.readouterr()
    assert load_key("key").settings.h == h
    assert json.loads(Path("out/config.json").read_text())["hidden_size"] == 32 + 2 * h
    assert (said in captured.err) if said else captured.err == ""
    assert f"h {h}" in captured.out
    assert "not private against a host that has the base model" in captured.out


def test_a_key_is_reused_for_its_source_and_settings_only(capsys: pytest.CaptureFixture[str]) -> None:
    first = made(capsys, LINE)
    again = made(capsys, "obfuscate tiny --out again --key key --workers 1")
    assert again["outputs"] == first["outputs"]
    assert run("obfuscate tiny --out third --key key --h 8 --alpha-e 0.1") == MisconfiguredError.exit_code
    assert "alpha_e 1.0 (now 0.1)" in capsys.readouterr().err
    tiny_llama(Path("other"), seed=1)
    assert run("obfuscate other --out third --key key") == MisconfiguredError.exit_code
    assert "belongs to the checkpoint" in capsys.readouterr().err
    assert present() == {"tiny", "other", "out", "again", "key", "key.client"}


def test_a_sealed_key_needs_its_passphrase(capsys: pytest.CaptureFixture[str]) -> None:
    Path("phrase").write_text("correct horse\n")
    Path("phrase").chmod(0o600)
    made(capsys, f"{LINE} --passphrase-file phrase")
    assert load_key("key", b"correct horse").settings.h == 8
    assert run("obfuscate tiny --out again --key key") == MisconfiguredError.exit_code
    assert "--passphrase-file" in capsys.readouterr().err
    Path("phrase").write_text("wrong\n")
    assert run("obfuscate tiny --out again --key key --passphrase-file phrase") == 3
    told = capsys.readouterr().err
    assert "passphrase is wrong" in told
    assert "horse" not in told


@pytest.mark.parametrize(
    "options",
    [
        "--out out --key out/key",
        "--out out --key key --client out/client",
        "--out out --key out.partial/key",
        "--out out --key out",
        "--out out --key deep/../out/key",
    ],
)
def test_nothing_of_the_clients_goes_into_the_hosts_folder(
    capsys: pytest.CaptureFixture[str], options: str
) -> None:
    assert run(f"obfuscate tiny {options}") == MisconfiguredError.exit_code
    assert "goes to the host" in capsys.readouterr().err
    assert present() == {"tiny"}


def changed(name: str, architecture: str = "Llama", **changes: Any) -> Path:
    """The tiny checkpoint with another configuration."""
    file = tiny_llama(Path(name), architecture=architecture) / "config.json"
    config = json.loads(file.read_text()) | changes
    Path(name, "config.json").write_text(json.dumps(config))
    return Path(name)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        (
            {"model_type": "gpt2"},
            NotYetError,
            "cannot obfuscate model_type 'gpt2' yet; there are deepseek_v2",
        ),
        ({"model_type": "t5", "is_encoder_decoder": True}, NotYetError, "the encoder of 't5' yet"),
        ({"model_type": "mamba2"}, NeverError, "recurrent"),
        ({"model_type": "llava", "vision_config": {}}, NeverError, "images"),
        ({"quantization_config": {"quant_method": "gptq"}}, ReplaceableError, "by gptq, which"),
        ({"quantization_config": {"quant_method": "awq"}}, ReplaceableError, "give what they were made from"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, ReplaceableError, "or a GGUF"),
        (
            {
                "architecture": "Qwen2",
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["sliding_attention"] * 3,
            },
            NotYetError,
            "beyond 8 tokens its answers change",
        ),
        ({"model_type": "qwen2"}, CheckpointError, "not that of the architecture 'LlamaForCausalLM'"),
        ({"vocab_size": 7}, CheckpointError, "has the shape [399, 32], and config.json asks for [7, 32]"),
        ({"eos_token_id": 10**6}, CheckpointError, "eos_token_id is 1000000"),
    ],
)
def test_a_source_that_is_refused_says_which_kind_of_no_and_the_way_out(
    capsys: pytest.CaptureFixture[str], changes: dict[str, Any], error: type[TransomError], said: str
) -> None:
    changed("source", **changes)
    assert run("obfuscate source --out out --key key --h 8 --workers 1") == error.exit_code
    told = capsys.readouterr().err
    assert said in told
    assert not Path("out").exists()


def test_a_window_that_the_copy_cannot_have_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    tiny_llama(Path("window"), architecture="Qwen2", use_sliding_window=True, max_window_layers=1)
    assert run("obfuscate window --out out --key key --h 8 --workers 1") == NotYetError.exit_code
    assert "beyond 4096 tokens its answers change" in capsys.readouterr().err
    assert not Path("out").exists()


def test_added_tokens_without_rows_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file("tiny/tokenizer.json")
    tokenizer.add_tokens(["<new one>"])
    tokenizer.save("tiny/tokenizer.json")
    assert run(LINE) == CheckpointError.exit_code
    told = capsys.readouterr().err
    assert "resize" in told
    assert "<new one>" not in told
    assert not Path("out").exists()


def test_tied_weights_and_rows_beyond_the_tokenizer_are_no_obstacle(
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tiny_llama(Path("tied"), tie_word_embeddings=True)
    model = load(source).model
    model.resize_token_embeddings(model.config.vocab_size + 6)
    model.save_pretrained(source)
    record = made(capsys, "obfuscate tied --out out --key key --h 8 --workers 1 --no-audit")
    assert record["vocabulary"] == load_key("key").vocabulary == model.config.vocab_size
    config = json.loads(Path("out/config.json").read_text())
    assert config["tie_word_embeddings"] is False


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"format": "transom-obfuscation-key", "version": 1}'])
def test_a_file_that_is_no_key_or_a_damaged_one_is_refused(
    capsys: pytest.CaptureFixture[str], damage: bytes
) -> None:
    Path("key").write_bytes(damage)
    Path("key").chmod(0o600)
    assert run(LINE) == MisconfiguredError.exit_code
    assert "key file" in capsys.readouterr().err
    assert present() == {"tiny", "key"}
    assert Path("key").read_bytes() == damage


def test_the_key_of_another_run_does_not_resume_or_verify_this_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    made(capsys, f"{LINE} --no-audit")
    made(capsys, "obfuscate tiny --out other --key wrong --h 8 --workers 1 --no-audit")
    with pytest.raises(MisconfiguredError, match="not signed with this key"):
        verify_card("out", load_key("wrong"))
    card = Path("out", CARD_FILE)
    card.write_text(card.read_text().replace('"alpha_e": 1.0', '"alpha_e": 9.0'))
    with pytest.raises(MisconfiguredError, match="edited"):
        verify_card("out", load_key("key"))


def test_layers_left_out_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    tiny_llama(
        Path("deep"), architecture="DeepseekV3", num_key_value_heads=4, n_routed_experts=4, n_group=1,
        topk_group=1, num_experts_per_tok=2, moe_intermediate_size=16, kv_lora_rank=8, q_lora_rank=8,
        qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, head_dim=8, first_k_dense_replace=1,
        num_nextn_predict_layers=1,
    )  # fmt: skip
    state = load_file("deep/model.safetensors")
    further = {"model.layers.3.eh_proj.weight": state["model.norm.weight"].clone()}
    save_file(state | further, "deep/model.safetensors", {"format": "pt"})
    assert run(f"{LINE.replace('tiny', 'deep')} --no-audit") == 0
    told = "left out, as engines do without them: 1 tensors that predict further tokens"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("absent", CheckpointError),
        ("truncated", CheckpointError),
        ("gpt2", NotYetError),
        ("gptq", ReplaceableError),
        ("tiny --h -2", MisconfiguredError),
        ("tiny --h 9", MisconfiguredError),
        ("tiny --lam 0.9", MisconfiguredError),
        ("tiny --alpha-e -1", MisconfiguredError),
        ("tiny --passphrase-file absent", MisconfiguredError),
    ],
)
def test_refusals_have_their_exit_code_and_leave_nothing(source: str, error: type[CheckpointError]) -> None:
    quantised = {"quantization_config": {"quant_method": "gptq"}}
    for name, change in (("gpt2", {"model_type": "gpt2"}), ("gptq", quantised)):
        config = json.loads((tiny_llama(Path(name)) / "config.json").read_text()) | change
        Path(name, "config.json").write_text(json.dumps(config))
    weights = tiny_llama(Path("truncated")) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    before = present()
    assert run(f"obfuscate {source} --out out --key key") == error.exit_code
    assert present() == before


def test_an_existing_folder_or_the_rest_of_a_run_is_refused_before_a_key_is_made(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("out").mkdir()
    assert run(LINE) == MisconfiguredError.exit_code
    Path("out").rename("out.partial")
    assert run(LINE) == MisconfiguredError.exit_code
    assert "--resume" in capsys.readouterr().err
    assert present() == {"tiny", "out.partial"}
    assert run(f"{LINE} --resume") == 0
    verify_card("out", load_key("key"))


@pytest.mark.parametrize("line", ["obfuscate tiny", "obfuscate tiny --out a", f"{LINE} --preset none"])
def test_usage_errors_are_2(line: str) -> None:
    assert run(line) == 2


@pytest.mark.parametrize("options", ["--out file/out --key key", "--out out --key file/key"])
def test_what_cannot_be_written_is_known_before_the_work(
    capsys: pytest.CaptureFixture[str], options: str
) -> None:
    Path("file").touch()
    before = present()
    assert run(f"obfuscate absent {options}") == MisconfiguredError.exit_code
    assert "cannot write" in capsys.readouterr().err
    assert present() == before


def test_the_audit_finds_the_memory_of_a_ggufs_model_free(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The audit reads the model itself, and two of them may be more than the machine has."""
    models: list[weakref.ref[Any]] = []
    alive: list[bool] = []

    def opened(source: str) -> Plain:
        checkpoint = load(source)
        models.append(weakref.ref(checkpoint.model))
        return replace(open_source(source), loaded=checkpoint)

    def audited(plain: Plain, out: Path, key: KeyFile, **_: Any) -> Card:
        gc.collect()
        alive.append(models[0]() is not None)
        return read_card(out, key)

    monkeypatch.setattr(obfuscate_command, "open_source", opened)
    monkeypatch.setattr(obfuscate_command, "audit_output", audited)
    made(capsys, f"{LINE} --preset exact")
    assert alive == [False]
