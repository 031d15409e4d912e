"""What can be asked of a file that no trace takes, before it runs live: rules over its text, and the library policy.

Without a plan nobody outside of the candidate's process sees which kernels ran: a profiler in it would be the liar's
own. So a problem that forbids library compute has no live verdict, one that wants custom kernels beside it gets a
verdict that says that this was not checked.
"""

from __future__ import annotations

import ast

from verifier.plan.source_rules import check_source
from verifier.problem import LibraryPolicy
from verifier.verdict import Diagnostic

_KERNELS = frozenset({
    "jit", "load_inline", "load", "RawKernel", "RawModule", "ElementwiseKernel", "ReductionKernel", "Program", "gluon",
})  # fmt: skip
"""Names by which a file makes kernels of its own: Triton, torch's extensions, CuPy, cuda.core."""


def refuse_live(policy: LibraryPolicy) -> str:
    """Why a file gets no live verdict on a problem with this policy, one sentence; empty where it does."""
    if policy is LibraryPolicy.FORBIDDEN:
        return "the problem forbids library compute, which only a plan can prove: it is not run live"
    return ""


def live_findings(source: str, policy: LibraryPolicy) -> tuple[Diagnostic, ...]:
    """Findings on the text of a file that is to run live; an error rejects it."""
    found = list(check_source(source))
    if policy is LibraryPolicy.ASSIST:
        if not _makes_kernels(source):
            message = "the file makes no kernel of its own, and the problem wants one on the way to every output"
            found.append(Diagnostic(severity="error", code="no-custom-kernel", message=message))
        message = "live: whether a custom kernel is on the way to every output was not checked; only a plan can show it"
        found.append(Diagnostic(severity="warning", code="policy-unchecked", message=message))
    return tuple(found)


def _makes_kernels(source: str) -> bool:
    """Whether a name that makes kernels is used at all. A label, not a proof."""
    tree = ast.parse(source)
    named = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    named |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return bool(named & _KERNELS)
