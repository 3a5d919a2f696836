"""The Triton kernels: the operators of docs/architecture.md on NVIDIA and AMD GPUs.

A file computes what the file of the same name in `icckd/ops/` promises, `relational` the losses of
`icckd/ops/distillation.py` that compare pairs and triples of rows; `layout` puts rows in the order of their classes;
`tables` holds the tile sizes of each architecture. With TRITON_INTERPRET=1 in the environment before this package is
imported, the kernels run in Triton's interpreter, on tensors of the CPU.
"""
