"""Conversations: what the template makes of them is the prompt."""

import pytest

from specbranch import LLM, SamplingParams
from specbranch.cli import main
from specbranch.engine.inputs import chat_prompt
from specbranch.errors import InputError
from specbranch.training.draft.gguf_file import write_gguf
from tests.gguf_files import gguf_llama, write_metadata
from tests.tiny import tiny_model, tiny_tokenizer

SAID = [{"role": "user", "content": "w1 w2"}]
TEMPLATE = "{% for m in messages %}w9 {{ m['content'] }} {% endfor %}w7"


@pytest.fixture
def llm():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return LLM.from_models(tiny_model("llama"), None, tokenizer)


def test_an_answer_is_the_continuation_of_the_templates_text(llm):
    params = SamplingParams(max_tokens=8)
    [answer] = llm.chat(SAID, params)
    assert answer.prompt == "w9 w1 w2 w7"
    assert answer.prompt_token_ids == [9, 1, 2, 7]
    [continued] = llm.generate([[9, 1, 2, 7]], params)
    assert answer.outputs[0].token_ids == continued.outputs[0].token_ids


def test_several_conversations_are_answered_in_order(llm):
    other = [*SAID, {"role": "assistant", "content": "w3"}, {"role": "user", "content": "w4"}]
    answers = llm.chat([SAID, other], SamplingParams(max_tokens=4))
    assert [each.prompt for each in answers] == ["w9 w1 w2 w7", "w9 w1 w2 w9 w3 w9 w4 w7"]


def test_a_template_given_with_the_call_is_used(llm):
    [answer] = llm.chat(
        SAID,
        chat_template="{{ messages[0]['content'] }} w{{ n }}",
        chat_template_kwargs={"n": 5},
        params=SamplingParams(max_tokens=2),
    )
    assert answer.prompt_token_ids == [1, 2, 5]


def test_without_a_template_one_line_says_what_to_do():
    bare = LLM.from_models(tiny_model("llama"), None, tiny_tokenizer())
    with pytest.raises(InputError, match="no chat template: use generate"):
        bare.chat(SAID)
    with pytest.raises(InputError, match="no tokenizer"):
        LLM.from_models(tiny_model("llama"), None).chat(SAID)


@pytest.mark.parametrize("wrong", ["hello", [], [{"content": "no role"}], [["hello"]]])
def test_what_is_no_conversation_is_refused(llm, wrong):
    with pytest.raises(InputError, match="messages must be"):
        llm.chat(wrong)


def test_what_a_template_refuses_is_told(llm):
    with pytest.raises(InputError, match="refuses the messages: roles must alternate"):
        chat_prompt(SAID, llm.tokenizer, "{{ raise_exception('roles must alternate') }}")


@pytest.fixture
def talker(tmp_path, monkeypatch):
    """A model that can be talked to, as a file."""
    monkeypatch.setenv("SPECBRANCH_CACHE", str(tmp_path / "cache"))
    model = gguf_llama()
    write_metadata(tmp_path / "metadata.gguf", model)
    write_gguf(model, [], tmp_path / "metadata.gguf", tmp_path / "m.gguf")
    return str(tmp_path / "m.gguf")


def test_a_terminal_chat_keeps_what_was_said(talker, monkeypatch, capsys):
    typed = iter(["hello", "/stats", "and again", "/help", "/reset", "", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    command = ["chat", "--target", talker, "--draft", "none", "--executor", "inline"]
    assert main([*command, "--max-tokens", "6", "--ignore-eos", "--system", "be brief"]) == 0
    out = capsys.readouterr().out
    assert out.count("6 tokens in") == 3  # two answers, and the sum after the first
    assert "/reset: forget" in out


def test_a_conversation_that_outgrows_the_context_is_told(talker, monkeypatch, capsys):
    typed = iter(["x" * 300, "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    assert main(["chat", "--target", talker, "--draft", "none", "--executor", "inline"]) == 0
    assert "/reset begins a new conversation" in capsys.readouterr().err


def test_generate_says_the_prompt_to_the_model(talker, capsys):
    command = ["generate", "hello", "--target", talker, "--draft", "none", "--json"]
    command += ["--executor", "inline", "--max-tokens", "4"]
    assert main([*command, "--chat", "--system", "be brief"]) == 0
    assert '"prompt": "<system>be brief</s><user>hello</s><assistant>"' in capsys.readouterr().out
    assert main([*command, "--system", "be brief"]) == 2
    assert "--system needs --chat" in capsys.readouterr().err
