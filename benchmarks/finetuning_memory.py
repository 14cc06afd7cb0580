"""How much memory training the default Xception's Part A takes, each way in a process of its own.

    python benchmarks/finetuning_memory.py [--batch-size 128] [--size 224] [--steps 2] [--plain]

Random weights, made-up tiles: neither changes the memory. Of bfloat16, and of float32 with
activation checkpointing, it prints the estimate that decides before training, and the most that
the process had at any moment, Python and libraries included. With ``--plain`` also float32 without
checkpointing, and bfloat16 with it. What is above 12 GiB is named, and the exit status is 1.
"""

import argparse
import subprocess
import sys
import time
from contextlib import nullcontext

LIMIT = 12  # GiB
WAYS = [("bfloat16", False), ("float32", True)]  # precision, and whether to checkpoint
OTHER_WAYS = [("float32", False), ("bfloat16", True)]


def train(precision: str, checkpointed: bool, options: argparse.Namespace) -> None:
    """Train for a few steps, and print peak (GiB) and seconds of the last step."""
    import torch

    from tiaft_plugin.finetune.memory import checkpoint_activations
    from tiaft_plugin.finetune.stage import StageModule, peak_gib

    module = StageModule(network(options), "part_a", precision=precision).train()
    module.net.part_a.to(memory_format=module.layout)
    optimizer = torch.optim.Adam(module.trained.parameters(), lr=5e-5)
    tiles, targets = made_up(options)
    with checkpoint_activations(module.net.part_a) if checkpointed else nullcontext():
        for _ in range(options.steps):
            started = time.perf_counter()
            loss = torch.nn.functional.cross_entropy(module(tiles), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    print(peak_gib(torch.device("cpu")), time.perf_counter() - started)


def network(options: argparse.Namespace):
    """Return the default network with nine classes."""
    from tiaft_plugin.network import create_network

    return create_network(classes="abcdefghi", init="random", tile_size=options.size)


def made_up(options: argparse.Namespace):
    """Return tiles (N, H, W, 3) uint8 and targets (N,)."""
    import torch

    shape = options.batch_size, options.size, options.size, 3
    return torch.randint(0, 256, shape, dtype=torch.uint8), torch.arange(shape[0]) % 9


def in_own_process(precision: str, checkpointed: bool, rest: list[str]) -> tuple[float, float]:
    """Return peak (GiB) and seconds of the last step of a fresh process."""
    way = ["--way", precision, "checkpointed" if checkpointed else "plain"]
    done = subprocess.run(
        [sys.executable, __file__, *way, *rest], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(way)} ended with status {done.returncode} (-9: out of memory)")
    peak, seconds = done.stdout.split()
    return float(peak), float(seconds)


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description="Measure the memory that training takes.")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--size", type=int, default=224, help="side of tiles, px")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--plain", action="store_true", help="measure the other two ways, too")
    parser.add_argument("--way", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        return train(options.way[0], options.way[1] == "checkpointed", options)

    from tiaft_plugin.finetune.memory import GIB, measure_need

    net, above = network(options), []
    print(f"{net.card.backbone}, {options.size} px, {options.batch_size} tiles a batch, in GiB")
    print(f"{'precision':12}{'activations':15}{'estimated':>10}{'peak':>8}{'s a step':>10}")
    for precision, checkpointed in WAYS + OTHER_WAYS * options.plain:
        need = measure_need(net, "part_a", precision).of(options.batch_size, checkpointed)
        peak, seconds = in_own_process(precision, checkpointed, sys.argv[1:])
        kept = "checkpointed" if checkpointed else "kept"
        print(f"{precision:12}{kept:15}{need / GIB:10.1f}{peak:8.1f}{seconds:10.1f}", flush=True)
        if peak > LIMIT and (precision, checkpointed) in WAYS:
            above.append(f"{precision}, {kept}")
    if above:
        sys.exit(f"above {LIMIT} GiB: {'; '.join(above)}")
    print(f"bfloat16, and float32 checkpointed, are within {LIMIT} GiB")


if __name__ == "__main__":
    main()
