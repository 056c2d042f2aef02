"""The output formats of `typha watch`."""

import json

import pytest

from protocol import messages
from typha.cli import watch_output


@pytest.mark.parametrize(
    ("update", "line"),
    [
        (
            messages.Update("/a", b'{"b": 1}', "7", 1),
            (
                '{"key": "/a", "value": "{\\"b\\": 1}", "revision": "7", "v3_resource_version": "", '
                '"update_type": 1, "ttl": 0}'
            ),
        ),
        (
            messages.Update("/a", None, "8", 3, "9", 10),
            '{"key": "/a", "value": null, "revision": "8", "v3_resource_version": "9", "update_type": 3, "ttl": 10}',
        ),
        (
            messages.Update("/é", b"\xff\x00", "9", 2),
            (
                '{"key": "/é", "value_base64": "/wA=", "revision": "9", "v3_resource_version": "", '
                '"update_type": 2, "ttl": 0}'
            ),
        ),
        (
            messages.Update("/a", b"", "9", 2),
            '{"key": "/a", "value": "", "revision": "9", "v3_resource_version": "", "update_type": 2, "ttl": 0}',
        ),
    ],
)
def test_an_update_is_one_line(update: messages.Update, line: str) -> None:
    assert watch_output.update_line(update) == line


def test_json_statuses_have_three_names_and_are_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    output = watch_output.JsonOutput()
    for status in (0, 1, 3, 2, 2, 1):
        output.write_status(messages.SyncStatus(status))
    names = ["waiting", "resync", "in-sync", "resync"]
    assert capsys.readouterr().out == "".join(f'{{"status": "{name}"}}\n' for name in names)


def test_text_output(capsys: pytest.CaptureFixture[str]) -> None:
    output = watch_output.TextOutput()
    output.write_updates([messages.Update("/a", b"123", "7", 1), messages.Update("/a", None, "8", 3)])
    output.write_status(messages.SyncStatus.CATCHING_UP)
    assert capsys.readouterr().out == "+ /a  3 bytes  @7\n- /a  @8\n= catching-up\n"


def test_what_a_terminal_would_act_on_is_escaped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = messages.Update("/\x1b]0;é\x07\x9b2J\u202e", b"1", "7\x1b\n", 1)
    watch_output.TextOutput().write_updates([hostile])
    assert capsys.readouterr().out == "+ /\\x1b]0;é\\x07\\x9b2J\\u202e  1 bytes  @7\\x1b\\n\n"
    for is_terminal in (True, False):
        monkeypatch.setattr("sys.stdout.isatty", lambda is_terminal=is_terminal: is_terminal)
        watch_output.JsonOutput().write_updates([hostile])
        written = capsys.readouterr().out
        assert written.isascii() is is_terminal
        assert written.rstrip("\n").isprintable()  # a command in a pod cannot see the terminal of `kubectl exec`
        assert json.loads(written)["key"] == hostile.key


def test_json_keeps_its_meaning() -> None:
    text = json.dumps({"a": ["\x1b\x7f\x9b\u202e\u2028é\U000e0001", 'b"\\']}, ensure_ascii=False, indent=1)
    shown = watch_output.printable_json(text)
    assert json.loads(shown) == json.loads(text)
    assert all(map(str.isprintable, shown.split("\n")))
    assert "é" in shown
