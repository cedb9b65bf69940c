"""The server against the contract's document, with requests that fit it and requests that break it."""

from __future__ import annotations

import json

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from tests.unit.api.conftest import DOCUMENT

contract = schemathesis.openapi.from_dict(DOCUMENT)
contract.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])


@contract.include(path="/prompt").parametrize()
@settings(suppress_health_check=list(HealthCheck))
def test_a_body_that_fits_the_document_is_refused_only_for_its_graph(case, base_url):
    response = case.call(base_url=base_url)
    # The document cannot say which node classes exist, so a graph that fits it may still be one that cannot run.
    case.validate_response(response, excluded_checks=[positive_data_acceptance])
    if case.meta.generation.mode is GenerationMode.POSITIVE and response.status_code != 200:
        # Nor can it say that PostgreSQL's text holds no NUL, in a prompt's keys or beside it.
        has_nul = "\\u0000" in json.dumps(case.body, default=str)
        assert response.json()["error"] in {"Invalid workflow structure", *(["Invalid submission"] if has_nul else [])}


@contract.include(path="/history/{prompt_id}").parametrize()
@settings(suppress_health_check=list(HealthCheck))
def test_an_id_that_is_no_uuid_has_an_empty_history(case, base_url):
    response = case.call(base_url=base_url)
    # The document has no 4xx here: an id that cannot exist is one that is not found.
    case.validate_response(response, excluded_checks=[negative_data_rejection])
    assert response.status_code in {200, 404, 405}
    assert response.status_code != 200 or response.json() == {}


@contract.exclude(path=["/prompt", "/history/{prompt_id}"]).parametrize()
@settings(suppress_health_check=list(HealthCheck))
def test_every_other_answer_is_one_the_document_describes(case, base_url):
    case.call_and_validate(base_url=base_url)
