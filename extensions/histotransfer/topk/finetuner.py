"""The finetuner ``top-k``; light to import."""

from tiaft_plugin.finetune.interface import FinetuneJob, FinetuneResult, Inputs, Targets


class TopK:
    """Makes a tile encoder better by the labels of bags, through attention (paper 4, stage 2).

    Samples are bags: their files are feature stores (inputs "slides", with the option `slides`) or
    tile images ("bags"); their targets 1 for the class and 0 for others; their groups patients.
    The option `attention` is the file of the head to begin with; see ``topk.settings``.
    """

    inputs: frozenset[Inputs] = frozenset({"bags", "slides"})
    targets: frozenset[Targets] = frozenset({"classes"})

    def __call__(self, job: FinetuneJob) -> FinetuneResult:
        """Run a job; torch is loaded when one runs. Raises TiaftError."""
        from tiaft_extensions.histotransfer.topk.run import run_job

        return run_job(job)
