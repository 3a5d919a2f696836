"""Federated averaging and partial distillation in it (icckd/methods/pkd.py).

`partition` says which images each client has; `clients` what it answers to the questions of `messages`, by training the
tasks of `tasks`; `rounds` is the server's part. `learning` puts them together as a procedure. `wire` says how messages
travel, and `flower` brings them to other processes.
"""

from icckd.procedures.federated.learning import FederatedLearning

__all__ = ["FederatedLearning"]
