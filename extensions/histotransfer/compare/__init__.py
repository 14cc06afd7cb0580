"""Which tile encoder is best, and how much of it: the paper's questions, asked of one's own slides.

Feature stores of each encoder, attention pooling over them under one protocol, and a table.
"""
