"""The meaning of a hello."""

from protocol.typha import messages


def test_the_default_syncer_type_is_felix() -> None:
    assert messages.ClientHello().feed == "felix"
    assert messages.ClientHello(syncer_type="bgp").feed == "bgp"


def test_an_agent_is_short_and_printable() -> None:
    hello = messages.ClientHello(hostname="h" * 10**6, info="fe\nlix", version="")
    assert hello.agent == "fe?lix " + "h" * 193
    assert messages.ClientHello().agent == ""


def test_snappy_requires_decoder_restarts() -> None:
    offered = ("zstd", "snappy")
    assert messages.ClientHello(supports_decoder_restart=True, supported_compression_algorithms=offered).takes_snappy
    assert not messages.ClientHello(supported_compression_algorithms=offered).takes_snappy
    assert not messages.ClientHello(supports_decoder_restart=True, supported_compression_algorithms=()).takes_snappy
