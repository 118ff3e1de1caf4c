"""`RecordingTrainer`: the log has what the logits say, and the training is the stock one to the last bit."""

from __future__ import annotations

import contextlib
import json
import warnings

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset
from launching import together
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DataCollatorWithFlattening,
    GPT2Config,
    GPT2LMHeadModel,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_prune import RecordingMixin, RecordingTrainer, TrainingLog
from hf_prune.data import identity
from hf_prune.networks import statistics

N = 22  # batches of 4: the last has two rows; with accumulation over 2 the last step is a short one


def texts(n=N, repeat=1):
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 9, n)
    data = {
        "row_id": [f"r{i}" for i in range(n)],
        "input_ids": [rng.integers(1, 40, k).tolist() for k in lengths],
        "label": (np.arange(n) % 3).tolist(),
        "unused": ["words"] * n,
    }
    return Dataset.from_dict(data)


def pad(rows_):
    """A plain collator, which would stumble over ids that are strings."""
    assert all(set(row) <= {"input_ids", "label", "labels"} for row in rows_), rows_[0]
    width = max(len(row["input_ids"]) for row in rows_)
    out = {"input_ids": torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows_])}
    out["attention_mask"] = (out["input_ids"] > 0).long()
    if "label" in rows_[0]:
        out["labels"] = torch.tensor([row["label"] for row in rows_])
    return out


def pad_lm(rows_):
    out = pad([{"input_ids": row["input_ids"]} for row in rows_])
    out["labels"] = out["input_ids"].masked_fill(out["attention_mask"] == 0, -100)
    out["labels"][:, 1] = -100  # a token nobody is asked for
    return out


def classifier(dropout=0.1, labels=3):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        num_labels=labels,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForSequenceClassification(config)


def language_model(dropout=0.1):
    torch.manual_seed(0)
    options = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=16, **options))


def arguments(folder, **options):
    defaults = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_strategy": "no",
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(output_dir=str(folder), **{**defaults, **options})


def weights(trainer):
    return torch.cat([p.detach().reshape(-1) for p in trainer.model.parameters()])


class Keeps(Trainer):
    """An independent witness: the logits of each forward pass, found again by the rows' own contents."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        tokens = inputs["input_ids"].tolist()
        labels = inputs["labels"].clone()
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        for row, z, y in zip(tokens, outputs.logits.detach(), labels, strict=True):
            self.seen.append((tuple(t for t in row if t), z.float().numpy(), y.numpy()))
        return (loss, outputs) if return_outputs else loss


class RecordingKeeps(RecordingMixin, Keeps):
    pass


def at(log, ds):
    return np.searchsorted(log.keys, identity.digests(ds["row_id"][:]))


@pytest.mark.parametrize("what", ["classifier", "language model"])
@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"bf16": True}])
def test_same_weights_and_the_logits_of_training(tmp_path, what, options):
    make, collate = (classifier, pad) if what == "classifier" else (language_model, pad_lm)
    ds = texts()
    stock = Keeps(
        make(), arguments(tmp_path / "a", **options), train_dataset=ds.remove_columns("row_id"), data_collator=collate
    )
    told = stock.train()
    ours = RecordingKeeps(
        make(), arguments(tmp_path / "b", **options), train_dataset=ds, data_collator=collate, log=tmp_path / "log"
    )
    assert ours.train().training_loss == told.training_loss
    assert torch.equal(weights(ours), weights(stock))
    log = TrainingLog(tmp_path / "log")
    assert (log.epochs, log.mode) == (2, "train")
    names = [tuple(row) for row in ds["input_ids"][:]]
    for epoch in range(2):
        presented = {row: (z, y) for row, z, y in stock.seen[epoch * N : (epoch + 1) * N]}
        assert len(presented) == N
        for i, row in enumerate(names):
            z, y = presented[row]
            want = naive_tokens(z, y) if what != "classifier" else naive(z[None], np.array([y]))
            for name, value in want.items():
                got = log.read(name, epoch)[at(log, ds)][i]
                assert got == pytest.approx(value, rel=1e-4, abs=2e-6), name


def naive(z, y):
    p = np.exp(z.astype(float) - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    n = np.arange(len(y))
    error = p - np.eye(z.shape[1])[y]
    others = np.where(np.eye(z.shape[1], dtype=bool)[y], -np.inf, z).max(1)
    out = {"loss": -np.log(p[n, y]), "el2n": np.linalg.norm(error, axis=1), "margin": z[n, y] - others}
    return {name: value.mean() for name, value in out.items()}


def naive_tokens(z, y):
    z, y = z[:-1], y[1:]
    return {**naive(z[y >= 0], y[y >= 0]), "tokens": (y >= 0).sum()}


def test_the_loss_of_a_language_model_is_that_of_the_model(tmp_path):
    ds = texts(8)
    trainer = RecordingTrainer(
        language_model(0.0), arguments(tmp_path, num_train_epochs=1, learning_rate=0.0), train_dataset=ds,
        data_collator=pad_lm, log=tmp_path / "log", mode="eval",
    )  # fmt: skip
    trainer.train()
    log = TrainingLog(tmp_path / "log")
    loss, tokens = log.read("loss", 0), log.read("tokens", 0)
    whole = trainer.model(**pad_lm(list(ds))).loss.item()
    assert (loss * tokens).sum() / tokens.sum() == pytest.approx(whole, rel=1e-5)
    assert (log.mode, log.task, log.classes) == ("eval", "language_model", 40)


def test_a_clean_pass_draws_nothing_and_sees_all(tmp_path):
    ds = texts()
    stock = Trainer(classifier(), arguments(tmp_path / "a"), train_dataset=ds, data_collator=pad)
    stock.train()
    ours = RecordingTrainer(
        classifier(),
        arguments(tmp_path / "b"),
        train_dataset=ds,
        data_collator=pad,
        log=tmp_path / "log",
        mode="eval",
    )
    ours.train()
    assert torch.equal(weights(ours), weights(stock))
    log = TrainingLog(tmp_path / "log")
    batch = pad([{"input_ids": r["input_ids"], "label": r["label"]} for r in ds])
    clean = statistics.of_rows(stock.model.eval()(**batch).logits.detach(), batch["labels"])
    np.testing.assert_allclose(log.read("margin", 1)[at(log, ds)], clean["margin"], atol=1e-4)


def test_images_with_a_transform_that_drops_the_ids(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(10, 3, 8, 8)).astype(np.float32)
    ds = Dataset.from_dict({"row_id": list(range(10)), "x": pixels.reshape(10, -1).tolist(), "label": [0, 1] * 5})

    def flip(batch):
        images = torch.tensor(batch["x"]).reshape(-1, 3, 8, 8).flip(3)
        return {"pixel_values": list(images), "labels": batch["label"]}

    def straight(batch):
        return {"pixel_values": list(torch.tensor(batch["x"]).reshape(-1, 3, 8, 8)), "labels": batch["label"]}

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=2)
    trainer = RecordingTrainer(
        ResNetForImageClassification(config),
        arguments(tmp_path, remove_unused_columns=False, dataloader_num_workers=1),
        train_dataset=ds.with_transform(flip),
        clean_dataset=ds.with_transform(straight),
        log=tmp_path / "log",
        mode="eval",
    )
    trainer.train()
    with torch.no_grad():
        logits = trainer.model.eval()(torch.tensor(pixels)).logits
    log = TrainingLog(tmp_path / "log")
    want = statistics.of_rows(logits, torch.tensor(ds["label"][:]))["margin"]
    np.testing.assert_allclose(log.read("margin", 1)[at(log, ds)], want, atol=1e-5)


@pytest.mark.parametrize("record", ["train", "eval"])
@pytest.mark.parametrize(
    "steps", [4, 6, pytest.param(8, marks=pytest.mark.slow)]
)  # in mid-epoch, at its end, in the next; an epoch has 6 steps
def test_going_on(tmp_path, steps, record):
    """Resumed in mid-epoch too, weights and log are those of a run without a break."""
    ds = texts()
    options = {"save_strategy": "steps", "save_steps": steps, "num_train_epochs": 3}

    def run(name, checkpoint=None, callbacks=(), **more):
        made = RecordingTrainer(
            classifier(), arguments(tmp_path / name, **{**options, **more}), train_dataset=ds, data_collator=pad,
            log=tmp_path / f"{name}-log", mode=record, callbacks=list(callbacks),
        )  # fmt: skip
        made.train(resume_from_checkpoint=checkpoint)
        return made

    class Killed(Exception):
        pass

    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == steps + 1:
                raise Killed

    whole = run("whole")
    with pytest.raises(Killed):
        run("broken", callbacks=[Kill()])
    assert TrainingLog(tmp_path / "broken-log").epochs == (steps + 1) // 6
    if TrainingLog(tmp_path / "broken-log").epochs:
        with pytest.raises(ValueError, match="holds a training log already"):
            run("broken")
    again = run("broken", checkpoint=True)
    assert torch.equal(weights(again), weights(whole))
    log, want = TrainingLog(tmp_path / "broken-log"), TrainingLog(tmp_path / "whole-log")
    assert log.epochs == want.epochs == 3
    for epoch in range(3):
        for name in want.columns:
            np.testing.assert_array_equal(log.read(name, epoch), want.read(name, epoch))


def test_killed_between_the_last_checkpoint_of_an_epoch_and_its_end(tmp_path):
    ds = texts()

    class Kill(TrainerCallback):
        def on_save(self, args, state, control, **_):
            if state.global_step == 6:
                raise KeyboardInterrupt

    def run(callbacks=(), checkpoint=None):
        options = arguments(tmp_path / "out", save_strategy="steps", save_steps=6)
        made = RecordingTrainer(
            classifier(), options, train_dataset=ds, data_collator=pad, log=tmp_path / "log", callbacks=list(callbacks)
        )
        # the recorder's own callback comes after those of the user
        made.callback_handler.callbacks.sort(key=lambda c: isinstance(c, Kill))
        made.train(resume_from_checkpoint=checkpoint)

    with pytest.raises(KeyboardInterrupt):
        run([Kill()])
    assert TrainingLog(tmp_path / "log").epochs == 0
    run(checkpoint=True)
    log = TrainingLog(tmp_path / "log")
    assert log.epochs == 2 and log.report(0).rows == N


@pytest.mark.parametrize("record", ["train", "eval"])
@pytest.mark.parametrize("how", ["max_steps", "a callback"])
def test_an_epoch_that_is_cut_off_is_told(tmp_path, how, record):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 8

    options = {"max_steps": 8} if how == "max_steps" else {}
    trainer = RecordingTrainer(
        classifier(), arguments(tmp_path, **options), train_dataset=texts(), data_collator=pad, log=tmp_path / "log",
        mode=record, callbacks=[] if options else [Stop()],
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"epoch 1 was cut off after 8 of its 22 rows and is not .* a multiple of 6$"):
        trainer.train()
    assert TrainingLog(tmp_path / "log").epochs == 1


def test_a_run_that_failed_early(tmp_path):
    """Begun anew without a checkpoint; with one, what was recorded before it counts, also after a false start."""

    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 5:
                raise KeyboardInterrupt

    def run(name, kill=False, checkpoint=None, divergence=False):
        made = RecordingTrainer(
            classifier(), arguments(tmp_path / name, save_strategy="steps", save_steps=4, num_train_epochs=2),
            train_dataset=texts(), data_collator=pad, log=tmp_path / f"{name}-log", divergence=divergence,
            callbacks=[Kill()] if kill else [],
        )  # fmt: skip
        with pytest.raises(KeyboardInterrupt) if kill else contextlib.nullcontext():
            made.train(resume_from_checkpoint=checkpoint)
        return TrainingLog(tmp_path / f"{name}-log")

    want = run("whole", divergence=True)
    run("a", kill=True, divergence=True)
    assert same(run("a", checkpoint=True, divergence=True), want)
    run("b", kill=True)
    with pytest.warns(UserWarning, match="b-log holds a log without a finished epoch, .* begins anew"):
        run("b", kill=True)
    assert same(run("b", checkpoint=True), want)
    run("c", kill=True)
    with pytest.warns(UserWarning, match="begins anew"):
        assert same(run("c"), want)
    with pytest.raises(ValueError, match="holds a training log already"):
        run("c")


def as_killed_in(folder, step, also=()):
    """Cut a checkpoint off where the Trainer is about to write its state, which it does last."""
    (folder / f"checkpoint-{step}" / "trainer_state.json").unlink()
    for name in also:
        (folder / f"checkpoint-{step}" / name).unlink()


def test_killed_while_the_first_checkpoint_is_written(tmp_path):
    """The next call begins anew with a word, be it asked to resume or not; a complete run is not begun anew."""

    def run(name, checkpoint=None, epochs=1, **options):
        options = {"save_strategy": "epoch", "num_train_epochs": epochs, **options}
        made = RecordingTrainer(
            classifier(), arguments(tmp_path / name, **options), train_dataset=texts(), data_collator=pad,
            log=tmp_path / f"{name}-log",
        )  # fmt: skip
        made.train(resume_from_checkpoint=checkpoint)
        return TrainingLog(tmp_path / f"{name}-log")

    want = run("whole", epochs=2)
    for name, checkpoint in (("a", True), ("b", None)):
        run(name)
        as_killed_in(tmp_path / name, 6, also=["model.safetensors"])
        with pytest.warns(
            UserWarning, match=f"{name}-log cannot be gone on with .its first checkpoint was cut off.: it beg"
        ):
            assert same(run(name, checkpoint, epochs=2), want)
        assert not list((tmp_path / f"{name}-log").glob("epoch-*.*"))
    run("c")  # killed before that
    for path in (tmp_path / "c").glob("checkpoint-*"):
        path.rename(tmp_path / "c-old")
    with pytest.raises(ValueError, match=r"c-log holds a training log already; .*; it has no checkpoint to go on from"):
        run("c", epochs=2)
    with pytest.warns(UserWarning, match="c-log cannot be gone on with .there is no checkpoint.: it begins anew"):
        assert same(run("c", True, epochs=2), want)
    with pytest.raises(ValueError, match=r"holds a training log already; .*by train\(resume_from_checkpoint=True\)"):
        run("c", epochs=2)
    run("d")
    as_killed_in(tmp_path / "d", 6)
    (tmp_path / "d" / "checkpoint-6" / "trainer_state.json").write_text('{"epoch": 1.0, "global')
    with pytest.warns(UserWarning, match="its first checkpoint was cut off"):
        assert same(run("d", True, epochs=2), want)
    with pytest.raises(ValueError, match="No valid checkpoint found"):
        (tmp_path / "e").mkdir()
        run("e", True)
    assert not (tmp_path / "e-log").exists()


def test_a_later_checkpoint_that_was_cut_off_is_passed_over(tmp_path):
    def run(name, checkpoint=None, epochs=3):
        made = RecordingTrainer(
            classifier(), arguments(tmp_path / name, save_strategy="steps", save_steps=4, num_train_epochs=epochs),
            train_dataset=texts(), data_collator=pad, log=tmp_path / f"{name}-log",
        )  # fmt: skip
        made.train(resume_from_checkpoint=checkpoint)
        return TrainingLog(tmp_path / f"{name}-log")

    want = run("whole")
    run("a")
    as_killed_in(tmp_path / "a", 18)
    as_killed_in(tmp_path / "a", 16)
    assert same(run("a", True), want)


@pytest.mark.parametrize("record", ["train", "eval"])
def test_a_damaged_epoch_is_recorded_again_from_a_checkpoint_before_it(tmp_path, record):
    def run(name, checkpoint=None):
        made = RecordingTrainer(
            classifier(), arguments(tmp_path / name, save_strategy="epoch", num_train_epochs=4),
            train_dataset=texts(), data_collator=pad, log=tmp_path / f"{name}-log", mode=record,
        )  # fmt: skip
        made.train(resume_from_checkpoint=checkpoint)
        return TrainingLog(tmp_path / f"{name}-log")

    want = run("whole")
    run("a")
    report = tmp_path / "a-log" / "epoch-00002" / "report.json"
    report.write_bytes(report.read_bytes()[:-1])
    before = sorted((tmp_path / "a-log").iterdir())
    with pytest.raises(
        ValueError, match="goes on with epoch 4, and epoch 2 of its log is damaged; nothing was changed"
    ):
        run("a", str(tmp_path / "a" / "checkpoint-24"))
    assert sorted((tmp_path / "a-log").iterdir()) == before
    with pytest.warns(UserWarning, match="epoch 2 of the log .* is damaged; it was moved to epoch-00002.damaged-1"):
        with pytest.warns(
            UserWarning, match=r"reaches to epoch 2 without damage: the run goes on from checkpoint-1[28]"
        ):
            assert same(run("a", True), want)
    left = sorted(path.name for path in (tmp_path / "a-log").glob("epoch-*.*"))
    assert left == ["epoch-00002.damaged-1"]
    for path in (tmp_path / "a").glob("checkpoint-*"):
        if path.name != "checkpoint-24":
            path.rename(tmp_path / f"old-{path.name}")
    report.write_bytes(b"")
    with pytest.raises(ValueError, match="epoch 2 of its log is damaged; nothing was changed"):
        run("a", True)


def test_refused_training_leaves_no_folder(tmp_path):
    class Refuses(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            raise KeyError("no")

    for collate, callbacks, error in (
        (pad, [Refuses()], KeyError),
        (lambda rows_: {"input_ids": pad(rows_)["input_ids"]}, [], ValueError),
    ):
        trainer = RecordingTrainer(
            classifier(), arguments(tmp_path / "out"), train_dataset=texts(), data_collator=collate,
            log=tmp_path / "logs" / "log", callbacks=callbacks,
        )  # fmt: skip
        with pytest.raises(error):
            trainer.train()
        assert not (tmp_path / "logs").exists()


def same(log, want):
    columns = set(log.columns) & set(want.columns)
    pairs = [(log.read(name, e), want.read(name, e)) for e in range(want.epochs) for name in columns]
    return log.epochs == want.epochs and all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def test_going_on_with_other_labels(tmp_path):
    def run(ds, name, model=classifier, collate=pad, checkpoint=None):
        options = arguments(tmp_path / name, save_strategy="epoch", num_train_epochs=2 if checkpoint else 1)
        made = RecordingTrainer(model(), options, train_dataset=ds, data_collator=collate, log=tmp_path / f"{name}-log")
        made.train(resume_from_checkpoint=checkpoint)
        return TrainingLog(tmp_path / f"{name}-log").epochs

    ds = texts()
    other = ds.map(lambda row, i: {"label": 2 if i == 3 else row["label"]}, with_indices=True)
    run(ds, "a")
    with pytest.raises(
        ValueError, match=r"labels are not those of the log in .*a-log: 'r3' has 2, not 0 \(1 of 22 rows"
    ):
        run(other, "a", checkpoint=True)
    assert run(ds, "a", checkpoint=True) == 2
    run(ds, "text", language_model, pad_lm)  # its labels are tokens; a column "label" says nothing
    assert run(other, "text", language_model, pad_lm, checkpoint=True) == 2


def test_evaluation_is_not_recorded_and_needs_no_ids(tmp_path):
    ds = texts()
    trainer = RecordingTrainer(
        classifier(), arguments(tmp_path, eval_strategy="steps", eval_steps=2), train_dataset=ds,
        eval_dataset=ds.remove_columns("row_id"), data_collator=pad, log=tmp_path / "log",
    )  # fmt: skip
    trainer.train()
    assert TrainingLog(tmp_path / "log").report(1).rows == N
    assert trainer.predict(ds).predictions.shape == (N, 3)


def test_rows_grouped_by_length(tmp_path):
    trainer = RecordingTrainer(
        classifier(), arguments(tmp_path, train_sampling_strategy="group_by_length"), train_dataset=texts(),
        data_collator=pad, log=tmp_path / "log",
    )  # fmt: skip
    trainer.train()
    assert TrainingLog(tmp_path / "log").epochs == 2


@pytest.mark.parametrize("kind", ["masked", "encoder-decoder"])
def test_labels_are_shifted_for_causal_models_only(tmp_path, kind):
    torch.manual_seed(0)
    if kind == "masked":
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        model = BertForMaskedLM(BertConfig(vocab_size=40, max_position_embeddings=16, **sizes))
    else:
        sizes = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2}
        model = T5ForConditionalGeneration(T5Config(vocab_size=40, decoder_start_token_id=0, **sizes))
    ds = texts(6)
    trainer = RecordingTrainer(
        model,
        arguments(tmp_path, num_train_epochs=1),
        train_dataset=ds,
        data_collator=pad_lm,
        log=tmp_path / "log",
        mode="eval",
    )
    trainer.train()
    log = TrainingLog(tmp_path / "log")
    loss, tokens = log.read("loss", 0), log.read("tokens", 0)
    whole = trainer.model.eval()(**pad_lm(list(ds))).loss.item()
    assert (loss * tokens).sum() / tokens.sum() == pytest.approx(whole, rel=1e-4)


def test_bad_input(tmp_path):
    def make(ds=None, model=None, options=None, **more):
        made = {"train_dataset": texts() if ds is None else ds, "data_collator": pad, "log": tmp_path / "log", **more}
        return RecordingTrainer(model or classifier(), arguments(tmp_path, **(options or {})), **made)

    ds = texts()
    with pytest.raises(KeyError, match=r"no column 'row_id' in the dataset; .* add ids with with_row_id\(ds\)"):
        make(ds.remove_columns("row_id"))
    with pytest.raises(TypeError, match="train_dataset is a IterableDataset; recording needs a datasets.Dataset"):
        make(ds.to_iterable_dataset(), options={"max_steps": 2})
    with pytest.warns(UserWarning, match="'label' and 'labels', and the collators of transformers train on 'label'"):
        make(ds.add_column("labels", [0] * len(ds)))
    with pytest.raises(ValueError, match="dataloader_drop_last=True leaves rows out"):
        make(options={"dataloader_drop_last": True})
    with pytest.raises(ValueError, match="clean_dataset has other ids"):
        make(clean_dataset=ds.select(range(5)))
    with pytest.raises(
        ValueError, match=r"1 labels that are not in 0..2: \[7\] of \['r3'\]; give the model num_labels=8"
    ):
        make(ds.map(lambda row, i: {"label": 7 if i == 3 else 0}, with_indices=True))
    with pytest.raises(ValueError, match="1 id occurs more than once: 'r1'"):
        make(ds.select([0, 1, 2, 1])).train()
    assert not (tmp_path / "log").exists()
    make().train()
    with pytest.raises(ValueError, match="holds a training log already"):
        make().train()
    for labels, words, error in (
        ([[0.0, 1.0, 0.0]] * N, r"column 'label' holds several values a row \(List.*multi-label", TypeError),
        (
            [i % 4 - 1 for i in range(N)],
            r"has 6 rows without a class .*\[-1, -1, -1, -1, -1\] of \['r0', 'r4'",
            ValueError,
        ),
        ([-100] + [1] * (N - 1), r"has 1 rows without a class .*: \[-100\] of \['r0'\]; drop such rows", ValueError),
        ([None] + [1] * (N - 1), r"has 1 rows without a class .*: \[None\] of \['r0'\]; drop such rows", ValueError),
        ([0.5] * N, "column 'label' holds double; a log is of hard labels", TypeError),
    ):
        with pytest.raises(error, match=words):
            make(ds.remove_columns("label").add_column("label", labels), log=tmp_path / "none")
    for problem in ("multi_label_classification", "regression"):
        model = classifier()
        model.config.problem_type = problem
        with pytest.raises(ValueError, match=f"problem_type is '{problem}'; a log is of hard labels, one class a row"):
            make(model=model)
    with pytest.raises(ValueError, match="the model has one output .num_labels=1., which is regression"):
        make(model=classifier(labels=1))
    assert not (tmp_path / "none").exists()
    soft = ds.map(lambda row: {"label": row["label"] / 2})
    with pytest.raises(TypeError, match="hard labels"):
        make(soft, classifier(labels=1), log=tmp_path / "soft").train()


def test_no_epochs(tmp_path):
    trainer = RecordingTrainer(
        classifier(),
        arguments(tmp_path, num_train_epochs=0),
        train_dataset=texts(),
        data_collator=pad,
        log=tmp_path / "log",
    )
    trainer.train()
    log = TrainingLog(tmp_path / "log")
    assert log.epochs == 0
    with pytest.raises(ValueError, match="no finished epoch"):
        next(log.each("loss"))


SCRIPT = """
import json, pathlib, sys
from test_trainer import *
folder = pathlib.Path(sys.argv[1])
facts = {}
for record in ("train", "eval"):
    # or transformers 5.23 doubles the loss of a network that, like BERT, takes no notice of num_items_in_batch
    options = {"optim": "sgd", "per_device_train_batch_size": 2, "average_tokens_across_devices": False}
    options = arguments(folder / record, **options)
    data = {"train_dataset": texts(21), "data_collator": pad}
    trainer = RecordingTrainer(classifier(0.0), options, **data, log=folder / f"{record}-log", mode=record)
    trainer.train()
    facts[record] = weights(trainer)[:50].tolist()
(folder / f"facts-{options.process_index}.json").write_text(json.dumps({"world": options.world_size, **facts}))
"""


@pytest.mark.slow
def test_two_processes(tmp_path):
    """21 rows, two a process and step: the sampler repeats three rows, whose first presentations stay."""
    together(SCRIPT, tmp_path)
    facts = [json.loads((tmp_path / f"facts-{i}.json").read_text()) for i in range(2)]
    assert [f["world"] for f in facts] == [2, 2] and facts[0]["train"] == facts[1]["train"] == facts[0]["eval"]
    alone = RecordingTrainer(
        classifier(0.0), arguments(tmp_path / "alone", optim="sgd"), train_dataset=texts(21),
        data_collator=pad, log=tmp_path / "alone-log",
    )  # fmt: skip
    alone.train()
    logs = {name: TrainingLog(tmp_path / f"{name}-log") for name in ("train", "eval", "alone")}
    assert all(log.epochs == 2 and log.report(1).rows == 21 for log in logs.values())
    assert [logs[name].report(0).padding for name in logs] == [3, 0, 0]
    # the first epoch but for its last step, where repeated rows weigh in: the same order, half a batch each
    for name in logs["alone"].columns:
        np.testing.assert_allclose(logs["train"].read(name, 0), logs["alone"].read(name, 0), atol=1e-4)


def test_rows_that_are_packed(tmp_path):
    """Scores of packed sequences are not scores of documents: said where it shows; joined batches are refused."""
    long = [[1 + (i + j) % 39 for j in range(64)] for i in range(10)]
    ds = Dataset.from_dict({"row_id": [f"r{i}" for i in range(10)], "input_ids": long})

    def make(ds, model=None, **more):
        more = {"data_collator": pad_lm, "log": tmp_path / "log", **more}
        return RecordingTrainer(model or language_model(), arguments(tmp_path), train_dataset=ds, **more)

    for packed, why in (
        (ds, "all are 64 tokens long, without padding"),
        (ds.add_column("attention_mask", [[1] * 64] * 10), "all are 64 tokens long, without padding"),
        (ds.select(range(3)).add_column("seq_lengths", [[30, 34]] * 3), "column 'seq_lengths'"),
        (ds.select(range(3)).add_column("position_ids", [[*range(30), *range(34)]] * 3), "'position_ids' begins anew"),
    ):
        with pytest.warns(UserWarning, match=rf"look packed \(.*{why}.*\): scores will be those of packed sequences"):
            make(packed)
    padded = [[1] * 60 + [0] * 4] * 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(ds.add_column("attention_mask", padded))
        make(ds.select(range(3)).add_column("position_ids", [[*range(64)]] * 3))
        make(ds.map(lambda row: {"input_ids": row["input_ids"][: 32 + int(row["row_id"][1:])]}))
        make(ds.add_column("label", [0] * 10), model=classifier(), data_collator=pad)  # rows of a classifier are rows
    with pytest.raises(ValueError, match="DataCollatorWithFlattening joins the rows of a batch to one"):
        make(ds, data_collator=DataCollatorWithFlattening())
    options = arguments(tmp_path)
    options.packing = True  # as TRL has it, whose packing drops the ids
    with pytest.raises(KeyError, match="packing=True joined the documents and dropped their ids; no column 'row_id'"):
        RecordingTrainer(language_model(), options, train_dataset=ds.remove_columns("row_id"), log=tmp_path / "log")


def test_classes_of_other_names(tmp_path):
    ds, model = texts().cast_column("label", ClassLabel(names=["cat", "dog", "fish"])), classifier()
    model.config.id2label = {0: "dog", 1: "cat", 2: "fish"}
    options = {"data_collator": pad, "log": tmp_path / "log"}
    with pytest.raises(ValueError, match="has the classes 0: 'cat', .*; the model BertForSeq.* has 0: 'dog', 1: 'cat'"):
        RecordingTrainer(model, arguments(tmp_path), train_dataset=ds, **options)
    model.config.id2label = {0: "CAT", 1: "Dog", 2: "fish"}
    trainer = RecordingTrainer(model, arguments(tmp_path, num_train_epochs=1), train_dataset=ds, **options)
    trainer.train()
    assert TrainingLog(tmp_path / "log").facts["class_names"] == ["cat", "dog", "fish"]
