"""Streamed text equals decoded text; stop strings; what is held back, and for how long."""

from __future__ import annotations

from itertools import takewhile

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from specbranch.engine.detokenizer import MOST_PENDING, Detokenizer
from specbranch.errors import InputError
from specbranch.models.loader import load_tokenizer

END = "<|end|>"
EMOJI = "😀"
FEW = settings(derandomize=True, deadline=None, max_examples=200)


@pytest.fixture(scope="module")
def tokenizer():
    """One token a byte, as byte-level BPE has them; and a special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)


@pytest.fixture(scope="module")
def fallback():
    """Words, and bytes for what they lack, as SentencePiece models of the Llama 2 kind have it."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁the", "€"]
    vocabulary = {word: token for token, word in enumerate(words)}
    model = models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.fixture(scope="module")
def bundled():
    return load_tokenizer("target")


def stream(tokenizer, prompt, ids, stop=()):
    """All pieces in order, and the stream; pushes until a stop string is found."""
    streamed = Detokenizer(tokenizer, prompt, stop)
    pieces = []
    for token in ids:
        if streamed.push(token):
            break
        pieces += streamed.release()
    streamed.finish()
    pieces += streamed.release()
    return pieces, streamed


def check_equals_decoding(tokenizer, prompt, ids):
    """Text and pieces are what decoding all at once adds to the prompt's text."""

    def decode(tokens):
        return tokenizer.decode(tokens, skip_special_tokens=True)

    pieces, streamed = stream(tokenizer, prompt, ids)
    known, whole = decode(prompt), decode(prompt + ids)
    same = takewhile(lambda pair: pair[0] == pair[1], zip(known, whole, strict=False))
    expected = whole[len(list(same)) :]
    assert streamed.text == expected
    assert "".join(text for _, text in pieces) == expected
    assert "".join(streamed.segments) == expected
    assert len(streamed.segments) == len(ids)


def tokens(most, **sizes):
    return st.lists(st.integers(0, most - 1), **sizes)


@given(prompt=tokens(256, max_size=20), ids=tokens(256, min_size=1, max_size=40))
@FEW
def test_random_bytes_stream_as_they_decode(tokenizer, prompt, ids):
    check_equals_decoding(tokenizer, prompt, ids)


@given(prompt=tokens(4096, max_size=20), ids=tokens(4096, min_size=1, max_size=40))
@FEW
def test_random_tokens_of_the_bundled_tokenizer_stream_as_they_decode(bundled, prompt, ids):
    check_equals_decoding(bundled, prompt, ids)


@given(text=st.text(st.sampled_from("ab né€😀\n漢"), min_size=1, max_size=30), data=st.data())
@FEW
def test_a_character_that_the_prompt_begins_is_generated(tokenizer, fallback, text, data):
    text = "a" + text
    for each in (tokenizer, fallback):
        ids = each(text)["input_ids"]
        cut = data.draw(st.integers(1, len(ids) - 1))
        pieces, streamed = stream(each, ids[:cut], ids[cut:])
        complete = max(n for n in range(len(text)) if len(each(text[:n])["input_ids"]) <= cut)
        assert streamed.text == text[complete:]
        assert "".join(piece for _, piece in pieces) == streamed.text


@given(prompt=tokens(262, max_size=20), ids=tokens(262, min_size=1, max_size=40))
@FEW
def test_random_tokens_of_a_byte_fallback_tokenizer(fallback, prompt, ids):
    """Invalid bytes replace complete characters before them only if these are not yet released."""
    pieces, streamed = stream(fallback, prompt, ids)
    joined = "".join(text for _, text in pieces)
    assert joined == streamed.text == "".join(streamed.segments)
    known, whole = fallback.decode(prompt), fallback.decode(prompt + ids)
    if "�" not in whole:
        assert joined == whole[len(known) :]
    # What follows the last byte token is beyond its reach.
    tail = whole.rpartition("�")[2]
    assert joined.endswith(tail[-len(joined) :] if joined else "")


@pytest.mark.parametrize("before", range(1, 12))
def test_a_context_of_emoji_in_bytes_begins_between_characters(fallback, before):
    """Five tokens of context would begin within the first of two emoji."""
    ids = fallback(EMOJI * 4)["input_ids"]
    assert len(ids) == 16
    _, streamed = stream(fallback, ids[:before], ids[before:])
    assert streamed.text == EMOJI * (4 - before // 4)


def test_an_incomplete_character_after_bytes_keeps_the_characters_before_it(fallback):
    ids = fallback(EMOJI * 2)["input_ids"]
    _, streamed = stream(fallback, ids[:4], ids[4:6])
    assert streamed.text == "��"


@pytest.mark.parametrize(("kind", "byte"), [("tokenizer", "Ģ"), ("fallback", "<0xFF>")])
def test_bytes_without_end_are_held_back_for_a_bounded_time(kind, byte, request, monkeypatch):
    """A model that repeats invalid bytes: the window, and so the cost of a token, stays small."""
    tokenizer = request.getfixturevalue(kind)
    token, sizes = tokenizer.convert_tokens_to_ids(byte), []
    decode = Detokenizer._decode

    def counted(self, start, end=None):
        sizes.append(len(self._ids))
        return decode(self, start, end)

    monkeypatch.setattr(Detokenizer, "_decode", counted)
    streamed = Detokenizer(tokenizer, [])
    for pushed in range(1, 101):
        streamed.push(token)
        assert pushed - len(streamed.text) <= MOST_PENDING
    assert max(sizes) <= 3 * MOST_PENDING
    assert len(sizes) <= 8 * 100
    streamed.finish()
    assert streamed.text == "�" * 100


@given(
    text=st.text(st.sampled_from("abc€"), max_size=40),
    stop=st.lists(st.text(st.sampled_from("abc€"), min_size=1, max_size=4), max_size=3),
)
@FEW
def test_text_ends_before_the_first_stop_string(tokenizer, text, stop):
    ids = tokenizer(text)["input_ids"]
    pieces, streamed = stream(tokenizer, tokenizer("a prompt")["input_ids"], ids, stop)
    # The stop that is complete first ends the text, wherever it began.
    ends = [text.find(s) + len(s) for s in stop if s in text]
    expected = text
    if ends:
        head = text[: min(ends)]
        expected = head[: min(head.find(s) for s in stop if s in head)]
    assert streamed.text == expected
    assert "".join(piece for _, piece in pieces) == expected


@given(
    ids=tokens(4096, min_size=1, max_size=30),
    data=st.data(),
)
@FEW
def test_stop_strings_across_tokens_of_several_characters(bundled, ids, data):
    text = bundled.decode(ids, skip_special_tokens=True)
    assume(text)
    start = data.draw(st.integers(0, len(text) - 1))
    stop = text[start : start + data.draw(st.integers(1, 6))]
    pieces, streamed = stream(bundled, [], ids, [stop, "\x00never"])
    assert streamed.text == text[: text.find(stop)]
    assert "".join(piece for _, piece in pieces) == streamed.text


def test_half_a_stop_string_is_held_back_until_it_is_none(tokenizer):
    streamed = Detokenizer(tokenizer, [], ["END"])
    given = []
    for token in tokenizer("xENyEND")["input_ids"]:
        streamed.push(token)
        given.append("".join(piece for _, piece in streamed.release()))
    assert given == ["", "", "x", "E", "N", "y", ""]
    assert streamed.ended
    assert streamed.text == "xENy"


def test_a_stop_string_before_an_incomplete_character_ends_the_text(bundled):
    """The rest of the token is incomplete: the stop string is found when the text ends."""
    streamed = Detokenizer(bundled, [], ["b"])
    for token in bundled("ab€", add_special_tokens=False)["input_ids"][:-1]:
        streamed.push(token)
    streamed.finish()
    assert streamed.text == "a"


def test_a_special_token_as_stop_string_ends_the_text(tokenizer):
    ids = tokenizer("on")["input_ids"]
    special = tokenizer.convert_tokens_to_ids(END)
    for stop, ends in (([END], True), (["x", END], True), (["x"], False)):
        streamed = Detokenizer(tokenizer, [special], stop)
        assert [streamed.push(token) for token in ids] == [False] * len(ids)
        assert streamed.push(special) is ends
        assert streamed.text == "on"
        assert len(streamed.segments) == len(ids) + 1
        streamed.finish()
        assert "".join(text for _, text in streamed.release()) == "on"


def test_a_special_token_as_stop_string_releases_an_incomplete_character(tokenizer):
    streamed = Detokenizer(tokenizer, [], [END])
    for token in tokenizer("a€")["input_ids"][:-1]:
        assert not streamed.push(token)
    assert streamed.push(tokenizer.convert_tokens_to_ids(END))
    assert streamed.text == "a�"


def test_special_tokens_are_no_text(tokenizer):
    special = tokenizer.convert_tokens_to_ids(END)
    first, *rest = tokenizer(EMOJI)["input_ids"]
    _, streamed = stream(tokenizer, [special], [special, first, special, *rest, special])
    assert streamed.text == EMOJI


def test_an_incomplete_character_is_released_at_the_end(tokenizer):
    streamed = Detokenizer(tokenizer, [])
    for token in tokenizer("a€")["input_ids"][:-1]:
        streamed.push(token)
    assert list(streamed.release()) == [(0, "a")]
    streamed.finish()
    assert streamed.text == "a�"
    assert "".join(text for _, text in streamed.release()) == "�"


def test_without_a_tokenizer_there_is_no_text():
    pieces, streamed = stream(None, [1, 2], [3, 4])
    assert (pieces, streamed.text, streamed.segments) == ([], "", ["", ""])
    assert streamed.ended
    with pytest.raises(InputError, match="stop strings need a tokenizer: use stop_token_ids"):
        Detokenizer(None, [1], ["x"])
