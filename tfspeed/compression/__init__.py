"""What the compressing strategies share: copies, targets, calibration, and the methods' numerics.

A strategy takes a copy of the model whose variables share the original's memory (`copying`), finds
the layers it is asked to change (`targets`), reads calibration text through them layer by layer
(`calibration`), and gives each its new values or its new form.
"""
