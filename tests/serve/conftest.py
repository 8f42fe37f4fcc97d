import pytest
from serve.service_toys import LOCAL, World
from starlette.testclient import TestClient

from modalloy.serve import ServeConfig, create_app, static


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What tests that change nothing share, with a running service of it."""
    world = World(tmp_path_factory.mktemp("shared"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(static, "PAGE", world.page)
        patch.delenv("MODALLOY_API_KEY", raising=False)
        app = create_app(world.searcher, ServeConfig())
        with TestClient(app, base_url=LOCAL, client=("127.0.0.1", 1)) as world.client:
            yield world
        assert app.state.service.close(10.0)


@pytest.fixture
def client(shared):
    """Asks the shared service; a test that changes anything uses `serving`."""
    return shared.client


@pytest.fixture
def world(request, tmp_path):
    return World(tmp_path) if "serving" in request.fixturenames else request.getfixturevalue("shared")


@pytest.fixture
def root(world):
    return world.root


@pytest.fixture
def index(world):
    return world.index


@pytest.fixture
def encoder(world):
    world.encoder.calls.clear()
    return world.encoder


@pytest.fixture
def searcher(world):
    return world.searcher


@pytest.fixture
def page(world):
    return world.page


@pytest.fixture
def serving(world, monkeypatch):
    """Starts a service of the test's own with some configuration, and gives a client of it."""
    clients = []
    monkeypatch.setattr(static, "PAGE", world.page)

    def start(**config):
        app = create_app(world.searcher, ServeConfig(**config))
        clients.append(TestClient(app, base_url=LOCAL, client=("127.0.0.1", 1)))
        return clients[-1].__enter__()

    yield start
    for client in clients:
        client.__exit__(None, None, None)
        assert client.app.state.service.close(10.0)
