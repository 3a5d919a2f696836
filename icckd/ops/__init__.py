"""Registered operators: each one's signature, its fake kernel for torch.compile, and its autograd formula.

Importing a module of this package registers its operators under `torch.ops.icckd`. Arguments are
checked by `icckd.functional`.
"""
