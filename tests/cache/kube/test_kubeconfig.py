"""Every field of a kubeconfig, and every variable, gives what it gives in client-go."""

import pathlib

import pytest

from tests.harness import client_go, kubeconfig_cases


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in kubeconfig_cases.all_cases()])
def test_a_field_gives_what_it_should(case: kubeconfig_cases.Case, tmp_path: pathlib.Path) -> None:
    result = client_go.ours(case.write(tmp_path))
    if "error" in case.expected:
        assert case.expected["error"] in result.error
        assert "\n" not in result.error
    else:
        assert result.error == ""
        assert {name: getattr(result, name) for name in case.expected} == case.expected
