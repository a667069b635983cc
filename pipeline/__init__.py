"""The stages in order: variant, data, training, export, evaluation, report."""
