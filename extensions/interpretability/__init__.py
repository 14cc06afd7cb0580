"""What a network looks at, what its channels stand for, and which concepts it can read.

After Graziani, Andrearczyk and Müller, "Visualizing and interpreting feature reuse of pretrained
CNNs for histopathology".
"""
