"""How embeddings travel between the ranks of the intra-class loss: bytes, time, and how much of it a step hides.

`python -m bench.distributed` starts 1, 2, 3 and 4 processes by itself: gloo on a CPU, one thread each unless
`--threads` says otherwise, on cores that they share where there are fewer; NCCL with `--device cuda`, a process for
each GPU. All of them call every contender in the same order, on batches of which each has its own rows; a call lasts as
long as on the slowest rank. Loss and gradients are compared with the definition in float64 of the concatenated batch
first.

cases        which batches, and who computes their loss: this project's strategies, and peers
all_gather   a peer: gather all rows with gradients, compare own ones with all
ring         a peer: blocks of rows travel around, the log-sum-exp is merged
traffic      counts the bytes that a rank sends; the kernel's count beside it
exchange     error, bytes and time of the loss with its exchange
training     steps of a network, with and without the exchange: what of it is hidden
together     what the processes share: their places, a clock, sums
worker       what each of them does
model        bytes and times for up to 1024 GPUs, from published speeds of links; nothing of it is measured
picture      where each embedding travels: `python -m bench.distributed.picture FILE.svg`
"""
