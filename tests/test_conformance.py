"""Every scorer of the package, through the public conformance suite."""

from __future__ import annotations

import tempfile

import datasets
import numpy as np
import pytest
from PIL import Image as Picture

import hf_prune as hp
from hf_prune.testing import CHECKS, check_scorer, forking_process


@pytest.fixture(scope="module")
def check():
    """The suite with one second process for all scorers; `testing`'s own tests start real ones."""
    with forking_process() as second:

        def run(scorer, ds, **options):
            assert check_scorer(scorer, ds, second_process=second, **options) == list(CHECKS)

        yield run


SCORERS = {
    "DSIR": lambda ds: hp.DSIR.fit(ds, ds.select(range(24))),
    "DSIR-targets": lambda ds: hp.DSIR.fit(
        ds, {"a": ds.select(range(9)), "b": ds.select([9])}, hash="fast", normalize="per_ngram", tokens=True, key=1
    ),
    "Random": lambda ds: hp.Random(seed=100),
    "SSLPrototypes": lambda ds: hp.SSLPrototypes.fit(ds, k=4, cluster=True),
    "SSLPrototypes-torch": lambda ds: hp.SSLPrototypes.fit(ds, k=4, engine="torch"),
    "SSLPrototypes-euclidean": lambda ds: hp.SSLPrototypes.fit(
        ds, k=4, metric="euclidean", spherical=False, normalize=False
    ),
    "SSLPrototypes-margin": lambda ds: hp.SSLPrototypes.fit(ds, k=4, metric="margin"),
    "Herding": lambda ds: hp.Herding.fit(ds, rows=20),
    "KCenter": lambda ds: hp.KCenter.fit(ds, rows=20, row_id=None),
    "Moderate": lambda ds: hp.Moderate.fit(ds),
    "SemDeDup": lambda ds: hp.SemDeDup.fit(ds, k=4),
    "SemDeDup-vectors": lambda ds: hp.SemDeDup.fit(ds, k=4, keep_first="random", clusters_per_row=2, row_id=None),
    "SupervisedPrototypes": lambda ds: hp.SupervisedPrototypes.fit(ds, margin=True),
    "SupervisedPrototypes-euclidean": lambda ds: hp.SupervisedPrototypes.fit(ds, metric="euclidean", normalize=False),
    "QualityClassifier": lambda ds: hp.QualityClassifier.fit(ds, int_score=True),
    "QualityClassifier-logistic": lambda ds: hp.QualityClassifier.fit(ds, regression="logistic", threshold=2),
    "SupervisedPrototypes-strings": lambda ds: hp.SupervisedPrototypes.fit(ds, label="kind", metric="margin"),
    "VendiContribution": lambda ds: hp.VendiContribution.fit(ds),
    "VendiContribution-first-order": lambda ds: hp.VendiContribution.fit(ds, q=0.5, exact=False),
    "TextStatistics": lambda ds: hp.TextStatistics(),
    "ExactDedup": lambda ds: hp.ExactDedup.fit(ds, text="animal", ignore=("case", "space")),
    "ExactDedup-reference": lambda ds: hp.ExactDedup.fit(ds, reference=ds.select(range(20))),
    "MinHashDedup": lambda ds: hp.MinHashDedup.fit(ds, ngram=2, threshold=0.5, max_cluster=3),
    "MinHashDedup-estimated": lambda ds: hp.MinHashDedup.fit(ds, ngram=2, threshold=0.5, verify=False),
    "MinHashDedup-reference": lambda ds: hp.MinHashDedup.fit(ds, ngram=2, reference=ds.select(range(20))),
    "SubstringDedup": lambda ds: hp.SubstringDedup.fit(ds, min_tokens=4, spans=True),
    "SubstringDedup-reference": lambda ds: hp.SubstringDedup.fit(ds, min_tokens=3, reference=ds.select(range(20))),
}


@pytest.fixture(scope="session")
def rows(vectors):
    kinds = vectors.add_column("kind", [f"kind {i % 4}" for i in range(len(vectors))])
    return kinds.add_column("animal", [f"Cat {min(i, 60)}" for i in range(len(vectors))])  # some twice


@pytest.mark.parametrize("name", SCORERS)
def test_conforms(name, rows, check):
    check(SCORERS[name](rows), rows)


def sampled(log):
    """Logs of two runs on the rows of `log`, each with its own threshold samples."""
    ds = datasets.Dataset.from_dict({"row_id": log.ids.to_pylist(), "label": np.asarray(log.labels)})
    logs = []
    for run in (0, 1):
        labels = np.asarray(hp.with_threshold_samples(ds, run=run, classes=4, seed=0)["label"])
        logits = np.random.default_rng(run).normal(size=(6, len(ds), 5)) + 2 * np.eye(5)[labels]
        logs.append(hp.TrainingLog.from_logits(tempfile.mkdtemp(), ds["row_id"][:], logits, labels))
    return logs


LOGGED = {
    "EL2N-log": lambda log: hp.EL2N.from_log(log),
    "Forgetting": lambda log: hp.Forgetting.from_log([log, log], never="inf", tie_break="first_learned"),
    "AUM": lambda log: hp.AUM.from_log(sampled(log), threshold_seed=0),
    "Cartography": lambda log: hp.Cartography.from_log(log),
    "DUAL": lambda log: hp.DUAL.from_log(log, window=3),
    "DynamicUncertainty": lambda log: hp.DynamicUncertainty.from_log(log, window=3),
    "TDDS": lambda log: hp.TDDS.from_log(log, window=3),
    "Uncertainty-log": lambda log: hp.Uncertainty.from_log(log, statistic="margin"),
}


@pytest.mark.parametrize("name", LOGGED)
def test_scorers_out_of_a_log_conform(name, small_log, rows, check):
    check(LOGGED[name](small_log), rows.select_columns(["row_id"]))


def test_scorers_of_models_conform(tiny_text_classifier_folder, tiny_gpt2_folder, vectors, check):
    texts = [f"the {animal} sat on {'mat ' * (i % 4 + 1)}" for i, animal in enumerate("cat dog card bank".split() * 3)]
    ds = datasets.Dataset.from_dict({"text": texts, "label": [i % 3 for i in range(12)]})
    for scorer in (
        hp.EL2N([tiny_text_classifier_folder]),
        hp.Uncertainty(tiny_gpt2_folder),
        hp.GraNd(tiny_gpt2_folder),
    ):
        check(scorer, ds, seconds=180)


def test_task2vec_scorers_conform(tiny_gpt2_folder, tiny_resnet_folder, sentences, check):
    target = sentences.select(range(4))
    probe = hp.Probe(tiny_gpt2_folder, estimator="position", truncate="right")
    for scorer in (
        hp.Task2VecAlignment.fit(target, probe, prototype="centroids", k=2, complexity=True),
        hp.Task2VecComplexity(probe),
    ):
        check(scorer, sentences, seconds=180)
    rng = np.random.default_rng(0)
    pictures = [Picture.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)) for _ in range(9)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    ds = datasets.Dataset.from_dict({"image": pictures, "label": [i % 2 for i in range(9)]}, features)
    scorer = hp.Task2VecAlignment.fit(ds, tiny_resnet_folder)
    check(scorer, ds.remove_columns("label"), seconds=180)


def test_embedder_of_texts_conforms(tiny_bert_folder, vectors, check):
    texts = [f"the {animal} sat on {'mat ' * (i % 4 + 1)}" for i, animal in enumerate("cat dog card bank".split() * 3)]
    ds = vectors.select(range(12)).remove_columns("text").add_column("text", texts)
    ds = ds.remove_columns("embedding")
    check(hp.Embedder(tiny_bert_folder, column="text"), ds)


def test_embedder_of_pictures_conforms(tiny_resnet_folder, check):
    rng = np.random.default_rng(0)
    pictures = [Picture.fromarray(rng.integers(0, 256, (12 + i, 16, 3), np.uint8)) for i in range(9)]
    ds = datasets.Dataset.from_dict({"image": pictures}, datasets.Features({"image": datasets.Image()}))
    check(hp.Embedder(tiny_resnet_folder, column="image"), ds)


@pytest.fixture(scope="session")
def sentences():
    words = "the a card pay bank when how my is not why cat dog sat on mat and ran far".split()
    rng = np.random.default_rng(0)
    return datasets.Dataset.from_dict({"text": [" ".join(rng.choice(words, 2 + 7 * i)) for i in range(9)]})


def test_perplexity_conforms(tiny_gpt2_folder, sentences, check):
    more = {"perplexity": True, "bits_per_byte": True, "n_tokens": True}
    scorer = hp.Perplexity(tiny_gpt2_folder, stride=15, on_bad="nan", **more)
    check(scorer, sentences)


def test_ask_llm_conforms(tiny_gpt2_folder, sentences, check):
    scorer = hp.AskLLM(tiny_gpt2_folder, prompt="is {text} not far", yes="the", no="a", answered=True)
    check(scorer, sentences)


def test_kenlm_conforms(tmp_path, sentences, check):
    pytest.importorskip("kenlm")
    file = tmp_path / "toy.arpa"
    words = ["<unk>", "<s>", "</s>", "the", "cat", "bank"]
    unigrams = "\n".join(f"{-1 - i / 8}\t{word}\t0" for i, word in enumerate(words))
    file.write_text(
        f"\\data\\\nngram 1=6\nngram 2=1\n\n\\1-grams:\n{unigrams}\n\n\\2-grams:\n-0.5\tthe cat\n\n\\end\\\n"
    )
    check(hp.KenLM(str(file), perplexity=True), sentences)
