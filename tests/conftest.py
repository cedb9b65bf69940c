"""What holds for every test."""

from __future__ import annotations

import asyncio
import atexit
import functools
import gc
import inspect
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests import examples

if TYPE_CHECKING:
    from tests.cluster.server import Server

# A shell that runs the tests in its background has them ignore SIGINT, and the commands they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

ENDLESS_S = 600.0
"""What no asynchronous test takes; before `faulthandler_timeout` ends the whole run."""

_exit, _pid = os._exit, os.getpid()


def _exit_another(status: int) -> None:
    """End this process, if it is not the one of the tests: pytest would end unseen, with that status."""
    assert os.getpid() != _pid, f"a test ends pytest with status {status}"
    _exit(status)


os._exit = _exit_another  # type: ignore[assignment]

examples.register()
gc.disable()
# What tests leave is collected before the modules go that its finalizers need.
atexit.register(gc.unfreeze)


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Fail an asynchronous test that waits for what does not come, so that those after it still run."""
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.obj = ending(item.obj)


def ending(test: Callable[..., Awaitable[None]], within_s: float = ENDLESS_S) -> Callable[..., Awaitable[None]]:
    """Return a test that fails with TimeoutError when its time is over."""

    @functools.wraps(test)
    async def timed(*arguments: Any, **named: Any) -> None:
        async with asyncio.timeout(within_s):
            await test(*arguments, **named)

    return timed


def pytest_collection_finish() -> None:
    """Collect garbage from the first test on, and leave out what was there before.

    What tests import are more than half a million objects that stay. Looking through them took a fifth of the time of
    the imports.
    """
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def pillow_formats() -> Iterator[None]:
    """Replicas that a test makes in this process limit what Pillow opens in it, which is undone after the test."""
    Image.init()
    limits = Image.OPEN.copy(), Image.ID.copy(), Image.MAX_IMAGE_PIXELS
    yield
    if limits != (Image.OPEN, Image.ID, Image.MAX_IMAGE_PIXELS):
        Image.OPEN, Image.ID, Image.MAX_IMAGE_PIXELS = limits


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The one real server of all tests that ask nothing particular of its configuration; those that kill parts mend it.

    It has the checkpoint that comes with the package beside that of tests.
    """
    # These import torch, which most tests of the control plane do without.
    from serve_app.models.shipped import provide
    from tests.cluster.server import configure, running

    root = tmp_path_factory.mktemp("server")
    provide(root / "models")
    webhooks = {"allowed_networks": ["127.0.0.1/32"], "retry_s": 0.05}
    configure(root, {"webhooks": webhooks, "pools": [{"name": "gpu", "threads": 1}]})
    with running(root) as server:
        yield server
