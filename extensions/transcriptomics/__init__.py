"""Images meet genes: fine-tuning on expression, directly and by contrast.

After de Jong, Karasikov, Kurban, Platscher, Stettler and Tang, "Enhancing pathology foundation
models with transcriptomics".
"""
