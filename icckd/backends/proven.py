"""Which backend has been proven the fastest on an architecture: by a run recorded under `bench/results/`."""

# Architecture → family of operators → backend.
PROVEN: dict[str, dict[str, str]] = {
    "sm_90": {
        "intra_class": "triton",
        "kd_kl": "triton",
        "relational": "triton",
        "class_memory": "triton",
    },
}
