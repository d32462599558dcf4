"""GGUF files: the text is that of `transformers` on the dequantized weights."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from specbranch import LLM, SamplingParams
from specbranch.errors import InputError
from specbranch.models.gguf import gguf_file, unpacked
from specbranch.models.loader import ModelSpec, load_model, load_tokenizer
from specbranch.models.restricted_head import NEVER
from specbranch.training.draft.gguf_file import write_gguf
from tests.gguf_files import gguf_llama, write_metadata


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECBRANCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def file(tmp_path, cache):
    model = gguf_llama()
    write_metadata(tmp_path / "metadata.gguf", model)
    out = tmp_path / "model.gguf"
    write_gguf(model, [], tmp_path / "metadata.gguf", out)
    return out


def test_the_text_is_that_of_transformers_on_the_dequantized_weights(file):
    reference = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    with LLM(str(file), None, executor="inline") as llm:
        assert llm.target.stored == "Q8_0"
        for prompt in ("hello", "shell", "x = 1"):
            ids = tokenizer(prompt, return_tensors="pt")
            expected = reference.generate(**ids, max_new_tokens=24, do_sample=False, pad_token_id=0)
            [out] = llm.generate(prompt, SamplingParams(max_tokens=24))
            assert out.prompt_token_ids == ids["input_ids"][0].tolist()
            assert out.outputs[0].token_ids == expected[0, ids["input_ids"].shape[1] :].tolist()


def test_weights_come_back_as_near_as_their_blocks_hold_them(file):
    original = gguf_llama().state_dict()
    read = load_model(ModelSpec(str(file))).state_dict()
    assert original.keys() == read.keys()
    for name, weight in original.items():
        step = weight.abs().max() / (31 if "embed" in name or "lm_head" in name else 127)
        assert (read[name] - weight).abs().max() <= step, name


def test_the_tokenizer_and_its_chat_template_come_from_the_file_once(file):
    tokenizer = load_tokenizer(str(file))
    assert tokenizer.decode(tokenizer("hello 5")["input_ids"]) == "hello 5"
    assert "assistant" in tokenizer.chat_template
    folder = unpacked(file)
    before = (folder / "config.json").stat().st_mtime_ns
    assert unpacked(file) == folder
    assert (folder / "config.json").stat().st_mtime_ns == before


def test_a_draft_keeps_the_tokens_that_it_can_draft(tmp_path, cache):
    model = gguf_llama(num_hidden_layers=1)
    write_metadata(tmp_path / "metadata.gguf", model)
    tokens = [0, 5, 7, 40]
    write_gguf(model, tokens, tmp_path / "metadata.gguf", tmp_path / "draft.gguf")
    read = load_model(ModelSpec(str(tmp_path / "draft.gguf"), drafts=True))
    logits = read(torch.tensor([[5, 9]])).logits[0, -1]
    assert (logits != NEVER).nonzero().flatten().tolist() == tokens


def test_what_is_no_gguf_file_is_refused_in_one_line(tmp_path, cache):
    with pytest.raises(InputError, match=r"no file 'gone\.gguf'"):
        gguf_file("gone.gguf")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGML and more")
    with pytest.raises(InputError, match="no GGUF file, or broken"):
        load_tokenizer(str(broken))


def test_an_architecture_that_transformers_does_not_read_is_named(tmp_path, cache):
    file = tmp_path / "odd.gguf"
    write_metadata(file, gguf_llama(), architecture="rwkv6")
    with pytest.raises(InputError, match=r"cannot load .*rwkv6") as refusal:
        load_tokenizer(str(file))
    assert "\n" not in str(refusal.value)


def test_only_what_can_be_written_is(tmp_path):
    untied = gguf_llama(tie_word_embeddings=False)
    with pytest.raises(InputError, match="tied embeddings"):
        write_gguf(untied, [], tmp_path / "none.gguf", tmp_path / "out.gguf")
