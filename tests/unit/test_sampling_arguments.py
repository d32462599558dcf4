"""The command line's sampling options."""

from __future__ import annotations

import json

import pytest

from specbranch.cli import main
from specbranch.cli.main import build_parser
from specbranch.cli.pair import sampling_params
from specbranch.errors import InputError
from tests.tiny import save_pair_half, tiny_model, tiny_tokenizer


def params_of(*arguments):
    return sampling_params(build_parser().parse_args(["generate", "x", *arguments]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = tiny_model("llama", seed=1, eos_token_id=None)
    return save_pair_half(tmp_path_factory.mktemp("tiny"), model, tiny_tokenizer())


def test_options_are_fields_of_sampling_params(tmp_path):
    params = params_of("--logit-bias", "3=2", "--logit-bias", "5=-1", "--bad-word", "a b")
    assert params.logit_bias == {3: 2.0, 5: -1.0}
    assert params.bad_words == ("a b",)
    params = params_of("--allowed-token-ids", "3,4", "--stop-token-ids", "4", "--min-tokens", "2")
    assert (params.allowed_token_ids, params.stop_token_ids) == ((3, 4), (4,))
    assert params.min_tokens == 2
    params = params_of("--keep-special-tokens", "--include-stop-str-in-output", "--logprobs", "3")
    assert not params.skip_special_tokens and params.include_stop_str_in_output
    assert params.logprobs == 3
    assert params_of("--top-p", "0.9").top_p == 0.9
    assert params_of().top_p is None
    assert params_of().structured_outputs is None
    assert params_of("--choice", "a", "--choice", "b").structured_outputs.choice == ["a", "b"]
    file = tmp_path / "schema.json"
    file.write_text('{"type": "object"}')
    assert params_of("--json-schema", str(file)).structured_outputs.json == '{"type": "object"}'
    assert params_of("--json-schema", '{"a": 1}').structured_outputs.json == '{"a": 1}'
    assert params_of("--json-object").structured_outputs.kind == "json_object"


@pytest.mark.parametrize("option", ["--gamma", "--num-speculative-tokens"])
def test_gamma_has_two_names(option):
    assert build_parser().parse_args(["generate", "x", option, "4"]).gamma == 4


def test_one_structure_at_a_time(capsys):
    with pytest.raises(SystemExit):
        params_of("--regex", "a", "--choice", "b")
    assert "not allowed with" in capsys.readouterr().err
    with pytest.raises(InputError, match="n must be 1 for greedy decoding"):
        params_of("--n", "2")


def run(capsys, folder, *arguments):
    given = ["--target", folder, "--draft", "none", "--enforce-eager", "--max-tokens", "5"]
    code = main(["generate", "w5 w9", *given, *arguments])
    return code, capsys.readouterr()


def test_json_tells_log_probabilities_and_samples(capsys, folder):
    sampled = ["--temperature", "1", "--seed", "3", "--n", "2", "--json"]
    code, said = run(capsys, folder, *sampled, "--logprobs", "1", "--prompt-logprobs", "0")
    found = json.loads(said.out)
    assert code == 0
    assert len(found["logprobs"]) == 5
    assert found["prompt_logprobs"][0] is None
    assert found["prompt_logprobs"][1]["9"]["decoded_token"] == "w9"
    assert [each["index"] for each in found["outputs"]] == [0, 1]
    assert found["outputs"][0]["text"] == found["text"] != found["outputs"][1]["text"]
    code, said = run(capsys, folder, *sampled[:-1], "--no-color")
    for each in found["outputs"]:
        assert each["text"] in said.out
    assert said.out.count("5 tokens in") == 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--logit-bias", "99=1"], "error: logit_bias must be between 0 and 63, not 99"),
        (["--temperature", "1", "--n", "2", "--compare"], "error: --compare takes one sample"),
        (["--generation-config", "mine"], "error: generation_config must be auto or none"),
    ],
)
def test_what_is_wrong_is_one_line(capsys, folder, arguments, complaint):
    code, said = run(capsys, folder, *arguments)
    assert code == 2
    assert said.err.strip().splitlines()[-1].startswith(complaint)
