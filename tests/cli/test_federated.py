"""`icckd federated`: what is said of what cannot be, before anybody is asked anything."""

import sys

import pytest

from icckd.cli import main
from icckd.cli.arguments import parse
from icckd.cli.federated import run_federated
from icckd.errors import UserError


@pytest.fixture(scope="module")
def options():
    """Those of a client, parsed once."""
    command, parsed = parse(["federated", "client", "--client", "1", "--federated.clients", "3"])
    assert command == "federated"
    assert parsed.student.loss.method == "pkd"
    return parsed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"client": None}, r"--client is not given; it should be in \[0, 3\)"),
        ({"client": 3}, r"--client is 3; it should be in \[0, 3\)"),
        ({"client": -1}, "--client is -1"),
        ({"role": "server"}, "--client is 1; it is an option of icckd federated client alone"),
        ({"output": "x"}, "--output is x; it is an option of icckd federated server alone"),
        ({"server": "somewhere"}, "--server is 'somewhere'; it should be HOST:PORT"),
        ({"patience": float("nan")}, "--patience is nan"),
        ({"patience": 0.0}, "--patience is 0"),
        ({}, r"needs flwr, .* pip install 'icckd\[federated\]'"),
    ],
)
def test_wrong_options_are_told(options, monkeypatch, changes, words):
    monkeypatch.setitem(sys.modules, "flwr.client", None)
    with pytest.raises(UserError, match=words):
        run_federated(type(options)(**{**vars(options), **changes}))


def test_another_method_is_no_federated_one(options, monkeypatch):
    monkeypatch.setattr(options.student.loss, "method", "kd")
    with pytest.raises(UserError, match=r"student\.loss\.method is kd; it should be pkd"):
        run_federated(options)


def test_it_is_a_server_or_a_client(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["federated", "--server", "localhost:1"])
    assert ended.value.code == 2
    assert "role" in capsys.readouterr().err
