"""The finetuners ``expression-direct`` and ``expression-contrastive``; light to import."""

from tiaft_plugin.finetune.interface import FinetuneJob, FinetuneResult, Inputs, Targets


class OnExpression:
    """Makes a tile encoder better by the expression of its slides (paper 5).

    Samples are slides: their files are tile images (inputs "bags") or feature stores ("slides",
    for heads only); their targets ln(TPM + 1), named by gene; their groups patients.
    """

    inputs: frozenset[Inputs] = frozenset({"bags", "slides"})
    targets: frozenset[Targets] = frozenset({"regression"})

    def __init__(self, objective: str):
        self.objective = objective

    def __call__(self, job: FinetuneJob) -> FinetuneResult:
        """Run a job; torch is loaded when one runs. Raises TiaftError."""
        from tiaft_extensions.transcriptomics.tune.run import run_job

        return run_job(job, self.objective)
