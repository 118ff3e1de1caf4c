"""The effective number of distinct rows of a dataset: n if all are unlike each other, 1 if all are the same."""

import datasets
import evaluate
import hf_prune

_CITATION = """\
@article{friedman2023vendi,
  title = {The Vendi Score: A Diversity Evaluation Metric for Machine Learning},
  author = {Friedman, Dan and Dieng, Adji Bousso},
  journal = {Transactions on Machine Learning Research},
  year = {2023},
  url = {https://arxiv.org/abs/2210.02410}
}
"""

_DESCRIPTION = """\
The effective number of distinct rows of a dataset: n if all are unlike each other, 1 if all are the same.
"""

_KWARGS_DESCRIPTION = """
Args:
    data: rows of numbers (embeddings, compared by cosine), or texts (compared by n-grams of orders 1 to 4).
    q: order of the entropy, 0 to infinity; small orders see rare rows. 1 by default.
    weights: probabilities of the rows; the same for all by default.
Returns:
    vendi_score: from 1 to the number of rows.
    rows: how many there were: compare scores of one number of rows only.
Examples:
    >>> vendi = evaluate.load("vendi", module_type="measurement")
    >>> vendi.compute(data=[[1.0, 0.0], [0.0, 1.0]])
    {'vendi_score': 2.0, 'rows': 2.0}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class VendiScore(evaluate.Measurement):
    """Vendi Score."""

    def _info(self):
        return evaluate.MeasurementInfo(
            module_type="measurement",
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=[
                datasets.Features({"data": datasets.Sequence(datasets.Value("float32"))}),
                datasets.Features({"data": datasets.Value("string")}),
            ],
            codebase_urls=["https://github.com/hf-prune/hf_prune"],
        )

    def _compute(self, data, q=1.0, weights=None):
        kernel = "ngram" if isinstance(data[0], str) else "cosine"
        score = hf_prune.vendi_score(data, q=q, kernel=kernel, weights=weights)
        return {"vendi_score": float(score), "rows": float(len(data))}
