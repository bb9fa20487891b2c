"""IAM policy documents, evaluated: may this principal do this action on this resource?

Deny wins, then any allow, then no. Actions, resources, principals and the condition operators that deployment policies
use are honoured; a statement with an operator that is not known here allows nothing. Session policies, permission
boundaries and service control policies are not looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from fnmatch import translate
from functools import lru_cache
from typing import Any


class Verdict(StrEnum):
    """What one or more statements say about a request."""

    ALLOWED = "allowed"
    DENIED = "denied"
    SILENT = "silent"


@lru_cache(maxsize=1024)
def statements(document: str) -> tuple[Mapping[str, Any], ...]:
    """Return the statements of a policy document; a document that is no JSON has none."""
    try:
        found = json.loads(document).get("Statement", [])
    except (ValueError, AttributeError):
        return ()
    return tuple(found) if isinstance(found, list) else (found,)


def judge(
    rules: Iterable[Mapping[str, Any]],
    action: str,
    resources: Sequence[str],
    context: Mapping[str, str] | None = None,
    principals: Sequence[str] | None = None,
) -> Verdict:
    """Return what statements say about an action.

    Args:
        rules: Statements of one or more policies.
        action: `s3:GetObject`.
        resources: The names under which the resource may be found in a policy, usually one.
        context: Condition keys of the request, in small letters.
        principals: Who asks, for the policies of resources and trust, where a statement names its principals. `None`
            for the policies of identities, where it does not.
    """
    verdict = Verdict.SILENT
    for rule in rules:
        if not _concerns(rule, action, resources, context or {}, principals):
            continue
        if rule.get("Effect") == "Deny":
            return Verdict.DENIED
        verdict = Verdict.ALLOWED
    return verdict


def _concerns(
    rule: Mapping[str, Any], action: str, resources: Sequence[str], context: Mapping[str, str],
    principals: Sequence[str] | None,
) -> bool:  # fmt: skip
    if "NotAction" in rule:
        if _any_match(rule["NotAction"], [action], fold=True):
            return False
    elif not _any_match(rule.get("Action", []), [action], fold=True):
        return False
    if "NotResource" in rule:
        if _any_match(rule["NotResource"], resources):
            return False
    elif "Resource" in rule and not _any_match(rule["Resource"], resources):
        return False
    if principals is not None and not _names_one_of(rule, principals):
        return False
    return _conditions_hold(rule, context)


def _names_one_of(rule: Mapping[str, Any], principals: Sequence[str]) -> bool:
    named = rule.get("Principal")
    if named == "*":
        return True
    if not isinstance(named, Mapping):
        return False
    values = [value for kind in named.values() for value in _listed(kind)]
    accounts = {f"arn:aws:iam::{part[4]}:root" for part in (text.split(":") for text in principals) if len(part) > 5}
    return any(value == "*" or value in principals or value in accounts for value in values)


def _conditions_hold(rule: Mapping[str, Any], context: Mapping[str, str]) -> bool:
    for operator, keys in (rule.get("Condition") or {}).items():
        for key, wanted in keys.items():
            holds = _condition_holds(operator, [str(value) for value in _listed(wanted)], context.get(key.lower()))
            if holds is None:
                # An unknown operator must widen nothing: it holds for a denial and fails for an allowance.
                holds = rule.get("Effect") == "Deny"
            if not holds:
                return False
    return True


def _condition_holds(operator: str, wanted: list[str], actual: str | None) -> bool | None:
    name = operator.partition(":")[2] or operator
    if name == "Null":
        return (actual is None) == (wanted[0].lower() == "true")
    optional = name.endswith("IfExists")
    name = name.removesuffix("IfExists")
    negative = "Not" in name
    if actual is None:
        return optional or negative
    name = name.replace("Not", "")
    if name in {"StringEquals"}:
        found = actual in wanted
    elif name in {"StringEqualsIgnoreCase", "Bool"}:
        found = actual.lower() in {value.lower() for value in wanted}
    elif name in {"StringLike", "ArnLike", "ArnEquals"}:
        found = _any_match(wanted, [actual])
    else:
        return None
    return found != negative


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _any_match(patterns: Any, values: Sequence[str], *, fold: bool = False) -> bool:
    return any(_pattern(str(pattern), fold).match(value) for pattern in _listed(patterns) for value in values)


@lru_cache(maxsize=4096)
def _pattern(pattern: str, fold: bool) -> re.Pattern[str]:
    # Square brackets are characters to IAM and sets to fnmatch.
    return re.compile(translate(pattern.replace("[", "[[]")), re.IGNORECASE if fold else 0)
