"""Kubeconfigs and variables of every kind, with what they must give. client-go is asked about the same ones."""

import base64
import functools
import json
import os
import pathlib
from typing import Any, NamedTuple

from tests.harness import authorities, client_go

FOLDER = "FOLDER"
_PLUGIN = "client.authentication.k8s.io/v1"


class Case(NamedTuple):
    """Files of a folder, and variables; `FOLDER` in both stands for it."""

    name: str
    expected: dict[str, Any]
    """Fields of client_go.Result. Only an error: a part of our message."""
    files: dict[str, str]
    variables: dict[str, str]
    differs: str = ""
    """Why client-go's answer is another one."""

    def write(self, folder: pathlib.Path) -> dict[str, str]:
        """Write the files. Returns the environment."""
        for name, content in material().items():
            (folder / name).write_bytes(content)
        for name, text in self.files.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text.replace(FOLDER, str(folder)))
            path.chmod(0o755)
        environment = {"PATH": os.environ["PATH"], "KUBECONFIG": "FOLDER/config"} | self.variables
        return {name: value.replace(FOLDER, str(folder)) for name, value in environment.items() if value}


@functools.cache
def _issued() -> tuple[authorities.Issued, authorities.Issued]:
    root = authorities.issue("root")
    return root, authorities.issue("me", root, is_authority=None)


@functools.cache
def material() -> dict[str, bytes]:
    """Files that many cases use."""
    root, mine = _issued()
    return {
        "ca.crt": root.pem,
        "me.crt": mine.pem,
        "me.key": mine.key_pem,
        "token": b"from-file\n",
        "empty": b"",
        "garbage": b"\x00\xffgarbage",
    }


def _data(name: str) -> str:
    return base64.b64encode(material()[name]).decode()


@functools.cache
def _certificate() -> str:
    return client_go.fingerprint(_issued()[1].der)


@functools.cache
def _roots() -> tuple[str, ...]:
    return (client_go.fingerprint(_issued()[0].certificate.subject.public_bytes()),)


def config(cluster: str = "server: 'https://h:6443'", user: str = "token: t", *, context: str = "x") -> str:
    """A kubeconfig with one of everything."""
    return (
        "apiVersion: v1\nkind: Config\n"
        f"clusters: [{{name: c, cluster: {{{cluster}}}}}]\n"
        f"users: [{{name: u, user: {{{user}}}}}]\n"
        f"contexts: [{{name: {context}, context: {{cluster: c, user: u}}}}]\n"
        f"current-context: {context}\n"
    )


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """The headers with a token."""
    return (("authorization", f"Bearer {token}"),)


def basic(user: str) -> tuple[tuple[str, str], ...]:
    """The headers with a user name and a password."""
    return (("authorization", f"Basic {base64.b64encode(user.encode()).decode()}"),)


def plugin(answer: str, *, more: str = "", version: str = _PLUGIN, command: str = "sh", mode: str = "Never") -> str:
    """A user with a plugin that prints the answer (in a script, `$KUBERNETES_EXEC_INFO` is set)."""
    interactive = f", interactiveMode: {mode}" if mode else ""
    arguments = f", args: [-c, {json.dumps(answer)}]" if answer else ""
    return f"exec: {{apiVersion: {version}, command: {command}{arguments}{interactive}{more}}}"


def prints(status: str, version: str = _PLUGIN) -> str:
    """A script that prints credentials."""
    return "echo '" + '{"apiVersion": "' + version + '", "kind": "ExecCredential", "status": ' + status + "}'"


def prints_text(expression: str) -> str:
    """A script that prints an expression of the shell as the token."""
    head, _, tail = prints('{"token": "%s"}').partition("%s")
    return f"printf '%s' {head.removeprefix('echo ')}'; printf '%s' \"{expression}\"; printf '%s' '{tail}"


def users() -> list[Case]:
    """Every field of a user."""
    both = f"client-certificate-data: {_data('me.crt')}, client-key-data: {_data('me.key')}"
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("nothing", "", {}),
        ("token", "token: t", {"headers": bearer("t")}),
        ("empty token", "token: ''", {}),
        ("null token", "token: null", {}),
        ("number as token", "token: 123", {"error": "token"}),
        ("token file", "tokenFile: token", {"headers": bearer("from-file")}),
        ("absolute token file", "tokenFile: 'FOLDER/token'", {"headers": bearer("from-file")}),
        ("token and file", "token: t, tokenFile: token", {"headers": bearer("from-file")}),
        ("token and missing file", "token: t, tokenFile: nowhere", {"headers": bearer("t")}),
        ("token and empty file", "token: t, tokenFile: empty", {"headers": bearer("t")}),
        ("missing token file", "tokenFile: nowhere", {"error": "nowhere: No such file"}),
        ("empty token file", "tokenFile: empty", {"error": "contains no token"}),
        ("directory as token file", "tokenFile: 'FOLDER'", {"error": "is a directory"}),
        ("basic", "username: a, password: 'b:c'", {"headers": basic("a:b:c")}),
        ("user name only", "username: a", {"headers": basic("a:")}),
        ("password only", "password: b", {"headers": ()}),
        ("basic, not ASCII", "username: ä, password: ö", {"headers": basic("ä:ö")}),
        ("basic and token", "username: a, password: b, token: t", {"error": "both a token and"}),
        ("basic and token file", "username: a, password: b, tokenFile: token", {"error": "both a token and"}),
        ("certificate", "client-certificate: me.crt, client-key: me.key", {"client_certificate": _certificate()}),
        ("certificate data", both, {"client_certificate": _certificate()}),
        (
            "certificate data, key file",
            f"client-certificate-data: {_data('me.crt')}, client-key: me.key",
            {"client_certificate": _certificate()},
        ),
        ("certificate and token", f"{both}, token: t", {"client_certificate": _certificate(), "headers": bearer("t")}),
        (
            "certificate and basic",
            f"{both}, username: a",
            {"client_certificate": _certificate(), "headers": basic("a:")},
        ),
        ("certificate file and data", f"{both}, client-certificate: me.crt", {"error": "both client-certificate and"}),
        ("key file and data", f"{both}, client-key: me.key", {"error": "both client-key and client-key-data"}),
        ("certificate without key", "client-certificate: me.crt", {"error": "without client-key"}),
        ("key without certificate", "client-key: me.key", {}),
        ("missing certificate", "client-certificate: nowhere, client-key: me.key", {"error": "nowhere: No such file"}),
        ("missing key", "client-certificate: me.crt, client-key: nowhere", {"error": "nowhere: No such file"}),
        ("garbage as certificate", "client-certificate: garbage, client-key: me.key", {"error": "no certificate"}),
        ("empty key", "client-certificate: me.crt, client-key: empty", {"error": "contains no private key"}),
        ("another key", "client-certificate: ca.crt, client-key: me.key", {"error": "key values mismatch"}),
        ("data is no base64", "client-certificate-data: '!', client-key-data: '!'", {"error": "not base64"}),
        (
            "data in lines",
            both.replace("LS0t", "'LS0t\n\n  ", 1).replace(", client-key", "', client-key"),
            {"client_certificate": _certificate()},
        ),
        ("auth provider", "auth-provider: {name: gcp, config: {a: b}}", {"error": "auth-provider 'gcp' was removed"}),
        ("as", "token: t, as: me", {"headers": (*bearer("t"), ("impersonate-user", "me"))}),
        (
            "as, with all",
            "token: t, as: me, as-uid: '1', as-groups: [a, b], as-user-extra: {'Sc/o%pe ä': [one, two], 'k': [three]}",
            {
                "headers": (
                    *bearer("t"),
                    ("impersonate-extra-k", "three"),
                    ("impersonate-extra-sc%2fo%25pe%20%c3%a4", "one"),
                    ("impersonate-extra-sc%2fo%25pe%20%c3%a4", "two"),
                    ("impersonate-group", "a"),
                    ("impersonate-group", "b"),
                    ("impersonate-uid", "1"),
                    ("impersonate-user", "me"),
                )
            },
        ),
        ("groups without a user", "token: t, as-groups: [a]", {"error": "without as"}),
        ("uid without a user", "token: t, as-uid: a", {"error": "without as"}),
        ("one group as text", "token: t, as: me, as-groups: a", {"error": "as-groups"}),
        ("unknown fields", "token: t, color: red, as_user: x", {"headers": bearer("t")}),
        ("wrong case", "Token: t", {}),
    ]
    return [Case(f"user: {name}", expected, {"config": config(user=user)}, {}) for name, user, expected in cases]


def plugins() -> list[Case]:
    """Every field of a plugin, and what a plugin may print."""
    token = prints('{"token": "p"}')
    beta = "client.authentication.k8s.io/v1beta1"
    _, mine = _issued()
    pair = json.dumps({"clientCertificateData": mine.pem.decode(), "clientKeyData": mine.key_pem.decode()})
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("token", plugin(token), {"headers": bearer("p")}),
        ("v1beta1", plugin(prints('{"token": "p"}', beta), version=beta), {"headers": bearer("p")}),
        (
            "v1beta1 without a mode",
            plugin(prints('{"token": "p"}', beta), version=beta, mode=""),
            {"headers": bearer("p")},
        ),
        ("v1alpha1", plugin(token, version="client.authentication.k8s.io/v1alpha1"), {"error": "v1alpha1"}),
        ("unknown version", plugin(token, version="v1"), {"error": "apiVersion 'v1' of sh is not one of"}),
        (
            "no version",
            f"exec: {{command: sh, args: [-c, {json.dumps(token)}], interactiveMode: Never}}",
            {"error": "apiVersion of sh is missing"},
        ),
        ("no command", f"exec: {{apiVersion: {_PLUGIN}, interactiveMode: Never}}", {"error": "command is missing"}),
        ("v1 without a mode", plugin(token, mode=""), {"error": "interactiveMode of sh is missing"}),
        ("if available", plugin(token, mode="IfAvailable"), {"headers": bearer("p")}),
        ("always", plugin(token, mode="Always"), {"error": "there is no terminal"}),
        ("unknown mode", plugin(token, mode="Sometimes"), {"error": "'Sometimes'"}),
        ("another version printed", plugin(prints('{"token": "p"}', beta)), {"error": "v1beta1"}),
        ("another kind printed", plugin(token.replace("ExecCredential", "Secret")), {"error": "Secret"}),
        ("null expiry", plugin(prints('{"token": "p", "expirationTimestamp": null}')), {"headers": bearer("p")}),
        (
            "expiry",
            plugin(prints('{"token": "p", "expirationTimestamp": "2033-05-18T03:33:20Z"}')),
            {"headers": bearer("p")},
        ),
        (
            "expiry with offset",
            plugin(prints('{"token": "p", "expirationTimestamp": "2033-05-18T03:33:20.5+02:00"}')),
            {"headers": bearer("p")},
        ),
        (
            "expiry is no time",
            plugin(prints('{"token": "p", "expirationTimestamp": "tomorrow"}')),
            {"error": "expirationTimestamp"},
        ),
        (
            "expiry is a number",
            plugin(prints('{"token": "p", "expirationTimestamp": 2000000000}')),
            {"error": "expirationTimestamp"},
        ),
        ("certificate", plugin("cat FOLDER/printed"), {"client_certificate": _certificate()}),
        (
            "certificate without key",
            plugin(prints(json.dumps({"clientCertificateData": "x"}))),
            {"error": "only one of"},
        ),
        (
            "broken certificate",
            plugin(prints(json.dumps({"clientCertificateData": "x", "clientKeyData": "y"}))),
            {"error": "certificate"},
        ),
        (
            "no status",
            plugin("echo '" + json.dumps({"apiVersion": _PLUGIN, "kind": "ExecCredential"}) + "'"),
            {"error": "no status"},
        ),
        ("empty status", plugin(prints("{}")), {"error": "neither a token nor"}),
        ("null token", plugin(prints('{"token": null}')), {"error": "neither a token nor"}),
        ("nothing printed", plugin("true"), {"error": "printed no credentials"}),
        ("garbage printed", plugin("head -c 100 /dev/zero"), {"error": "printed no credentials"}),
        (
            "prints YAML",
            plugin(f"printf 'apiVersion: {_PLUGIN}\\nkind: ExecCredential\\nstatus: {{token: p}}\\n'"),
            {"headers": bearer("p")},
        ),
        ("unknown fields printed", plugin(prints('{"token": "p", "color": "red"}')), {"headers": bearer("p")}),
        ("fails", plugin("echo no >&2; exit 7"), {"error": "sh failed with exit status 7"}),
        ("is killed", plugin("kill -9 $$"), {"error": "sh failed with signal 9"}),
        (
            "not installed",
            plugin("", command="typha-no-such", more=", installHint: 'get it'"),
            {"error": "no program typha-no-such; get it"},
        ),
        ("relative to the file", plugin("", command="./bin/plugin"), {"headers": bearer("relative")}),
        ("relative without dot", plugin("", command="bin/plugin"), {"headers": bearer("relative")}),
        ("not executable", plugin("", command="./token-plain"), {"error": "token-plain"}),
        (
            "arguments",
            plugin("", command="./bin/arguments", more=", args: [a, 'b c', '']"),
            {"headers": bearer("3-b-c")},
        ),
        (
            "environment",
            plugin(prints_text("$FROM_ENV-$HOME"), more=", env: [{name: FROM_ENV, value: v}, {name: HOME, value: h}]"),
            {"headers": bearer("v-h")},
        ),
        ("variable without a name", plugin(token, more=", env: [{value: v}]"), {"error": "has no name"}),
        ("token goes first", f"token: t, {plugin('exit 1')}", {"headers": bearer("t")}),
        ("basic goes first", f"username: a, {plugin('exit 1')}", {"headers": basic("a:")}),
        ("with auth provider", f"auth-provider: {{name: x}}, {plugin(token)}", {"error": "auth-provider"}),
        ("with as", f"as: me, {plugin(token)}", {"headers": (*bearer("p"), ("impersonate-user", "me"))}),
        (
            "certificate and token printed",
            plugin("cat FOLDER/both"),
            {"client_certificate": _certificate(), "headers": bearer("p")},
        ),
    ]
    files = {
        "bin/plugin": f"#!/bin/sh\n{prints(json.dumps({'token': 'relative'}))}\n",
        "bin/arguments": "#!/bin/sh\n" + prints_text("$#-$(echo $2 | tr ' ' -)") + "\n",
        "printed": '{"apiVersion": "' + _PLUGIN + '", "kind": "ExecCredential", "status": ' + pair + "}",
        "both": '{"apiVersion": "'
        + _PLUGIN
        + '", "kind": "ExecCredential", "status": {"token": "p", '
        + pair[1:]
        + "}",
    }
    return [
        Case(f"plugin: {name}", expected, files | {"config": config(user=user)}, {}) for name, user, expected in cases
    ]


def clusters() -> list[Case]:
    """Every field of a cluster, and the forms of an address."""
    roots = {"roots": _roots()}
    h = "server: 'https://h:6443'"
    fields: list[tuple[str, str, dict[str, Any]]] = [
        ("authority", f"{h}, certificate-authority: ca.crt", roots),
        ("authority data", f"{h}, certificate-authority-data: {_data('ca.crt')}", roots),
        (
            "authority twice",
            f"{h}, certificate-authority: ca.crt, certificate-authority-data: {_data('ca.crt')}",
            {"error": "both certificate-authority and"},
        ),
        ("missing authority", f"{h}, certificate-authority: nowhere", {"error": "nowhere: No such file"}),
        ("authority is a directory", f"{h}, certificate-authority: 'FOLDER'", {"error": "is a directory"}),
        ("garbage as authority", f"{h}, certificate-authority: garbage", {"error": "contains no certificate"}),
        (
            "garbage as authority data",
            f"{h}, certificate-authority-data: Z2FyYmFnZQ==",
            {"error": "contains no certificate"},
        ),
        ("a key as authority", f"{h}, certificate-authority: me.key", {"error": "contains no certificate"}),
        ("name", f"{h}, tls-server-name: kube", {"server_name": "kube"}),
        ("insecure", f"{h}, insecure-skip-tls-verify: true", {"is_insecure": True}),
        (
            "insecure with authority",
            f"{h}, insecure-skip-tls-verify: true, certificate-authority: ca.crt",
            {"error": "exclude each other"},
        ),
        ("insecure as text", f"{h}, insecure-skip-tls-verify: 'true'", {"error": "insecure-skip-tls-verify"}),
        ("compression", f"{h}, disable-compression: true", {}),
        ("proxy", f"{h}, proxy-url: 'http://proxy:3128'", {"proxy": "http://proxy:3128"}),
        ("proxy with TLS", f"{h}, proxy-url: 'https://proxy'", {"proxy": "https://proxy"}),
        ("proxy with a user", f"{h}, proxy-url: 'http://a:b@proxy:3128'", {"proxy": "http://a:b@proxy:3128"}),
        ("proxy of unknown type", f"{h}, proxy-url: 'ftp://proxy'", {"error": "'ftp' are not supported"}),
        ("proxy without type", f"{h}, proxy-url: 'proxy:3128'", {"error": "proxy-url"}),
        ("empty proxy", f"{h}, proxy-url: ''", {}),
        ("no server", "certificate-authority: ca.crt", {"error": "has no server"}),
        ("nothing", "", {"error": "describes no API server"}),
    ]
    with_token = [
        Case(
            f"cluster: {name}",
            {"headers": bearer("t")} | expected if "error" not in expected else expected,
            {"config": config(cluster)},
            {},
        )
        for name, cluster, expected in fields
    ]
    with_token.append(
        Case(
            "cluster: socks",
            {"error": "'socks5' are not supported, only http and https"},
            {"config": config(f"{h}, proxy-url: 'socks5://proxy'")},
            {},
            "not supported",
        )
    )
    with_token.append(
        Case(
            "cluster: empty authority",
            {"error": "is empty"},
            {"config": config(f"{h}, certificate-authority: empty")},
            {},
            "newer client-go trusts nobody, older ones everybody",
        )
    )
    return with_token + [
        Case(f"server: {server}", expected, {"config": config(f"server: {json.dumps(server)}")}, {})
        for server, expected in _servers()
    ]


def _servers() -> list[tuple[str, dict[str, Any]]]:
    plain: dict[str, Any] = {"headers": ()}
    t = {"headers": bearer("t")}
    return [
        ("https://h", {"url": "https://h"} | t),
        ("https://h/", {"url": "https://h"} | t),
        ("https://h:6443", {"url": "https://h:6443"} | t),
        ("HTTPS://h:6443", {"url": "https://h:6443"} | t),
        ("https://h:6443/", {"url": "https://h:6443"} | t),
        ("https://h:6443/k8s/clusters/c-1", {"url": "https://h:6443/k8s/clusters/c-1"} | t),
        ("https://h:6443/k8s/", {"url": "https://h:6443/k8s"} | t),
        ("https://h:6443//a//b/../c", {"url": "https://h:6443/a/c"} | t),
        ("https://h:6443/a b", {"url": "https://h:6443/a%20b"} | t),
        ("https://h:6443/a%20b", {"url": "https://h:6443/a%20b"} | t),
        ("https://h:6443/?a=b", {"url": "https://h:6443"} | t),
        ("https://h:6443/x?a=b#c", {"url": "https://h:6443/x"} | t),
        ("https://10.0.0.1:6443", {"url": "https://10.0.0.1:6443"} | t),
        ("https://[fd00::1]:6443", {"url": "https://[fd00::1]:6443"} | t),
        ("https://[fd00::1]", {"url": "https://[fd00::1]"} | t),
        ("http://h:8080", {"url": "http://h:8080"} | plain),
        ("http://h/path/", {"url": "http://h/path"} | plain),
        ("h:8080", {"url": "http://h:8080"} | plain),
        ("h", {"url": "http://h"} | plain),
        ("h/", {"url": "http://h"} | plain),
        ("10.0.0.1:8080", {"url": "http://10.0.0.1:8080"} | plain),
        ("[::1]:8080", {"url": "http://[::1]:8080"} | plain),
        ("localhost:8080", {"url": "http://localhost:8080"} | plain),
        ("h:8080/path", {"error": "server is not a URL or host:port"}),
        ("https://a:b%40@h", {"headers": basic("a:b@")}),
        ("http://a:b@h", {"headers": basic("a:b"), "url": "http://h"}),
        ("https://", {"error": "server is not"}),
        ("https://h:port", {"error": "server is not"}),
        (" https://h", {"error": "server is not"}),
        ("https://h ", {"error": "server is not"}),
        ("//h", {"error": "server is not"}),
    ]


def files_and_contexts() -> list[Case]:
    """Several files, and the choice of the context."""
    names = "clusters: [{name: %s, cluster: {server: 'https://%s'%s}}]\n"
    user = "users: [{name: %s, user: {%s}}]\n"
    context = "contexts: [{name: %s, context: {cluster: %s, user: %s}}]\n"
    a = names % ("c", "a", "") + user % ("u", "token: a") + context % ("x", "c", "u") + "current-context: x\n"
    b = names % ("c", "b", "") + user % ("u", "token: b") + context % ("x", "c", "u") + "current-context: other\n"
    two = {"KUBECONFIG": "FOLDER/a:FOLDER/b"}
    cases = [
        Case("files: first wins", {"url": "https://a", "headers": bearer("a")}, {"a": a, "b": b}, two),
        Case(
            "files: second first",
            {"url": "https://b", "headers": bearer("b")},
            {"a": a, "b": b},
            {"KUBECONFIG": "FOLDER/b:FOLDER/a", "K8S_CURRENT_CONTEXT": "x"},
        ),
        Case(
            "files: entries of both",
            {"url": "https://b", "headers": bearer("a")},
            {"a": user % ("u", "token: a"), "b": b.replace("current-context: other", "current-context: x")},
            two,
        ),
        Case(
            "files: entries are not mixed",
            {"headers": ()},
            {
                "a": names % ("c", "a", "")
                + user % ("u", "as: me, tokenFile: ''")
                + context % ("x", "c", "")
                + "current-context: x\n",
                "b": b,
            },
            two,
        ),
        Case("files: first context", {"url": "https://a"}, {"a": a, "b": b}, {"KUBECONFIG": "FOLDER/b:FOLDER/a"}, ""),
        Case(
            "files: missing ones", {"url": "https://a"}, {"a": a}, {"KUBECONFIG": "FOLDER/nowhere:FOLDER/a::FOLDER/a"}
        ),
        Case("files: an unreadable one", {"error": "is a directory"}, {"a": a}, {"KUBECONFIG": "FOLDER/a:FOLDER"}),
        Case("files: a broken one", {"error": "b: "}, {"a": a, "b": "x: ["}, two),
        Case("files: an empty one", {"url": "https://a"}, {"a": a, "b": ""}, two),
        Case(
            "files: only nulls",
            {"url": "https://a"},
            {"a": a, "b": "clusters: null\nusers:\ncontexts: ~\ncurrent-context: null\n"},
            two,
        ),
        Case(
            "files: own folders",
            {"headers": bearer("one"), "roots": _roots()},
            {
                "1/a": user % ("u", "tokenFile: tok"),
                "1/tok": "one",
                "2/b": names % ("c", "b", ", certificate-authority: ../ca.crt")
                + context % ("x", "c", "u")
                + "current-context: x",
                "2/tok": "two",
            },
            {"KUBECONFIG": "FOLDER/1/a:FOLDER/2/b"},
        ),
        Case("files: one that is missing", {"error": "no such file"}, {}, {"KUBECONFIG": "FOLDER/nowhere"}),
        Case(
            "files: JSON",
            {"url": "https://a", "headers": bearer("a")},
            {
                "config": json.dumps(
                    {
                        "clusters": [{"name": "c", "cluster": {"server": "https://a"}}],
                        "users": [{"name": "u", "user": {"token": "a"}}],
                        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                        "current-context": "x",
                    },
                    indent="\t",
                )
            },
            {},
        ),
        Case(
            "files: twice the same name",
            {"error": "two entries with the name 'c'"},
            {"config": a + "clusters: [{name: c}, {name: c}]\n"},
            {},
        ),
        Case("files: another kind", {"error": "'Pod'"}, {"config": a + "kind: Pod\napiVersion: v1\n"}, {}),
        Case("files: another version", {"error": "'v2'"}, {"config": a + "apiVersion: v2\n"}, {}),
        Case("files: a list", {"error": "config: "}, {"config": "[]"}, {}),
        Case("files: text", {"error": "config: "}, {"config": "hello"}, {}),
        Case(
            "files: unknown fields",
            {"url": "https://a"},
            {"config": a + "preferences: {colors: true}\nextensions: [{name: e, extension: {a: null}}]\ncolor: red\n"},
            {},
        ),
        Case(
            "context: chosen",
            {"url": "https://z", "headers": ()},
            {
                "config": a.replace("clusters: [", "clusters: [{name: z, cluster: {server: 'https://z'}}, ").replace(
                    "contexts: [", "contexts: [{name: z, context: {cluster: z}}, "
                )
            },
            {"K8S_CURRENT_CONTEXT": "z"},
        ),
        Case(
            "context: prefixed variable",
            {"url": "https://a"},
            {"config": a.replace("current-context: x", "")},
            {"CALICO_K8S_CURRENT_CONTEXT": "x", "K8S_CURRENT_CONTEXT": "other"},
        ),
        Case(
            "context: unknown",
            {"error": "there is no context 'other'"},
            {"config": a},
            {"K8S_CURRENT_CONTEXT": "other"},
        ),
        Case(
            "context: current is unknown",
            {"error": "there is no context 'other'"},
            {"config": a.replace("current-context: x", "current-context: other")},
            {},
        ),
        Case(
            "context: none", {"error": "describes no API server"}, {"config": a.replace("current-context: x", "")}, {}
        ),
        Case("context: unknown user", {"headers": ()}, {"config": a.replace("user: u}", "user: nobody}")}, {}),
        Case(
            "context: unknown cluster",
            {"error": "describes no API server"},
            {"config": a.replace("cluster: c,", "cluster: nowhere,")},
            {},
        ),
        Case("context: no user", {"headers": ()}, {"config": a.replace(", user: u}", "}")}, {}),
        Case(
            "context: namespace", {"url": "https://a"}, {"config": a.replace("user: u}", "user: u, namespace: ns}")}, {}
        ),
    ]
    # The first file's context is the one that counts, and it does not exist.
    cases[4] = Case(
        "files: first context",
        {"error": "there is no context 'other'"},
        {"a": a, "b": b},
        {"KUBECONFIG": "FOLDER/b:FOLDER/a"},
    )
    return cases


def texts() -> list[Case]:
    """YAML and JSON as Kubernetes' tools read them."""
    whole = config()
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("yes is no text", config(user="token: y"), {"error": "token"}),
        ("a number is no text", config(user="token: 012"), {"error": "token"}),
        ("an exponent is no text", config(user="token: 1e3"), {"error": "token"}),
        ("base 60 is text", config(user="token: 20:21"), {"headers": bearer("20:21")}),
        ("an equals sign is text", config(user="token: ="), {"headers": bearer("=")}),
        ("a date is text", config(user="token: 2026-01-01"), {"headers": bearer("2026-01-01")}),
        ("on as a boolean", config("server: 'https://h:6443', insecure-skip-tls-verify: on"), {"is_insecure": True}),
        ("anchors", whole.replace("{token: t}", "&a {token: t}") + "extensions: [*a]\n", {"headers": bearer("t")}),
        (
            "aliases",
            whole.replace("[{name: u", "[{name: v, user: &a {token: a}}, {name: u").replace("{token: t}", "*a"),
            {"headers": bearer("a")},
        ),
        (
            "merge keys",
            whole.replace("[{name: u", "[{name: v, user: &a {token: a}}, {name: u").replace(
                "{token: t}", "{<<: *a, as: me}"
            ),
            {"headers": (*bearer("a"), ("impersonate-user", "me"))},
        ),
        ("a second document", f"{whole}---\nkind: Pod\n", {"headers": bearer("t")}),
        ("a document's start and end", f"---\n{whole}...\n", {"headers": bearer("t")}),
        ("CRLF", whole.replace("\n", "\r\n"), {"headers": bearer("t")}),
        ("BOM", f"\ufeff{whole}", {"headers": bearer("t")}),
        ("comments", f"# Größe\n{whole}# end", {"headers": bearer("t")}),
        ("only a comment", "# nothing\n", {"error": "config: "}),
        ("a key twice", whole + "current-context: x\n", {"headers": bearer("t")}),
        ("a number as a key", whole + "1: 2\n", {"headers": bearer("t")}),
        ("tabs", whole.replace("clusters: [", "clusters:\t["), {"headers": bearer("t")}),
        ("a tag", config(user="token: !!str 123"), {"headers": bearer("123")}),
        ("a tag of Python", config(user="token: !!python/name:os.system ''"), {"headers": ()}),
    ]
    return [Case(f"text: {name}", expected, {"config": text}, {}) for name, text, expected in cases]


def variables() -> list[Case]:
    """What the variables override."""
    full = config(
        "server: 'https://h', certificate-authority: ca.crt, tls-server-name: kube", "token: t, tokenFile: token"
    )
    pair = {"K8S_CERT_FILE": "FOLDER/me.crt", "K8S_KEY_FILE": "FOLDER/me.key"}
    alone = {"KUBECONFIG": "", "K8S_API_ENDPOINT": "https://e:1"}
    return [
        Case(
            "variable: endpoint",
            {"url": "https://e:1", "server_name": "", "roots": _roots()},
            {"config": full},
            {"K8S_API_ENDPOINT": "https://e:1"},
        ),
        Case("variable: token", {"headers": bearer("from-file")}, {"config": full}, {"K8S_API_TOKEN": "v"}),
        Case(
            "variable: token goes before a plugin",
            {"headers": bearer("v")},
            {"config": config(user=plugin("exit 1"))},
            {"K8S_API_TOKEN": "v"},
        ),
        Case(
            "variable: token and basic",
            {"error": "both a token"},
            {"config": config(user="username: a")},
            {"K8S_API_TOKEN": "v"},
        ),
        Case(
            "variable: insecure",
            {"is_insecure": True, "roots": ()},
            {"config": full},
            {"K8S_INSECURE_SKIP_TLS_VERIFY": "true"},
        ),
        Case(
            "variable: insecure with authority",
            {"error": "exclude each other"},
            {"config": full},
            {"K8S_INSECURE_SKIP_TLS_VERIFY": "1", "K8S_CA_FILE": "FOLDER/ca.crt"},
        ),
        Case(
            "variable: authority",
            {"roots": _roots(), "is_insecure": False},
            {"config": config("server: 'https://h', insecure-skip-tls-verify: true")},
            {"K8S_CA_FILE": "FOLDER/ca.crt"},
        ),
        Case(
            "variable: authority replaces data",
            {"roots": _roots()},
            {"config": config("server: 'https://h', certificate-authority-data: Z2FyYmFnZQ==")},
            {"K8S_CA_FILE": "FOLDER/ca.crt"},
        ),
        Case(
            "variable: certificate",
            {"client_certificate": _certificate(), "headers": bearer("t")},
            {"config": config()},
            pair,
        ),
        Case(
            "variable: certificate only",
            {"error": "without client-key"},
            {"config": config()},
            {"K8S_CERT_FILE": "FOLDER/me.crt"},
        ),
        Case("variable: key only", {"headers": bearer("t")}, {"config": config()}, {"K8S_KEY_FILE": "FOLDER/me.key"}),
        Case(
            "variable: alone",
            {"url": "https://e:1", "headers": bearer("v"), "roots": _roots()},
            {},
            alone | {"K8S_API_TOKEN": "v", "K8S_CA_FILE": "FOLDER/ca.crt"},
        ),
        Case(
            "variable: alone, plain",
            {"url": "http://e:1", "headers": ()},
            {},
            alone | {"K8S_API_TOKEN": "v", "K8S_API_ENDPOINT": "http://e:1"},
        ),
        Case(
            "variable: alone, without scheme",
            {"url": "http://e:1", "headers": ()},
            {},
            alone | {"K8S_API_TOKEN": "v", "K8S_API_ENDPOINT": "e:1"},
        ),
        Case(
            "variable: prefix",
            {"url": "https://p"},
            {"config": full},
            {"K8S_API_ENDPOINT": "https://e", "CALICO_K8S_API_ENDPOINT": "https://p"},
        ),
        Case("variable: nothing", {"error": "no API server configured"}, {}, {"KUBECONFIG": ""}),
        Case(
            "variable: missing authority",
            {"error": "nowhere: No such file"},
            {"config": config()},
            {"K8S_CA_FILE": "FOLDER/nowhere"},
        ),
    ]


def proxies() -> list[Case]:
    """The variables for proxies."""
    p, q = "http://p:1", "http://q:2"
    cases: list[tuple[str, str, dict[str, str], str]] = [
        ("https", "https://h", {"HTTPS_PROXY": p, "HTTP_PROXY": q}, p),
        ("http", "http://h", {"HTTPS_PROXY": p, "HTTP_PROXY": q}, q),
        ("only http", "https://h", {"HTTP_PROXY": q}, ""),
        ("lower case", "https://h", {"https_proxy": p}, p),
        ("upper case first", "https://h", {"https_proxy": q, "HTTPS_PROXY": p}, p),
        ("all_proxy", "https://h", {"ALL_PROXY": p, "all_proxy": p}, ""),
        ("without scheme", "https://h", {"HTTPS_PROXY": "p:1"}, p),
        ("address without scheme", "https://h", {"HTTPS_PROXY": "10.0.0.1:3128"}, "http://10.0.0.1:3128"),
        ("host only", "https://h", {"HTTPS_PROXY": "proxy"}, "http://proxy"),
        ("localhost", "https://localhost:1", {"HTTPS_PROXY": p}, ""),
        ("loopback", "https://127.0.0.2:1", {"HTTPS_PROXY": p}, ""),
        ("loopback 6", "https://[::1]:1", {"HTTPS_PROXY": p}, ""),
        ("mapped loopback", "https://[::ffff:127.0.0.1]:1", {"HTTPS_PROXY": p}, ""),
        ("excepted", "https://h.a", {"HTTPS_PROXY": p, "NO_PROXY": "x, H.A ,y"}, ""),
        ("excepted, lower case", "https://h.a", {"HTTPS_PROXY": p, "no_proxy": "h.a"}, ""),
        ("all excepted", "https://h", {"HTTPS_PROXY": p, "NO_PROXY": "x,*"}, ""),
        ("parent", "https://h.a.b", {"HTTPS_PROXY": p, "NO_PROXY": "a.b"}, ""),
        ("not a parent", "https://ha.b", {"HTTPS_PROXY": p, "NO_PROXY": "a.b"}, p),
        ("with dot", "https://h.a", {"HTTPS_PROXY": p, "NO_PROXY": ".a"}, ""),
        ("with dot, itself", "https://h.a", {"HTTPS_PROXY": p, "NO_PROXY": ".h.a"}, p),
        ("with star", "https://h.a", {"HTTPS_PROXY": p, "NO_PROXY": "*.a"}, ""),
        ("with star, itself", "https://h.a", {"HTTPS_PROXY": p, "NO_PROXY": "*.h.a"}, p),
        ("port", "https://h:6443", {"HTTPS_PROXY": p, "NO_PROXY": "h:6443"}, ""),
        ("another port", "https://h:6443", {"HTTPS_PROXY": p, "NO_PROXY": "h:443"}, p),
        ("default port", "https://h", {"HTTPS_PROXY": p, "NO_PROXY": "h:443"}, ""),
        ("empty port", "https://h", {"HTTPS_PROXY": p, "NO_PROXY": "h:"}, ""),
        ("address", "https://10.0.0.1", {"HTTPS_PROXY": p, "NO_PROXY": "10.0.0.1"}, ""),
        ("beginning of an address", "https://10.0.0.1", {"HTTPS_PROXY": p, "NO_PROXY": "10.0.0"}, p),
        ("end of an address", "https://10.0.0.1", {"HTTPS_PROXY": p, "NO_PROXY": "0.0.1,.1"}, p),
        ("address and port", "https://10.0.0.1:6443", {"HTTPS_PROXY": p, "NO_PROXY": "10.0.0.1:6443"}, ""),
        ("network", "https://10.96.0.1", {"HTTPS_PROXY": p, "NO_PROXY": "10.96.0.0/12"}, ""),
        ("network with host bits", "https://10.96.0.1", {"HTTPS_PROXY": p, "NO_PROXY": "10.97.1.2/12"}, ""),
        ("another network", "https://10.96.0.1", {"HTTPS_PROXY": p, "NO_PROXY": "10.96.0.0/33,10.98.0.0/16"}, p),
        ("network with mask", "https://10.96.0.1", {"HTTPS_PROXY": p, "NO_PROXY": "10.96.0.0/255.240.0.0"}, p),
        ("network 6", "https://[fd00::1]:6443", {"HTTPS_PROXY": p, "NO_PROXY": "fd00::/8"}, ""),
        ("address 6", "https://[fd00::1]:6443", {"HTTPS_PROXY": p, "NO_PROXY": "fd00:0::1"}, ""),
        ("address 6 and port", "https://[fd00::1]:6443", {"HTTPS_PROXY": p, "NO_PROXY": "[fd00::1]:6443"}, ""),
        ("address 6 in brackets", "https://[fd00::1]:6443", {"HTTPS_PROXY": p, "NO_PROXY": "[fd00::1]"}, p),
        ("user", "https://h", {"HTTPS_PROXY": "http://a:b@p:1"}, "http://a:b@p:1"),
        ("empty", "https://h", {"HTTPS_PROXY": ""}, ""),
        ("of the file goes first", "PROXY", {"HTTPS_PROXY": p, "NO_PROXY": "*"}, q),
    ]
    results = []
    for name, server, environment, proxy in cases:
        cluster = f"server: '{server}'" if server != "PROXY" else f"server: 'https://h', proxy-url: '{q}'"
        results.append(Case(f"proxy: {name}", {"proxy": proxy}, {"config": config(cluster)}, environment))
    return [
        *results,
        Case(
            "proxy: socks",
            {"error": "HTTPS_PROXY: proxies of type 'socks5'"},
            {"config": config()},
            {"HTTPS_PROXY": "socks5://p"},
            "not supported",
        ),
        Case(
            "proxy: CGI",
            {"error": "CGI"},
            {"config": config("server: 'http://h'")},
            {"HTTP_PROXY": p, "REQUEST_METHOD": "GET"},
        ),
    ]


def all_cases() -> list[Case]:
    """All of them."""
    return [*users(), *plugins(), *clusters(), *files_and_contexts(), *texts(), *variables(), *proxies()]
