"""The decoding methods by name, and what each needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from specbranch.errors import InputError
from specbranch.methods.adaedl import AdaEDL
from specbranch.methods.autoregressive import Autoregressive
from specbranch.methods.base import Method, MethodContext
from specbranch.methods.lookahead import Lookahead
from specbranch.methods.lookup import Lookup
from specbranch.methods.pearl import Pearl
from specbranch.methods.specbranch import SpecBranch
from specbranch.methods.speculative import Speculative


@dataclass(frozen=True)
class MethodSpec:
    """A decoding method.

    Attributes:
        name: what users call it.
        make: makes the state machine of one text.
        needs_draft: whether it needs a draft model.
        overlaps: whether draft and target work at the same time.
        uses_hrad: whether H-RAD is asked, where there is one.
    """

    name: str
    make: Callable[[MethodContext], Method]
    needs_draft: bool = True
    overlaps: bool = False
    uses_hrad: bool = False


METHODS: dict[str, MethodSpec] = {
    spec.name: spec
    for spec in (
        MethodSpec("autoregressive", Autoregressive, needs_draft=False),
        MethodSpec("lookup", Lookup, needs_draft=False),
        MethodSpec("lookahead", Lookahead, needs_draft=False),
        MethodSpec("speculative", Speculative),
        MethodSpec("adaedl", AdaEDL),
        MethodSpec("pearl", Pearl, overlaps=True),
        MethodSpec("specbranch", SpecBranch, overlaps=True, uses_hrad=True),
    )
}
PLAIN = METHODS["autoregressive"]


def find_method(
    name: str, has_draft: bool, why_no_draft: str = "give one with draft="
) -> MethodSpec:
    """The method of that name.

    Raises:
        InputError: there is no such method, or it needs a draft that is not there.
    """
    if name not in METHODS:
        raise InputError(f"unknown method '{name}': use {', '.join(METHODS)}")
    spec = METHODS[name]
    if spec.needs_draft and not has_draft:
        draftless = ", ".join(spec.name for spec in METHODS.values() if not spec.needs_draft)
        raise InputError(
            f"the method '{name}' needs a draft model: {why_no_draft}, or use {draftless}"
        )
    return spec


def pick_method(name: str, has_draft: bool) -> MethodSpec:
    """As `find_method`; `auto` is the best one for what there is, a draft or none."""
    if name == "auto":
        name = "specbranch" if has_draft else "lookup"
    return find_method(name, has_draft)
