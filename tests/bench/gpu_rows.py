"""Rows as `bench.gpu` leaves them, made up: for tests of what is made of rows."""

CONDITIONS = {
    "device": "cuda",
    "processor": "NVIDIA Made-Up",
    "torch": "2.11",
    "triton": "3.6",
    "icckd": "1",
    "commit": "abc",
    "date": "2026-01-01T00:00",
}
MACHINE = {
    **CONDITIONS,
    "cuda": "13.0",
    "device": {"name": "NVIDIA Made-Up", "architecture": "sm_90"},
    "stages": [{"part": "prove", "stage": "build", "seconds": 1.0, "succeeded": True, "why": None}],
    "failed": [],
    "left_out": {"tests": [], "accuracy": [], "speed": [], "peers": []},
    "dry_run": False,
}
CEILINGS = [
    {"stage": "ceilings", "quantity": "copy bandwidth", "dtype": "bfloat16", "per_second": 4e12, **CONDITIONS},
    {"stage": "ceilings", "quantity": "matrix rate", "dtype": "bfloat16", "per_second": 8e14, **CONDITIONS},
]


def outcome(name="test_a[triton]", backend="triton", how="passed", families=None):
    return {"test": name, "backend": backend, "families": families, "outcome": how, "seconds": 0.1, "why": None}


def crash(stage, case, contender=None):
    return {"part": "prove", "stage": stage, "case": case, "contender": contender, "why": "killed by SIGSEGV"}


def check(backend="triton", family="intra_class", passed=True, why=None):
    return {
        "stage": "accuracy",
        "family": family,
        "case": f"{family} bfloat16",
        "dtype": "bfloat16",
        "contender": f"icckd {backend}",
        "quantity": "loss",
        "error": 1e-3,
        "passed": passed,
        "why": why,
        **CONDITIONS,
    }


def timing(contender, milliseconds, case="intra_class bfloat16", mode="step", **more):
    return {
        "stage": "speed",
        "family": case.split()[0],
        "case": case,
        "dtype": "bfloat16",
        "contender": contender,
        "is_peer": not contender.startswith("icckd"),
        "mode": mode,
        "median_ms": milliseconds,
        "error": 1e-3,
        "peak_bytes": 10**6,
        "fraction_of_floor": 0.5,
        "fraction_of_bandwidth": 0.5,
        "fraction_of_matrix_rate": 0.4,
        "ceilings_assumed": False,
        "times_faster_than_best_peer": 2.0,
        **CONDITIONS,
        **more,
    }


def missing(contender, why_not, case="intra_class bfloat16"):
    family = case.split()[0]
    common = {"stage": "speed", "family": family, "case": case, "dtype": "bfloat16", **CONDITIONS}
    return {**common, "contender": contender, "is_peer": not contender.startswith("icckd"), "why_not": why_not}
