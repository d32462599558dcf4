"""Options by the names of the configuration's fields."""

from __future__ import annotations

import pytest

from specbranch.config import EngineConfig, SpeculativeConfig
from specbranch.errors import InputError


def test_options_find_the_part_that_they_belong_to():
    config = EngineConfig.of(target="a", gamma=3, executor="inline", max_num_seqs=2)
    assert config.model.target == "a"
    assert config.speculative == SpeculativeConfig(gamma=3)
    assert config.executors.executor == "inline"
    assert config.scheduler.max_num_seqs == 2
    assert EngineConfig.of(method=None).speculative.method == "auto"


def test_names_of_before_still_work():
    config = EngineConfig.of(lanes="thread", lane_timeout=3, width=8)
    assert config.executors.executor == "thread"
    assert config.executors.executor_timeout == 3
    assert config.model.padding == 8


def test_gamma_has_the_name_that_other_engines_give_it():
    config = EngineConfig.of(num_speculative_tokens=3)
    assert config == EngineConfig.of(gamma=3)
    assert config.speculative.longest == 3


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (
            {"gamma": 2, "num_speculative_tokens": 3},
            "num_speculative_tokens and gamma are one option: give one of them",
        ),
        ({"num_speculative_token": 3}, "unknown option 'num_speculative_token': did you mean num_"),
        ({"generation_config": "mine"}, "generation_config must be auto or none, not 'mine'"),
        ({"gama": 3}, "unknown option 'gama': did you mean gamma?"),
        ({"xyzzy": 3}, "unknown option 'xyzzy': use target, draft, pair, "),
        ({"padding": 0}, "padding must be auto, 1 or more, or None, not 0"),
        ({"executor_timeout": 0}, "executor_timeout must be more than 0 seconds, not 0"),
        ({"startup_timeout": -1}, "startup_timeout must be more than 0 seconds, not -1"),
        ({"max_num_seqs": 0}, "max_num_seqs must be 1 or more, not 0"),
        ({"gamma": True}, "gamma must be 1 or more, or auto, not True"),
    ],
)
def test_wrong_options_are_one_line(wrong, complaint):
    with pytest.raises(InputError) as caught:
        EngineConfig.of(**wrong)
    assert str(caught.value).startswith(complaint)
    assert "\n" not in str(caught.value)
