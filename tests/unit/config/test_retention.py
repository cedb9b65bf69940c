"""How much is kept, as the configuration says it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from serve_app.config import AppConfig, parse
from serve_app.errors import ConfigError
from serve_app.store.retention.rules import KINDS, RetentionBounds, RetentionRules


def test_retention_is_off_and_a_tenants_bounds_of_a_kind_replace_everyones() -> None:
    assert not RetentionRules.of(AppConfig().retention).concern(*KINDS)
    given = {"history": {"count": 5}, "outputs": {"bytes": 9}, "tenants": {"acme": {"history": {"age_s": 1}}}}
    rules = RetentionRules.of(parse({"retention": given}, "here").retention)
    assert rules.bounds("history", "acme") == RetentionBounds(age_s=1.0)
    assert (rules.bounds("history", "other"), rules.bounds("outputs", "acme")) == (
        RetentionBounds(count=5),
        RetentionBounds(bytes=9),
    )


@pytest.mark.parametrize(
    ("retention", "where"),
    [
        ({"history": {"age_s": -1}}, "retention.history.age_s: Input should be greater than or equal to 0"),
        ({"outputs": {"count": 1.5}}, "retention.outputs.count: Input should be a valid integer"),
        ({"temp": {"bytes": "much"}}, "retention.temp.bytes: Input should be a valid integer"),
        ({"histories": {}}, "retention.histories: there is no such key"),
        ({"tenants": {"a": {"history": {"days": 1}}}}, "retention.tenants.a.history.days: there is no such key"),
    ],
)
def test_nonsense_in_retention_is_named(retention: Any, where: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(where)):
        parse({"retention": retention}, "here")
