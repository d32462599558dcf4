"""The round loop: runs what a method plans on the executors, and hands it what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from specbranch.engine.executor_pair import ExecutorPair
from specbranch.executors.base import Executor, Future
from specbranch.methods.base import DraftPlan, Method, VerifyPlan
from specbranch.metrics import Round
from specbranch.timing import Span
from specbranch.workers.drafter import Drafter
from specbranch.workers.messages import Branch
from specbranch.workers.requests import (
    BranchRequest,
    DraftRequest,
    JudgeRequest,
    LearnRequest,
    VerifyRequest,
)


class DrafterFailedError(Exception):
    """The drafter failed in a round.

    Attributes:
        error: how.
        done: the round, if its verification was committed all the same.
    """

    def __init__(self, error: Exception, done: Round | None = None) -> None:
        super().__init__(error)
        self.error = error
        self.done = done


class Driver:
    """Runs rounds of one text at a time, and waits for them.

    Args:
        executors: where the models are. The texts are open on them.
    """

    def __init__(self, executors: ExecutorPair) -> None:
        self._executors = executors

    def rounds(self, method: Method) -> Iterator[Round]:
        """All rounds of a text, to its end.

        Raises:
            DrafterFailedError: as `round`.
        """
        while not method.sequence.finished:
            yield self.round(method)

    def round(self, method: Method) -> Round:
        """The text's next round, committed and observed.

        Raises:
            DrafterFailedError: the drafter gave no answer; the text can go on by another method.
            ExecutorError: the verifier failed.
        """
        now = self._executors.verifier.now
        started = now()
        drafting: Span | None = None
        plan = method.plan()
        while isinstance(plan, DraftPlan):
            drafting = self._draft(method, plan)
            plan = method.plan()
        done, failure = self._verify(method, plan)
        done.draft_stage, done.drafting = drafting is not None, drafting
        done.seconds = now() - started
        method.observe(done)
        if failure is not None:
            raise DrafterFailedError(failure, done)
        return done

    def _draft(self, method: Method, plan: DraftPlan) -> Span:
        """A draft stage; the verifier learns meanwhile if it has cores of its own."""
        self._executors.set_verifier_affinity(plan.overlapped)
        drafting = self._drafter.submit(DraftRequest([plan.draft]))
        learning = self._executors.verifier.submit(LearnRequest()) if plan.overlapped else None
        try:
            [draft] = drafting.result()
        except Exception as error:
            raise DrafterFailedError(error) from error
        method.absorb_draft(draft)
        if learning is not None:
            learning.result()
        return drafting.span

    def _verify(self, method: Method, plan: VerifyPlan) -> tuple[Round, Exception | None]:
        """A verification, and a branch stage beside it if there is one."""
        self._executors.set_verifier_affinity(plan.overlapped)
        verifier = self._executors.verifier
        branching: Future[list[list[Branch]]] | None = None
        if plan.branch is not None:
            branching = self._drafter.submit(BranchRequest([plan.branch], plan.step))
        verifying = verifier.submit(VerifyRequest([plan.verify]))
        [result] = verifying.result()
        if branching is not None and plan.stop_branching:
            branching.stop()
        # While the drafter ends its last step, what does not depend on its branches is done.
        judging = verifier.submit(JudgeRequest([plan.verify.id])) if plan.judge else None
        done = method.absorb_verification(result)
        signal = judging.result()[0] if judging is not None else None
        branches: Sequence[Branch] = ()
        failure: Exception | None = None
        if branching is not None:
            try:
                [branches] = branching.result()
            except Exception as error:  # the verification is committed, whatever became of it
                failure = error
        method.absorb_branches(done, branches, signal)
        done.branches, done.branch_tokens = len(branches), sum(map(len, branches))
        done.branching = branching.span if branching is not None and branches else None
        done.verification = verifying.span
        return done, failure

    @property
    def _drafter(self) -> Executor[Drafter]:
        drafter = self._executors.drafter
        assert drafter is not None, "a method that drafts runs only where there is a draft"
        return drafter
