"""The parts of examples/demo.py: photographs, agreement, timing, digits and the picture."""
