"""A cluster of three nodes that are network namespaces, for tests that need real ones. It starts once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.crash_course.cluster import Cluster
from loadtest.crash_course.namespaces import Namespaces


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("cni")
    with Namespaces("cn-test") as spaces:
        cluster = Cluster(spaces, folder, nodes=3)
        cluster.start()
        cluster.create_pool("default-pool", "10.65.0.0/24", blockSize=29)
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, without pods before and after the test."""
    yield shared_cluster
    for pod in list(shared_cluster.pods.values()):
        shared_cluster.delete_pod(pod)
