"""A cascade in this process decides as the server does with the same repository."""

import numpy as np
import pytest

from orchestrator.predictor.in_process import LocalModels
from orchestrator.predictor.predictor import Predictor, ServedModels
from tests.served.fixtures import Offline, ServedRepository
from tests.served.texts import STRICT, TEXT, TOKENS, ServedTexts

pytestmark = [pytest.mark.triton, pytest.mark.timeout(120)]
DECIDED = ("label", "exit_stage", "status", "cost")


def both(address: str, repository: object, model: str) -> tuple[Predictor, Predictor]:
    served = ServedModels(servers=address)
    options = {"request_rows": 32, "probabilities": True}
    return Predictor(served, model, **options), Predictor(LocalModels(repository=repository), model, **options)


@pytest.mark.parametrize(
    "name",
    [
        "digits_cascade",
        "three_stages",
        "geared_cascade",
        "pair_mean_prob",
        "pair_vote",
        "pair_last",
        "digits_small",
    ],
)
def test_decisions_of_images_are_those_of_the_server_and_of_replay(testbed: ServedRepository, name: str) -> None:
    rows = testbed.images.copy()
    rows[5] = np.nan
    there, here = (
        one.predict({"image": rows}) for one in both(testbed.server.grpc_address, testbed.repository, name)
    )
    assert here["label"][5] == there["label"][5] == -1
    assert here["refused"][5] == there["refused"][5] != ""
    near = np.zeros(len(rows), np.bool_)
    if name in testbed.specs:
        offline = Offline(testbed.specs[name], testbed.records)
        near = offline.near
        clear = np.setdiff1d(np.flatnonzero(~near), [5])
        for column in DECIDED:
            assert (here[column][clear] == getattr(offline.answers, column)[clear]).all(), column
    for column in DECIDED:
        np.testing.assert_array_equal(here[column][~near], there[column][~near], column)
    np.testing.assert_allclose(here["probabilities"][~near], there["probabilities"][~near], atol=1e-5)


@pytest.mark.parametrize("name", [TEXT, STRICT])
def test_texts_are_derived_and_decided_as_in_the_server(served_texts: ServedTexts, name: str) -> None:
    texts = [*served_texts.texts[:60], "a long one " * 60]
    column = served_texts.spec(name).inputs[0].name
    there, here = (
        one.predict({column: texts})
        for one in both(served_texts.server.grpc_address, served_texts.repository, name)
    )
    for key in DECIDED:
        np.testing.assert_array_equal(here[key], there[key], key)
    assert (here["refused"] != "").tolist() == (there["refused"] != "").tolist()


def test_token_ids_of_any_length_are_decided_as_in_the_server(served_texts: ServedTexts) -> None:
    inputs = served_texts.spec(TOKENS).inputs
    drawn = np.random.default_rng(3)
    lengths = drawn.integers(1, 20, 40)
    rows = {
        one.name: [
            np.ones(length, np.int64) if one.is_mask else drawn.integers(0, 50, length) for length in lengths
        ]
        for one in inputs
    }
    there, here = (
        one.predict(rows) for one in both(served_texts.server.grpc_address, served_texts.repository, TOKENS)
    )
    for key in DECIDED:
        np.testing.assert_array_equal(here[key], there[key], key)
