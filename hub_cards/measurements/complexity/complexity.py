"""The L1 norm of the Task2Vec embedding of a text dataset: how much its content moves the probe."""

import datasets
import evaluate
import hf_prune

_CITATION = """\
@inproceedings{achille2019task2vec,
  title = {Task2Vec: Task Embedding for Meta-Learning},
  author = {Achille, Alessandro and others},
  booktitle = {ICCV},
  year = {2019},
  url = {https://arxiv.org/abs/1902.03545}
}
"""

_DESCRIPTION = """\
The L1 norm of the Task2Vec embedding of a text dataset: how much its content moves the probe.
"""

_KWARGS_DESCRIPTION = """
Args:
    data: texts.
    probe: the network whose Fisher information embeds them.
Returns:
    complexity: L1 norm, 0 or more.
Examples:
    >>> complexity = evaluate.load("complexity", module_type="measurement")
    >>> complexity.compute(data=texts, probe="openai-community/gpt2")
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Complexity(evaluate.Measurement):
    """Task2Vec Complexity."""

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
        return {"complexity": float(hf_prune.task2vec(ds, probe=probe).complexity)}
