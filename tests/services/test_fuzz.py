"""The API fuzzed from its OpenAPI document: whatever is sent, no error of the server, answers as
documented, and nothing without the token.
"""

from unittest import SkipTest

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings, strategies
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode, checks
from starlette.testclient import TestClient

from snake_jax.services import admission, api
from tests.service_provider import TOKEN, asked, provider_of, stepped

EXAMPLES = 12  # of each operation
WITH_TOKEN = {"Authorization": f"Bearer {TOKEN}"}
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """An application with a service in each state that lasts, and room for what is registered."""
    with provider_of(tmp_path_factory.mktemp("root"), slots=2) as provider:
        for name in ("few rounds", "wrong", "sleeps", "sleeps", "sleeps"):
            provider.register(asked(name))
        stepped(provider, lambda: provider.find(2).state == "failed")
        provider.cancel(5)
        yield api.make_app(provider, TOKEN)


@pytest.fixture(scope="module")
def document(app):
    return schemathesis.openapi.from_asgi("/openapi.json", app, headers=WITH_TOKEN)


def known(case, number):
    """The same call about a service that there is."""
    if "number" in case.path_parameters:
        case.path_parameters["number"] = number
    if "wait_s" in (case.query or {}):
        case.query["wait_s"] = 0
    return case


BOUNDED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
# What conforms to the document, and what does not.
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
OPERATIONS = [
    "POST /services",
    "GET /services",
    "GET /nodes",
    "GET /services/{number}",
    "POST /services/{number}/cancel",
    "DELETE /services/{number}",
    "GET /services/{number}/events",
    "GET /services/{number}/metrics",
    "GET /services/{number}/ledger",
    "GET /services/{number}/nodes",
    "GET /services/{number}/log",
    "GET /services/{number}/files",
    "GET /services/{number}/files/{name}",
    "GET /services/{number}/archive",
]


def each_case(operation, call):
    """Calls with many cases of an operation; gives how many there were."""
    count = 0

    for mode in MODES:
        try:
            cases = operation.as_strategy(mode)

            @BOUNDED
            @given(case=cases)
            def one(case):
                nonlocal count
                count += 1
                call(case)

            one()
        except (SkipTest, Unsatisfiable):
            # Nothing about the operation can be wrong but the token.
            assert mode == GenerationMode.NEGATIVE
    return count


def test_every_operation_of_the_document_is_fuzzed(document):
    assert sorted(one.ok().label for one in document.get_all_operations()) == sorted(OPERATIONS)


@pytest.mark.parametrize("label", OPERATIONS)
def test_whatever_is_sent_is_answered_as_documented(label, document):
    operation = document.find_operation_by_label(label)
    seen = set()

    def call(case):
        answer = case.call(headers=WITH_TOKEN)
        case.validate_response(answer, checks=CHECKS)
        seen.add(answer.status_code)
        if "{number}" in label and case.method == "GET":
            # Nearly all numbers are those of no service: once more with those of some.
            for number in (1, 2, 5):
                answer = known(case, number).call(headers=WITH_TOKEN)
                case.validate_response(answer, checks=CHECKS)
                seen.add(answer.status_code)

    assert each_case(operation, call) >= 1
    if "{number}" in label:
        assert 404 in seen
    if label.startswith("GET"):
        assert 200 in seen or "{name}" in label


VALUES = strategies.one_of(
    strategies.text(max_size=20),
    strategies.sampled_from(["snake", "fedavg", "splitfed", "first,last", "1,2@0.5", "0", "../x"]),
    strategies.integers(),
    strategies.floats(allow_nan=False, allow_infinity=False),
    strategies.booleans(),
)


@pytest.mark.parametrize("task", admission.TASKS)
def test_settings_that_there_are_with_whatever_values_are_taken_or_refused(task, app):
    client = TestClient(app, headers=WITH_TOKEN)
    names = sorted(admission.TASKS[task].__dataclass_fields__)
    seen = set()

    @settings(BOUNDED, max_examples=150)
    @given(asked=strategies.dictionaries(strategies.sampled_from(names), VALUES, max_size=4))
    def one(asked):
        # A service that is taken waits: all slots are in use.
        answer = client.post("/services", json={"task": task, "settings": asked, "name": "wrong"})
        assert answer.status_code in (201, 422), answer.text
        seen.add(answer.status_code)
        if answer.status_code == 422:
            assert answer.json()["error"].isprintable()

    one()
    assert seen == {201, 422}


@pytest.mark.parametrize("label", OPERATIONS)
def test_whatever_is_sent_without_the_token_is_refused(label, document):
    operation = document.find_operation_by_label(label)

    def call(case):
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            assert case.call(headers=headers).status_code == 401

    assert each_case(operation, call) >= 1
