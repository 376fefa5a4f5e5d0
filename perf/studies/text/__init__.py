"""A text committee: members trained on paragraphs of docstrings, and the plans that they allow."""
