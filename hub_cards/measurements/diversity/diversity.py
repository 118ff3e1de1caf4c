"""The diversity coefficient: the mean distance between Task2Vec embeddings of random batches of a text dataset."""

import datasets
import evaluate
import hf_prune

_CITATION = """\
@misc{miranda2023beyond,
  title = {Beyond Scale: The Diversity Coefficient as a Data Quality Metric for Variability in Natural Language Data},
  author = {Miranda, Brando and others},
  year = {2023},
  url = {https://arxiv.org/abs/2306.13840}
}
"""

_DESCRIPTION = """\
The diversity coefficient: the mean distance between Task2Vec embeddings of random batches of a text dataset.
"""

_KWARGS_DESCRIPTION = """
Args:
    data: texts.
    probe: the network whose Fisher information embeds the batches: a name on the Hub or a folder.
Returns:
    diversity: mean cosine distance between batches, 0 or more.
Examples:
    >>> diversity = evaluate.load("diversity", module_type="measurement")
    >>> diversity.compute(data=texts, probe="openai-community/gpt2")
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Diversity(evaluate.Measurement):
    """Task2Vec Diversity."""

    def _info(self):
        return evaluate.MeasurementInfo(
            module_type="measurement",
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"data": datasets.Value("string")}),
            codebase_urls=["https://github.com/hf-prune/hf_prune"],
        )

    def _compute(self, data, probe="openai-community/gpt2"):
        ds = datasets.Dataset.from_dict({"text": data})
        return {"diversity": float(hf_prune.diversity_coefficient(ds, probe=probe))}
