"""How much of a pretrained network is needed: truncated backbones, and the study that finds out.

After Peng, Liang, Luo et al., "Rethink transfer learning in medical image classification".
"""
