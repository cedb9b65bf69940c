"""Node classes that name model files. They make recipes; weights are read elsewhere (`models`)."""
