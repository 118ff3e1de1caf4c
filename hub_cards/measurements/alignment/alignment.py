"""The alignment coefficient: 1 minus the Task2Vec distance between a text dataset and a target."""

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
The alignment coefficient: 1 minus the Task2Vec distance between a text dataset and a target.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: texts of the source.
    references: texts of the target; as many, since `evaluate` stores pairs of columns.
    probe: the network whose Fisher information embeds both.
Returns:
    alignment: at most 1, which two samples of one distribution have but for the error of the estimate; higher is
        closer to the target.
Examples:
    >>> alignment = evaluate.load("alignment", module_type="measurement")
    >>> alignment.compute(predictions=source, references=target, probe="openai-community/gpt2")
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Alignment(evaluate.Measurement):
    """Task2Vec Alignment."""

    def _info(self):
        return evaluate.MeasurementInfo(
            module_type="measurement",
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
            codebase_urls=["https://github.com/hf-prune/hf_prune"],
        )

    def _compute(self, predictions, references, probe="openai-community/gpt2"):
        source, target = (datasets.Dataset.from_dict({"text": texts}) for texts in (predictions, references))
        return {"alignment": float(hf_prune.alignment_coefficient(source, target, probe=probe))}
