"""Slides as bags of tiles: attention pooling, top-k fine-tuning, and how it changes a network.

After Sharma, Ehsan, Syed and Brown, "HistoTransfer: Understanding transfer learning for
histopathology".
"""
