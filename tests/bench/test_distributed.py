"""`bench.distributed`: contenders compute one loss, bytes are counted as they should be, and the model agrees."""

import json

import pytest
import torch
import torch.distributed as dist

from bench import table
from bench.distributed import __main__, model, picture
from bench.distributed.cases import LOCAL, Shape
from bench.distributed.traffic import Traffic

NEEDS_GLOO = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="PyTorch was built without gloo"
)


@NEEDS_GLOO
def test_a_run_of_two_processes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench.distributed", "--quick", "--json", str(tmp_path / "rows.json")])
    __main__.main()
    rows = json.loads((tmp_path / "rows.json").read_text())
    exchanges = {row["contender"]: row for row in rows if row["part"] == "exchange"}
    assert set(exchanges) == {*model.STRATEGIES, LOCAL}
    for name, row in exchanges.items():
        if name == LOCAL:
            assert row["sent_bytes"] == 0
            assert row["loss_error"] is None
        else:
            assert max(row["loss_error"], row["gradient_error"]) < 1e-5
            # Owners get as many rows as the labels say, half of all on average.
            close = 0.4 if name in ("icckd, owner", "icckd, auto") else 1e-9
            assert row["sent_mean_bytes"] == pytest.approx(row["predicted_bytes"], rel=close)
            if name != "ring":  # Which sends labels and rows by themselves.
                transfers = model.STRATEGIES[name](model.Batch(2, rows=24, classes=12, dim=16))
                assert row["messages"] == sum(transfer.steps for transfer in transfers)
    hidden = [row for row in rows if row["part"] == "hidden"]
    assert {row["contender"] for row in hidden} == set(model.STRATEGIES)
    filled = table.fill("<!-- table: distributed -->\n<!-- end -->\n".replace("-->\n<", "-->\n\n<"), rows)
    assert "**many classes** (24 rows a rank, 12 classes, D = 16)" in filled
    assert "2 processes, many classes, training steps" in capsys.readouterr().out


def test_collectives_send_what_their_algorithms_must():
    def sent(name, *arguments, rank=1):
        counted = Traffic(rank, world=4)
        counted._count(name, arguments)
        return counted.sent, counted.messages

    rows, all_rows = torch.zeros(8, 3), torch.zeros(32, 3)
    assert sent("_allgather_base_", all_rows, rows) == (3 * 96, 3)
    assert sent("allreduce_", [rows]) == (2 * 3 * 96 / 4, 6)
    assert sent("_reduce_scatter_base_", rows, all_rows) == (3 * 384 / 4, 3)
    assert sent("reduce_scatter_", [rows], [[rows] * 4]) == (3 * 384 / 4, 3)
    assert sent("alltoall_base_", rows, rows, None, [2] * 4, [1, 4, 3, 0]) == (4 * 12, 2)
    assert sent("alltoall_base_", rows, rows, None, [], []) == (6 * 12, 3)
    assert sent("scatter_", [rows], [[rows] * 4], None, 1) == (3 * 96, 3)
    assert sent("scatter_", [rows], [], None, 0) == (0, 0)
    assert sent("barrier", rows) == (0, 0)
    with pytest.raises(RuntimeError, match="gather_ is a collective whose bytes nobody counts"):
        sent("gather_", [], [rows])


def test_the_model_of_owners_is_what_labels_give_on_average():
    shape = Shape("", rows=400, classes=37, dim=4, dominating=0.5)
    labels = shape.batch(world=3, seed=0, device=torch.device("cpu")).labels.view(3, 400)
    batch = model.Batch(3, shape.rows, shape.classes, shape.dim, dominating=shape.dominating)
    away = labels % 3 != torch.arange(3)[:, None]
    assert away.sum(1).float().mean().item() == pytest.approx(batch.leaving, rel=0.05)
    assert ((labels % 3 == 0) & away).sum().item() == pytest.approx(batch.coming, rel=0.05)


def test_owners_send_as_much_whatever_the_ranks_and_gathering_grows_with_them():
    few, many = (model.Batch(ranks, rows=256, classes=1000, dim=512, width=2) for ranks in (8, 1024))
    assert model.sent_bytes("icckd, owner", many) < 1.2 * model.sent_bytes("icckd, owner", few)
    assert model.sent_bytes("icckd, gather", many) > 100 * model.sent_bytes("icckd, gather", few)
    for strategy in model.STRATEGIES:
        assert model.seconds(strategy, many, model.H100) > model.seconds(strategy, few, model.H100)
        assert model.seconds(strategy, many, model.A100) > model.seconds(strategy, many, model.H100)
    # Where owners' messages took longer by what they may, gathering would be as quick.
    slower = 2 * 1023 * model.spare(many, model.H100) + model.seconds("icckd, owner", many, model.H100)
    assert slower == pytest.approx(model.seconds("icckd, gather", many, model.H100))


def test_large_transfers_take_as_long_as_their_bytes_at_a_links_speed():
    around = model.Transfer("around", 1e12, 7)
    assert around.seconds(model.H100, 8) == pytest.approx(1e12 / (450e9 * model.ACHIEVED), rel=1e-3)
    assert around.seconds(model.H100, 16) == pytest.approx(1e12 / (400e9 * model.ACHIEVED), rel=1e-3)
    across = model.Transfer("all-to-all", 1e12, 15)
    assert across.seconds(model.H100, 16) == pytest.approx(1e12 * 8 / 15 / (50e9 * model.ACHIEVED), rel=1e-3)
    assert model.Transfer("neighbour", 1e12, 15).seconds(model.A100, 16) == pytest.approx(50, rel=1e-3)


def test_the_picture_is_drawn_and_twice_the_same(tmp_path):
    first, second = (tmp_path / name for name in ("first.svg", "second.svg"))
    picture.draw(first)
    picture.draw(second)
    assert "rank 2 owns 2 and 5" in first.read_text()
    assert first.read_text() == second.read_text()
