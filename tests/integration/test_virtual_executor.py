"""The virtual executor and latency profiles."""

import pytest

from specbranch.errors import InputError
from specbranch.executors.virtual import ModelLatency, Profile, VirtualClock, VirtualExecutor
from tests.integration.executor_workers import (
    CountRequest,
    Echo,
    ForwardsRequest,
)

PROFILE = ModelLatency({1: 1.0, 4: 4.0}, call=0.5)


class TestVirtualClock:
    """Times computed by hand: a forward of n tokens takes n seconds, a call half a second."""

    def pair(self):
        clock = VirtualClock()
        executors = [VirtualExecutor(Echo, name, PROFILE, clock) for name in ("draft", "target")]
        return clock, *executors

    def test_executors_overlap(self):
        clock, draft, target = self.pair()
        branching, verifying = (
            draft.submit(ForwardsRequest((1, 1))),
            target.submit(ForwardsRequest((4,))),
        )
        assert clock.now == 0
        verifying.result()
        assert clock.now == 4.5
        branching.result()
        assert clock.now == 4.5  # it was done before
        assert (branching.span.start, branching.span.end) == (0, 2.5)
        after = draft.submit(ForwardsRequest((1,)))
        after.result()
        assert (after.span.start, after.span.end) == (4.5, 6.0)
        assert draft.now() == target.now() == 6.0

    def test_calls_of_one_executor_follow_each_other(self):
        clock, draft, _ = self.pair()
        first, second = draft.submit(ForwardsRequest((2,))), draft.submit(ForwardsRequest((1,)))
        second.result()
        assert (first.span.end, second.span.start, second.span.end) == (2.5, 2.5, 4.0)
        assert clock.now == 4.0

    def test_a_stop_comes_at_the_callers_time(self):
        _, draft, target = self.pair()
        counting = draft.submit(CountRequest(1000))
        target.submit(ForwardsRequest((4,))).result()
        counting.stop()
        # Steps end at 1.5, 2.5, 3.5, 4.5: the fourth is the first to see the stop at 4.5.
        assert counting.result() == 3
        assert counting.span.end == 4.5

    def test_costs_between_the_numbers_given(self):
        costs = ModelLatency({1: 1.0, 5: 3.0})
        assert [costs.seconds(n) for n in (1, 2, 3, 5, 50)] == [1.0, 1.5, 2.0, 3.0, 3.0]
        ratio = Profile.of_ratio(8, branch_cost=0.5, step=2.0)
        assert ratio.target.seconds(16) == 16.0
        assert [ratio.draft.seconds(k) for k in (1, 2, 3)] == [2.0, 3.0, 4.0]

    def test_profiles_are_files(self, tmp_path):
        file = tmp_path / "profile.json"
        profile = Profile(ModelLatency({1: 0.5, 8: 0.75}, call=0.125), ModelLatency({1: 0.25}))
        profile.save(file)
        assert Profile.load(file) == profile

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            ("[]", "is no profile"),
            ('{"target": {"forward": {"1": 1}}}', "is no profile"),
            ('{"target": {"forward": {}}, "draft": {"forward": {"1": 1}}}', "1 or more tokens"),
            ('{"target": {"forward": {"1": -1}}, "draft": {"forward": {"1": 1}}}', "needs seconds"),
        ],
    )
    def test_what_is_no_profile(self, tmp_path, content, complaint):
        file = tmp_path / "profile.json"
        file.write_text(content)
        with pytest.raises(InputError, match=complaint):
            Profile.load(file)
