"""What SIGUSR1 to the hub makes a worker log."""

from structlog import testing

from tests.harness.worker_stand import FEED, WorkerStand, eventually
from typha.ipc import messages


async def test_a_worker_names_the_clients_that_lag(stage: WorkerStand) -> None:
    good, slow = await stage.subscribe(), await stage.subscribe()
    await stage.converged(good, slow)
    blocked = await stage.block(slow)
    with testing.capture_logs() as lines:
        stage.handle.send(messages.ControlLog(diagnose=True))
        await eventually(lambda: any(line["event"] == "Diagnosis of a client that lags" for line in lines))
    by_event = {line["event"]: line for line in lines}
    assert by_event["Diagnosis of a worker"]["connections"] == 2
    assert by_event["Diagnosis of a worker's wire format"]["feed"] == FEED
    lagging = [line for line in lines if line["event"] == "Diagnosis of a client that lags"]
    named = [line for line in lagging if line["client"] == blocked.address]
    assert [line["connection"] for line in named] == [blocked.number]
    assert named[0]["lag_bytes"] > 0
    assert named[0]["socket_is_full"]


async def test_at_most_20_clients_are_named(stage: WorkerStand) -> None:
    peers = [await stage.subscribe() for _ in range(25)]
    await stage.converged(*peers)
    for peer in peers:
        await stage.block(peer)
    with testing.capture_logs() as lines:
        stage.handle.send(messages.ControlLog(diagnose=True))
        await eventually(lambda: any(line["event"] == "Diagnosis of a client that lags" for line in lines))
    lags = [line["lag_bytes"] for line in lines if line["event"] == "Diagnosis of a client that lags"]
    assert len(lags) == 20
    assert lags == sorted(lags, reverse=True)
