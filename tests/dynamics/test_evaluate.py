"""`evaluate_model`: what it says is what plain torch says, and what a network is fed is said where it does not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from PIL import Image
from test_loop import OPTIONS, make_data, make_net

from hf_prune import evaluate_model, train_with_log


def pictures(n=10, size=(8, 8), mode="RGB"):
    rng = np.random.default_rng(0)
    shape = (*size[::-1], 3) if mode == "RGB" else size[::-1]
    images = [Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)) for _ in range(n)]
    return Dataset.from_dict({"row_id": list(range(n)), "image": images, "label": [i % 3 for i in range(n)]})


@pytest.mark.parametrize("batch_size, workers", [(4, 0), (100, 0), (7, 1)])
def test_accuracy_and_loss(batch_size, workers):
    ds, net = make_data(), make_net()
    net.train()
    found = evaluate_model(net, ds, inputs="x", batch_size=batch_size, workers=workers)
    logits, y = net(torch.tensor(ds["x"][:])).detach(), torch.tensor(ds["label"][:])
    assert found.rows == len(ds)
    assert found.accuracy == pytest.approx(float((logits.argmax(1) == y).double().mean()), abs=1e-12)
    assert found.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, y)), rel=1e-5)
    assert net.training  # left as it was
    assert evaluate_model(net, ds, inputs="x", loss=lambda z, y: z[:, 0] * 0 + 2).loss == 2


def test_a_clean_log_of_training_says_the_same(tmp_path):
    ds, net = make_data(), make_net()
    log = train_with_log(net, ds, tmp_path, epochs=2, mode="eval", **OPTIONS)
    assert evaluate_model(net, ds, inputs="x").accuracy == pytest.approx(log.accuracy(1), abs=1e-12)


def test_images_are_fed_as_in_training(tmp_path):
    ds, seen = pictures(mode="L"), []

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.last = torch.nn.Linear(192, 3)

        def forward(self, x):
            seen.append(x)
            return self.last(x.flatten(1))

    evaluate_model(Net(), ds, batch_size=10)
    train_with_log(Net(), ds, tmp_path, epochs=1, batch_size=10, mode="eval")  # whose last pass is in the rows' order
    assert torch.equal(seen[0], seen[-1]) and seen[0].shape == (10, 3, 8, 8) and -1 <= seen[0].min() < -0.9
    pixels = np.array(ds["image"][3], np.float32)
    np.testing.assert_allclose(seen[0][3, 1].numpy(), pixels / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("run", ["train_with_log", "evaluate_model"])
def test_a_network_for_one_channel_is_told_what_it_is_fed(run, tmp_path):
    ds = pictures(mode="L")
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(72, 3))
    words = r"as they are fed, \(b, 3, h, w\) from -1 to 1, here \(10, 3, 8, 8\): .* 1 channels, but got 3 .* inputs="
    with pytest.raises(ValueError, match=words):
        if run == "train_with_log":
            train_with_log(net, ds, tmp_path / "log", epochs=1)
        else:
            evaluate_model(net, ds)
    assert not list(tmp_path.iterdir())

    def gray(batch):
        return torch.stack([torch.from_numpy(np.array(image.convert("L")))[None] / 255 for image in batch["image"]])

    assert evaluate_model(net, ds, inputs=gray).rows == 10  # what the message says to do
    with pytest.raises(RuntimeError, match="channels"):  # an error of the user's own inputs stays what it is
        evaluate_model(net, ds, inputs=lambda batch: torch.zeros(len(batch["image"]), 2, 8, 8))


def test_bad_input():
    ds, net = make_data(), make_net()
    for error, words, options in (
        (KeyError, "evaluate_model reads column 'image', the rows have", {}),
        (KeyError, "evaluate_model reads column 'y'", {"inputs": "x", "label": "y"}),
        (ValueError, "batch_size=0 is no whole number from 1 up", {"inputs": "x", "batch_size": 0}),
    ):
        with pytest.raises(error, match=words):
            evaluate_model(net, ds, **options)
    with pytest.raises(TypeError, match="evaluate_model got a DatasetDict; choose a split"):
        evaluate_model(net, DatasetDict({"test": ds}), inputs="x")
    with pytest.raises(TypeError, match="model='a/name' is no torch module"):
        evaluate_model("a/name", ds, inputs="x")
    with pytest.raises(ValueError, match="the dataset has no rows"):
        evaluate_model(net, ds.select([]), inputs="x")
    with pytest.raises(ValueError, match=r"17 labels that are not in 0..1, up to 2; give the network 3 outputs"):
        evaluate_model(make_net(2), ds, inputs="x")
    with pytest.raises(ValueError, match=r"1 rows without a class .* first row 0: -1"):
        evaluate_model(net, Dataset.from_dict({"x": [[0.0] * 5], "label": [-1]}), inputs="x")


def test_classes_of_other_names(tmp_path):
    ds, net = make_data().cast_column("label", ClassLabel(names=["cat", "dog", "fish"])), make_net()
    net.config = type("Config", (), {"id2label": {0: "dog", 1: "cat", 2: "fish"}})()
    words = "column 'label' has the classes 0: 'cat', 1: 'dog', 2: 'fish'; the network Sequential has 0: 'dog'"
    with pytest.raises(ValueError, match=words):
        evaluate_model(net, ds, inputs="x")
    with pytest.raises(ValueError, match=words):
        train_with_log(net, ds, tmp_path / "log", epochs=1, **OPTIONS)
    assert not list(tmp_path.iterdir())
    net.config.id2label = {0: "Cat", 1: "DOG", 2: "fish"}
    log = train_with_log(net, ds, tmp_path / "log", epochs=1, **OPTIONS)
    assert log.facts["class_names"] == ["cat", "dog", "fish"]
