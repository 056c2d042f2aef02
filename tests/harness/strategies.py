"""Hypothesis strategies for all messages of the native protocol."""

from hypothesis import strategies as st

from protocol import messages
from protocol.subscriptions import Subscription

counts = st.integers(min_value=0, max_value=2**64 - 1)
names = st.text(max_size=40)
feature_names = st.sampled_from([feature.value for feature in messages.Feature]) | names
features = st.frozensets(feature_names, max_size=8)
keys = st.text(max_size=60)
values = st.none() | st.binary(max_size=200)

updates = st.builds(
    messages.Update,
    key=keys,
    value=values,
    revision=names,
    update_type=st.integers(min_value=0, max_value=255),
    v3_resource_version=names,
    ttl=st.integers(min_value=0, max_value=2**63 - 1),
)
update_tuples = st.lists(updates, max_size=8).map(tuple)

texts = st.none() | st.lists(names, min_size=1, max_size=4).map(tuple)
subscriptions = st.builds(
    Subscription, kinds=texts, namespaces=texts, prefixes=texts, own_node=st.none() | st.booleans()
)

chunk_digests = st.sampled_from((1, 2, 4, 64)).flatmap(
    lambda length: st.lists(counts, min_size=length, max_size=length).map(tuple)
)

client_hellos = st.builds(
    messages.ClientHello,
    feed=names,
    agent=names,
    versions=st.lists(counts, min_size=1, max_size=8).map(tuple),
    features=features,
    software=names,
    node=names,
    subscription=st.none() | subscriptions,
    resume=st.none() | st.builds(messages.ResumePosition, incarnation=st.binary(max_size=16), sequence=counts),
    chunk_digests=st.none() | chunk_digests,
)
server_hellos = st.builds(
    messages.ServerHello,
    version=counts,
    feed=names,
    incarnation=st.binary(min_size=16, max_size=16),
    features=features,
    not_supported=features,
    software=names,
    connection_id=counts,
    ping_interval_milliseconds=counts,
    max_frame_bytes=counts,
    confirmed_milliseconds=st.none() | counts,
)
begins = st.builds(messages.SnapshotBegin, sequence=counts, keys=counts, chunks=counts)
chunks = st.builds(messages.SnapshotChunk, index=counts, digest=counts, more=st.booleans(), updates=update_tuples)
ends = st.builds(messages.SnapshotEnd, sequence=counts, keys=counts, digest=counts)
deltas = st.builds(messages.Updates, previous_sequence=counts, sequence=counts, updates=update_tuples)
statuses = st.builds(messages.Status, sequence=counts, status=st.sampled_from(messages.SyncStatus))
pings = st.just(messages.Ping())
pongs = st.builds(messages.Pong, sequence=counts)
goodbyes = st.builds(
    messages.Goodbye,
    reason=names,
    text=names,
    retry_after_milliseconds=counts,
    servers=st.lists(names, max_size=16).map(tuple),
)
applied = st.builds(messages.Applied, sequence=counts)

all_messages = st.one_of(
    *(client_hellos, server_hellos, begins, chunks, ends, deltas, statuses, pings, pongs, goodbyes, applied)
)
