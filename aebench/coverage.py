"""Coverage: a claim about points that were not run is absent, however the points that were run came out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from aebench.claim_syntax import Claim, Selector
from aebench.claims import Judgement, Verdict

Keys = Mapping[str, str]
SHOWN = 3
"""Missing points that a detail names."""


def covered(judgement: Judgement, declared: Sequence[Keys], run: Sequence[Keys]) -> Judgement:
    """The judgement, or ``absent`` when the claim speaks of declared points of the figure that were not run."""
    meant = [keys for keys in declared if _speaks_of(judgement.claim, keys)]
    missing = [keys for keys in meant if keys not in run]
    if not missing or judgement.verdict is Verdict.ABSENT:
        return judgement
    names = ", ".join(" ".join(f"{key}={text}" for key, text in keys.items()) for keys in missing[:SHOWN])
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    detail = (
        f"{judgement.verdict} on what was run, but {len(missing)} of the {len(meant)} points that it speaks of were "
        f"not: {names}{more}"
    )
    return replace(judgement, verdict=Verdict.ABSENT, detail=detail)


def _speaks_of(claim: Claim, keys: Keys) -> bool:
    sides = (claim.left, *([] if claim.right is None else [claim.right]), *claim.then)
    return any(_selects(side, keys) for side in sides)


def _selects(selector: Selector, keys: Keys) -> bool:
    """Whether the point may have rows that are selected; applications and models are not keys of points."""
    return all(keys[key] in texts for key, texts in selector.texts.items() if key in keys)
