"""`train_with_log`: what is recorded is what an independent loop computes, also in two processes and after a kill."""

from __future__ import annotations

import json
import signal
import threading

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from hearing import when_said
from launching import python, together

from hf_prune import TrainingLog, crop_and_flip, train_with_log
from hf_prune.data import identity, lock
from hf_prune.data.files import DamagedFileError, file_digest
from hf_prune.data.identity import seeded
from hf_prune.dynamics.format import sealed

N, C = 53, 3


def make_data(n=N):
    rng = np.random.default_rng(0)
    labels = np.arange(n) % C
    x = rng.normal(size=(n, 5)) + 2 * np.eye(C, 5)[labels]
    return Dataset.from_dict({"row_id": [f"r{i}" for i in range(n)], "x": x.tolist(), "label": labels.tolist()})


def make_net(outputs=C):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, outputs))


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.2, momentum=0.9)


OPTIONS = {"inputs": "x", "batch_size": 16, "optimizer": sgd, "save_every": 0}


@pytest.fixture(scope="module")
def ds():
    return make_data()


@pytest.fixture(scope="module")
def alone(ds, tmp_path_factory):
    net = make_net()
    log = train_with_log(net, ds, tmp_path_factory.mktemp("alone") / "log", epochs=4, **OPTIONS)
    return log, {name: value.clone() for name, value in net.state_dict().items()}


def test_against_an_independent_loop(ds, alone):
    """Plain torch, the logits of each presentation stored, statistics by their definitions in float64."""
    log, weights = alone
    x, y = torch.tensor(ds["x"][:]), torch.tensor(ds["label"][:])
    keys = identity.digests(ds["row_id"][:])
    net = make_net()
    opt = sgd(net.parameters())
    total, step = 4 * 4, 0
    logits = np.zeros((4, N, C))
    for epoch in range(4):
        order = np.argsort(seeded(seeded(keys, 0), epoch))
        for i in range(0, N, 16):
            which = torch.tensor(order[i : i + 16])
            opt.param_groups[0]["lr"] = 0.2 * (0.5 + 0.5 * np.cos(np.pi * step / total))
            out = net(x[which])
            logits[epoch, which] = out.detach().numpy()
            opt.zero_grad()
            torch.nn.functional.cross_entropy(out, y[which]).backward()
            opt.step()
            step += 1
    for name, value in net.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-6)
    p = np.exp(logits)
    p /= p.sum(2, keepdims=True)
    n, labels = np.arange(N), y.numpy()
    others = np.where(np.eye(C, dtype=bool)[labels], -np.inf, logits).max(2)
    at = np.searchsorted(log.keys, keys)
    assert log.epochs == 4 and log.mode == "train"
    for epoch, (el2n, margin, correct, p_label) in enumerate(log.each("el2n", "margin", "correct", "p_label")):
        error = np.linalg.norm(p[epoch] - np.eye(C)[labels], axis=1)
        np.testing.assert_allclose(el2n[at], error, atol=1e-5)
        np.testing.assert_allclose(margin[at], logits[epoch, n, labels] - others[epoch], atol=1e-4)
        np.testing.assert_allclose(p_label[at], p[epoch, n, labels], atol=1e-5)
        assert (correct[at] == (logits[epoch].argmax(1) == labels)).mean() > 0.97  # equal but for ties in the last bit
    assert correct.mean() > 0.7


def test_the_order_of_the_dataset_does_not_matter(ds, alone, tmp_path):
    log = train_with_log(make_net(), ds.shuffle(seed=1), tmp_path / "log", epochs=4, **OPTIONS)
    np.testing.assert_allclose(log.read("margin", 3), alone[0].read("margin", 3), atol=1e-4)


def test_recording_changes_nothing(ds, alone, tmp_path):
    """An eval pass, workers, dropout: the weights are those of the same run with another recorder."""

    def net():
        return torch.nn.Sequential(make_net(), torch.nn.Dropout(0.3))

    found = []
    for record, workers in (("train", 0), ("eval", 0), ("eval", 1)):
        one = net()
        log = train_with_log(
            one, ds, tmp_path / f"{record}{workers}", epochs=2, mode=record, workers=workers, **OPTIONS
        )
        assert log.mode == record and one.training == (record == "train")
        found.append([value.clone() for value in one.state_dict().values()])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    x = torch.tensor(ds["x"][:])
    clean = one.eval()(x).softmax(1).detach().numpy()[np.arange(N), ds["label"][:]]
    at = np.searchsorted(log.keys, identity.digests(ds["row_id"][:]))
    np.testing.assert_allclose(log.read("p_label", 1)[at], clean, atol=1e-6)


def test_going_on_is_as_if_nothing_had_happened(ds, alone, tmp_path):
    options = {**OPTIONS, "save_every": 1, "schedule": "cosine"}

    class Stop(Exception):
        pass

    def stop(epoch, model):
        if epoch == 1:
            raise Stop

    with pytest.raises(Stop):
        train_with_log(make_net(), ds, tmp_path / "log", epochs=4, on_epoch=stop, **options)
    with pytest.raises(ValueError, match="holds a training log already"):
        train_with_log(make_net(), ds, tmp_path / "log", epochs=4, **options)
    net, seen = make_net(), []
    torch.nn.init.zeros_(net[0].weight)  # the checkpoint's weights count
    log = train_with_log(
        net, ds, tmp_path / "log", epochs=4, resume=True, on_epoch=lambda e, m: seen.append(e), **options
    )
    assert seen == [2, 3] and log.epochs == 4
    for name in log.columns:
        np.testing.assert_array_equal(log.read(name, 3), alone[0].read(name, 3))
    assert all(torch.equal(value, alone[1][name]) for name, value in net.state_dict().items())
    assert [p.name for p in (tmp_path / "log").glob("checkpoint*")] == ["checkpoint-4"]
    other = ds.map(lambda row: {"row_id": row["row_id"] + "x"})
    with pytest.raises(ValueError, match="of another dataset"):
        train_with_log(net, other, tmp_path / "log", epochs=4, resume=True, **options)


def test_going_on_with_other_labels(ds, tmp_path):
    train_with_log(make_net(), ds, tmp_path / "log", epochs=1, **{**OPTIONS, "save_every": 1})
    other = ds.map(lambda row: {"label": 2 if row["row_id"] in ("r3", "r4") else row["label"]})
    with pytest.raises(ValueError, match=r"'r[34]' has 2, not [01], 'r[34]' has 2, not [01] \(2 of 53 rows\)"):
        train_with_log(make_net(), other, tmp_path / "log", epochs=2, resume=True, **OPTIONS)


def test_a_run_that_failed_early(ds, alone, tmp_path):
    with pytest.raises(ValueError, match="give the network 3 outputs"):
        train_with_log(make_net(2), ds, tmp_path / "a" / "log", epochs=4, **OPTIONS)
    assert list(tmp_path.iterdir()) == []  # what is refused leaves nothing
    TrainingLog.create(tmp_path / "log", ids=ds["row_id"][:])  # and what is killed, this
    with pytest.warns(UserWarning, match="log holds a log without a finished epoch, .* begins anew"):
        log = train_with_log(make_net(), ds, tmp_path / "log", epochs=4, **OPTIONS)
    np.testing.assert_array_equal(log.read("margin", 3), alone[0].read("margin", 3))


@pytest.mark.parametrize("what", ["another network", "another optimizer", "a forged file"])
def test_a_checkpoint_that_cannot_be_loaded_says_what_to_do(ds, tmp_path, what):
    options = {**OPTIONS, "save_every": 1}
    train_with_log(make_net(), ds, tmp_path, epochs=1, **options)
    net = make_net()
    if what == "another network":
        net[0] = torch.nn.Linear(5, 8, bias=False)
    elif what == "another optimizer":
        options["optimizer"] = lambda parameters: torch.optim.SGD([{"params": [p]} for p in parameters], lr=0.1)
    else:  # with digests that fit
        checkpoint = tmp_path / "checkpoint-1"
        file = next(checkpoint.glob("optimizer*"))
        file.write_bytes(b"no tensors")
        facts = json.loads((checkpoint / "contents.json").read_text())["files"]
        facts[file.name] = [file.stat().st_size, file_digest(file)]
        (checkpoint / "contents.json").write_text(sealed({"files": facts}))
    with pytest.raises(
        DamagedFileError, match=r"checkpoint-1 cannot be loaded into this network and optimizer \(\w+: ."
    ):
        train_with_log(net, ds, tmp_path, epochs=2, resume=True, **options)
    assert TrainingLog(tmp_path).epochs == 1 and (tmp_path / "checkpoint-1").exists()


def test_the_second_of_two_calls_waits(ds, alone, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    order = []

    def hold():
        with lock.locked(tmp_path / "log", "recorded"):
            held.set()
            seen.wait(60)
            order.append("the first")

    held, seen, first = threading.Event(), threading.Event(), threading.Thread(target=hold)
    first.start()
    held.wait(20)
    options = {**OPTIONS, "on_epoch": lambda *_: order.append("s")}
    with when_said("is being recorded by process", seen.set):
        log = train_with_log(make_net(), ds, tmp_path / "log", epochs=4, **options)
    first.join()
    assert order == ["the first", *"ssss"]
    assert log.read("margin", 3).tobytes() == alone[0].read("margin", 3).tobytes()
    assert not list((tmp_path / "log").glob(".hf_prune_lock*"))


def test_threshold_samples_may_have_a_class_of_their_own(ds, tmp_path):
    relabelled = ds.map(lambda row, i: {"label": C if i < N // (C + 1) else row["label"]}, with_indices=True)
    log = train_with_log(make_net(C + 1), relabelled, tmp_path / "log", epochs=1, **OPTIONS)
    assert log.classes == C + 1


def test_images_augmented_and_divergence(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)) for _ in range(10)]
    data = Dataset.from_dict({"row_id": list(range(10)), "image": pictures, "label": [0, 1] * 5})
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    log = train_with_log(net, data, tmp_path / "log", epochs=2, augment=crop_and_flip, divergence=True, batch_size=4)
    assert np.isnan(log.read("divergence", 0)).all() and np.isfinite(log.read("divergence", 1)).all()
    assert log.facts["augmented"]
    mixed = data.cast_column("image", data.features["image"]).map(
        lambda row, i: {"image": row["image"].resize((4 + i, 4))}, with_indices=True
    )
    with pytest.raises(ValueError, match=r"has images of sizes \[\(4, 4\)"):
        train_with_log(net, mixed, tmp_path / "mixed", epochs=1, batch_size=10)


def test_crops_are_moved_and_flipped_pieces():
    x = torch.arange(2 * 1 * 6 * 6.0).reshape(2, 1, 6, 6).repeat(50, 1, 1, 1)
    out = crop_and_flip(x, torch.Generator().manual_seed(0), pad=2)
    padded = torch.nn.functional.pad(x, (2,) * 4, mode="reflect")
    found = {"flipped": 0, "moved": 0}
    for i in range(100):
        pieces = {}
        for top in range(5):
            for left in range(5):
                piece = padded[i, :, top : top + 6, left : left + 6]
                pieces[top, left, False], pieces[top, left, True] = piece, piece.flip(2)
        hits = [where for where, piece in pieces.items() if torch.equal(piece, out[i])]
        assert hits
        found["flipped"] += all(h[2] for h in hits)
        found["moved"] += hits[0][:2] != (2, 2)
    assert 20 < found["flipped"] < 80 and found["moved"] > 60


def test_a_loss_that_is_nan_in_mid_run(ds, tmp_path):
    class Breaks(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.calls = make_net(), 0

        def forward(self, x):
            self.calls += 1
            out = self.net(x)
            return (
                torch.where(torch.arange(len(out))[:, None] == 3, torch.nan, out.detach()) if self.calls == 5 else out
            )

    net = Breaks()

    def careful(logits, labels):  # one bad row must not end the training of this test
        out = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        return torch.where(out.isnan(), 0.0, out) + 0 * sum(p.sum() for p in net.parameters())

    with pytest.warns(RuntimeWarning, match="epoch 1: the loss of 1 row is not finite, row_id 'r"):
        log = train_with_log(net, ds, tmp_path / "log", epochs=3, loss=careful, **OPTIONS)
    assert [log.report(e).nan for e in range(3)] == [0, 1, 0]
    assert np.isnan(log.read("loss", 1)).sum() == 1


def test_a_log_tells_what_it_is(alone):
    log, _ = alone
    assert repr(log) == f"TrainingLog({str(log.folder)!r}, mode='train', epochs=4)"


def test_a_name_is_no_model(ds, tmp_path):
    with pytest.raises(TypeError, match="model='a/name' is no torch module; load it first"):
        train_with_log("a/name", ds, tmp_path / "log", epochs=1, **OPTIONS)


ODD = [[0.0] * (1 + i % 3) for i in range(N)]


def test_bad_input(ds, tmp_path):
    def run(data=ds, net=None, **options):
        return train_with_log(net or make_net(), data, tmp_path / "log", **{**OPTIONS, "epochs": 1, **options})

    for error, words, options in (
        (ValueError, "epochs=0 is no whole number from 1 up", {"epochs": 0}),
        (ValueError, "batch_size=0 is no whole number from 1 up", {"batch_size": 0}),
        (ValueError, "save_every=-1 is no whole number from 0 up", {"save_every": -1}),
        (ValueError, "workers=None is no whole number from 0 up", {"workers": None}),
        (KeyError, "reads column 'id', the rows have", {"row_id": "id"}),
        (KeyError, "reads column 'y', the rows have", {"label": "y"}),
        (KeyError, "reads column 'image', the rows have", {"inputs": "image"}),
        (ValueError, "schedule='steps' is not known", {"schedule": "steps"}),
        (ValueError, "the dataset has no rows", {"data": ds.select([])}),
        (TypeError, "hard labels", {"label": "soft", "data": ds.add_column("soft", [0.5] * N)}),
        (TypeError, r"several values a row \(List", {"label": "many", "data": ds.add_column("many", [[0, 1]] * N)}),
        (TypeError, "train_with_log needs a Dataset, .* not a stream", {"data": ds.to_iterable_dataset()}),
        (TypeError, "train_with_log got a DatasetDict; choose a split", {"data": DatasetDict({"train": ds})}),
        (ValueError, r"1 rows without a class .* first row_id 'r2': -1",
         {"data": ds.map(lambda r, i: {"label": -1 if i == 2 else 0}, with_indices=True)}),
        (ValueError, "1 id occurs more than once: 'r0'", {"data": ds.select([0, 1, 0])}),
        (ValueError, "column 'odd' has rows of unequal lengths", {"inputs": "odd", "data": ds.add_column("odd", ODD)}),
        (TypeError, "column 'told' holds something else than numbers",
         {"inputs": "told", "data": ds.add_column("told", ["1.5"] * N)}),
        (TypeError, "column 'holes' holds something else than numbers",
         {"inputs": "holes", "data": ds.add_column("holes", [[None, 1.0]] * N)}),
    ):  # fmt: skip
        with pytest.raises(error, match=words):
            run(**options)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"17 labels that are not in 0..1, up to 2; give the network 3 outputs"):
        run(net=make_net(2))
    with pytest.raises(ValueError, match="one class|1 class"):
        train_with_log(make_net(1), ds.map(lambda r: {"label": 0}), tmp_path / "one", epochs=1, **OPTIONS)


@pytest.mark.parametrize("every", [2, 3, 4, 7])
def test_steps_accumulate_as_asked(ds, tmp_path, every):
    """53 rows in passes of 9, six an epoch: a step of an epoch's end is of two, three, two, or six passes."""
    from accelerate import Accelerator

    net = make_net()
    accelerator = Accelerator(gradient_accumulation_steps=every)
    options = {**OPTIONS, "batch_size": 9}
    log = train_with_log(net, ds, tmp_path / "log", epochs=2, accelerator=accelerator, **options)
    x, y = torch.tensor(ds["x"][:]), torch.tensor(ds["label"][:])
    keys = identity.digests(ds["row_id"][:])
    plain = make_net()
    opt = sgd(plain.parameters())
    steps = -(-6 // every)
    margins = np.zeros((2, N))
    for epoch in range(2):
        order = np.argsort(seeded(seeded(keys, 0), epoch))
        for step in range(steps):
            of_step = torch.tensor(order[step * every * 9 : (step + 1) * every * 9])
            opt.param_groups[0]["lr"] = 0.2 * (0.5 + 0.5 * np.cos(np.pi * (epoch * steps + step) / (2 * steps)))
            opt.zero_grad()
            for which in of_step.split(9):
                out = plain(x[which])
                (torch.nn.functional.cross_entropy(out, y[which], reduction="sum") / len(of_step)).backward()
                others = out.detach().masked_fill(torch.eye(C, dtype=torch.bool)[y[which]], -torch.inf).max(1).values
                margins[epoch, which] = out.detach()[torch.arange(len(which)), y[which]] - others
            opt.step()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    at = np.searchsorted(log.keys, keys)
    for epoch in range(2):
        np.testing.assert_allclose(log.read("margin", epoch)[at], margins[epoch], atol=1e-4)
    assert log.facts["batch_size"] == 9 * every
    big = make_net()  # the same steps without parts
    train_with_log(big, ds, tmp_path / "big", epochs=2, **{**OPTIONS, "batch_size": 9 * every})
    for a, b in zip(net.parameters(), big.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


SCRIPT = """
import json, os, pathlib, signal, sys
from accelerate import Accelerator
accelerator = Accelerator()
from test_loop import OPTIONS, make_data, make_net, train_with_log
kill = sys.argv[2] == "kill"
calls = []

def watch(x, generator):
    calls.append(len(x))
    if kill and len(calls) == 10:  # in the middle of the third epoch
        os.kill(os.getpid(), signal.SIGKILL)
    return x

net = make_net()
options = {**OPTIONS, "save_every": 1 if kill else 0}
log = train_with_log(net, make_data(), sys.argv[1], epochs=4, accelerator=accelerator, augment=watch, **options)
parts = make_net()
if accelerator.num_processes > 1:
    accelerator = Accelerator(gradient_accumulation_steps=3)
    options = {**OPTIONS, "batch_size": 6}
    train_with_log(parts, make_data(), sys.argv[1] + "-parts", epochs=2, accelerator=accelerator, **options)
facts = {"parts": parts.state_dict()["0.weight"].tolist()}
facts |= {"world": accelerator.num_processes, "weights": net.state_dict()["0.weight"].tolist(), "calls": calls}
pathlib.Path(f"{sys.argv[1]}-{accelerator.process_index}.json").write_text(json.dumps(facts))
"""


def test_two_processes(tmp_path, alone):
    """53 rows in batches of 16: the last batch has five, three for one process and two for the other."""
    together(SCRIPT, tmp_path / "log", "run")
    facts = [json.loads((tmp_path / f"log-{i}.json").read_text()) for i in range(2)]
    assert [f["world"] for f in facts] == [2, 2]
    assert facts[0]["calls"][:4] == [8, 8, 8, 3] and facts[1]["calls"][:4] == [8, 8, 8, 2]
    np.testing.assert_allclose(facts[0]["weights"], alone[1]["0.weight"], atol=1e-5)
    big = make_net()  # steps of three passes of six rows; the last pass of an epoch has five
    train_with_log(big, make_data(), tmp_path / "big", epochs=2, **{**OPTIONS, "batch_size": 18})
    for fact in facts:
        np.testing.assert_allclose(fact["parts"], big.state_dict()["0.weight"], atol=1e-5)
    log = TrainingLog(tmp_path / "log")
    assert log.epochs == 4
    for epoch in range(4):
        report = log.report(epoch)
        assert report.rows == N and report.padding == 0 and len(report.parts) == 2
        for name in log.columns:
            np.testing.assert_allclose(log.read(name, epoch), alone[0].read(name, epoch), atol=1e-4)


def test_a_kill_in_mid_epoch(tmp_path, ds, alone):
    python(SCRIPT, tmp_path / "log", "kill", status=-signal.SIGKILL)
    assert TrainingLog(tmp_path / "log").epochs == 2
    log = train_with_log(make_net(), ds, tmp_path / "log", epochs=4, resume=True, **{**OPTIONS, "save_every": 1})
    for epoch in range(4):
        np.testing.assert_allclose(log.read("margin", epoch), alone[0].read("margin", epoch), atol=1e-5)
