"""What the paper reports (sections 3.1 and 4): the numbers that ours stand beside."""

PATIENTS, SLIDES, GENES = 344, 900, 907  # section 3.1 and 4.2

# Section 4.3, in the order of its text.
MUTATED_GENES = ("STK11", "TP53", "LRP1B", "NF1", "FAT1", "FAT4", "KEAP1", "EGFR", "KRAS")
MUTATION_BETTER = ("STK11", "TP53", "LRP1B", "NF1", "FAT1")
MUTATION_SIMILAR = ("FAT4", "KEAP1")
MUTATION_WORSE = ("EGFR", "KRAS")

# Section 4.1: accuracy of IMGNET-2048 and FTX-2048; "" is all tissues together.
TISSUE = {
    "": (0.964, 0.984),
    "STR": (0.87, 0.94),
    "MUS": (0.94, 0.98),
    "TUM": (0.97, 0.99),
    "NORM": (0.97, 0.99),
}

# Section 4.2: of the genes with p < 0.05, how many FTX-2048 predicts better.
GENES_SIGNIFICANT, GENES_BETTER = 171, 139
