"""What client-go makes of kubeconfigs and variables (tools/clientgo), and what we make of them, in one form."""

import base64
import hashlib
import json
import ssl
import subprocess
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from cache.kube import access, credentials, pem

TIMEOUT_SECONDS = 180.0
ERROR = "error"


class Result(NamedTuple):
    """What a request would carry, or an error."""

    error: str = ""
    url: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    """With names in lower case, sorted."""
    roots: tuple[str, ...] = ()
    """Fingerprints of the subjects of the only trusted certificates. Empty: the system's."""
    server_name: str = ""
    is_insecure: bool = False
    client_certificate: str = ""
    """Its fingerprint."""
    proxy: str = ""


def run(program: str, mode: str, environment: Mapping[str, str], *, given: bytes = b"") -> list[Any]:
    """Run the program on client-go, and return what it prints."""
    done = subprocess.run(
        [program, mode],
        env=dict(environment),
        input=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=TIMEOUT_SECONDS,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def theirs(program: str, environment: Mapping[str, str]) -> Result:
    """What client-go makes of it."""
    [answer] = run(program, "config", environment)
    if ERROR in answer:
        return Result(error=answer[ERROR])
    headers = [(name.lower(), value) for name, values in answer.get("headers", {}).items() for value in values]
    return Result(
        url=answer["url"].removesuffix("/version"),
        headers=tuple(sorted(headers)),
        roots=tuple(answer.get("roots", ())),
        server_name=answer.get("server_name", ""),
        is_insecure=answer.get("insecure", False),
        client_certificate=answer.get("client_certificate", ""),
        proxy=answer.get("proxy", ""),
    )


def ours(environment: Mapping[str, str]) -> Result:
    """What we make of it."""
    try:
        loaded = msgspec.json.decode(msgspec.json.encode(credentials.load(environment)), type=access.Access)
        context = access.make_ssl_context(loaded)
        authorization = loaded.authorization
        if loaded.token_file:  # as the session does it
            try:
                authorization = f"Bearer {access.read_token(loaded.token_file)}"
            except access.AccessError:
                if not authorization:
                    raise
    except access.AccessError as error:
        return Result(error=str(error))
    headers = [(name.lower(), value) for name, value in loaded.headers]
    if authorization:
        headers.append(("authorization", authorization))
    certificates = pem.certificates(loaded.client_certificate, with_headers=True)
    return Result(
        url=loaded.host,
        headers=tuple(sorted(headers)),
        roots=tuple(sorted(_subjects(context)))
        if isinstance(context, ssl.SSLContext) and loaded.certificate_authority
        else (),
        server_name=loaded.server_name if context else "",
        is_insecure=not loaded.verify if context else False,
        client_certificate=fingerprint(certificates[0]) if certificates else "",
        proxy=loaded.proxy,
    )


def read_pem(program: str, texts: list[bytes]) -> list[dict[str, Any]]:
    """What Go finds in each of some PEM files."""
    return run(program, "pem", {}, given=b"".join(base64.b64encode(text) + b"\n" for text in texts))


def fingerprint(data: bytes) -> str:
    """A short name for some bytes."""
    return hashlib.sha256(data).hexdigest()[:16]


def _subjects(context: ssl.SSLContext) -> list[str]:
    from cryptography import x509

    subjects = {x509.load_der_x509_certificate(one).subject.public_bytes() for one in context.get_ca_certs(True)}
    return [fingerprint(subject) for subject in subjects]
