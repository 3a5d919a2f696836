"""The benchmarks run, and what they compare is the same loss. Nothing here looks at a time."""

import contextlib
import csv
import json
import shutil
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import pad

from bench import crd, cross_entropy, intra_class, neighbours, plot, table, train, train_input, train_streamed
from icckd import reference
from icckd.bench import measure, peers
from icckd.bench.accuracy import errors, exact_results
from icckd.bench.case import Contender, step, with_leaves
from icckd.bench.functions.intra_class import IntraClass

CPU = torch.device("cpu")
CASE = IntraClass("float32", 60, 8, 5, "skewed", active=0.7)


@pytest.mark.parametrize(
    "peer",
    [
        peers.dense,
        peers.loop_over_classes,
        peers.padded_bmm,
        peers.padded_by_hand,
        peers.chunked_by_hand,
        peers.metric_learning,
    ],
)
def test_every_peer_computes_the_definition(peer):
    x = CASE.inputs(seed=3, device=CPU)
    x.anchor, x.positive = x.anchor.double(), x.positive.double()

    def defined(y):
        return reference.intra_class_contrastive(
            y.anchor, y.positive, y.labels, gate=y.gate, temperature=peers.TEMPERATURE
        )

    computed, expected = (step(CASE, loss, with_leaves(CASE, x)) for loss in (peer, defined))
    torch.testing.assert_close(computed, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("sizes", ["equal", "skewed", "half"])
def test_inputs_are_what_the_case_says(sizes):
    x = IntraClass("float32", 1000, 4, 10, sizes, active=0.7).inputs(seed=0, device=CPU)
    counts = x.labels.bincount(minlength=10)
    assert len(counts) == 10
    assert counts.min() > 0
    assert x.gate.sum() == 700
    assert {"equal": counts.max() == 100, "skewed": counts.max() > 300, "half": counts.max() == 500}[sizes]


def test_keops_computes_the_definition():
    pytest.importorskip("pykeops")
    assert max(errors(CASE, Contender("KeOps", peers.keops), CPU, exact_results(CASE, CPU)).values()) < 1e-5


def test_flex_attention_computes_the_definition():
    from torch.nn.attention.flex_attention import flex_attention

    x = IntraClass("float32", 300, 16, 5, "skewed", active=0.7).inputs(seed=3, device=CPU)
    torch.testing.assert_close(peers.flex_attention(flex_attention)(x), peers.dense(x), rtol=1e-5, atol=0)


@pytest.mark.parametrize("sizes", [[5], [700, 600, 1500, 1], [3000, 100, 5000]])
def test_every_chunk_holds_the_whole_classes_of_its_rows(sizes):
    labels = [c for c, size in enumerate(sizes) for _ in range(size)]
    rows = []
    for chunk, columns in peers._chunks(sizes):
        rows += range(chunk.start, chunk.stop)
        classes = set(labels[chunk])
        assert list(range(columns.start, columns.stop)) == [j for j, c in enumerate(labels) if c in classes]
    assert rows == list(range(sum(sizes)))


def test_a_peer_that_would_not_fit_is_left_out_and_said_so(capsys):
    chosen = [
        contender.name for contender in intra_class.contenders(IntraClass("float32", 16384, 128, 100, "half"), CPU)
    ]
    assert "padded bmm" not in chosen
    assert "loop over classes" in chosen
    assert "padded bmm: left out, it would take about" in capsys.readouterr().out


def test_a_wrong_contender_is_an_error():
    wrong = Contender("one hundredth more", lambda y: 1.01 * peers.dense(y))
    with pytest.raises(RuntimeError, match="one hundredth more is wrong"):
        intra_class._errors(CASE, wrong, CPU, exact_results(CASE, CPU))


def test_contenders_take_turns_and_slow_ones_fewer(monkeypatch):
    calls = []
    clock = iter(range(10**6))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: 0.01 * next(clock))
    times = measure.interleaved(
        {name: lambda k, name=name: calls.append((name, k)) for name in "ab"}, measure.HostClock(), 0.05
    )
    assert {name: len(values) for name, values in times.items()} == {"a": 5, "b": 5}
    assert calls[4:8] == [("a", 0), ("b", 0), ("b", 1), ("a", 1)]


@pytest.mark.parametrize(("module", "rows_at_least"), [(intra_class, 6), (cross_entropy, 5), (crd, 5)])
def test_the_quick_run_writes_rows(module, rows_at_least, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(crd, "peak", lambda *_: 1000)
    monkeypatch.setattr(IntraClass, "packaged_peers", lambda case, device: [])
    arguments = ["--quick", "--json", str(tmp_path / "rows.json"), "--csv", str(tmp_path / "rows.csv")]
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    module.main()
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) >= rows_at_least
    keys = {
        "contender",
        "n",
        "dtype",
        "median_ms",
        "q20_ms",
        "q80_ms",
        "times_floor",
        "processor",
        "torch",
        "commit",
        "date",
    }
    assert all(keys <= row.keys() for row in rows)
    assert len(list(csv.DictReader((tmp_path / "rows.csv").open()))) == len(rows)


def test_the_quick_run_of_training_writes_rows_and_says_what_was_aimed_at(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--json", str(tmp_path / "rows.json")])
    train.main()
    rows = json.loads((tmp_path / "rows.json").read_text())
    keys = {"contender", "batch", "views", "median_ms", "q20_ms", "q80_ms", "images_per_second", "times_floor"}
    assert all(keys | {"device", "torch", "commit"} <= row.keys() for row in rows)
    steps = {row["contender"]: row for row in rows if row["part"] == "steps"}
    assert steps.keys() >= {*train.TEACHERS, *(f"student: {method}" for method in train.METHODS)}
    two_views = [row for row in steps.values() if row["views"] == 2]
    assert len(two_views) == 7
    for row in two_views:
        assert row["times_two_views"] == pytest.approx(row["median_ms"] / steps[train.TWO_VIEWS]["median_ms"])
    previous = steps[train.PREVIOUS_EPOCH]
    assert previous["times_one_view"] == pytest.approx(previous["median_ms"] / steps[train.ONE_VIEW]["median_ms"])
    assert {(row["contender"], row["views"]) for row in rows if row["part"] == "input"} == {
        (name, views)
        for name in (train_input.RESIDENT, train_input.BALANCED, train_input.LOADER, train_input.FLOOR)
        for views in (1, 2)
    }
    streamed = [row["contender"] for row in rows if row["part"] == "streamed input"]
    assert streamed == [train_streamed.STREAMED, train_streamed.BY_IMAGE, train_streamed.DECODING]
    printed = capsys.readouterr().out.split("targets")[1].strip().splitlines()
    over_loaders = [*["device-resident over DataLoader"] * 2, "streamed over DataLoader"]
    aimed_at = [train.INTRA_CLASS, train.PREVIOUS_EPOCH, *over_loaders]
    assert [line.strip().split(":")[0].split(", images")[0] for line in printed] == aimed_at
    table.train(rows)


@pytest.mark.parametrize(("ratio", "outcome"), [(1.05, "met"), (1.051, "missed")])
def test_a_target_is_met_up_to_its_bound(ratio, outcome):
    step = {"contender": train.INTRA_CLASS, "network": "n", "batch": 1, "times_two_views": ratio}
    previous = {"contender": train.PREVIOUS_EPOCH, "network": "n", "batch": 1, "times_one_view": ratio}
    views = {"contender": train_input.RESIDENT, "batch": 1, "views": 1, "speed_over_loader": 5.25 / ratio}
    assert [line.rpartition(": ")[2] for line in train.targets([step, previous, views])] == [outcome] * 3


def test_a_step_that_was_skipped_is_an_error():
    case = train.Case("convnet-small", 4, *train.make_data(8, CPU))
    stepper = case.teachers()[train.INTRA_CLASS]
    stepper.training.counts.add({}, torch.tensor(False))
    with pytest.raises(RuntimeError, match="1 steps were skipped"):
        list(train.run_steps(case, "convnet-small", {train.INTRA_CLASS: stepper}, 0.0))


def test_image_by_image_makes_crops_of_the_padded_image_mirrored_or_not():
    (image, *_), labels = train.make_data(4, CPU)
    dataset = train_input.ImageByImage(image[None], labels[:1], views=8)
    padded = pad(image, [4] * 4).double()
    exact = [(padded[:, i : i + 32, j : j + 32] / 255 - 0.5) / 0.25 for i in range(9) for j in range(9)]
    candidates = torch.stack([*exact, *(x.flip(-1) for x in exact)])
    *views, label = dataset[0]
    assert label == labels[0]
    found = [int((candidates - view.double()).abs().amax((1, 2, 3)).argmin()) for view in views]
    torch.testing.assert_close(torch.stack(views), candidates[found].float())
    assert len(set(found)) > 1


@pytest.mark.parametrize("name", crd.ways(CPU))
def test_every_way_to_multiply_with_a_bank_computes_the_definition(name):
    x = crd.make_inputs(crd.Case(b=3, k=2100, d=5, n=70), seed=3, device=CPU)
    products, gradients = crd.evaluate(crd.ways(CPU)[name], x)
    for query, bank, upstream, product, gradient in zip(
        x.queries, x.banks, x.upstream, products, gradients, strict=True
    ):
        query = query.double().requires_grad_()
        expected = reference.bank_products(query, bank.double(), x.index)
        torch.testing.assert_close(product.double(), expected.detach(), rtol=1e-5, atol=1e-5)
        (exact,) = torch.autograd.grad(expected, query, upstream.double())
        torch.testing.assert_close(gradient.double(), exact, rtol=1e-5, atol=1e-4)


def test_a_wrong_way_is_an_error():
    x = crd.make_inputs(crd.QUICK, seed=3, device=CPU)
    exact = crd.evaluate(crd.whole_bank, x)
    with pytest.raises(RuntimeError, match="half is wrong"):
        crd._errors("half", crd.evaluate(lambda *y: 0.5 * crd.whole_bank(*y), x), exact)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells it on Linux")
def test_the_peak_of_the_public_way_holds_the_gathered_rows(capsys):
    # So much on each side that it is never memory that the process has used before.
    case = crd.Case(b=64, k=2000, d=128, n=100)
    gathered = 2 * 4 * case.b * (case.k + 1) * case.d
    peaks = {}
    for name in (crd.PUBLIC, "chunks of gathered rows"):
        crd._print_peak(name, case, CPU)
        peaks[name] = int(capsys.readouterr().out)
    assert peaks[crd.PUBLIC] > 0.9 * gathered
    assert peaks["chunks of gathered rows"] < 0.3 * gathered


def test_the_quick_run_of_neighbours_writes_rows(tmp_path, monkeypatch, capsys):
    """Each loss in both ways; where the dense one would not fit a row says so."""
    refused = neighbours.Case("weak_spectral", 40, 8, 5)
    monkeypatch.setattr(neighbours, "peak", lambda *_: 1000)
    monkeypatch.setattr(
        neighbours, "too_large", lambda numbers, *_: "it is large" if numbers == refused.dense_numbers else None
    )
    monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--json", str(tmp_path / "rows.json")])
    neighbours.main()
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {(row["function"], row["contender"]) for row in rows} == {
        (case.function, way) for case in neighbours.QUICK for way in neighbours.WAYS
    }
    for row in rows:
        assert {"n", "d", "c", "dtype", "device", "processor", "torch", "commit", "date"} <= row.keys()
        if row["function"] != refused.function:
            assert row["error"] < 1e-5
            assert {"median_ms", "q20_ms", "q80_ms", "times_dense", "peak_bytes", "stated_bytes"} <= row.keys()
    (left_out,) = [row for row in rows if "why_not" in row]
    assert (left_out["function"], left_out["contender"]) == ("weak_spectral", "dense")
    assert "left out: it is large" in capsys.readouterr().out
    filled = table.neighbours(rows)
    assert "| weak_spectral | 40 | 8 | 5 | float32 | " in filled
    assert " | – | 0 | 0 | – | – | – |" in filled


def test_a_neighbour_that_is_wrong_is_an_error(monkeypatch):
    whole = neighbours.evaluate

    def halved(way, case, x):
        return [y * (0.5 if way == "icckd" else 1) for y in whole(way, case, x)]

    monkeypatch.setattr(neighbours, "evaluate", halved)
    with pytest.raises(RuntimeError, match="icckd is wrong: center_contrastive, float32, N = 40"):
        neighbours._errors(neighbours.QUICK[0], ["icckd", "dense"], CPU)


def fake_rows():
    common = {"processor": "P", "threads": 2, "torch": "2", "icckd": "1", "commit": "c", "date": "2026-01-01T00:00"}
    case = {"n": 8, "d": 4, "c": 2, "sizes": "equal", "median_ms": 1.25, "times_floor": 1.5}
    rows = [
        {"benchmark": "intra_class", "sweep": sweep, "contender": name, **case, **common}
        for sweep in ("targets", "classes", "size", "skew")
        for name in ("icckd cpu", "padded bmm", "floor: copies in and out")
    ]
    rows.append(
        {"benchmark": "intra_class", "sweep": "memory", "contender": "x", "times_inputs_and_gradients": 1.2, **common}
    )
    rows.append(
        {"benchmark": "cross_entropy", "contender": "y", "n": 8, "c": 2, "median_ms": 3.0, "times_eager": 0.4, **common}
    )
    crd_row = {"contender": "z", "median_ms": 7.0, "times_public": 0.125, "times_floor": 2.0, "peak_bytes": 3_200_000}
    rows.append({"benchmark": "crd", **crd_row, "products_error": 1e-7, "gradient_error": 2e-6, **common})
    return rows


def test_a_copy_without_history_is_told_its_commit_or_says_that_it_does_not_know(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "_ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("ICCKD_COMMIT", raising=False)
    assert measure._commit.__wrapped__() == "unknown"
    monkeypatch.setenv("ICCKD_COMMIT", "0123abc")
    assert measure._commit.__wrapped__() == "0123abc"


@pytest.mark.skipif(not shutil.which("git"), reason="there is no git")
def test_a_package_installed_into_another_repository_does_not_take_its_commit(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    monkeypatch.delenv("ICCKD_COMMIT", raising=False)
    monkeypatch.setattr(measure, "_ROOT", tmp_path)
    assert len(measure._commit.__wrapped__()) == 12
    (tmp_path / "packages").mkdir()
    monkeypatch.setattr(measure, "_ROOT", tmp_path / "packages")
    assert measure._commit.__wrapped__() == "unknown"


def test_tables_are_filled_in_place_and_twice_is_the_same():
    names = ("targets", "memory", "cross_entropy", "crd")
    text = "before\n" + "".join(f"<!-- table: {name} -->\nold\n<!-- end -->\n" for name in names) + "after\n"
    filled = table.fill(text, fake_rows())
    assert filled.startswith("before\n")
    assert filled.endswith("after\n")
    assert "old" not in filled
    for cell in (
        "| icckd cpu | 1.2 (1.50) |",
        "| x | 1.20 |",
        "| y | 3.0 (0.40) |",
        "| z | 7.0 | 0.125 | 2.00 | 2e-06 | 3 |",
        "P, 2 threads",
    ):
        assert cell in filled
    assert table.fill(filled, fake_rows()) == filled


def test_the_plot_is_drawn(tmp_path):
    plot.draw(fake_rows(), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


class FakeDevice:
    """As much of `torch.cuda` as `DeviceClock` uses; a call takes a millisecond of its time."""

    def __init__(self, monkeypatch):
        self.now, self.log = 0.0, []
        device = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = device.now

            def synchronize(self):
                device.log.append("wait")

            def elapsed_time(self, end):
                return end.at - self.at

        class Stream:
            def wait_stream(self, other):
                device.log.append("order")

        class Graph:
            def pool(self):
                return "pool of the first"

            def replay(self):
                device.log.append(("replay", self.content))

        @contextlib.contextmanager
        def capturing(graph, pool):
            before = len(device.log)
            yield
            graph.content, graph.shared = device.log[before:], pool
            del device.log[before:]

        fakes = {
            "Event": Event,
            "Stream": Stream,
            "CUDAGraph": Graph,
            "graph": capturing,
            "stream": contextlib.nullcontext,
            "current_stream": Stream,
            "synchronize": lambda: None,
            "set_sync_debug_mode": lambda mode: device.log.append(mode),
            "reset_peak_memory_stats": lambda: None,
            "memory_allocated": lambda: 100,
            "max_memory_allocated": lambda: 150,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    def call(self, k):
        self.now += 1.0
        self.log.append(k)


def test_a_device_is_timed_by_its_events(monkeypatch):
    device = FakeDevice(monkeypatch)
    assert measure.clock(torch.device("cuda")).seconds(device.call, 5, 3) == pytest.approx(1e-3)
    assert device.log == [5, 6, 7, "wait"]


def test_a_graph_is_captured_for_each_input_after_a_call_outside(monkeypatch):
    device = FakeDevice(monkeypatch)
    replay = measure.DeviceClock().captured(device.call, 2)
    assert device.log == ["error", 0, "default", "order", 0, 1, "order"]
    device.log.clear()
    for k in range(3):
        replay(k)
    assert device.log == [("replay", [0]), ("replay", [1]), ("replay", [0])]


def test_what_synchronises_is_not_captured(monkeypatch):
    device = FakeDevice(monkeypatch)

    def synchronising(_):
        raise RuntimeError("called a synchronizing CUDA operation")

    with pytest.raises(RuntimeError, match="synchronizing"):
        measure.DeviceClock().captured(synchronising, 2)
    assert device.log == ["error", "default"]


def test_peak_memory_is_what_a_call_adds(monkeypatch):
    device = FakeDevice(monkeypatch)
    assert measure.DeviceClock().peak_bytes(lambda: device.call(0)) == 50


def test_a_device_that_cannot_wait_is_unusable(monkeypatch):
    FakeDevice(monkeypatch)
    assert measure.DeviceClock().is_usable()

    def broken():
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    assert not measure.DeviceClock().is_usable()
