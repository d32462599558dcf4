"""Streamed text: stop strings, characters of several tokens, and nothing given out too early."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from specbranch.engine.detokenizer import Detokenizer


@pytest.fixture(scope="module")
def tokenizer():
    """One token a byte: every character outside ASCII takes several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def stream(tokenizer, text, stop=()):
    """All that was given out, in order, and the stream; pushes until a stop string is found."""
    ids = tokenizer(text)["input_ids"]
    streamed = Detokenizer(tokenizer, tokenizer("a prompt")["input_ids"], stop)
    given = []
    for token in ids:
        if streamed.push(token):
            break
        given += streamed.release()
    streamed.finish()
    given += streamed.release()
    return given, streamed


@given(text=st.text(st.sampled_from("ab né€😀\n"), max_size=30))
@settings(derandomize=True, deadline=None)
def test_pieces_join_to_the_text(tokenizer, text):
    given, streamed = stream(tokenizer, text)
    assert "".join(piece for _, piece in given) == streamed.text == text
    assert "�" not in text


@given(
    text=st.text(st.sampled_from("abc€"), max_size=40),
    stop=st.lists(st.text(st.sampled_from("abc€"), min_size=1, max_size=4), max_size=3),
)
@settings(derandomize=True, deadline=None, max_examples=300)
def test_text_ends_before_the_first_stop_string(tokenizer, text, stop):
    given, streamed = stream(tokenizer, text, stop)
    # The stop that is complete first ends the text, wherever it began.
    ends = [text.find(s) + len(s) for s in stop if s in text]
    expected = text
    if ends:
        head = text[: min(ends)]
        expected = head[: min(head.find(s) for s in stop if s in head)]
    assert streamed.text == expected
    assert "".join(piece for _, piece in given) == expected


def test_half_a_stop_string_is_held_back_until_it_is_none(tokenizer):
    streamed = Detokenizer(tokenizer, [], ["END"])
    given = []
    for token in tokenizer("xENyEND")["input_ids"]:
        streamed.push(token)
        given.append("".join(piece for _, piece in streamed.release()))
    assert given == ["", "", "x", "E", "N", "y", ""]
    assert streamed.ended
    assert streamed.text == "xENy"


def test_an_unfinished_character_comes_out_at_the_end(tokenizer):
    streamed = Detokenizer(tokenizer, [])
    for token in tokenizer("a€")["input_ids"][:-1]:
        streamed.push(token)
    assert [piece for _, piece in streamed.release()] == ["a"]
    streamed.finish()
    assert streamed.text.startswith("a")
    assert streamed.text.endswith("�")
