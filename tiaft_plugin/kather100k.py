"""The nine tissue classes of NCT-CRC-HE-100K, in the order TIAToolbox gives them."""

# TIAToolbox's KatherPatchDataset has this order, and its tutorials hard-code it.
KATHER100K = ("BACK", "NORM", "DEB", "TUM", "ADI", "MUC", "MUS", "STR", "LYM")
