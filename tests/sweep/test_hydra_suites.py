"""Hydra's own tests of launchers, on ours: any Hydra application can use them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, IntegrationTestSuite, LauncherTestSuite
from hydra.version import VersionBase, __compat_version__


@pytest.fixture(autouse=True)
def version_base_of_a_new_process() -> Iterator[None]:
    """Which the suites expect; Hydra keeps the one that another test composed with."""
    known = VersionBase.instance()
    before, known.version_base = known.version_base, __compat_version__
    yield
    known.version_base = before


def test_hydra_finds_the_launcher() -> None:
    assert "LocalLauncher" in [found.__name__ for found in Plugins.instance().discover(Launcher)]


@pytest.mark.parametrize(("launcher_name", "overrides"), [("local", [])])
class TestLocalLauncher(LauncherTestSuite):
    pass


@pytest.mark.parametrize(("launcher_name", "overrides"), [("local", ["hydra.sweeper.max_batch_size=2"])])
class TestLocalLauncherInBatches(BatchedSweeperTestSuite):
    pass


@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"),
    [({}, ["-m", "hydra/launcher=local"])],
)
class TestLocalLauncherIntegration(IntegrationTestSuite):
    pass
