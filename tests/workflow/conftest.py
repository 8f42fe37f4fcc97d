"""The finished run's encoders and features; a file of tests that needs others defines its own."""

import pytest

from modalloy import Collection, load_encoder


@pytest.fixture(scope="module")
def encoders(finished_run):
    return [load_encoder(f"hacan:{finished_run / 'inputs' / number}") for number in "12"]


@pytest.fixture(scope="module")
def collection(finished_run, tiny_manifest):
    return Collection(tiny_manifest, finished_run / "features")
