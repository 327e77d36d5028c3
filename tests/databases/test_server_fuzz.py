"""Requests that the server's OpenAPI description allows, and such as it does not: the answers are those it promises."""

from __future__ import annotations

import pytest
import schemathesis
from databases.running import running
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    positive_data_acceptance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from faiss_llm2vec import FaissStore
from st_llm2vec.serving import Limits, create_app

KEY = "a-secret"
EXAMPLES = 60
CHECKS = [
    not_a_server_error,
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
]


@pytest.fixture(scope="module")
def description(encoder, tmp_path_factory):
    with FaissStore.create(tmp_path_factory.mktemp("served") / "store", encoder) as store:
        store.add(["Bears hibernate.", "Rates rose again."], metadata=[{"year": 2021}, {"year": 2023}])
        app = create_app(encoder, "tiny", store=store, api_key=KEY, limits=Limits(texts=4, characters=300))
        with running(app) as url:
            yield schemathesis.openapi.from_url(f"{url}/openapi.json")


def ask(description, path, mode):
    """Requests of one endpoint, with data that it allows or that it does not."""
    method = next(iter(description[path]))

    @given(case=description[path][method].as_strategy(generation_mode=mode))
    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def asked(case):
        # Schemas do not say what a filter may hold, that two prompts must agree, and that chunks have tokens.
        body = case.body if isinstance(case.body, dict) else {}
        exact = path != "/search" and not (body.get("prompt_name") is not None or body.get("late_chunking"))
        checks = [*CHECKS, positive_data_acceptance] if exact and mode is GenerationMode.POSITIVE else CHECKS
        case.call_and_validate(headers={"Authorization": f"Bearer {KEY}"}, checks=checks)

    asked()


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/models", "/v1/embeddings", "/search"])
def test_every_answer_is_one_that_the_description_promises(description, path):
    ask(description, path, GenerationMode.POSITIVE)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/search"])
def test_what_the_description_does_not_allow_is_refused(description, path):
    ask(description, path, GenerationMode.NEGATIVE)
