"""The command `icckd federated`: server and clients of a federated training, each a process of its own."""

import json
import math
import re
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from icckd.cli.commands import print_summary, settings_of
from icckd.console import console
from icckd.data import load_data
from icckd.errors import UserError
from icckd.experiment import Experiment, RunFolder
from icckd.methods.pkd import Pkd
from icckd.procedures.federated import FederatedLearning
from icckd.procedures.federated.flower import FarClients, flower, serve, take_part
from icckd.settings import Settings, flat

# What need not be the same at server and clients: where things are, and what changes no result.
_OWN = ("data.root", "data.workers", "device", "checkpoint_every")
_SHARED = ("data", "student", "federated", "seed", "preset")


def run_federated(options: Namespace) -> int:
    """Be the server, or a client, until the training is over."""
    settings = settings_of(options)
    _check(options, settings)
    flower()
    return _server(options, settings) if options.role == "server" else _client(options, settings)


def _check(options: Namespace, settings: Settings) -> None:
    method, clients = settings.student.loss.method, settings.federated.clients
    if method != Pkd.name:
        raise UserError(f"student.loss.method is {method}; it should be {Pkd.name} for icckd federated")
    if re.fullmatch(r"\S+:\d{1,5}", options.server) is None:
        raise UserError(f"--server is {options.server!r}; it should be HOST:PORT, such as 127.0.0.1:8080")
    if not 0 < options.patience < math.inf:
        raise UserError(f"--patience is {options.patience:g}; it should be a finite number of seconds, above 0")
    if options.role == "server" and options.client is not None:
        raise UserError(f"--client is {options.client}; it is an option of icckd federated client alone")
    if options.role == "client" and options.output is not None:
        raise UserError(f"--output is {options.output}; it is an option of icckd federated server alone")
    if options.role == "client" and (options.client is None or not 0 <= options.client < clients):
        given = "not given" if options.client is None else options.client
        raise UserError(f"--client is {given}; it should be in [0, {clients}), below federated.clients")


def _server(options: Namespace, settings: Settings) -> int:
    folder = RunFolder(Path(options.output or datetime.now().strftime("runs/%Y%m%d-%H%M%S")))

    def work(manager: Any) -> None:
        clients = partial(FarClients, manager, settings=_shared(settings), patience=options.patience, say=_say)
        experiment = Experiment(
            settings, ("student",), procedure=lambda lesson: FederatedLearning(lesson, lambda them: clients(them))
        )
        print_summary(experiment.run(folder, resume=options.resume, overwrite=options.overwrite))

    Experiment(settings, ("student",))  # What is wrong is told before anybody is let in.
    serve(options.server, work)
    print(f"report: {folder.path / 'report.html'}")
    return 0


def _client(options: Namespace, settings: Settings) -> int:
    data, none = load_data(settings.data), torch.zeros(0, dtype=torch.int64)
    data = replace(data, test_images=data.test_images[none], test_labels=data.test_labels[none])
    procedure = Experiment(settings, ("student",), data=data).student_procedure()
    assert isinstance(procedure, FederatedLearning)
    procedure.workshop.prepare()
    client = procedure.clients[options.client]
    take_part(options.server, client, _shared(settings), options.patience, _say)
    return 0


def _shared(settings: Settings) -> dict[str, str]:
    """What must be the same at server and clients, by dotted name, as JSON."""
    values = flat(asdict(settings))
    return {n: json.dumps(x) for n, x in values.items() if n.partition(".")[0] in _SHARED and n not in _OWN}


def _say(line: str) -> None:
    console.print(line, soft_wrap=True, markup=False)
